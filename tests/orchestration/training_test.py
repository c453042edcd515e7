"""The loop over compiled calls, with calls that compute nothing."""

import types

import numpy as np
import pytest

from fedjaxrec.orchestration import training
from fedjaxrec.orchestration.checkpoints import Best
from fedjaxrec.orchestration.evaluator import Evaluator
from fedjaxrec.rounds import RoundMetrics
from fedjaxrec.server import ServerState
from fedjaxrec.simulation import State
from tests.small_runs import make_config


class Rounds:
  """A simulation whose parameters are the number of rounds done.

  As in the real one, a state is used up by the call that it is handed to.
  """

  placement = types.SimpleNamespace(num_processes=1)
  refit = None  # Its clients' parameters come from its rounds.

  def __init__(self, config, loss=lambda r: 1 / r, rounds_per_call=4):
    self.rounds_per_call = min(rounds_per_call, config.rounds)
    self.calls, self.loss = [], loss

  def make_state(self, r):
    return State(
        ServerState(np.int32(r), {'item': np.full(2, r)}, {'bias': r},
                    (), ()), {'user': np.full((1, 3), r)})

  def init(self):
    return self.make_state(0)

  def run(self, state, first_round, num_rounds):
    assert state.server.round_index == first_round
    self.calls.append((first_round, num_rounds))
    assert num_rounds <= self.rounds_per_call
    state.server.item_table.clear()  # Donated.
    state.personal.clear()
    done = first_round + num_rounds
    # Rounds that a call has room for and that were not run report anything.
    metrics = np.full((4, self.rounds_per_call), np.nan)
    for i in range(num_rounds):
      metrics[:, i] = self.loss(first_round + i + 1), 7, 21, 2
    return self.make_state(done), RoundMetrics(*metrics)

  def personal_by_client(self, state):
    return {name: leaf[0] for name, leaf in state.personal.items()}

  clients_by_client = personal_by_client


def make_evaluator(ndcg_of_round):
  def validate(personal, item_table, shared):
    r = int(item_table['item'][0])
    assert (personal['user'] == r).all() and shared == {'bias': r}
    return {'ndcg@10': ndcg_of_round(r)}
  return Evaluator(validate, lambda *parameters: {})


def run(config, rounds=None, evaluator=None):
  """All stops of a run, and the simulation."""
  rounds = rounds or Rounds(config)
  evaluator = evaluator or make_evaluator(lambda r: 0.5)
  return list(training.train_rounds(
      config, rounds, evaluator, training.start_afresh(rounds))), rounds


EVERY = (0, 1, 2, 3, 5, 20)


@pytest.mark.parametrize('evaluate', EVERY)
@pytest.mark.parametrize('save', EVERY)
@pytest.mark.parametrize('per_call', [1, 4])
def test_it_stops_wherever_something_is_due_and_nowhere_else(
    evaluate, save, per_call):
  config = make_config({
      'rounds': 11, 'evaluation.every': evaluate, 'checkpoint.every': save})
  stops, rounds = run(config, Rounds(config, rounds_per_call=per_call))
  ends = [stop.round for stop in stops]
  assert ends == [first + count for first, count in rounds.calls]
  due = {11} | {r for r in range(1, 12) for n in (evaluate, save)
                if n and r % n == 0}
  assert due <= set(ends)
  # In between it stops only because a call is no longer.
  for before, end in zip([0, *ends], ends):
    assert end in due or end - before == per_call
  validated = {line['round'] for stop in stops for line in stop.lines
               if 'validation' in line}
  assert validated == {11} | {
      r for r in range(1, 12) if evaluate and r % evaluate == 0}
  saved = [r for r in ends if training.is_due(r, save, 11)]
  assert saved == [r for r in range(1, 12)
                   if r == 11 or (save and r % save == 0)]


def test_a_line_has_the_bytes_of_its_round():
  config = make_config({'rounds': 7, 'evaluation.every': 3})
  traffic = lambda first, n: np.array([
      [100 * (first + i), first + i] for i in range(n)], np.int64)
  evaluator = make_evaluator(lambda r: 0.5)._replace(traffic=traffic)
  stops, rounds = run(config, evaluator=evaluator)
  lines = [line for stop in stops for line in stop.lines]
  assert [line['uplink_bytes'] for line in lines] == [
      100 * r for r in range(7)]
  assert [line['downlink_bytes'] for line in lines] == list(range(7))
  # What a round has counted itself comes before what is known of it.
  metrics = RoundMetrics(
      *np.ones((4, 2)), (np.array([0, 2**20]), np.array([7, 9])))
  stop = training.take_stop(
      config, rounds, evaluator, training.start_afresh(rounds),
      rounds.make_state(2), metrics, 1.0)
  assert [line['uplink_bytes'] for line in stop.lines] == [7, 2**32 + 9]
  assert [line['downlink_bytes'] for line in stop.lines] == [0, 1]


def test_every_round_has_its_line():
  config = make_config({'rounds': 7, 'evaluation.every': 3})
  stops, _ = run(config)
  lines = [line for stop in stops for line in stop.lines]
  assert [line['round'] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
  assert [line['loss'] for line in lines] == [
      pytest.approx(1 / r) for r in range(1, 8)]
  for line in lines:
    assert (line['reported'], line['num_examples']) == (7, 21)
    assert line['examples_per_s'] == pytest.approx(3 * line['clients_per_s'])
  seconds = [stop.train_s for stop in stops]
  assert 0 < seconds[0] and sorted(seconds) == seconds
  assert lines[-1]['train_s'] == seconds[-1]


@pytest.mark.parametrize(('ndcgs', 'best'), [
    ([0.1, 0.2, 0.3], 6), ([0.3, 0.2, 0.1], 2), ([0.1, 0.3, 0.2], 4),
    ([0.2, 0.2, 0.2], 2),  # Equally good: the cheaper one.
    ([0.0, 0.0, 0.0], 2),
    ([float('nan'), 0.1, float('nan')], 4),
])
def test_the_best_round_is_the_first_of_the_best(ndcgs, best):
  config = make_config()
  stops, rounds = run(config, evaluator=make_evaluator(
      lambda r: ndcgs[r // 2 - 1]))
  chosen = training.selected(config, rounds, stops[-1])
  assert chosen.round == best
  # Its parameters are those of its own round, not of the last.
  assert (chosen.item_table['item'] == best).all()
  assert (chosen.personal['user'] == best).all()
  assert chosen.shared == {'bias': best}
  last = training.selected(
      make_config({'evaluation.selection': 'last'}), rounds, stops[-1])
  assert last.round == 6 and (last.item_table['item'] == 6).all()


@pytest.mark.parametrize(('rmses', 'best'), [
    ([1.5, 1.2, 1.3], 4), ([9.0, 9.0, 9.0], 2), ([float('nan'), 3.0, 2.0], 6)])
def test_the_best_round_by_rmse_has_the_smallest(rmses, best):
  config = make_config({'objective.name': 'squared_error',
                        'evaluation.select_by': 'rmse'})

  def validate(personal, item_table, shared):
    del personal, shared
    r = int(item_table['item'][0])
    return {'ndcg@10': r / 10, 'rmse': rmses[r // 2 - 1]}

  stops, rounds = run(config, evaluator=Evaluator(validate, lambda *_: {}))
  assert training.selected(config, rounds, stops[-1]).round == best


def test_without_a_validation_set_it_is_the_last():
  config = make_config()
  stops, rounds = run(config, evaluator=Evaluator(None, lambda *_: {}))
  assert all('validation' not in line
             for stop in stops for line in stop.lines)
  assert training.selected(config, rounds, stops[-1]).round == 6


def test_a_later_start_remembers_the_best_so_far():
  config = make_config()
  rounds = Rounds(config)
  best = Best(np.int32(2), np.float32(0.4), {'item': np.full(2, 2)},
              {'bias': 2}, {'user': np.full(3, 2)})
  start = training.Stop(4, [], rounds.make_state(4), best, 1.5)
  for ndcg, chosen in ((0.3, 2), (0.4, 2), (0.5, 6)):
    *_, stop = training.train_rounds(
        config, rounds, make_evaluator(lambda r, n=ndcg: n), start._replace(
            state=rounds.make_state(4)))
    assert training.selected(config, rounds, stop).round == chosen
    assert stop.train_s > 1.5
  assert rounds.calls[0] == (4, 2)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('when', [1, 5, 6])
def test_a_loss_that_is_no_number_ends_the_run_and_names_its_round(bad, when):
  config = make_config()
  rounds = Rounds(config, loss=lambda r: bad if r >= when else 0.5)
  seen = []
  with pytest.raises(FloatingPointError) as error:
    for stop in training.train_rounds(
        config, rounds, make_evaluator(lambda r: 0.5),
        training.start_afresh(rounds)):
      seen.append(stop.round)
  assert str(error.value).startswith(f'loss={bad} in round {when}: ')
  for name in ('client.learning_rate=0.3', 'client.item_learning_rate=3.0',
               'server.learning_rate=0.05'):
    assert name in str(error.value)
  assert seen == [r for r in (2, 4) if r < when]


class LastStep(Rounds):
  """Its parameters are infinite from a round on whose loss was still finite."""

  def __init__(self, config, bad_from):
    self.bad_from = bad_from
    super().__init__(config)

  def make_state(self, r):
    state = super().make_state(r)
    bad = np.float32(np.inf if r >= self.bad_from else r)
    return state._replace(personal={'user': np.full((1, 3), bad)})


@pytest.mark.parametrize(('bad_from', 'named'), [(2, 2), (3, 4), (6, 6)])
def test_parameters_that_are_no_numbers_are_not_validated(bad_from, named):
  """A round's loss is taken before its step: they are looked at themselves."""
  config = make_config()
  with pytest.raises(FloatingPointError) as error:
    run(config, LastStep(config, bad_from))
  assert str(error.value).startswith(
      f'parameters are not finite in round {named}: ')
  assert 'client.learning_rate=0.3' in str(error.value)


@pytest.mark.parametrize('bad_from', [6, 7])
def test_parameters_that_are_no_numbers_are_not_tested(bad_from):
  """Also where there is no validation set at which to notice."""
  config = make_config()
  rounds = LastStep(config, bad_from)
  stops, _ = run(config, rounds, Evaluator(None, lambda *_: {}))
  if bad_from > 6:  # Positive control.
    assert training.selected(config, rounds, stops[-1]).round == 6
    return
  with pytest.raises(FloatingPointError, match='not finite in round 6'):
    training.selected(config, rounds, stops[-1])


def test_a_call_of_no_rounds_compiles_and_changes_nothing():
  config = make_config()
  rounds = Rounds(config)
  start, seconds = training.compile_rounds(
      rounds, training.start_afresh(rounds))
  assert rounds.calls == [(0, 0)] and start.round == 0 and seconds >= 0
  assert start.state.server.round_index == 0
  assert len(start.state.personal) == 1  # Not the donated one.


def test_a_checkpoint_is_what_the_run_goes_on_from():
  config = make_config()
  stops, rounds = run(config)
  checkpoint = training.to_checkpoint(rounds, stops[-1])
  restored = []
  again = training.start_from(types.SimpleNamespace(
      restore=lambda *parts: restored.append(parts)), 6, checkpoint)
  (server, personal), = restored
  assert server.round_index == 6 and (personal['user'] == 6).all()
  assert again.round == 6 and again.lines == []
  assert again.best is checkpoint.best
  assert again.train_s == stops[-1].train_s
