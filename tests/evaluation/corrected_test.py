"""Corrected metrics: chances by enumeration, estimates by their two laws."""

import itertools

import numpy as np
import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.data import movielens, splits
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.evaluation import controls, corrected, metrics, ranking


@pytest.mark.parametrize('n, m', [(6, 3), (5, 1), (4, 4)])
def test_chances_are_those_of_all_samples(n, m):
  found = corrected.sampled_rank_probabilities(n, m)
  for rank in range(n + 1):
    samples = list(itertools.combinations(range(n), m))
    above = [sum(item < rank for item in sample) for sample in samples]
    np.testing.assert_allclose(
        found[rank], np.bincount(above, minlength=m + 1) / len(samples),
        rtol=0, atol=1e-14)


def test_a_gain_that_is_linear_in_the_rank_is_estimated_without_bias():
  gain = np.arange(301.0)
  table = corrected.correct(gain, 5, 0.0)
  chance = corrected.sampled_rank_probabilities(300, 5)
  # The rank is N / m times the sampled rank, in the mean.
  np.testing.assert_allclose(table, np.arange(6) * 300 / 5, atol=1e-6)
  np.testing.assert_allclose(chance @ table, gain, atol=1e-6)


@pytest.mark.parametrize('weight', [0.01, 0.1, 1.0])
def test_no_other_table_weighs_bias_and_variance_better(weight):
  gain = (np.arange(61) < 10) / np.log2(np.arange(61) + 2)
  chance = corrected.sampled_rank_probabilities(60, 8)

  def cost(table):
    mean = chance @ table
    variance = chance @ table ** 2 - mean ** 2
    return np.mean((mean - gain) ** 2 + weight * variance)

  table = corrected.correct(gain, 8, weight)
  generator = np.random.default_rng(0)
  for _ in range(50):
    other = table + 1e-3 * generator.standard_normal(9)
    assert cost(other) > cost(table)


def make_ranks(rank, num_negatives):
  n = len(rank)
  return metrics.Ranks(
      np.arange(n, dtype=np.int32), np.asarray(rank, np.int32),
      np.broadcast_to(np.int32(num_negatives), n))


def test_the_mean_over_users_is_near_the_full_metric():
  generator = np.random.default_rng(0)
  true = np.minimum(generator.geometric(0.01, 20_000) - 1, 500)
  sampled = generator.hypergeometric(true, 500 - true, 99)
  found = corrected.corrected_metrics(
      make_ranks(sampled, 99), np.full(20_000, 500), (10,))
  full = (true < 10).mean()
  assert abs(found['corrected_hit_rate@10'].mean() - full) < 0.2 * full
  # Positive control: the sampled metric is another quantity.
  assert (sampled < 10).mean() > 4 * full


def test_users_with_fewer_negatives_have_a_table_of_their_own():
  ranks = make_ranks([3, 3, 3], np.array([50, 50, 49]))
  found = corrected.corrected_metrics(
      ranks, np.array([200, 200, 200]), (5,))['corrected_ndcg@5']
  assert found[0] == found[1] != found[2]
  gain = (np.arange(201) < 5) / np.log2(np.arange(201) + 2)
  np.testing.assert_allclose(found[2], corrected.correct(gain, 49, 0.1)[3])


def test_a_sample_of_everything_needs_no_correction():
  ranks = make_ranks([0, 4, 9, 30], 40)
  found = corrected.corrected_metrics(ranks, np.full(4, 40), (10,), 0.0)
  plain = metrics.per_user_metrics(ranks, (10,))
  for name in ('hit_rate@10', 'ndcg@10'):
    np.testing.assert_allclose(
        found[f'corrected_{name}'], plain[name], atol=1e-9)


def test_candidates_of_the_full_ranking_are_counted():
  data = Interactions.from_columns([0, 0, 0, 1, 1], [0, 1, 2, 3, 4])
  split = splits.leave_one_out(data)  # User 1 has two rows: all in train.
  count = corrected.count_candidates
  parts = split.test, [split.train, split.validation]
  np.testing.assert_array_equal(count(*parts), [2, 3])
  chosen = np.array([False, False, True, True, False])
  np.testing.assert_array_equal(count(*parts, chosen), [1, 1])


def test_what_cannot_be_corrected_is_refused():
  two = metrics.Ranks(np.array([1, 1]), np.array([0, 2]), np.array([9, 9]))
  with pytest.raises(ValueError, match='several relevant'):
    corrected.corrected_metrics(two, np.array([20, 20]), (5,))
  with pytest.raises(ValueError, match='2 entries for 1 users'):
    corrected.corrected_metrics(make_ranks([0], 9), np.array([20, 20]), (5,))
  with pytest.raises(ValueError, match='variance_weight=2'):
    corrected.correct(np.ones(9), 3, 2)


def test_popularity_on_ml_100k(shared_data):
  """Sampled HR@10 0.42; full 0.084; the estimate is near the full one."""
  split = splits.make_split(
      movielens.load_path('movielens-100k', str(shared_data / 'ml-100k')),
      config_lib.SplitConfig())
  known = [split.train, split.validation]
  popularity = controls.popularity(split.train)
  full, sampled = (
      ranking.make_ranker(
          controls.score_popularity, split.test, known, split.num_items,
          protocol=protocol, batch_size=512, seed=0)((), popularity, ())
      for protocol in ('full', 'sampled-99'))
  found = corrected.corrected_metrics(sampled, full.num_candidates, (10,))
  expected = metrics.per_user_metrics(full, (10,))
  for name in ('hit_rate@10', 'ndcg@10'):
    ratio = found[f'corrected_{name}'].mean() / expected[name].mean()
    assert 0.7 < ratio < 1.4, (name, ratio)
