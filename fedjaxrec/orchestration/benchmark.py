"""A benchmark: methods by data sets by seeds, one run after another.

What is done is on disk as soon as it is done, and `resume` does the rest: a run
that has its summary is not made again, and methods, data sets and seeds may be
added to a benchmark that is there. Compiled programs are dropped between
methods, so the process does not grow with their number.
"""

import gc
import json
import pathlib
import shutil
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import rich.console
from absl import logging

from fedjaxrec.data import whole_file
from fedjaxrec.data.splits import Split
from fedjaxrec.flags import config_fields
from fedjaxrec.orchestration import benchmark_runs, experiment
from fedjaxrec.orchestration.benchmark_methods import (
  PROTOCOLS,
  Dataset,
  Method,
  describe_settings,
)
from fedjaxrec.orchestration.compile_cache import share_compiled
from fedjaxrec.reports import (
  benchmark_directory,
  benchmark_html,
  benchmark_table,
  run_directory,
)

# Negatives of the sampled protocol.
_SAMPLED = 99
_LINE = '\n'


class Plan(NamedTuple):
  """What is to be compared.

  Attributes:
    datasets: The data sets.
    methods: For each data set its methods.
    seeds: Every method runs with each of them.
    protocols: Every run is ranked by each of them, the full ranking first.
  """
  datasets: Sequence[Dataset]
  methods: Sequence[Sequence[Method]]
  seeds: Sequence[int]
  protocols: Sequence[str] = PROTOCOLS


def plan_runs(plan: Plan) -> list[dict[str, Any]]:
  """What benchmark.json says of every run, in the order they are made."""
  return [
      {'dataset': dataset.name, 'method': method.name, 'seed': seed,
       'counterpart': method.counterpart,
       **describe_settings(method.path, dataset.name),
       'fields': plain(method.with_seed(seed).fields())}
      for dataset, methods in zip(plan.datasets, plan.methods)
      for method in methods for seed in plan.seeds]


def plain(value: Any) -> Any:
  """As JSON reads it again: tuples are lists."""
  return json.loads(json.dumps(value))


@share_compiled()
def run_benchmark(
    plan: Plan,
    workdir: pathlib.Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> list[benchmark_directory.Outcome]:
  """Makes every run that is not done, and writes the tables and the page.

  Args:
    plan: What is compared.
    workdir: The benchmark's directory, see `benchmark_directory`.
    resume: Continue the benchmark that is there; where there is none, begin it.
    overwrite: Replace it.
    progress: Show progress and print the tables.

  Returns:
    The outcome of every run of the directory.

  Raises:
    ValueError, FileNotFoundError: For what is wrong with the data or the
      directory; before anything compiles.
    FloatingPointError: If every run has failed.
  """
  resuming = run_directory.check_workdir(
      workdir, resume=resume, overwrite=overwrite,
      kind=benchmark_directory.KIND)
  splits = load_splits(plan)
  plan = fit_cohorts(plan, splits)
  runs = plan_runs(plan)
  benchmark = merge(
      benchmark_directory.read_benchmark(workdir) if resuming else None,
      new_benchmark(plan, splits, runs), workdir)
  if not resuming:
    run_directory.make_workdir(workdir, benchmark_directory.KIND)
  run_directory.write_json(
      workdir / benchmark_directory.BENCHMARK, benchmark)
  console = rich.console.Console(quiet=not progress)
  for dataset, methods in zip(plan.datasets, plan.methods):
    for method in methods:
      made = False
      for seed in plan.seeds:
        folder = benchmark_directory.run_folder(
            workdir, dataset.name, method.name, seed)
        if benchmark_directory.status_of(folder) in ('done', 'diverged'):
          continue
        console.print(f'{dataset.name}, {method.name}, seed {seed}',
                      highlight=False, markup=False)
        _make_run(method.with_seed(seed), splits[dataset.name],
                  plan.protocols, folder, progress)
        write_results(workdir)
        made = True
      if made:
        free_memory()
  outcomes = write_results(workdir)
  if progress:
    benchmark_table.print_results(outcomes)
  if all(o.status in ('diverged', 'refused', 'failed') for o in outcomes):
    raise FloatingPointError(
        f'every run of the benchmark has failed; the first: '
        f'{outcomes[0].message}')
  return outcomes


def write_results(
    workdir: pathlib.Path) -> list[benchmark_directory.Outcome]:
  """Writes benchmark.csv, .md and .html from what the runs left."""
  benchmark = benchmark_directory.read_benchmark(workdir)
  outcomes = benchmark_directory.read_outcomes(workdir, benchmark)
  for name, text in (
      (benchmark_directory.TABLE, benchmark_table.tidy_csv(outcomes)),
      (benchmark_directory.MARKDOWN, benchmark_table.markdown(outcomes)),
      (benchmark_directory.PAGE,
       benchmark_html.render_benchmark(benchmark, outcomes))):
    whole_file.write_text(workdir / name, text)
  return outcomes


def load_splits(plan: Plan) -> dict[str, Split]:
  """Every data set, loaded once.

  Raises:
    ValueError, FileNotFoundError: If one cannot be had.
  """
  splits = {}
  for dataset in plan.datasets:
    try:
      splits[dataset.name] = experiment.load_data(dataset.config)
    except (ValueError, FileNotFoundError) as error:
      raise type(error)(
          f'benchmark.datasets: {dataset.name}: {error}') from None
    if len(plan.protocols) > 1:
      _check_negatives(dataset.name, splits[dataset.name])
  return splits


def _check_negatives(name: str, split: Split) -> None:
  """Refuses a data set with users who have not 99 items to be ranked among."""
  if split.negatives is not None:
    return
  taken = (split.train.counts + split.validation.counts + split.test.counts
           + split.fold_in.counts)
  candidates = split.num_items
  if split.test_candidates is not None:
    candidates, taken = int(split.test_candidates.sum()), split.test.counts
  least = candidates - int(taken[split.test.counts > 0].max(initial=0))
  if least < _SAMPLED:
    raise ValueError(
        f'benchmark.protocols={",".join(PROTOCOLS)} on {name}: a user has only '
        f'{least} items of num_items={candidates} without an interaction, '
        f'fewer than the {_SAMPLED} negatives; use --benchmark.protocols=full.')


def fit_cohorts(plan: Plan, splits: dict[str, Split]) -> Plan:
  """Lets all clients take part where a method's cohort is larger than that.

  Settings were chosen on some data set; one's own may have fewer clients.
  """
  def fit(method, split):
    clients = int((split.train.counts > 0).sum())
    if method.reference or method.config.cohort.size <= clients:
      return method
    return method.with_values({'cohort.size': 0})

  return plan._replace(methods=[
      [fit(method, splits[dataset.name]) for method in methods]
      for dataset, methods in zip(plan.datasets, plan.methods)])


def new_benchmark(
    plan: Plan, splits: dict[str, Split], runs: Sequence[dict[str, Any]],
    tune: int = 0
) -> dict[str, Any]:
  """The content of benchmark.json."""
  return {
      'command': 'benchmark', 'tune': tune, 'protocols': list(plan.protocols),
      'datasets': {
          dataset.name: splits[dataset.name].split_fingerprint()
          for dataset in plan.datasets},
      'runs': list(runs)}


def merge(
    old: dict[str, Any] | None, new: dict[str, Any], workdir: pathlib.Path
) -> dict[str, Any]:
  """The benchmark that is there with what is asked for added to it.

  Raises:
    ValueError: If a run that is there would be another one now, or the data
      are others.
  """
  if old is None:
    return new
  name = f'workdir={str(workdir)!r}'
  if old['tune'] != new['tune']:
    def what(n):
      return f'a search among {n} settings (--benchmark.tune={n})' if n else (
          'a benchmark')
    raise ValueError(
        f'{name} holds {what(old["tune"])}, not {what(new["tune"])}; use '
        'another --workdir.')
  for dataset, fingerprint in new['datasets'].items():
    if old['datasets'].get(dataset, fingerprint) != fingerprint:
      raise ValueError(
          f'{name} holds a benchmark on another {dataset}: its interactions or '
          'their split have changed since; use another --workdir.')
  if old['protocols'] != new['protocols']:
    raise ValueError(
        f'benchmark.protocols={",".join(new["protocols"])} differs from the '
        f'benchmark in {name}, which has {",".join(old["protocols"])}; use '
        'another --workdir.')

  def key(run):
    return run['dataset'], run['method'], run['seed']

  before = {key(run): run for run in old['runs']}
  for run in new['runs']:
    was = before.get(key(run), run)
    # What has left no result may still be changed.
    before[key(run)] = run
    if not benchmark_directory.has_results(workdir, run):
      continue
    # A field that was not there yet had what is its default now.
    defaults = {field.name: plain(field.default) for field in config_fields()}
    for field in sorted({*was['fields'], *run['fields']}):
      past, now = (fields.get(field, defaults.get(field))
                   for fields in (was['fields'], run['fields']))
      if past != now:
        raise ValueError(
            f'{field}={now} for {run["method"]} on {run["dataset"]} differs '
            f'from the benchmark in {name}, which has {past}; a benchmark is '
            'continued with its own settings (methods, data sets and seeds may '
            'be added). Use another --workdir, or --overwrite.')
  return new | {
      'datasets': old['datasets'] | new['datasets'],
      'runs': list(before.values())}


def free_memory() -> None:
  """Drops what was compiled and what it holds."""
  jax.clear_caches()
  gc.collect()


def _make_run(
    method: Method, split: Split, protocols: Sequence[str],
    folder: pathlib.Path, progress: bool
) -> None:
  for name in (run_directory.SUMMARY, benchmark_directory.FAILED):
    run_directory.say_damaged(folder / name)
  try:
    # What an interrupted or refused run left is no part of this one.
    if folder.exists():
      shutil.rmtree(folder)
    benchmark_runs.run_method(method, split, protocols, folder, progress)
  except FloatingPointError as error:
    _record(folder, 'diverged', error)
  except Exception as error:
    # A defect, or too little memory: the others have hours of work before them.
    if is_refusal(error):
      _record(folder, 'refused', error)
      return
    logging.exception('%s has failed', folder)
    _record(folder, 'failed', error)


def is_refusal(error: BaseException) -> bool:
  """Whether this package refuses something, and no library fails."""
  *_, (frame, _) = traceback.walk_tb(error.__traceback__)
  package = frame.f_globals.get('__name__', '').partition('.')[0]
  return package == 'fedjaxrec' and isinstance(
      error, (ValueError, FileNotFoundError))


def _record(folder: pathlib.Path, status: str, error: Exception) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  run_directory.write_json(
      folder / benchmark_directory.FAILED,
      {'status': status, 'message': str(error) if status != 'failed' else
       f'{type(error).__name__}: {str(error).strip().partition(_LINE)[0]}'})
