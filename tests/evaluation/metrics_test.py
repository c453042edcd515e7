"""Metrics against numbers by hand, slow oracles and laws."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec.evaluation import metrics

KS = (1, 2, 5, 10)


def make_ranks(per_user, num_candidates=20, top=None):
  """Ranks of {user: ascending ranks}."""
  user = np.repeat(list(per_user), [len(r) for r in per_user.values()])
  rank = np.concatenate([np.asarray(r) for r in per_user.values()])
  return metrics.Ranks(user.astype(np.int32), rank.astype(np.int32),
                       np.full(user.size, num_candidates, np.int32), top)


def oracle(ranks, num_candidates, k):
  """One user's metrics, straight from the definitions."""
  n = len(ranks)
  hits = [r for r in ranks if r < k]
  dcg = sum(1 / math.log2(r + 2) for r in hits)
  ideal = sum(1 / math.log2(i + 2) for i in range(min(k, n)))
  precisions = [sum(other <= r for other in ranks) / (r + 1) for r in hits]
  # Every (relevant, non-relevant) pair, one by one.
  is_relevant = [r in ranks for r in range(num_candidates + n)]
  right = sum(1 for r in ranks for place, relevant in enumerate(is_relevant)
              if not relevant and place > r)
  return {
      f'hit_rate@{k}': float(bool(hits)),
      f'ndcg@{k}': dcg / ideal,
      f'recall@{k}': len(hits) / n,
      f'recall_min@{k}': len(hits) / min(k, n),
      f'precision@{k}': len(hits) / k,
      f'map@{k}': sum(precisions) / min(k, n),
      'mrr': 1 / (min(ranks) + 1),
      'auc': right / (n * num_candidates),
  }


class TestByHand:

  def test_one_relevant_item(self):
    result = metrics.per_user_metrics(
        make_ranks({3: [0], 7: [2], 9: [10]}), (2, 10))
    np.testing.assert_array_equal(result['hit_rate@2'], [1, 0, 0])
    np.testing.assert_array_equal(result['hit_rate@10'], [1, 1, 0])
    # 1 / log2(0 + 2) = 1 and 1 / log2(2 + 2) = 0.5; rank 10 is the eleventh.
    np.testing.assert_allclose(result['ndcg@10'], [1, 0.5, 0])
    np.testing.assert_allclose(result['mrr'], [1, 1 / 3, 1 / 11])
    np.testing.assert_allclose(result['map@10'], [1, 1 / 3, 0])
    np.testing.assert_allclose(result['precision@10'], [0.1, 0.1, 0])
    # 20 non-relevant candidates, of which 0, 2 and 10 stand above.
    np.testing.assert_allclose(result['auc'], [1, 0.9, 0.5])

  def test_several_relevant_items(self):
    result = metrics.per_user_metrics(make_ranks({0: [0, 3, 7]}, 5), (2, 5))
    np.testing.assert_allclose(result['recall@2'], [1 / 3])
    np.testing.assert_allclose(result['recall_min@2'], [1 / 2])
    np.testing.assert_allclose(result['recall@5'], [2 / 3])
    # Precisions 1/1 and 2/4 at the two hits in the first 5.
    np.testing.assert_allclose(result['map@5'], [(1 + 0.5) / 3])
    np.testing.assert_allclose(
        result['ndcg@5'],
        (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / 2))
    # Non-relevant items above: 0, 2 and 5 of 5.
    np.testing.assert_allclose(result['auc'], [1 - (0 + 2 + 5) / 15])

  def test_the_users_are_those_with_a_relevant_item_in_order(self):
    ranks = make_ranks({3: [0, 1], 7: [2], 9: [10]})
    np.testing.assert_array_equal(metrics.evaluated_users(ranks), [3, 7, 9])

  def test_auc_without_a_candidate_is_one_half(self):
    result = metrics.per_user_metrics(make_ranks({0: [0]}, 0), (1,))
    np.testing.assert_array_equal(result['auc'], [0.5])

  def test_coverage_and_gini(self):
    top = np.array([[0, 1], [0, 2], [0, -1]], np.int32)
    result = metrics.catalogue_metrics(top, (1, 2), 4)
    assert result['coverage@1'] == 0.25
    assert result['coverage@2'] == 0.75
    # One of four items has it all: (4 - 1) / 4. At 2 the exposures are 0, 1, 1,
    # 3: 2 (1*0 + 2*1 + 3*1 + 4*3) / (4 * 5) - 5 / 4.
    np.testing.assert_allclose(result['gini@1'], 0.75)
    np.testing.assert_allclose(result['gini@2'], 34 / 20 - 5 / 4)

  def test_gini_of_equal_exposure_is_zero(self):
    top = np.arange(6, dtype=np.int32).reshape(3, 2)
    assert abs(metrics.catalogue_metrics(top, (2,), 6)['gini@2']) < 1e-12


user_ranks = st.lists(
    st.integers(0, 24), min_size=1, max_size=8, unique=True).map(sorted)
populations = st.dictionaries(
    st.integers(0, 50), user_ranks, min_size=1, max_size=12
).map(lambda users: dict(sorted(users.items())))


class TestLaws:

  @hypothesis.given(populations)
  def test_equals_the_slow_oracle(self, users):
    # Ranks up to 24 among n relevant and 25 others always fit.
    result = metrics.per_user_metrics(make_ranks(users, 25), KS)
    for k in KS:
      for place, ranks in enumerate(users.values()):
        for name, value in oracle(ranks, 25, k).items():
          np.testing.assert_allclose(
              result[name][place], value, atol=1e-12, err_msg=name)

  @hypothesis.given(populations)
  def test_bounds_and_order(self, users):
    result = metrics.per_user_metrics(make_ranks(users, 25), KS)
    for name, values in result.items():
      assert (values >= 0).all() and (values <= 1 + 1e-12).all(), name
    for k in KS:
      assert (result[f'recall@{k}'] <= result[f'recall_min@{k}']).all()
      assert (result[f'recall_min@{k}'] <= result[f'hit_rate@{k}']).all()
      assert (result[f'precision@{k}'] <= result[f'recall_min@{k}']).all()
      assert (result[f'map@{k}'] <= result[f'recall_min@{k}'] + 1e-12).all()
    for small, large in zip(KS, KS[1:]):
      for name in ('hit_rate', 'recall'):
        assert (result[f'{name}@{small}'] <= result[f'{name}@{large}']).all()

  @hypothesis.given(populations)
  def test_a_perfect_ranking_is_worth_one(self, users):
    perfect = {user: list(range(len(r))) for user, r in users.items()}
    result = metrics.per_user_metrics(make_ranks(perfect, 25), KS)
    for k in KS:
      for name in ('hit_rate', 'ndcg', 'recall_min', 'map'):
        np.testing.assert_allclose(result[f'{name}@{k}'], 1)
    np.testing.assert_allclose(result['auc'], 1)
    np.testing.assert_allclose(result['mrr'], 1)

  @hypothesis.given(st.lists(st.lists(
      st.integers(-1, 6), min_size=3, max_size=3), min_size=1, max_size=8))
  def test_gini_equals_the_mean_absolute_difference(self, lists):
    top = np.array(lists, np.int32)
    result = metrics.catalogue_metrics(top, (3,), 7)
    exposure = [int((top == item).sum()) for item in range(7)]
    total = sum(exposure)
    gini = sum(abs(a - b) for a in exposure for b in exposure)
    expected = gini / (2 * 7 * total) if total else 0
    np.testing.assert_allclose(result['gini@3'], expected, atol=1e-12)
    assert 0 <= result['gini@3'] <= 1


class TestSummarise:

  def test_interval_matches_the_normal_one(self):
    values = np.random.default_rng(0).normal(0.3, 0.1, 2000)
    summary = metrics.summarise({'ndcg@10': values}, bootstrap_samples=2000,
                                seed=1)
    error = values.std() / np.sqrt(values.size)
    low, high = summary['ci95']['ndcg@10']
    assert summary['num_users'] == 2000
    np.testing.assert_allclose(summary['ndcg@10'], values.mean())
    # A quantile of 2,000 resamples has a standard error of some 0.06 of error.
    np.testing.assert_allclose(low, values.mean() - 1.96 * error,
                               atol=0.25 * error)
    np.testing.assert_allclose(high, values.mean() + 1.96 * error,
                               atol=0.25 * error)

  def test_seeded_and_independent_of_the_chunks(self, monkeypatch):
    values = {'a': np.random.default_rng(0).random(50),
              'b': np.random.default_rng(1).random(50)}
    whole = metrics.summarise(values, bootstrap_samples=200, seed=3)
    monkeypatch.setattr(metrics, '_BOOTSTRAP_ENTRIES', 170)
    assert metrics.summarise(values, bootstrap_samples=200, seed=3) == whole
    other = metrics.summarise(values, bootstrap_samples=200, seed=4)
    assert other['ci95'] != whole['ci95'] and other['a'] == whole['a']

  def test_a_constant_has_an_interval_of_no_width(self):
    summary = metrics.summarise({'a': np.full(7, 0.25)}, bootstrap_samples=100,
                                seed=0)
    assert summary['ci95']['a'] == [0.25, 0.25]

  def test_catalogue_metrics_come_with_the_lists_only(self):
    ranks = make_ranks({0: [0], 1: [3]}, 3)
    settings = dict(bootstrap_samples=100, seed=0)
    without = metrics.summarise_ranks(ranks, (1, 2), 4, **settings)
    assert 'coverage@2' not in without
    lists = ranks._replace(top=np.array([[0, 1], [0, 2]], np.int32))
    summary = metrics.summarise_ranks(lists, (1, 2), 4, **settings)
    assert summary['coverage@2'] == 0.75
    assert 'coverage@2' not in summary['ci95']
    assert summary['hit_rate@1'] == 0.5


class TestErrors:

  @pytest.mark.parametrize('k, rule', [(0, 'at least 1'), (9, 'larger than')])
  def test_cut_off_outside_the_catalogue(self, k, rule):
    with pytest.raises(ValueError, match=f'evaluation.ks={k} .*{rule}'):
      metrics.check_ks((1, k), 8)

  def test_no_pair(self):
    empty = np.empty(0, np.int32)
    with pytest.raises(ValueError, match='ranks.user='):
      metrics.per_user_metrics(metrics.Ranks(empty, empty, empty), (1,))

  @pytest.mark.parametrize('user, rank', [
      ([1, 0], [0, 0]), ([0, 0], [3, 3]), ([0, 0], [4, 3]), ([0], [-1])])
  def test_pairs_out_of_order(self, user, rank):
    ranks = metrics.Ranks(np.array(user), np.array(rank),
                          np.full(len(user), 9))
    with pytest.raises(ValueError, match='sorted by user'):
      metrics.per_user_metrics(ranks, (1,))

  def test_lists_too_short(self):
    with pytest.raises(ValueError, match='top_k=5'):
      metrics.catalogue_metrics(np.zeros((2, 3), np.int32), (5,), 9)

  def test_no_user(self):
    with pytest.raises(ValueError, match='0 users'):
      metrics.summarise({'a': np.empty(0)}, bootstrap_samples=100, seed=0)
