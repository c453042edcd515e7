"""Adaptation curves: who is asked, what they show, and what is refused."""

import types

import jax
import numpy as np
import pytest

from fedjaxrec.data.splits import Split
from fedjaxrec.evaluation import adaptation
from fedjaxrec.orchestration import experiment
from tests.small_runs import make_config, make_interactions

NUM_ITEMS = 9
# Users 0 and 1 train; 2 to 5 are held out, user 5 for validation.
SHOWN = [[], [], [5, 1, 7], [0, 2, 4, 6], [8], [1, 2, 3, 4]]
ASKED = [[], [], [2], [1, 3], [0], []]
CHANGES = {'split.name': 'user_holdout', 'evaluation.adaptation_counts': [3, 1]}


def rows(lists):
  # An empty list has no type of its own.
  return make_interactions(
      [np.array(x, np.int32) for x in lists], NUM_ITEMS)


SPLIT = Split('user_holdout', rows([[1, 2], [3]] + [[]] * 4),
              rows([[]] * 5 + [[7]]), rows(ASKED), rows(SHOWN))


def make_curve(monkeypatch, changes=None, mix_clients=None):
  """A curve whose clients keep the items that they were fitted to."""
  fitted = []

  def make_fold_in(config, shown, side):
    assert side == 'features'
    fitted.append(shown)

    def fit(personal, item_table, shared):
      del personal, item_table, shared
      return np.array([
          sum(1 << i for i in shown.items[start:stop].tolist())
          for start, stop in zip(shown.offsets[:-1], shown.offsets[1:])])

    return fit

  monkeypatch.setattr(adaptation, 'make_fold_in', make_fold_in)
  simulation = types.SimpleNamespace(
      side='features', algorithm=types.SimpleNamespace(
          score=None, aggregated_score=None, refit=None,
          mix_clients=mix_clients))

  def make_ranker_of(score, users):
    del score
    return lambda personal, item_table, shared: (users, personal)

  curve = adaptation.make_adaptation_curve(
      make_config({**CHANGES, **(changes or {})}), SPLIT, simulation,
      make_ranker_of, lambda ranks, users: {
          'users': ranks[0].tolist(), 'kept': ranks[1].tolist()})
  return curve, fitted


def test_every_point_asks_the_same_users_who_show_no_more_than_it_says(
    monkeypatch):
  curve, fitted = make_curve(monkeypatch)
  found = curve(np.zeros(6), np.full(6, -1), None, None)
  assert found['num_users'] == 2
  assert [p['interactions'] for p in found['points']] == [0, 1, 3]
  assert all(p['metrics']['users'] == [2, 3] for p in found['points'])
  assert [p['metrics']['kept'] for p in found['points']] == [
      [-1, -1], [1 << 5, 1 << 0],
      [1 << 5 | 1 << 1 | 1 << 7, 1 << 0 | 1 << 2 | 1 << 4]]
  # Users who are not asked are not fitted either.
  assert all(part.counts[[0, 1, 4, 5]].sum() == 0 for part in fitted)


def test_no_counts_are_no_curve(monkeypatch):
  curve, fitted = make_curve(monkeypatch, {'evaluation.adaptation_counts': []})
  assert curve is None and not fitted


def test_more_than_anybody_shows_is_refused(monkeypatch):
  with pytest.raises(ValueError, match='the most is 4; use smaller'):
    make_curve(monkeypatch, {'evaluation.adaptation_counts': [1, 5]})


def test_clients_that_the_server_mixes_are_refused(monkeypatch):
  with pytest.raises(ValueError, match='algorithm.name=gpfedrec: .* fedrecon'):
    make_curve(monkeypatch, {'algorithm.name': 'gpfedrec'},
               mix_clients=lambda *_: None)


def test_users_who_all_train_have_no_curve():
  with pytest.raises(ValueError, match='use --split.name=user_holdout'):
    make_config({**CHANGES, 'split.name': 'leave_one_out'})


def fit_by_hand(own, table, shared, items, ratings, rounds, rate):
  """Full-batch steps on the mean squared error; the rows stand still."""
  user, bias = np.float64(own['user']), np.float64(own['user_bias'])
  v, b = np.float64(table['item'])[items], np.float64(table['item_bias'])[items]
  for _ in range(rounds):
    slope = 2 * (v @ user + b + bias + shared['bias'] - ratings) / len(items)
    user, bias = user - rate * slope @ v, bias - rate * slope.sum()
  return user, bias


def test_the_curve_of_a_run_is_what_evaluating_by_hand_gives():
  """FedAvg on made-up ratings: every point, refitted and ranked in NumPy."""
  counts, rounds, rate = (1, 3), 4, 0.1
  config = make_config({
      'split.name': 'user_holdout', 'split.test_fraction': 0.3,
      'split.fold_in_fraction': 0.5, 'evaluation.adaptation_counts': counts,
      'evaluation.fold_in_rounds': rounds, 'client.learning_rate': rate,
      'client.item_learning_rate': 0.5, 'client.batch_size': 64,
      'objective.name': 'squared_error', 'objective.num_negatives': 0})
  split = experiment.load_data(config)
  run = experiment.build(config, split)
  start = run.simulation.init()
  fresh = run.simulation.personal_by_client(start)
  state = start
  for first in range(0, config.rounds, 2):
    state, _ = run.simulation.run(state, first, 2)
  personal = run.simulation.personal_by_client(state)
  table, shared = jax.tree.map(
      np.asarray, (state.server.item_table, state.server.shared))
  found = run.evaluator.test(personal, table, shared)['adaptation']

  def part(interactions, user):
    mine = slice(*interactions.offsets[user:user + 2])
    return interactions.items[mine], interactions.ratings[mine]

  users = [u for u in range(split.num_users)
           if split.test.counts[u] and split.fold_in.counts[u] >= max(counts)]
  assert found['num_users'] == len(users) > 5
  trained = split.train.counts > 0
  mean = {name: leaf[trained].mean(0) for name, leaf in personal.items()}
  for place, point in enumerate(found['points']):
    count = (0, *counts)[place]
    assert point['interactions'] == count
    gains, squares = [], []
    for u in users:
      shown, rated = part(split.fold_in, u)
      user, bias = mean['user'], mean['user_bias']
      if count:
        user, bias = fit_by_hand(
            {name: leaf[u] for name, leaf in fresh.items()}, table, shared,
            shown[:count], rated[:count], rounds, rate)
      scores = (np.float64(table['item']) @ user + table['item_bias'] + bias
                + shared['bias'])
      asked, wanted = part(split.test, u)
      squares += list((scores[asked] - wanted)**2)
      # What it shows later is not asked for, whatever the count.
      left = sorted(set(range(split.num_items)) - set(shown),
                    key=lambda i: -scores[i])
      gain = sum(1 / np.log2(k + 2) for k, i in enumerate(left[:10])
                 if i in asked)
      gains.append(gain / sum(
          1 / np.log2(k + 2) for k in range(min(10, len(asked)))))
    # A mean of 32-bit scores' ranks is exact; errors of ratings of up to 5
    # carry some 60 roundings of 2^-24.
    np.testing.assert_allclose(
        point['metrics']['ndcg@10'], np.mean(gains), atol=1e-9)
    np.testing.assert_allclose(
        point['ratings']['rmse'], np.sqrt(np.mean(squares)),
        atol=5 * 60 * 2**-24)
  # The control: the points differ, so a fit to other rows would show.
  errors = [point['ratings']['rmse'] for point in found['points']]
  assert min(abs(a - b) for a in errors for b in errors if a is not b) > 1e-3
