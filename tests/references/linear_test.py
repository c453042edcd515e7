"""Item-KNN and EASE against their formulas, item by item."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec.config.references import EaseConfig, ItemKNNConfig
from fedjaxrec.references import ease, item_knn, linear, reference
from tests.references import slow

# A score adds up to 12 float32 terms, each at most 1.
ATOL = 12 * 12 * 2**-24


@hypothesis.given(st.integers(0, 10_000), st.sampled_from([0, 1, 2, 4, 12, 50]),
                  st.sampled_from([0.0, 1.0, 7.5]))
def test_item_knn_is_its_formula(seed, num_neighbors, shrinkage):
  data = slow.make_interactions(seed)
  fitted = item_knn.fit(data, ItemKNNConfig(
      num_neighbors=num_neighbors, shrinkage=shrinkage))
  # A tie in the formula must be one in float32 too: both have equal counts.
  expected = slow.item_knn_scores(
      data, min(num_neighbors, data.num_items), shrinkage)
  np.testing.assert_allclose(fitted.personal, expected, rtol=0, atol=ATOL)


def test_neighbours_tied_with_the_last_one_all_stay():
  counts = np.array([[2, 1, 1, 1], [1, 2, 0, 0], [1, 0, 2, 0], [1, 0, 0, 1]],
                    np.float32)
  kept = item_knn.similarities(
      counts, ItemKNNConfig(num_neighbors=2, shrinkage=0.0))
  # Item 0: one neighbour at 1/sqrt(2), then two at 1/2, tied for the second.
  np.testing.assert_allclose(
      kept[:, 0], [0, 0.5, 0.5, np.sqrt(0.5)], rtol=1e-6)
  kept = item_knn.similarities(
      counts, ItemKNNConfig(num_neighbors=1, shrinkage=0.0))
  np.testing.assert_allclose(kept[:, 0], [0, 0, 0, np.sqrt(0.5)], rtol=1e-6)


@hypothesis.given(st.integers(0, 10_000), st.sampled_from([0.5, 3.0, 40.0]))
def test_ease_is_a_ridge_regression_of_each_item_on_the_others(seed, l2):
  data = slow.make_interactions(seed)
  x, expected = slow.ease_weights(data, l2)
  weights = ease.weights(linear.co_occurrences(data, 'ease'), l2)
  # Condition number of X'X + l2: at most (9 * 7 + l2) / l2.
  atol = 12 * (63 + l2) / l2 * 2**-50
  np.testing.assert_allclose(weights, expected, rtol=0, atol=atol)
  assert not np.diag(weights).any()
  scores = ease.fit(data, EaseConfig(l2=l2)).personal
  bound = np.abs(expected).max(initial=1)
  np.testing.assert_allclose(scores, x @ expected, rtol=0, atol=ATOL * bound)


@pytest.mark.parametrize('fit', [
    lambda *args: item_knn.fit(args[0], ItemKNNConfig(), args[1]),
    lambda *args: ease.fit(args[0], EaseConfig(l2=2.0), args[1])])
def test_fold_in_is_scored_by_and_not_learnt_from(fit):
  data = slow.make_interactions(3)
  train = data.take(data.users != 2)
  fold_in = data.take(data.users == 2)
  with_it = fit(train, fold_in).personal
  without = fit(train, None).personal
  others = np.arange(data.num_users) != 2
  np.testing.assert_array_equal(with_it[others], without[others])
  assert not without[2].any() and with_it[2].any()


def test_blocks_of_users_change_nothing(monkeypatch):
  data = slow.make_interactions(5)
  whole = item_knn.fit(data, ItemKNNConfig())
  monkeypatch.setattr(linear, '_BLOCK_ENTRIES', 2 * data.num_items)
  np.testing.assert_array_equal(
      item_knn.fit(data, ItemKNNConfig()).personal, whole.personal)


def test_what_does_not_fit_is_refused_with_a_way_out(monkeypatch):
  data = slow.make_interactions(5)
  monkeypatch.setattr(reference, '_MAX_BYTES', 8 * 12 * 12 - 1)
  with pytest.raises(ValueError, match='ease: .*num_items=12.*use ials'):
    ease.fit(data, EaseConfig())
  monkeypatch.setattr(reference, '_MAX_BYTES', 4 * 9 * 12 - 1)
  with pytest.raises(ValueError, match='num_users=9.*num_bytes=432.*ials'):
    linear.from_weights(np.zeros((12, 12)), data, None, 'item_knn')
