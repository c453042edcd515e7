"""Adaptation curves: who is asked, what they show, and what is refused."""

import types

import numpy as np
import pytest

from fedjaxrec.data.splits import Split
from fedjaxrec.evaluation import adaptation
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
