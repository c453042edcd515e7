"""Rating errors against a loop over the held-out ratings."""

import dataclasses

import numpy as np
import pytest

from fedjaxrec.evaluation import ratings
from tests.small_runs import make_interactions


def rated(rows, num_items, seed):
  found = make_interactions(rows, num_items)
  drawn = np.random.default_rng(seed).integers(1, 6, len(found.items))
  return dataclasses.replace(found, ratings=drawn.astype(np.float32))


ASKED = rated([[3], [], [0, 1, 2, 5, 4], [2, 6], [6]], 7, 0)
TRAIN = rated([[1, 2], [], [6, 3], [], [0, 1, 2]], 7, 1)


def score(personal, item_rows, shared):
  return item_rows['v'] @ personal['p'] + shared['b']


def test_every_pair_is_predicted_in_its_place(monkeypatch):
  rng = np.random.default_rng(0)
  personal = {'p': rng.normal(size=(5, 3)).astype(np.float32)}
  table = {'v': rng.normal(size=(7, 3)).astype(np.float32)}
  shared = {'b': np.float32(0.5)}
  expected = []
  for user in range(5):
    for place in range(ASKED.offsets[user], ASKED.offsets[user + 1]):
      expected.append(
          personal['p'][user] @ table['v'][ASKED.items[place]] + 0.5)
  for at_once in (1, 2**14):
    monkeypatch.setattr(ratings, '_AT_ONCE', at_once)
    found = ratings.make_predictor(score, ASKED)(personal, table, shared)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_errors_are_over_interactions():
  assert ratings.errors(np.array([1.0, 2, 5]), np.array([1.0, 4, 4])) == {
      'rmse': pytest.approx((5 / 3) ** 0.5), 'mae': 1.0}


def test_constants_come_from_training_alone():
  found = ratings.constants(TRAIN, ASKED)
  mean = TRAIN.ratings.mean()
  means = [TRAIN.ratings[:2].mean(), mean, TRAIN.ratings[2:4].mean(), mean,
           TRAIN.ratings[4:].mean()]
  users = np.repeat(np.arange(5), [1, 0, 5, 2, 1])
  for name, miss in (('global_mean', ASKED.ratings - mean),
                     ('user_mean', ASKED.ratings - np.take(means, users))):
    assert found[name]['rmse'] == pytest.approx(np.sqrt((miss**2).mean()))
    assert found[name]['mae'] == pytest.approx(np.abs(miss).mean())
