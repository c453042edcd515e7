"""Choosing every method's settings on validation, by one budget for all.

A method gets N settings: those of its file, and N - 1 drawn without replacement
from its line of the search space (all of it, where it is smaller). Each is
judged by NDCG@10 of the full ranking of the validation part, with the first
seed; the test part is not read. Where a data set has no validation part, the
last training interaction of every user takes its place.
"""

import collections
import csv
import io
import itertools
import pathlib
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
from absl import logging

from fedjaxrec.data import whole_file
from fedjaxrec.data.splits import Split
from fedjaxrec.orchestration import benchmark, benchmark_runs, grid
from fedjaxrec.orchestration.benchmark import Plan, plain
from fedjaxrec.orchestration.benchmark_methods import (
  Dataset,
  Method,
  write_header,
)
from fedjaxrec.orchestration.compile_cache import share_compiled
from fedjaxrec.references.tuning import carve_validation
from fedjaxrec.reports import benchmark_directory, run_directory
from fedjaxrec.reports.sweep_table import show

_STREAM = 0xB07E
_MAX_SETTINGS = 10**6


def draw_settings(
    method: Method, axes: Sequence[grid.Axis], budget: int, seed: int
) -> list[dict[str, Any]]:
  """The settings that are tried: none changed first, then drawn ones.

  A combination that the config refuses, and one that is the file's own, is not
  drawn.

  Args:
    method: The method.
    axes: Its search space.
    budget: Settings, at least 1; a smaller space is taken whole.
    seed: Seed of the draw.

  Raises:
    ValueError: For a space of more than a million settings.
  """
  sizes = [len(axis.settings) for axis in axes]
  total = int(np.prod(sizes, dtype=np.int64))
  if total > _MAX_SETTINGS:
    raise ValueError(
        f'benchmark.tune: the search space of {method.name} has {total:,} '
        f'settings, more than {_MAX_SETTINGS:,}; give it fewer values.')
  chosen: list[dict[str, Any]] = [{}]
  own = method.fields()
  rng = np.random.default_rng(
      [_STREAM, seed, zlib.crc32(method.name.encode())])
  for place in rng.permutation(total) if axes else ():
    if len(chosen) >= budget:
      break
    at = np.unravel_index(place, sizes)
    values = dict(itertools.chain.from_iterable(
        zip(axis.fields, axis.settings[i]) for axis, i in zip(axes, at)))
    try:
      fields = method.with_values(values).fields()
    except ValueError:
      continue
    if fields != own:
      chosen.append(values)
  return chosen[:budget]


@share_compiled()
def run_tuning(
    plan: Plan,
    spaces: Sequence[Sequence[Sequence[grid.Axis]]],
    budget: int,
    workdir: pathlib.Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> list[pathlib.Path]:
  """Tries every setting that is not tried yet; writes the chosen flags.

  Leaves trials/DATASET/METHOD/NNN.json (written when the trial is over, so that
  a search that is killed goes on), tuning.csv, and chosen/DATASET/METHOD.flags.

  Args:
    plan: What is tuned; of its seeds the first one is used.
    spaces: For each data set and method its search space.
    budget: Settings a method.
    workdir: The search's directory.
    resume: Continue the search that is there; where there is none, begin it.
    overwrite: Replace it.
    progress: Show progress.

  Returns:
    The files of flags.

  Raises:
    ValueError, FileNotFoundError: For what is wrong with the data or the
      directory; before anything compiles.
    FloatingPointError: At the end, if all settings of a method have diverged
      or were refused.
  """
  resuming = run_directory.check_workdir(
      workdir, resume=resume, overwrite=overwrite,
      kind=benchmark_directory.KIND)
  plan = plan._replace(protocols=plan.protocols[:1])
  splits = benchmark.load_splits(plan)
  plan = benchmark.fit_cohorts(plan, splits)
  seed = plan.seeds[0]
  trials = {
      (dataset.name, method.name): draw_settings(
          method.with_seed(seed), axes, budget, seed)
      for dataset, methods, space in zip(plan.datasets, plan.methods, spaces)
      for method, axes in zip(methods, space)}
  runs = [run | {'trials': plain(trials[run['dataset'], run['method']])}
          for run in benchmark.plan_runs(plan._replace(seeds=[seed]))]
  old = benchmark_directory.read_benchmark(workdir) if resuming else None
  content = benchmark.merge(old, benchmark.new_benchmark(
      plan, splits, runs, tune=budget), workdir)
  _check_same_trials(runs, old['runs'] if old else (), workdir)
  if not resuming:
    run_directory.make_workdir(workdir, benchmark_directory.KIND)
  run_directory.write_json(workdir / benchmark_directory.BENCHMARK, content)
  _say_unrecorded(plan, trials)
  console = rich.console.Console(quiet=not progress)
  written: list[pathlib.Path] = []
  failures = []
  for dataset, methods in zip(plan.datasets, plan.methods):
    split = splits[dataset.name]
    if not split.validation.num_interactions:
      split = carve_validation(split)
    for method in methods:
      settings = trials[dataset.name, method.name]
      for number, values in enumerate(settings):
        path = benchmark_directory.trial_path(
            workdir, dataset.name, method.name, number)
        if run_directory.is_whole(path):
          continue
        run_directory.say_damaged(path)
        trial = _try(method.with_seed(seed), values, split, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        run_directory.write_json(path, trial)
        console.print(
            f'{dataset.name}, {method.name}, {number + 1} of {len(settings)}: '
            f'{grid.describe(values) or "as stored"}: '
            f'{trial["status"]} {trial["ndcg@10"]}', highlight=False,
            markup=False)
        benchmark.free_memory()
      _write_table(workdir, content['runs'])
      try:
        written.append(_choose(
            workdir, dataset, method, settings, seed, budget))
      except FloatingPointError as error:
        # The other methods have hours of search before them.
        failures.append(str(error))
  if failures:
    raise FloatingPointError(' '.join(failures))
  return written


def _say_unrecorded(
    plan: Plan, trials: Mapping[tuple[str, str], Sequence[dict[str, Any]]]
) -> None:
  """Warns of every method whose trials spend privacy that nobody records."""
  spending: collections.Counter[str] = collections.Counter()
  for dataset, methods in zip(plan.datasets, plan.methods):
    for method in methods:
      spending[method.name] += sum(
          _has_budget(method.with_values(values))
          for values in trials[dataset.name, method.name])
  for name, number in spending.items():
    if number:
      logging.warning(
          '%s: the search trains it with %d settings under privacy, each with '
          'a budget of its own, and no ledger records what they spend. The '
          'epsilon of a run with the chosen settings covers neither these '
          'trials nor the choice among them, which reads the validation '
          'interactions without noise: count them all, or choose on data that '
          'are public.', name, number)


def _has_budget(method: Method) -> bool:
  """Whether a method trains under differential privacy."""
  return not method.reference and (
      method.config.privacy.enabled or method.config.local_privacy.is_on)


def _try(
    method: Method, values: dict[str, Any], split: Split, progress: bool
) -> dict[str, Any]:
  begin = time.perf_counter()
  status, ndcg, message = 'done', None, ''
  try:
    ndcg = benchmark_runs.validate(method.with_values(values), split, progress)
  except FloatingPointError as error:
    status, message = 'diverged', str(error)
  except (ValueError, FileNotFoundError) as error:
    # What only the data or the model could tell.
    if not benchmark.is_refusal(error):
      raise
    status, message = 'refused', str(error)
  return {'values': values, 'status': status, 'ndcg@10': ndcg,
          'message': message, 'wall_s': time.perf_counter() - begin}


def _check_same_trials(
    runs: Sequence[dict[str, Any]], stored: Sequence[dict[str, Any]],
    workdir: pathlib.Path
) -> None:
  """Refuses to go on where the search space has changed."""
  before = {(run['dataset'], run['method']): run for run in stored}
  for run in runs:
    was = before.get((run['dataset'], run['method']), run)
    if was['trials'] != run['trials'] and benchmark_directory.has_results(
        workdir, run):
      raise ValueError(
          f'workdir={str(workdir)!r} holds a search of other settings of '
          f'{run["method"]} on {run["dataset"]}: its search space has changed '
          'since; use another --workdir, or --overwrite.')


def _choose(
    workdir: pathlib.Path, dataset: Dataset, method: Method,
    settings: Sequence[dict[str, Any]], seed: int, budget: int
) -> pathlib.Path:
  """Writes the file of flags of the best trial; of equal ones the first."""
  trials = [run_directory.read_json(benchmark_directory.trial_path(
      workdir, dataset.name, method.name, number))
            for number in range(len(settings))]
  done = [i for i, trial in enumerate(trials) if trial['ndcg@10'] is not None]
  if not done:
    raise FloatingPointError(
        f'benchmark.tune: every setting of {method.name} on {dataset.name} has '
        f'diverged or was refused; the first: {trials[0]["message"]}')
  best = max(done, key=lambda i: trials[i]['ndcg@10'])
  values = settings[best]
  kept = [line for line in method.path.read_text().splitlines()
          if line.startswith('--')
          and line[2:].partition('=')[0] not in values]
  text = '\n'.join([
      *write_header(method.name, dataset.name, len(settings), budget,
                    f'seed {seed}: {trials[best]["ndcg@10"]:.4f}'),
      *kept, *(f'--{name}={show(value)}' for name, value in values.items()),
      ''])
  path = benchmark_directory.chosen_path(workdir, dataset.name, method.name)
  path.parent.mkdir(parents=True, exist_ok=True)
  whole_file.write_text(path, text)
  return path


def _rows(
    workdir: pathlib.Path, runs: Sequence[dict[str, Any]]
) -> Iterator[list[Any]]:
  for run in runs:
    for number, values in enumerate(run['trials']):
      path = benchmark_directory.trial_path(
          workdir, run['dataset'], run['method'], number)
      if run_directory.is_whole(path):
        trial = run_directory.read_json(path)
        yield [run['dataset'], run['method'], run['seed'], number,
               '; '.join(f'{name}={show(value)}'
                         for name, value in values.items()),
               trial['status'],
               '' if trial['ndcg@10'] is None else trial['ndcg@10'],
               round(trial['wall_s'], 3)]


def _write_table(
    workdir: pathlib.Path, runs: Sequence[dict[str, Any]]) -> None:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['dataset', 'method', 'seed', 'trial', 'settings', 'status',
                   'validation_ndcg@10', 'wall_s'])
  writer.writerows(_rows(workdir, runs))
  whole_file.write_text(
      workdir / benchmark_directory.TUNING_TABLE, text.getvalue())
