"""The members of one program: trained together, each recorded as a run.

Between two compiled calls every member is looked at as `train` looks at its
run: lines of metrics, validation, the best round. A member whose training
diverges is recorded and left alone; the others go on. The whole program has one
checkpoint; what is killed goes on from there.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from fedjaxrec import config as config_lib
from fedjaxrec.config import Config
from fedjaxrec.data.splits import Split
from fedjaxrec.orchestration import experiment, private_runs, training
from fedjaxrec.orchestration import secure as secure_lib
from fedjaxrec.orchestration import summary as summary_lib
from fedjaxrec.orchestration.checkpoints import Best, Store, open_store
from fedjaxrec.orchestration.evaluator import Evaluator, make_evaluator
from fedjaxrec.orchestration.private_runs import PrivateRun
from fedjaxrec.orchestration.training import Stop
from fedjaxrec.privacy.ledger import PrivacyLedger
from fedjaxrec.reports import html, run_directory, sweep_directory
from fedjaxrec.reports.progress import open_progress
from fedjaxrec.simulation import Simulation, State
from fedjaxrec.study import (
    Study,
    make_study,
    member_state,
)


class Job(NamedTuple):
  """One member: what it runs, on what, and where its files go.

  Attributes:
    config: What it runs.
    split: On what.
    folder: Where its files go.
    private: Its privacy, settled; None without a budget.
    secure: Its secure sums; None without.
  """
  config: Config
  split: Split
  folder: pathlib.Path
  private: PrivateRun | None
  secure: secure_lib.SecureRun | None


class Options(NamedTuple):
  """How a program is run; no result depends on it.

  Attributes:
    keep_checkpoints: Every member keeps a checkpoint of its last round, so that
      `evaluate` and `train --resume` can take it up.
    write_reports: Every member gets a report.html, some 5 MB each.
    show_progress: Whether to show a progress bar.
  """
  keep_checkpoints: bool = False
  write_reports: bool = False
  show_progress: bool = True


DEFAULTS = Options()


class _Saved(NamedTuple):
  """A program's checkpoint: leaves have the leading axis [members]."""
  state: State
  best: Best
  train_s: np.float64


class _Program(NamedTuple):
  """What is made of the members before anything compiles."""
  jobs: Sequence[Job]
  study: Study
  evaluators: list[Evaluator]
  books: dict[int, PrivacyLedger]


def make_job(config: Config, split: Split, folder: pathlib.Path) -> Job:
  """Settles a member's privacy and secure sums; writes nothing.

  Cost: up to some seconds where noise is calibrated.

  Raises:
    ValueError: For what would not be private, and for what members that share
      a program cannot do.
  """
  if config.secure.rows != 'dense' or config.secure.noise != 'none':
    raise ValueError(
        f'secure.rows={config.secure.rows} with secure.noise='
        f'{config.secure.noise} in a study, whose members send all rows and '
        'add no noise to what they send; use secure.rows=dense and '
        'secure.noise=none, or one `fedjaxrec train` for each setting.')
  private = private_runs.prepare(config, split.train)
  if private is not None and (
      private.strategy is not None or private.open_rows is not None):
    raise ValueError(
        f'privacy.mechanism={config.privacy.mechanism!r} with '
        f'privacy.head_items={config.privacy.head_items} and '
        f'local_privacy.head_items={config.local_privacy.head_items} in a '
        'study, whose members have no matrix of correlated noise and train all '
        'rows; use privacy.mechanism=gaussian and no head items, or one '
        '`fedjaxrec train` for each setting (scripts/ablate_mechanism.sh does '
        'so).')
  return Job(config, split, folder, private, secure_lib.prepare(
      config, split.train, split.num_items))


def run_program(
    jobs: Sequence[Job], folder: pathlib.Path, options: Options = DEFAULTS
) -> None:
  """Trains and evaluates the members of one program; goes on where it stood.

  Leaves in each member's folder config.json, metrics.jsonl and summary.json,
  whose times are the member's share of the program's; or, if its training
  diverged, diverged.json in place of the summary.

  Args:
    jobs: The members, of one `study.program_key`.
    folder: Where the program keeps its checkpoints while it runs; removed when
      all members are done.
    options: See there.

  Raises:
    ValueError: For what `make_study` or the evaluator refuses, before anything
      compiles, and for a damaged checkpoint.
  """
  begin = time.perf_counter()
  program = _build(jobs)
  with contextlib.closing(open_store(
      folder / run_directory.CHECKPOINTS, 1, _fingerprint(jobs))) as store:
    state, stops = _start(program, store)
    for index, (job, stop) in enumerate(zip(jobs, stops)):
      if sweep_directory.status_of(job.folder) == 'unfinished':
        run_directory.say_damaged(job.folder / run_directory.SUMMARY)
        job.folder.mkdir(parents=True, exist_ok=True)
        _open_ledger(program, index, resuming=stop.round > 0)
        run_directory.write_json(
            job.folder / run_directory.CONFIG, config_lib.to_dict(job.config))
        run_directory.truncate_metrics(job.folder, stop.round)
    started = time.perf_counter()
    state, _ = program.study.run(state, stops[0].round, 0)
    jax.block_until_ready(state)
    compile_s = time.perf_counter() - started
    stops = _train(program, state, stops, store, options.show_progress)
    shared_s = time.perf_counter() - begin
    for index, stop in enumerate(stops):
      if sweep_directory.status_of(jobs[index].folder) == 'unfinished':
        _finish(program, index, stop, compile_s, shared_s, options)
  shutil.rmtree(folder, ignore_errors=True)


def _open_ledger(program: _Program, index: int, resuming: bool) -> None:
  """The ledger of a member with a budget, in its folder."""
  job = program.jobs[index]
  if job.private is None:
    return
  # A program that was killed before its first checkpoint begins again, with
  # the same noise in the same rounds: its ledgers stand.
  resuming = resuming or (job.folder / run_directory.PRIVACY_LEDGER).exists()
  program.books[index] = private_runs.open_ledger(
      job.private, job.config, job.folder, resuming)


def _build(jobs: Sequence[Job]) -> _Program:
  study = make_study(
      [job.config if job.private is None else job.private.config
       for job in jobs],
      [(job.split.train.offsets, job.split.train.items,
        job.split.train.ratings) for job in jobs],
      jobs[0].split.num_items)
  return _Program(jobs, study, [
      make_evaluator(job.config, job.split, cast(Simulation, member))
      for job, member in zip(jobs, study.members)], {})


def _fingerprint(jobs: Sequence[Job]) -> str:
  """Of the members' data and configs, where and how fast they run apart."""
  said = []
  for job in jobs:
    values = config_lib.to_dict(job.config)
    for section in ('engine', 'parallel', 'checkpoint'):
      values.pop(section)
    said.append([job.split.split_fingerprint(), values])
  return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _start(program: _Program, store: Store) -> tuple[State, list[Stop]]:
  """The members' stops before the first round, or where they were saved."""
  state = program.study.init()
  stops = _stops_of(program, 0, program.study.to_host(state), None, 0.0)
  found = store.restore(_to_saved(  # type: ignore[arg-type]
      program.study.to_host(state), stops))
  if found is None:
    return state, stops
  round_index, saved = found[0], cast(_Saved, found[1])
  return (program.study.restore(saved.state), _stops_of(
      program, round_index, saved.state, saved.best, float(saved.train_s)))


def _stops_of(
    program: _Program, round_index: int, state: State, best: Best | None,
    train_s: float
) -> list[Stop]:
  stops = []
  for index, member in enumerate(program.study.members):
    own = member_state(state, index)
    stops.append(Stop(
        round_index, [], own,
        training.snapshot(cast(Simulation, member), own, 0, -1.0)
        if best is None else jax.tree.map(lambda x, i=index: x[i], best),
        train_s))
  return stops


def _to_saved(state: State, stops: Sequence[Stop]) -> _Saved:
  return _Saved(
      state,
      jax.tree.map(lambda *x: np.stack(x), *(stop.best for stop in stops)),
      np.float64(max(stop.train_s for stop in stops)))


def _train(
    program: _Program, state: State, stops: list[Stop], store: Store,
    show_progress: bool
) -> list[Stop]:
  """Runs the rounds; looks at every member and saves at every stop."""
  config, study = program.jobs[0].config, program.study
  done = stops[0].round
  # Who has diverged, or was done when an earlier call was killed.
  over = {index for index, job in enumerate(program.jobs)
          if sweep_directory.status_of(job.folder) != 'unfinished'}

  def chunk(first):
    upto = training.next_stop(config, first, study.rounds_per_call)
    return upto, study.plan(first, upto - first)

  ahead = chunk(done) if done < config.rounds else None
  with open_progress(config.rounds, done, show_progress) as bar:
    while ahead is not None and len(over) < len(stops):
      begin = time.perf_counter()
      upto, plan = ahead
      for index, book in program.books.items():
        if index not in over:
          private_runs.charge(
              book, cast(PrivateRun, program.jobs[index].private), done,
              upto - done)
      state, metrics = study.execute(state, plan, upto - done)
      # While the devices work.
      ahead = chunk(upto) if upto < config.rounds else None
      metrics = jax.tree.map(
          lambda x, n=upto - done: np.asarray(x)[:, :n], metrics)
      seconds = (time.perf_counter() - begin) / len(stops)
      saves = training.is_due(upto, config.checkpoint.every, config.rounds)
      host = study.to_host(state) if saves or training.is_due(
          upto, config.evaluation.every, config.rounds) else None
      for index in sorted(set(range(len(stops))) - over):
        own = jax.tree.map(lambda x, i=index: x[i], metrics)
        try:
          stops[index] = _look(
              program, index, stops[index], host, own, seconds)
        except FloatingPointError as error:
          _record_divergence(program.jobs[index], error)
          over.add(index)
      done = upto
      if saves and host is not None:
        store.save(done, _to_saved(host, stops))  # type: ignore[arg-type]
      alive = [s for i, s in enumerate(stops) if i not in over]
      if alive:
        bar.update(
            done, loss=float(np.mean([s.lines[-1]['loss'] for s in alive])),
            validation_ndcg=_mean_validation(alive),
            clients_per_s=alive[-1].lines[-1]['clients_per_s'])
  return stops


def _mean_validation(stops: Sequence[Stop]) -> float | None:
  # It is negative where rounds are chosen by RMSE.
  seen = [stop.best.ndcg for stop in stops
          if stop.best.round > 0 and stop.best.ndcg >= 0]
  return float(np.mean(seen)) if seen else None


def _look(
    program: _Program, index: int, stop: Stop, host: State | None,
    metrics: Any, seconds: float
) -> Stop:
  """One member after a compiled call; its lines go to its metrics.jsonl."""
  job = program.jobs[index]
  stop = training.take_stop(
      job.config, program.study.members[index], program.evaluators[index],
      stop, stop.state if host is None else member_state(host, index), metrics,
      seconds)
  book = program.books.get(index)
  if book is not None and stop.lines:
    stop.lines[-1][private_runs.HEAD_FIELD] = book.head
  with run_directory.open_metrics(job.folder) as log:
    for line in map(summary_lib.rounded, stop.lines):
      log.append(line)
  return stop


def _record_divergence(job: Job, error: FloatingPointError) -> None:
  run_directory.write_json(
      job.folder / sweep_directory.DIVERGED, {'message': str(error)})


def _finish(
    program: _Program, index: int, stop: Stop, compile_s: float,
    shared_s: float, options: Options
) -> None:
  """Tests a member and writes its summary, last of all."""
  begin = time.perf_counter()
  job, member = program.jobs[index], program.study.members[index]
  simulation = cast(Simulation, member)
  try:
    summary = experiment.summarise(
        experiment.Run(
            job.config, job.split, simulation, program.evaluators[index],
            job.private, job.secure),
        stop, job.folder, program.books.get(index))
  except FloatingPointError as error:
    _record_divergence(job, error)
    return
  if options.keep_checkpoints:
    with contextlib.closing(open_store(
        job.folder / run_directory.CHECKPOINTS, 1,
        job.split.split_fingerprint())) as store:
      store.save(stop.round, training.to_checkpoint(simulation, stop))
  members = len(program.jobs)
  summary |= {
      'program': {'members': members, 'compile_s': compile_s,
                  'train_s': stop.train_s * members},
      'compile_s': compile_s / members,
      'wall_s': shared_s / members + time.perf_counter() - begin}
  run_directory.write_json(
      job.folder / run_directory.SUMMARY,
      summary_lib.rounded(summary) | {'privacy': summary['privacy']})
  if options.write_reports:
    html.write_report(job.folder)


