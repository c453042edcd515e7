"""Which interactions, and how they are split."""

import dataclasses

from fedjaxrec.config.rules import (
  above,
  at_least,
  check_types,
  fraction,
  one_of,
)

SOURCES = (
    'movielens-100k', 'movielens-1m', 'movielens-latest-small',
    'movielens-10m', 'movielens-20m', 'movielens-25m', 'ncf', 'citeulike-a',
    'synthetic',
)
# These come with a split of their own, and no other source does.
PUBLISHED_SPLITS = ('ncf', 'citeulike-a')
FEATURE_ENDINGS = ('.csv', '.csv.gz', '.parquet', '.npy')
SOURCE_PREFIXES = ('csv:', 'parquet:', 'tfds:')
SPLITS = (
    'leave_one_out', 'user_ratio', 'global_time', 'user_holdout',
    'item_holdout', 'published',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Which interactions, and where they come from.

  Attributes:
    source: A data set's name, or `csv:FILE`, `parquet:FILE`, `tfds:NAME`.
    path: Folder or file with the publisher's raw files; empty: cache, TFDS,
      publisher and package index are tried in this order.
    cache_dir: Where prepared data sets are kept; empty: $FEDJAXREC_CACHE, or
      ~/.cache/fedjaxrec.
    min_rating: Interactions rated lower are dropped; 0 keeps all.
    min_user_interactions: Users with fewer interactions are dropped.
    min_item_interactions: Items with fewer interactions are dropped.
    user_column: User column of a CSV or Parquet file.
    item_column: Name of the item column.
    rating_column: Name of the rating column; empty: every rating is 1.
    timestamp_column: Name of the time column; empty: the order of the rows.
    user_features: Side features of users: published (what a MovieLens set has),
      or a .csv, .csv.gz, .parquet file with the user column, or .npy; empty:
      none.
    item_features: Side features of items, likewise.
  """
  source: str = 'movielens-100k'
  path: str = ''
  cache_dir: str = ''
  min_rating: float = 0.0
  min_user_interactions: int = 1
  min_item_interactions: int = 1
  user_column: str = 'user_id'
  item_column: str = 'item_id'
  rating_column: str = 'rating'
  timestamp_column: str = 'timestamp'
  user_features: str = ''
  item_features: str = ''

  def __post_init__(self):
    check_types(self, 'data')
    if self.source not in SOURCES and not self.source.startswith(
        SOURCE_PREFIXES):
      raise ValueError(
          f'data.source={self.source!r} is not known; choose one of '
          f'{", ".join(SOURCES)}, or csv:FILE, parquet:FILE, tfds:NAME.')
    if self.source in SOURCE_PREFIXES:
      raise ValueError(
          f'data.source={self.source!r} names no file or data set; write, for '
          f'example, --data.source={self.source}NAME.')
    if self.path and self.source.startswith(('csv:', 'parquet:')):
      raise ValueError(
          f'data.path={self.path!r} with data.source={self.source!r}: the '
          'source names its file already; drop one of the two.')
    at_least('data.min_rating', self.min_rating, 0)
    at_least('data.min_user_interactions', self.min_user_interactions, 1)
    at_least('data.min_item_interactions', self.min_item_interactions, 1)
    for field in ('user_features', 'item_features'):
      value = getattr(self, field)
      if value and value != 'published' and not value.endswith(
          FEATURE_ENDINGS):
        raise ValueError(
            f'data.{field}={value!r} must be empty, published, or a file '
            f'ending in {", ".join(FEATURE_ENDINGS)}.')
    for field in ('user_column', 'item_column'):
      if not getattr(self, field):
        raise ValueError(
            f"data.{field}='' names no column; every file needs one.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
  """The made-up population of `--data.source=synthetic`.

  Attributes:
    num_users: Users, up to 10 million.
    num_items: Items, up to 1 million.
    mean_interactions: Mean number of interactions a user (log-normal).
    activity_sigma: Standard deviation of the log of a user's activity.
    popularity_exponent: Item popularity falls as rank^-exponent.
    num_clusters: Groups of users with tastes of their own (non-IID clients).
    concentration: Share of a user's interactions inside the cluster's taste.
    latent_dim: Dimension of the latent factors that make the ratings.
    seed: Seed of the population; -1: the run's. Give it where runs with other
      seeds are to have the same data, as in a sweep.
  """
  num_users: int = 1000
  num_items: int = 1000
  mean_interactions: float = 50.0
  activity_sigma: float = 1.0
  popularity_exponent: float = 1.0
  num_clusters: int = 10
  concentration: float = 0.7
  latent_dim: int = 8
  seed: int = -1

  def __post_init__(self):
    check_types(self, 'synthetic')
    if not -1 <= self.seed < 2**31:
      raise ValueError(
          f'synthetic.seed={self.seed} must lie in [0, 2^31), or be -1 for the '
          "run's own seed.")
    at_least('synthetic.num_users', self.num_users, 1)
    at_least('synthetic.num_items', self.num_items, 2)
    if self.num_users > 10_000_000 or self.num_items > 1_000_000:
      raise ValueError(
          f'synthetic.num_users={self.num_users} and synthetic.num_items='
          f'{self.num_items} are limited to 10,000,000 and 1,000,000.')
    above('synthetic.mean_interactions', self.mean_interactions, 0)
    if self.mean_interactions > self.num_items / 2:
      raise ValueError(
          f'synthetic.mean_interactions={self.mean_interactions} is more than '
          f'half of synthetic.num_items={self.num_items}; a user has each item '
          'once, so ask for fewer interactions or more items.')
    at_least('synthetic.activity_sigma', self.activity_sigma, 0)
    at_least('synthetic.popularity_exponent', self.popularity_exponent, 0)
    at_least('synthetic.num_clusters', self.num_clusters, 1)
    at_least('synthetic.latent_dim', self.latent_dim, 1)
    if not 0 <= self.concentration <= 1:
      raise ValueError(
          f'synthetic.concentration={self.concentration} must lie in [0, 1].')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
  """How interactions become training, validation and test sets.

  Attributes:
    name: leave_one_out (by time: last = test, second last = validation),
      user_ratio (each user's latest), global_time (one cut-off for all),
      user_holdout (unseen users with fold-in), item_holdout (unseen items,
      ranked among themselves), published (the source's own).
    validation_fraction: Share set aside for validation (not leave_one_out).
    test_fraction: Share set aside for test (not leave_one_out).
    fold_in_fraction: Share of a held-out user's interactions given to the
      model before it is asked for the rest (user_holdout only).
  """
  name: str = 'leave_one_out'
  validation_fraction: float = 0.1
  test_fraction: float = 0.1
  fold_in_fraction: float = 0.8

  def __post_init__(self):
    check_types(self, 'split')
    one_of('split.name', self.name, SPLITS)
    fraction('split.validation_fraction', self.validation_fraction)
    fraction('split.test_fraction', self.test_fraction)
    fraction('split.fold_in_fraction', self.fold_in_fraction)
    if self.validation_fraction + self.test_fraction >= 1:
      raise ValueError(
          f'split.validation_fraction={self.validation_fraction} and '
          f'split.test_fraction={self.test_fraction} leave nothing to train '
          'on; their sum must stay below 1.')
