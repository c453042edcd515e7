"""The made-up population has the statistics that its config asks for."""

import dataclasses

import numpy as np
import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.data import interactions as interactions_lib
from fedjaxrec.data import synthetic

Config = config_lib.SyntheticConfig


def load(seed=0, **fields):
  return synthetic.load(Config(**fields), seed)


@pytest.mark.parametrize('fields', [
    {}, dict(num_users=1), dict(num_items=2, mean_interactions=1.0),
    dict(num_clusters=50, num_items=40, mean_interactions=20.0),
    dict(concentration=1.0), dict(concentration=0.0, num_clusters=1),
    dict(activity_sigma=3.0, num_items=200, popularity_exponent=2.0),
    dict(popularity_exponent=0.0, latent_dim=1, activity_sigma=0.0)])
def test_every_rule_of_interactions_is_kept(fields):
  data = load(**fields)
  checked = interactions_lib.Interactions(
      **{f.name: getattr(data, f.name) for f in dataclasses.fields(data)})
  config = Config(**fields)
  assert (checked.num_users, checked.num_items) == (
      config.num_users, config.num_items)
  assert checked.counts.min() >= 1
  assert set(np.unique(data.ratings)) <= {1, 2, 3, 4, 5}
  for name in ('offsets', 'items', 'ratings', 'timestamps'):
    assert getattr(data, name).dtype == getattr(checked, name).dtype


def test_the_seed_decides_and_nothing_else_does():
  assert load(3).fingerprint() == load(3).fingerprint()
  assert load(3).fingerprint() != load(4).fingerprint()


def test_a_population_of_several_chunks_is_as_good(monkeypatch):
  monkeypatch.setattr(synthetic, '_CHUNK_ROWS', 300)
  data = load(num_users=200)
  interactions_lib.Interactions(
      **{f.name: getattr(data, f.name) for f in dataclasses.fields(data)})
  # No two chunks are alike.
  assert len({data.items[o:o + 5].tobytes() for o in data.offsets[:-1]}) == 200


def test_activity_is_log_normal():
  data = load(num_users=20_000, num_items=20_000, mean_interactions=50.0,
              activity_sigma=0.8)
  logs = np.log(data.counts)
  # Standard errors: of the mean 50 * sqrt(exp(s^2) - 1) / sqrt(n) = 0.34, of
  # sigma s / sqrt(2n) = 0.004; rounding to whole numbers adds a little to it.
  assert data.counts.mean() == pytest.approx(50, abs=4 * 0.34)
  assert logs.std() == pytest.approx(0.8, abs=0.02)
  assert np.median(data.counts) == pytest.approx(50 * np.exp(-0.32), rel=0.05)


@pytest.mark.parametrize('exponent', [0.5, 1.0])
@pytest.mark.parametrize('concentration', [0.0, 0.7])
def test_popularity_is_a_power_law(exponent, concentration):
  data = load(num_users=20_000, num_items=10_000, mean_interactions=20.0,
              activity_sigma=0.1, popularity_exponent=exponent,
              concentration=concentration)
  popularity = np.sort(np.bincount(data.items, minlength=10_000))[::-1]
  # The head is flattened (a user has an item once) and the tail is noisy.
  ranks = np.unique(np.geomspace(100, 2000, 30).astype(int))
  slope = np.polyfit(np.log(ranks), np.log(popularity[ranks]), 1)[0]
  assert -slope == pytest.approx(exponent, abs=0.08)


def test_clusters_are_seen_by_a_chi_square_test_and_without_them_nothing_is():
  def statistic(concentration):
    data = load(num_users=400, num_items=400, mean_interactions=10.0,
                activity_sigma=0.0, popularity_exponent=0.0, num_clusters=4,
                concentration=concentration, seed=1)
    # Users grouped by the cluster that is found in their own items: by their
    # first half, tested on their second half.
    first = np.arange(data.num_interactions) % 10 < 5
    cluster_of_item = item_clusters(400, 4, seed=1)
    votes = np.zeros((400, 4))
    np.add.at(votes, (data.users[first], cluster_of_item[data.items[first]]), 1)
    group = votes.argmax(axis=1)
    table = np.zeros((4, 4))
    np.add.at(table, (group[data.users[~first]],
                      cluster_of_item[data.items[~first]]), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return ((table - expected)**2 / expected).sum()

  # 9 degrees of freedom: 99.99 % of values are below 33.7 without clusters.
  assert statistic(0.0) < 33.7
  assert statistic(0.7) > 500


def item_clusters(num_items, num_clusters, seed):
  """The clusters of the items, found from the users' choices alone."""
  data = load(num_users=3000, num_items=num_items, mean_interactions=10.0,
              activity_sigma=0.0, popularity_exponent=0.0,
              num_clusters=num_clusters, concentration=1.0, seed=seed)
  # The same seed makes the same world, whoever lives in it.
  rows = np.zeros((3000, num_items))
  rows[data.users, data.items] = 1
  together = rows.T @ rows > 0
  label, found = np.full(num_items, -1), 0
  for item in range(num_items):
    if label[item] < 0:
      label[together[item]] = found
      found += 1
  assert found == num_clusters
  return label


def test_ratings_have_structure():
  data = load(num_users=2000, num_items=200)
  by_item = np.array([
      data.ratings[data.items == item].mean() for item in range(50)])
  # A rating's standard deviation is about 1 and an item has some 500 of them.
  assert data.ratings.std() > 0.8
  assert by_item.std() > 5 / np.sqrt(500)
