"""One run of a benchmark: trained or fitted once, evaluated by every protocol.

A reference goes through the same evaluator as a federated run: the same
candidates, the same groups, the same summary.
"""

import dataclasses
import pathlib
import time
import types
from collections.abc import Sequence
from typing import Any, cast

import jax

from fedjaxrec import config as config_lib
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.data.splits import Split
from fedjaxrec.evaluation.permuted import permute_test_items
from fedjaxrec.orchestration import (
  experiment,
  private_runs,
  training,
)
from fedjaxrec.orchestration import secure as secure_lib
from fedjaxrec.orchestration import summary as summary_lib
from fedjaxrec.orchestration.benchmark_methods import Method, check_split
from fedjaxrec.orchestration.evaluator import make_evaluator
from fedjaxrec.orchestration.experiment import Run
from fedjaxrec.privacy.ledger import PrivacyLedger
from fedjaxrec.references.registry import fit_reference
from fedjaxrec.references.tuning import try_configs
from fedjaxrec.reports import run_directory
from fedjaxrec.reports.progress import open_progress
from fedjaxrec.simulation import Simulation


def run_method(
    method: Method, split: Split, protocols: Sequence[str],
    folder: pathlib.Path, show_progress: bool
) -> None:
  """Runs a method and writes its folder, summary.json last.

  Args:
    method: With its seed.
    split: The data.
    protocols: How it is ranked; the full ranking first.
    folder: An empty or missing folder; gets config.json, summary.json and, of
      a federated run, metrics.jsonl (and its privacy ledger).
    show_progress: Whether to show a progress bar.

  Raises:
    ValueError: For what the method cannot do on this data; before compiling.
    FloatingPointError: If training diverges.
  """
  check_split(method)
  begin, cpu = time.perf_counter(), time.process_time()
  folder.mkdir(parents=True, exist_ok=True)
  run_directory.write_json(
      folder / run_directory.CONFIG,
      config_lib.to_dict(method.config) if not method.reference
      else method.fields())
  if method.reference:
    summary = _fit(method, split, protocols)
  else:
    summary = _train(method, split, protocols, folder, show_progress)
  # Other work on a machine lengthens seconds of the wall, not of processors.
  summary |= {'wall_s': time.perf_counter() - begin,
              'cpu_s': time.process_time() - cpu}
  run_directory.write_json(
      folder / run_directory.SUMMARY,
      summary_lib.rounded(summary) | {'privacy': summary['privacy']})


def validate(method: Method, split: Split, show_progress: bool) -> float:
  """What a method's settings are worth: NDCG@10 on validation, full ranking.

  The test part is not read. A federated run is worth its best round, which is
  the one that would be tested.

  Args:
    method: With its seed.
    split: With a validation part.
    show_progress: Whether to show a progress bar.

  Raises:
    ValueError: For what the method cannot do on this data.
    FloatingPointError: If training diverges.
  """
  check_split(method)
  config = method.config
  if method.reference:
    trial, = try_configs(
        method.reference, split, [getattr(method.settings, method.reference)],
        config.seed)
    return trial.ndcg
  if config.evaluation.select_by != 'ndcg@10':
    raise ValueError(
        f'evaluation.select_by={config.evaluation.select_by} with '
        'benchmark.tune, which compares settings by NDCG@10; drop it.')
  run = experiment.build(config, split)
  stop = _rounds(run, None, show_progress)
  return float(stop.best.ndcg)


def _train(
    method: Method, split: Split, protocols: Sequence[str],
    folder: pathlib.Path, show_progress: bool
) -> dict[str, Any]:
  """Trains a federated method; returns its summary."""
  config = method.config
  alone: dict[str, Any] = {}
  run = experiment.build(config, split, alone)
  book = None
  if run.private is not None:
    private = run.private
    private_runs.say_warnings(private)
    opened = private_runs.open_ledger(private, config, folder, False)
    book = opened
    run = run._replace(simulation=private_runs.charging(
        run.simulation, lambda first, number: private_runs.charge(
            opened, private, first, number)))
  stop = _rounds(run, folder, show_progress, book)
  best = training.selected(config, run.simulation, stop)
  parameters = (best.personal, best.item_table, best.shared)
  return experiment.summarise(run, stop, folder, book) | _other_tests(
      config, split, run.simulation, parameters, protocols, alone)


def _rounds(
    run: Run, folder: pathlib.Path | None, show_progress: bool,
    book: PrivacyLedger | None = None
) -> training.Stop:
  """Runs all rounds; logs them where there is a folder."""
  config = run.config
  start, _ = training.compile_rounds(run.simulation, experiment.first_stop(run))
  stop = start
  with open_progress(config.rounds, 0, show_progress) as bar:
    for stop in training.train_rounds(
        config, run.simulation, run.evaluator, start):
      if book is not None:
        stop.lines[-1][private_runs.HEAD_FIELD] = book.head
      secure_lib.add_accounts(run.secure, stop.lines)
      if folder is not None:
        with run_directory.open_metrics(folder) as log:
          for line in map(summary_lib.rounded, stop.lines):
            log.append(line)
      last = stop.lines[-1]
      bar.update(
          stop.round, loss=last['loss'],
          validation_ndcg=(last.get('validation') or {}).get('ndcg@10'),
          clients_per_s=last['clients_per_s'])
  return stop


def _fit(
    method: Method, split: Split, protocols: Sequence[str]
) -> dict[str, Any]:
  """Fits a reference; returns a summary with the sections of a run's."""
  config = method.config
  begin = time.perf_counter()
  fitted = fit_reference(
      method.reference, split.train,
      getattr(method.settings, method.reference), split.fold_in, config.seed)
  jax.block_until_ready(fitted.parameters)
  fit_s = time.perf_counter() - begin
  simulation = _without_clients(fitted.score)
  return {
      'command': 'benchmark', 'reference': method.reference,
      'versions': summary_lib.describe_versions(), 'seed': config.seed,
      'data': summary_lib.describe_data(config, split), 'train_s': fit_s,
      'privacy': None,
      **make_evaluator(
          config, split, simulation, is_fitted=True).test(*fitted.parameters),
  } | _other_tests(
      config, split, simulation, fitted.parameters, protocols, {}, True)


def _without_clients(score: Any) -> Simulation:
  """All that the evaluator asks of a simulation, for a model that has none."""
  algorithm = types.SimpleNamespace(
      **Algorithm._field_defaults | {
          'score': score, 'not_alone': 'A reference has no clients.'})
  return cast(Simulation, types.SimpleNamespace(
      **Simulation._field_defaults | {'algorithm': algorithm}))


def _other_tests(
    config: Config, split: Split, simulation: Simulation, parameters: Any,
    protocols: Sequence[str], alone: dict[str, Any], is_fitted: bool = False
) -> dict[str, Any]:
  """The same parameters by the other protocols, and on permuted test items."""
  def evaluation(protocol, **changes):
    return dataclasses.replace(config, evaluation=dataclasses.replace(
        config.evaluation, protocol=protocol, **changes))

  permuted = permute_test_items(split, config.seed)
  return {
      'other_protocols': {
          protocol: make_evaluator(
              evaluation(protocol), split, simulation, alone, is_fitted
          ).test(*parameters)
          for protocol in protocols[1:]},
      'permuted': {
          protocol: make_evaluator(
              evaluation(protocol, local_only=False, bootstrap_samples=100),
              permuted, simulation, is_fitted=is_fitted
          ).test(*parameters)['test']['personalised']
          for protocol in protocols},
  }
