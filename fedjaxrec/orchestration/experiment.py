"""From a config to a run directory: what the train and evaluate commands do."""

import contextlib
import dataclasses
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from fedjaxrec import config as config_lib
from fedjaxrec.algorithms.growth import make_freeze
from fedjaxrec.algorithms.leaky_negatives import held_out_items
from fedjaxrec.config import Config, EvaluationConfig, ParallelConfig
from fedjaxrec.data.cache import cache_folder
from fedjaxrec.data.memory_map import map_training_arrays
from fedjaxrec.data.sources import load_split
from fedjaxrec.data.splits import Split
from fedjaxrec.memory import check_memory
from fedjaxrec.orchestration import hosts, private_runs, training
from fedjaxrec.orchestration import secure as secure_lib
from fedjaxrec.orchestration import summary as summary_lib
from fedjaxrec.orchestration.checkpoints import Best, Store, open_store
from fedjaxrec.orchestration.devices import available_bytes
from fedjaxrec.orchestration.evaluator import (
  ALWAYS_KS,
  Evaluator,
  make_evaluator,
)
from fedjaxrec.orchestration.private_runs import PrivateRun
from fedjaxrec.orchestration.same_run import check_same_run
from fedjaxrec.orchestration.side_inputs import (
  Grown,
  grow_state,
  load_side_inputs,
)
from fedjaxrec.orchestration.training import Stop
from fedjaxrec.privacy.ledger import PrivacyLedger
from fedjaxrec.reports import adaptation, html, run_directory, tables
from fedjaxrec.reports.events import open_events
from fedjaxrec.reports.progress import open_progress
from fedjaxrec.simulation import Simulation, make_simulation


class Result(NamedTuple):
  """What a run leaves behind.

  Attributes:
    summary: The content of summary.json.
    workdir: The run directory.
  """
  summary: dict[str, Any]
  workdir: pathlib.Path


class Run(NamedTuple):
  """Everything that is made of a config before anything compiles."""
  config: Config
  split: Split
  simulation: Simulation
  evaluator: Evaluator
  private: PrivateRun | None = None
  secure: secure_lib.SecureRun | None = None
  grown: Grown | None = None


def train(
    config: Config,
    workdir: str | pathlib.Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
  """Trains a federated recommender and reports what it is worth.

  Args:
    config: The run.
    workdir: The run directory; made where it is missing.
    resume: Continue the run in workdir, bit for bit, from its last checkpoint;
      where there is none, begin it. In the summary, wall_s and compile_s are of
      this call, train_s of the whole run.
    overwrite: Replace the run in workdir.
    progress: Show a progress bar and print the table of results.

  Returns:
    The summary and the run directory, which holds config.json, metrics.jsonl,
    TensorBoard events, checkpoints/, summary.json and report.html; with a
    privacy budget privacy_ledger.jsonl, charged before each block of rounds.

  Raises:
    ValueError, FileNotFoundError: For anything wrong with the config, the data,
      the run directory or the privacy ledger; before anything compiles.
    BudgetExceededError: If a block of rounds would pass the privacy budget.
    FloatingPointError: If training diverges.
  """
  begin = time.perf_counter()
  workdir = pathlib.Path(workdir)
  hosts.join(config.parallel)
  resuming = hosts.on_first(
      lambda: _check_workdir(config, workdir, resume, overwrite))
  run = hosts.together(lambda: build(config))
  hosts.check_agreement(config, run.split.split_fingerprint)
  hosts.on_first(lambda: run_directory.prepare_workdir(
      workdir, resume=resume, overwrite=overwrite))
  hosts.check_shared(workdir)
  with contextlib.closing(_open_store(run, workdir)) as store:
    stop = _restore(run, store) if resuming else None
    if stop is None and run.grown is not None:
      stop = first_stop(run)  # The other run may be refused.
    # A new directory is known as a run's before anything else lies in it; one
    # that is there is changed when nothing more is refused.
    if not resuming:
      hosts.on_first(lambda: _begin_files(config, workdir, 0))
    book = _open_ledger(run, workdir, resuming)
    if resuming:
      hosts.on_first(lambda: _begin_files(
          config, workdir, stop.round if stop else 0))
    if run.private is not None:
      run = run._replace(simulation=private_runs.charging(
          run.simulation, lambda first, number: _pay(run, book, first, number)))
    stop = stop or first_stop(run)
    run = run._replace(grown=None)  # It has begun: the other's data may go.
    stop, compile_s = training.compile_rounds(run.simulation, stop)
    stop = _train(run, stop, store, workdir, progress, book)
  summary = summarise(run, stop, workdir, book) | {
      'compile_s': compile_s, 'wall_s': time.perf_counter() - begin}
  # A delta of a millionth is not to be rounded to nothing.
  summary = hosts.tell(
      summary_lib.rounded(summary) | {'privacy': summary['privacy']})
  if hosts.is_first():
    run_directory.write_json(workdir / run_directory.SUMMARY, summary)
    html.write_report(workdir)
    if progress:
      tables.print_comparison(summary)
      adaptation.print_curve(summary)
  return Result(summary, workdir)


def evaluate(
    workdir: str | pathlib.Path, evaluation: EvaluationConfig
) -> dict[str, Any]:
  """Evaluates a run again, from its last checkpoint; writes nothing.

  Args:
    workdir: The run directory.
    evaluation: Protocol and cut-offs; the round is the one that was selected.

  Returns:
    The sections `test`, `controls`, `groups` and `item_groups`, as in
    summary.json, and `selected_round`.

  Raises:
    ValueError, FileNotFoundError: If there is no such run, or no whole
      checkpoint of it.
  """
  run, best, rounds_done = load_trained(workdir, evaluation)
  return summary_lib.rounded({
      'selected_round': int(best.round),
      'rounds_done': rounds_done,
      **run.evaluator.test(best.personal, best.item_table, best.shared)})


def load_trained(
    workdir: str | pathlib.Path, evaluation: EvaluationConfig | None = None,
    split: Split | None = None
) -> tuple[Run, Best, int]:
  """Loads a run from its last checkpoint.

  Args:
    workdir: The run directory.
    evaluation: Protocol and cut-offs; None: the run's.
    split: Its data; None: they are loaded.

  Returns:
    The run, the round that was selected, and the number of rounds done.

  Raises:
    ValueError, FileNotFoundError: See `evaluate`.
  """
  workdir = pathlib.Path(workdir)
  config = config_lib.from_dict(
      run_directory.read_json(workdir / run_directory.CONFIG))
  run = build(dataclasses.replace(
      config, evaluation=evaluation or config.evaluation,
      parallel=ParallelConfig(
          mode='single' if config.secure.on_host else 'auto')), split)
  with contextlib.closing(_open_store(run, workdir)) as store:
    stop = _restore(run, store)
  if stop is None:
    raise ValueError(
        f'workdir={str(workdir)!r} has no checkpoint yet; let the run reach '
        'its first one (checkpoint.every), or continue it with --resume.')
  return run, training.selected(config, run.simulation, stop), stop.round


def _check_workdir(
    config: Config, workdir: pathlib.Path, resume: bool, overwrite: bool
) -> bool:
  """Whether there is a run to be continued; refuses what is none of ours."""
  resuming = run_directory.check_workdir(
      workdir, resume=resume, overwrite=overwrite)
  if resuming:
    check_same_run(config, workdir)
  return resuming


def _open_ledger(
    run: Run, workdir: pathlib.Path, resuming: bool
) -> PrivacyLedger | None:
  """The run's ledger, in process 0; None there without a budget."""
  private = run.private
  if private is None:
    return None
  books = []

  def open_it():
    private_runs.say_warnings(private)
    books.append(
        private_runs.open_ledger(private, run.config, workdir, resuming))

  hosts.on_first(open_it)
  return books[0] if books else None


def _pay(
    run: Run, book: PrivacyLedger | None, first_round: int, num_rounds: int
) -> None:
  """Charges for rounds before they run; refused in all processes, or none."""
  def pay():
    if book is not None and run.private is not None:
      private_runs.charge(book, run.private, first_round, num_rounds)

  hosts.on_first(pay)


def _begin_files(
    config: Config, workdir: pathlib.Path, first_round: int
) -> None:
  """Writes the config, and drops the lines of rounds that are run again."""
  run_directory.write_json(
      workdir / run_directory.CONFIG,
      config_lib.to_dict(hosts.without_launch(config)))
  run_directory.truncate_metrics(workdir, first_round)


def load_data(config: Config) -> Split:
  """Loads a run's data.

  Raises:
    ValueError, FileNotFoundError: If they cannot be used, or are too small for
      the table of results.
  """
  split = load_split(config)
  if split.num_items < max(ALWAYS_KS):
    raise ValueError(
        f'num_items={split.num_items} of data.source={config.data.source} is '
        f'below {max(ALWAYS_KS)}, the cut-off of the table of results; use a '
        'larger catalogue, or weaker filters (data.min_item_interactions).')
  return split


def build(
    config: Config, split: Split | None = None,
    trained_alone: dict[str, np.ndarray] | None = None
) -> Run:
  """Makes of a config everything that a run needs; compiles nothing.

  Args:
    config: The run.
    split: Its data; None: they are loaded.
    trained_alone: See `make_evaluator`.

  Raises:
    ValueError, FileNotFoundError: For anything wrong with config or data.
  """
  split = load_data(config) if split is None else split
  if config.engine.data == 'host':
    split = _map_training_part(config, split)
  train_part = split.train
  side, grown = load_side_inputs(config, split)
  private = None if config.secure.noise != 'none' else (
      private_runs.prepare(config, train_part, side=side))
  secure = secure_lib.prepare(
      private.config if private else config, train_part, split.num_items,
      private.open_rows if private else None, side=side)
  private = private or (secure.private if secure else None)
  simulation = make_simulation(
      secure.config if secure else private.config if private else config,
      train_part.offsets, train_part.items, train_part.ratings, split.num_items,
      open_rows=secure.open_rows if secure else (
          private.open_rows if private else None),
      sum_on_host=secure.sums if secure else None,
      strategy=private.strategy if private else None,
      held_out=_spared_items(config, split),
      side=side, transform_algorithm=make_freeze(grown.places) if (
          grown is not None and config.two_tower.frozen) else lambda a: a)
  device = jax.local_devices()[0]
  check_memory(simulation.memory, available_bytes(device), device.device_kind)
  return Run(
      config, split, simulation, make_evaluator(
          config, split, simulation, trained_alone), private, secure, grown)


def first_stop(run: Run) -> Stop:
  """The stop before the first round, of a run that grows from another too.

  Raises:
    ValueError, FileNotFoundError: If that other run cannot be grown from.
  """
  if run.grown is None:
    return training.start_afresh(run.simulation)
  _, best, _ = load_trained(run.config.two_tower.start, split=run.grown.split)
  state = grow_state(run.config, run.simulation, best, run.grown.places)
  return Stop(0, [], state, training.snapshot(
      run.simulation, state, 0, -1.0), 0.0)


def _spared_items(config: Config, split: Split) -> np.ndarray | None:
  """The held-out items, where training is told of them, and a warning."""
  if not config.objective.leaks:
    return None
  logging.warning(
      'objective.negative_pool=%s LEAKS the validation and test items into '
      'training: the figures of this run compare with published ones of the '
      'same protocol, and with nothing else.', config.objective.negative_pool)
  return held_out_items(
      [(part.offsets, part.items) for part in (split.validation, split.test)],
      split.num_items)


def _map_training_part(config: Config, split: Split) -> Split:
  """The same split, whose training items and ratings lie in files."""
  items, ratings = map_training_arrays(
      split.train, cache_folder(config.data.cache_dir))
  return dataclasses.replace(split, train=dataclasses.replace(
      split.train, items=items, ratings=ratings))


def _open_store(run: Run, workdir: pathlib.Path) -> Store:
  return open_store(
      workdir / run_directory.CHECKPOINTS, run.config.checkpoint.keep,
      run.split.split_fingerprint())


def _restore(run: Run, store: Store) -> Stop | None:
  found = store.restore(training.checkpoint_shapes(run.simulation))
  return found and training.start_from(run.simulation, *found)


def _train(
    run: Run, start: Stop, store: Store, workdir: pathlib.Path, progress: bool,
    book: PrivacyLedger | None = None
) -> Stop:
  """Runs the rounds; logs, draws and saves at every stop."""
  config, stop = run.config, start
  validation: dict[str, float] = {}
  first = hosts.is_first()
  with contextlib.ExitStack() as stack:
    if first:
      log = stack.enter_context(run_directory.open_metrics(workdir))
      events = stack.enter_context(open_events(workdir, start.round))
    bar = stack.enter_context(open_progress(
        config.rounds, start.round, progress and first))
    for stop in training.train_rounds(
        config, run.simulation, run.evaluator, start):
      if book is not None:
        stop.lines[-1][private_runs.HEAD_FIELD] = book.head
      secure_lib.add_accounts(run.secure, stop.lines)
      for line in map(summary_lib.rounded, stop.lines) if first else ():
        log.append(line)
        events.write(line)
      last = stop.lines[-1]
      validation = last.get('validation', validation)
      if training.is_due(stop.round, config.checkpoint.every, config.rounds):
        store.save(
            stop.round, training.to_checkpoint(run.simulation, stop))
      bar.update(
          stop.round, loss=last['loss'],
          validation_ndcg=validation.get('ndcg@10'),
          clients_per_s=last['clients_per_s'])
  return stop


def summarise(
    run: Run, stop: Stop, workdir: pathlib.Path,
    book: PrivacyLedger | None = None
) -> dict[str, Any]:
  """Everything that summary.json says but the times that are still running."""
  config = run.config
  best = training.selected(config, run.simulation, stop)
  lines = run_directory.read_metrics(workdir) if hosts.is_first() else []
  train_s = max(stop.train_s, 1e-9)
  secure = run.secure and secure_lib.describe(
      run.secure, run.split, run.simulation, lines)
  return {
      'command': 'train',
      'versions': summary_lib.describe_versions(),
      'device': summary_lib.describe_device(run.simulation.placement),
      'seed': config.seed,
      'data': summary_lib.describe_data(config, run.split),
      'model': {'name': config.model.name, 'dim': config.model.dim},
      'algorithm': config.algorithm.name,
      'rounds': config.rounds,
      'selected_round': int(best.round),
      'train_s': stop.train_s,
      'clients_per_s': sum(line['reported'] for line in lines) / train_s,
      'examples_per_s': sum(line['num_examples'] for line in lines) / train_s,
      'rejected': sum(line['rejected'] for line in lines),
      **run.evaluator.test(best.personal, best.item_table, best.shared),
      'privacy': private_runs.describe(run.private, book, lines),
      'secure': secure,
      'communication': secure_lib.count_upload(
          summary_lib.describe_communication(
              config, run.split, best.item_table, best.shared,
              run.simulation.algorithm, lines), secure),
  }
