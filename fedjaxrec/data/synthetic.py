"""A made-up population with the statistics that make federation hard.

Item popularity falls as rank^-exponent; a user's activity is log-normal; users
belong to clusters, and a share of each user's interactions follows the
cluster's own items, so clients are not identically distributed.
Ratings 1..5 come from latent factors whose user vectors scatter around a vector
of the cluster. Times are random.

Everything is drawn in chunks of users, so memory is that of the result (16
bytes an interaction) and a chunk's work space, and each chunk from a generator
of its own: the same seed gives the same population.
"""

import numpy as np

from fedjaxrec import config as config_lib
from fedjaxrec.data import interactions as interactions_lib

Interactions = interactions_lib.Interactions

_CHUNK_ROWS = 1_000_000
_TRIES = 12
_START_S, _SPAN_S = 1_500_000_000, 3 * 365 * 86_400  # Three years from 2017.
_RATING_NOISE = 0.5


def load(config: config_lib.SyntheticConfig, seed: int) -> Interactions:
  """Makes a population.

  Cost: about 1 microsecond and 16 bytes an interaction (2 CPU cores); 10
  million users with 50 each take about ten minutes and 9 GB.

  Args:
    config: Sizes and shapes.
    seed: At least 0.

  Returns:
    Interactions with ids 0..num_users-1 and 0..num_items-1; every user has at
    least one, an item can have none.
  """
  counts = _activity(config, np.random.default_rng([seed, 0]))
  offsets = np.zeros(config.num_users + 1, np.int64)
  np.cumsum(counts, out=offsets[1:])
  num_rows = int(offsets[-1])
  items = np.empty(num_rows, np.int32)
  ratings = np.empty(num_rows, np.float32)
  timestamps = np.empty(num_rows, np.int64)
  world = _World(config, np.random.default_rng([seed, 1]))
  start = 0
  while start < config.num_users:
    stop = int(np.searchsorted(offsets, offsets[start] + _CHUNK_ROWS, 'right'))
    stop = min(max(stop - 1, start + 1), config.num_users)
    rows = slice(offsets[start], offsets[stop])
    items[rows], ratings[rows], timestamps[rows] = world.draw(
        counts[start:stop], np.random.default_rng([seed, 2, start]))
    start = stop
  return Interactions.unchecked(
      offsets, items, ratings, timestamps,
      np.arange(config.num_users), np.arange(config.num_items))


def _activity(
    config: config_lib.SyntheticConfig, rng: np.random.Generator
) -> np.ndarray:
  """Interactions of each user, log-normal: int64 [num_users].

  At least 1 and at most half of the items, so that distinct items are found
  quickly; the mean is therefore a little off where these bounds are felt.
  """
  mean_log = np.log(config.mean_interactions) - config.activity_sigma**2 / 2
  counts = np.exp(rng.normal(
      mean_log, config.activity_sigma, config.num_users))
  # Rounding at random keeps the mean.
  counts = np.floor(counts + rng.random(config.num_users))
  return np.clip(counts, 1, max(1, config.num_items // 2)).astype(np.int64)


class _World:
  """What all users share: popularity, the clusters' tastes, latent factors."""

  def __init__(self, config, rng: np.random.Generator):
    num_items, num_clusters = config.num_items, config.num_clusters
    self.config = config
    # Each item is of one cluster. Clusters have as many users as their items
    # are popular, so that the whole population's popularity is the power law,
    # whatever the concentration.
    weights = np.empty(num_items)
    weights[rng.permutation(num_items)] = (
        np.arange(1, num_items + 1) ** -config.popularity_exponent)
    item_cluster = rng.integers(0, num_clusters, num_items)
    self.by_cluster = np.argsort(item_cluster, kind='stable').astype(np.int32)
    self.cumulative = np.cumsum(weights[self.by_cluster]) / weights.sum()
    ends = np.cumsum(np.bincount(item_cluster, minlength=num_clusters))
    self.cluster_end = np.concatenate([[0.0], self.cumulative])[ends]
    self.scale = np.float32(config.latent_dim ** -0.25)
    shape = (num_items, config.latent_dim)
    self.item_factors = self.scale * rng.standard_normal(shape, np.float32)
    shape = (num_clusters, config.latent_dim)
    self.cluster_factors = self.scale * rng.standard_normal(shape, np.float32)

  def draw(
      self, counts: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items, ratings and timestamps of a chunk of users, in time order."""
    num_users = len(counts)
    cluster = np.searchsorted(self.cluster_end, rng.random(num_users), 'right')
    cluster = np.minimum(cluster, self.config.num_clusters - 1)
    users = np.repeat(np.arange(num_users), counts)
    items = self._distinct_items(users, cluster, rng)
    vectors = self.cluster_factors[cluster] + 0.5 * self.scale * (
        rng.standard_normal((num_users, self.config.latent_dim), np.float32))
    scores = _RATING_NOISE * rng.standard_normal(len(items), np.float32)
    for factor in range(self.config.latent_dim):
      scores += (vectors[users, factor] * self.item_factors[items, factor])
    ratings = np.clip(np.rint(3.5 + scores), 1, 5)
    timestamps = _START_S + rng.integers(0, _SPAN_S, len(items))
    # Sorting (user, time) keys sorts the times within each user.
    timestamps = np.sort(users * 2**32 + timestamps) % 2**32
    return items, ratings, timestamps

  def _distinct_items(
      self, users: np.ndarray, cluster: np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """One item a row, distinct within a user, in random order: int32 [rows].

    Rows that repeat an item of their user are drawn again; after some tries the
    few rows left draw uniformly, so that it always ends.
    """
    num_items = self.config.num_items
    pairs = np.empty(0, np.int64)  # user * num_items + item, sorted.
    pending, tries = users, 0
    while len(pending):
      drawn = (self._draw_items(pending, cluster, rng) if tries < _TRIES
               else rng.integers(0, num_items, len(pending)))
      new, first = np.unique(pending * num_items + drawn, return_index=True)
      place = np.searchsorted(pairs, new)
      known = np.zeros(len(new), np.bool_)
      inside = place < len(pairs)
      known[inside] = pairs[place[inside]] == new[inside]
      again = np.ones(len(pending), np.bool_)
      again[first[~known]] = False
      pairs = np.insert(pairs, place[~known], new[~known])
      pending, tries = pending[again], tries + 1
    # Pairs are sorted by user, then item; the order within a user is random.
    owners = pairs // num_items
    order = np.argsort(owners * 2**32 + rng.integers(0, 2**32, len(pairs)))
    return (pairs - owners * num_items)[order].astype(np.int32)

  def _draw_items(self, users, cluster, rng) -> np.ndarray:
    position = rng.random(len(users))
    own = rng.random(len(users)) < self.config.concentration
    of_row = cluster[users]
    begin = np.concatenate([[0.0], self.cluster_end])[of_row]
    inside = begin + position * (self.cluster_end[of_row] - begin)
    position = np.where(own, inside, position)
    rank = np.searchsorted(self.cumulative, position, 'right')
    return self.by_cluster[np.minimum(rank, self.config.num_items - 1)]
