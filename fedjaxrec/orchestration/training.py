"""The loop over compiled rounds: train, validate, keep the best. No files."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from fedjaxrec import parallel
from fedjaxrec.config import Config
from fedjaxrec.config.algorithms import FACTORISATIONS
from fedjaxrec.orchestration import hosts
from fedjaxrec.orchestration.checkpoints import Best, Checkpoint
from fedjaxrec.orchestration.evaluator import Evaluator
from fedjaxrec.orchestration.summary import DOWNLINK, UPLINK
from fedjaxrec.population import by_home
from fedjaxrec.rounds import RoundMetrics
from fedjaxrec.simulation import Simulation, State
from fedjaxrec.study import Member


class Stop(NamedTuple):
  """What the host sees between two compiled calls.

  Attributes:
    round: Rounds done.
    lines: A dict for each round since the last stop, as in metrics.jsonl.
    state: The simulation's state; valid until the loop goes on.
    best: The best round so far.
    train_s: Seconds in compiled rounds, from the run's beginning.
  """
  round: int
  lines: list[dict[str, Any]]
  state: State
  best: Best
  train_s: float


def next_stop(config: Config, round_index: int, rounds_per_call: int) -> int:
  """The round after round_index at which the host looks next."""
  stops = [config.rounds, round_index + rounds_per_call]
  for every in (config.evaluation.every, config.checkpoint.every):
    if every:
      stops.append((round_index // every + 1) * every)
  return min(stops)


def is_due(round_index: int, every: int, rounds: int) -> bool:
  """Whether something done every `every` rounds (0: at the end) is due."""
  return round_index == rounds or bool(every and round_index % every == 0)


def snapshot(
    simulation: Simulation | Member, state: State, round_index: int, ndcg: float
) -> Best:
  """Copies what evaluation needs of a round to the host.

  Clients that can be fitted to the shared model of that round are.
  """
  personal = simulation.personal_by_client(state)
  if simulation.refit is not None and round_index:
    personal = simulation.refit(state.server, personal)
  return Best(
      np.int32(round_index), np.float32(ndcg),
      jax.tree.map(np.asarray, state.server.item_table),
      jax.tree.map(np.asarray, state.server.shared), personal)


def to_checkpoint(simulation: Simulation, stop: Stop) -> Checkpoint:
  """Everything that the run needs to go on, copied to the host.

  In several processes what is at home stays there, for each to write its own.
  """
  placement = simulation.placement
  server = jax.tree.map(np.asarray, stop.state.server)
  if placement.num_processes == 1:
    return Checkpoint(
        server, simulation.clients_by_client(stop.state), stop.best,
        np.float64(stop.train_s))
  best = parallel.put_at_home(jax.tree.map(
      lambda x: by_home(x, placement.num_devices), stop.best.personal),
      placement)
  return Checkpoint(
      server, parallel.spread(stop.state.personal, placement),
      stop.best._replace(personal=parallel.spread(best, placement)),
      np.float64(stop.train_s))


def checkpoint_shapes(simulation: Simulation) -> Checkpoint:
  """The shapes and types of a checkpoint; computes nothing."""
  server, clients, personal = simulation.shapes()
  return Checkpoint(
      server, clients, Best(
          np.int32(0), np.float32(0), server.item_table, server.shared,
          personal), np.float64(0))


def start_afresh(simulation: Simulation) -> Stop:
  """The stop before the first round."""
  state = simulation.init()
  return Stop(0, [], state, snapshot(simulation, state, 0, -1.0), 0.0)


def start_from(
    simulation: Simulation, round_index: int, checkpoint: Checkpoint
) -> Stop:
  """The stop at which a checkpoint was made."""
  return Stop(
      round_index, [],
      simulation.restore(checkpoint.server, checkpoint.personal),
      checkpoint.best, float(checkpoint.train_s))


def compile_rounds(simulation: Simulation, start: Stop) -> tuple[Stop, float]:
  """Compiles the rounds by a call of none; returns the seconds it took."""
  begin = time.perf_counter()
  state, _ = simulation.run(start.state, start.round, 0)
  jax.block_until_ready(state)
  return start._replace(state=state), time.perf_counter() - begin


def train_rounds(
    config: Config, simulation: Simulation, evaluator: Evaluator, start: Stop
) -> Iterator[Stop]:
  """Trains from `start` to the last round, stopping where something is due.

  Args:
    config: The run.
    simulation: Its compiled rounds.
    evaluator: Its validation.
    start: From `start_afresh` or `start_from`.

  Yields:
    A Stop after each compiled call.

  Raises:
    FloatingPointError: If the training loss is not finite.
  """
  stop = start
  while stop.round < config.rounds:
    upto = next_stop(config, stop.round, simulation.rounds_per_call)
    begin = time.perf_counter()
    state, metrics = simulation.run(
        stop.state, stop.round, upto - stop.round)
    metrics = jax.tree.map(
        lambda x, n=upto - stop.round: np.asarray(x)[:n], metrics)
    stop = take_stop(
        config, simulation, evaluator, stop, state, metrics,
        time.perf_counter() - begin)
    yield stop


def take_stop(
    config: Config, simulation: Simulation | Member, evaluator: Evaluator,
    stop: Stop, state: State, metrics: RoundMetrics, seconds: float
) -> Stop:
  """What the host makes of a compiled call: lines, validation, the best round.

  Args:
    config: The run.
    simulation: Its simulation, or the member of a study that it is.
    evaluator: Its validation.
    stop: The stop before the call.
    state: The state after it.
    metrics: Of its rounds, and no more, as NumPy arrays.
    seconds: What it took.

  Raises:
    FloatingPointError: If a loss, or a parameter where it validates, is not
      finite.
  """
  upto = stop.round + len(metrics.loss)
  rejected = int(np.sum(metrics.rejected))
  if rejected:
    logging.warning(
        'Rounds %d to %d: %d deltas of clients were not finite, or longer than '
        'their sum has room for; they are left out of every sum.',
        stop.round + 1, upto, rejected)
  _check_finite(config, np.asarray(metrics.loss), stop.round)
  lines: list[dict[str, Any]] = [
      {'round': stop.round + i + 1,
       'loss': float(metrics.loss[i]),
       'reported': int(metrics.reported[i]),
       'num_examples': int(metrics.num_examples[i]),
       'rejected': int(metrics.rejected[i]),
       'clients_per_s': float(metrics.reported.sum() / seconds),
       'examples_per_s': float(metrics.num_examples.sum() / seconds),
       'train_s': stop.train_s + seconds}
      for i in range(upto - stop.round)]
  _add_bytes(lines, evaluator, metrics)
  best = stop.best
  if evaluator.validate and is_due(
      upto, config.evaluation.every, config.rounds):
    seen = snapshot(simulation, state, upto, -1.0)
    _check_parameters(config, seen)
    # All processes have computed it; they must not differ on the best round.
    validation = hosts.tell(evaluator.validate(
        seen.personal, seen.item_table, seen.shared))
    lines[-1]['validation'] = validation
    chosen_by = config.evaluation.select_by
    worth = np.float32(validation[chosen_by])
    worth = -worth if chosen_by == 'rmse' else worth
    # What has not trained yet was compared with nothing.
    if worth > (best.ndcg if best.round else -np.inf):
      best = seen._replace(ndcg=worth)
  return Stop(upto, lines, state, best, stop.train_s + seconds)


def _add_bytes(
    lines: list[dict[str, Any]], evaluator: Evaluator, metrics: RoundMetrics
) -> None:
  """Puts what each round's clients sent and got into its line.

  Uploads that the round has counted itself are those; others are known from
  the rows that the clients touch.
  """
  if evaluator.traffic is None or not lines:
    return
  moved = evaluator.traffic(lines[0]['round'] - 1, len(lines))
  for index, line in enumerate(lines):
    up, down = moved[index]
    if metrics.uplink_bytes:
      units, rest = metrics.uplink_bytes
      up = int(units[index]) * 4096 + int(rest[index])
    line[UPLINK], line[DOWNLINK] = int(up), int(down)


def selected(
    config: Config, simulation: Simulation | Member, stop: Stop) -> Best:
  """The round that is tested, as evaluation.selection says.

  Without a validation set there is nothing to select by: it is the last.
  """
  if config.evaluation.selection == 'best' and stop.best.round > 0:
    return stop.best
  last = snapshot(simulation, stop.state, stop.round, float('nan'))
  _check_parameters(config, last)
  return last


def _check_finite(config: Config, loss: np.ndarray, first_round: int) -> None:
  if not np.isfinite(loss).all():
    bad = int(np.argmin(np.isfinite(loss)))
    raise _diverged(
        config, f'loss={loss[bad]} in round {first_round + bad + 1}')


def _check_parameters(config: Config, best: Best) -> None:
  # The loss of a round is taken before its step.
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(
      (best.item_table, best.shared, best.personal))):
    raise _diverged(config, f'parameters are not finite in round {best.round}')


def _diverged(config: Config, what: str) -> FloatingPointError:
  name = config.algorithm.name
  sections = [section for section in (name, 'client', 'server')
              if hasattr(config, section)]
  if name in FACTORISATIONS:  # They take no steps of client.learning_rate.
    sections.remove('client')
  rates = [
      f'{section}.{field}={value}' for section in sections
      for field, value in vars(getattr(config, section)).items()
      if field.endswith(('learning_rate', 'lr_eta')) and value]
  named = ' or '.join(filter(None, (', '.join(rates[:-1]), rates[-1])))
  return FloatingPointError(
      f'{what}: training has diverged. Lower {named}, and start again with '
      '--overwrite.')
