"""The whole configuration of a run: one frozen dataclass a stage.

Every field becomes one dotted flag (`fedjaxrec/flags.py`), and its line in the
`Attributes:` section becomes the flag's help. A config validates itself when it
is made, so a wrong value is refused before any file is read or any code is
compiled. `to_dict` and `from_dict` round-trip through `config.json`.
"""

import dataclasses
import math
from typing import Any

SOURCES = (
    'movielens-100k', 'movielens-1m', 'movielens-latest-small',
    'movielens-10m', 'movielens-20m', 'movielens-25m', 'ncf', 'synthetic',
)
SOURCE_PREFIXES = ('csv:', 'parquet:', 'tfds:')
SPLITS = (
    'leave_one_out', 'user_ratio', 'global_time', 'user_holdout', 'published',
)
MODELS = ('mf', 'neumf')
ALGORITHMS = ('fedavg',)
OBJECTIVES = ('bce', 'bpr', 'squared_error')
OPTIMIZERS = ('sgd', 'momentum', 'adagrad', 'adam', 'yogi')
ROW_NORMALIZATIONS = ('mean', 'sum', 'contributors')
SCHEDULES = ('constant', 'cosine', 'exponential')
SAMPLERS = ('uniform', 'poisson', 'shuffled', 'weighted')
WEIGHTINGS = ('equal', 'examples')
PARALLEL_MODES = ('auto', 'single', 'shard_map', 'pmap')
PROTOCOLS = ('full', 'sampled-99')
SELECTIONS = ('best', 'last')


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(
        f'{field}={value!r} is not known; choose one of {", ".join(choices)}.')


def _at_least(field: str, value: float, bound: float) -> None:
  if not (math.isfinite(value) and value >= bound):
    raise ValueError(
        f'{field}={value} must be a finite number of at least {bound}.')


def _above(field: str, value: float, bound: float) -> None:
  if not (math.isfinite(value) and value > bound):
    raise ValueError(f'{field}={value} must be a finite number above {bound}.')


def _fraction(field: str, value: float) -> None:
  if not 0 < value < 1:
    raise ValueError(
        f'{field}={value} must lie strictly between 0 and 1; it is the share '
        'of the interactions (or users) set aside.')


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
    user_column: Name of the user column of a CSV or Parquet file.
    item_column: Name of the item column.
    rating_column: Name of the rating column; empty: every rating is 1.
    timestamp_column: Name of the time column; empty: the order of the rows.
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

  def __post_init__(self):
    if self.source not in SOURCES and not self.source.startswith(
        SOURCE_PREFIXES):
      raise ValueError(
          f'data.source={self.source!r} is not known; choose one of '
          f'{", ".join(SOURCES)}, or csv:FILE, parquet:FILE, tfds:NAME.')
    if self.source in SOURCE_PREFIXES:
      raise ValueError(
          f'data.source={self.source!r} names no file or data set; write, for '
          f'example, --data.source={self.source}NAME.')
    _at_least('data.min_rating', self.min_rating, 0)
    _at_least('data.min_user_interactions', self.min_user_interactions, 1)
    _at_least('data.min_item_interactions', self.min_item_interactions, 1)
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
  """
  num_users: int = 1000
  num_items: int = 1000
  mean_interactions: float = 50.0
  activity_sigma: float = 1.0
  popularity_exponent: float = 1.0
  num_clusters: int = 10
  concentration: float = 0.7
  latent_dim: int = 8

  def __post_init__(self):
    _at_least('synthetic.num_users', self.num_users, 1)
    _at_least('synthetic.num_items', self.num_items, 2)
    if self.num_users > 10_000_000 or self.num_items > 1_000_000:
      raise ValueError(
          f'synthetic.num_users={self.num_users} and synthetic.num_items='
          f'{self.num_items} are limited to 10,000,000 and 1,000,000.')
    _above('synthetic.mean_interactions', self.mean_interactions, 0)
    if self.mean_interactions > self.num_items / 2:
      raise ValueError(
          f'synthetic.mean_interactions={self.mean_interactions} is more than '
          f'half of synthetic.num_items={self.num_items}; a user has each item '
          'once, so ask for fewer interactions or more items.')
    _at_least('synthetic.activity_sigma', self.activity_sigma, 0)
    _at_least('synthetic.popularity_exponent', self.popularity_exponent, 0)
    _at_least('synthetic.num_clusters', self.num_clusters, 1)
    _at_least('synthetic.latent_dim', self.latent_dim, 1)
    if not 0 <= self.concentration <= 1:
      raise ValueError(
          f'synthetic.concentration={self.concentration} must lie in [0, 1].')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
  """How interactions become training, validation and test sets.

  Attributes:
    name: leave_one_out (by time: last = test, second last = validation),
      user_ratio (each user's latest), global_time (one cut-off for all),
      user_holdout (unseen users with fold-in), published (the source's own).
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
    _one_of('split.name', self.name, SPLITS)
    _fraction('split.validation_fraction', self.validation_fraction)
    _fraction('split.test_fraction', self.test_fraction)
    _fraction('split.fold_in_fraction', self.fold_in_fraction)
    if self.validation_fraction + self.test_fraction >= 1:
      raise ValueError(
          f'split.validation_fraction={self.validation_fraction} and '
          f'split.test_fraction={self.test_fraction} leave nothing to train '
          'on; their sum must stay below 1.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The recommender.

  Attributes:
    name: mf (matrix factorisation with biases) or neumf (FedNCF).
    dim: Dimension of user and item vectors.
    init_scale: Standard deviation of the initial vectors.
    hidden: Widths of NeuMF's layers.
  """
  name: str = 'mf'
  dim: int = 32
  init_scale: float = 0.1
  hidden: tuple[int, ...] = (64, 32, 16)

  def __post_init__(self):
    _one_of('model.name', self.name, MODELS)
    _at_least('model.dim', self.dim, 1)
    _above('model.init_scale', self.init_scale, 0)
    if not self.hidden or min(self.hidden) < 1:
      raise ValueError(
          f'model.hidden={self.hidden} needs at least one width, each at '
          'least 1.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
  """The federated algorithm.

  Attributes:
    name: fedavg (local training, then the server moves by the deltas).
  """
  name: str = 'fedavg'

  def __post_init__(self):
    _one_of('algorithm.name', self.name, ALGORITHMS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
  """What a client minimises.

  Attributes:
    name: bce (pointwise, labels 1 and 0), bpr (pairwise) or squared_error
      (explicit ratings, no negatives).
    num_negatives: Negatives drawn for each interaction, afresh each round,
      distinct, from the items that the client has no training interaction with.
    l2: Weight of the squared L2 norm of the parameters that a batch touches.
  """
  name: str = 'bce'
  num_negatives: int = 4
  l2: float = 0.0

  def __post_init__(self):
    _one_of('objective.name', self.name, OBJECTIVES)
    _at_least('objective.l2', self.l2, 0)
    _at_least('objective.num_negatives', self.num_negatives, 0)
    if self.name != 'squared_error' and self.num_negatives < 1:
      raise ValueError(
          f'objective.num_negatives={self.num_negatives} with objective.name='
          f'{self.name}: without negatives every score grows for ever; use at '
          'least 1, or objective.name=squared_error.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientConfig:
  """Training on the device, within one round.

  Attributes:
    optimizer: sgd, momentum, adagrad, adam or yogi; its state lasts one round.
    learning_rate: Learning rate of the personal and shared parameters.
    item_learning_rate: Learning rate of the item rows. The loss is a mean over
      the batch and an item stands in it once, so this is usually higher.
    momentum: Momentum of optimizer=momentum.
    epochs: Passes over the client's interactions in a round.
    steps: Gradient steps in a round; 0: as many as `epochs` asks for.
    batch_size: Interactions in a batch; their negatives come on top.
    proximal_mu: FedProx's mu; 0 switches the proximal term off.
    schedule: How the learning rates change over the rounds.
    final_fraction: Learning rate at the last round over the first's.
  """
  optimizer: str = 'sgd'
  learning_rate: float = 0.1
  item_learning_rate: float = 0.1
  momentum: float = 0.9
  epochs: int = 1
  steps: int = 0
  batch_size: int = 64
  proximal_mu: float = 0.0
  schedule: str = 'constant'
  final_fraction: float = 0.1

  def __post_init__(self):
    _one_of('client.optimizer', self.optimizer, OPTIMIZERS)
    _one_of('client.schedule', self.schedule, SCHEDULES)
    _above('client.learning_rate', self.learning_rate, 0)
    _at_least('client.item_learning_rate', self.item_learning_rate, 0)
    _at_least('client.epochs', self.epochs, 1)
    _at_least('client.steps', self.steps, 0)
    _at_least('client.batch_size', self.batch_size, 1)
    _at_least('client.proximal_mu', self.proximal_mu, 0)
    _above('client.final_fraction', self.final_fraction, 0)
    if not 0 <= self.momentum < 1:
      raise ValueError(f'client.momentum={self.momentum} must lie in [0, 1).')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
  """How the server moves the shared model by the sum of the deltas.

  Attributes:
    optimizer: sgd (FedAvg), momentum (FedAvgM), adagrad, adam or yogi
      (FedAdagrad, FedAdam, FedYogi).
    learning_rate: Server learning rate; 1 with sgd is plain averaging.
    momentum: Momentum of optimizer=momentum.
    b1: First moment's decay (adam, yogi).
    b2: Second moment's decay (adam, yogi).
    eps: Added to the root of the second moment (adagrad, adam, yogi).
    row_normalization: An item row's sum of deltas is divided by the cohort
      (mean), by 1 (sum), or by the clients that touched the row
      (contributors).
    lazy_rows: True: a row that nobody touched keeps its value and its moments.
    schedule: How the learning rate changes over the rounds.
    final_fraction: Learning rate at the last round over the first's.
  """
  optimizer: str = 'sgd'
  learning_rate: float = 1.0
  momentum: float = 0.9
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-3
  row_normalization: str = 'mean'
  lazy_rows: bool = True
  schedule: str = 'constant'
  final_fraction: float = 0.1

  def __post_init__(self):
    _one_of('server.optimizer', self.optimizer, OPTIMIZERS)
    _one_of('server.row_normalization', self.row_normalization,
            ROW_NORMALIZATIONS)
    _one_of('server.schedule', self.schedule, SCHEDULES)
    _above('server.learning_rate', self.learning_rate, 0)
    _above('server.eps', self.eps, 0)
    _above('server.final_fraction', self.final_fraction, 0)
    for field in ('momentum', 'b1', 'b2'):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(
            f'server.{field}={getattr(self, field)} must lie in [0, 1).')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortConfig:
  """Who trains in a round.

  Attributes:
    size: Clients invited to a round (poisson: on average). 0: all of them.
    sampler: uniform (without replacement), poisson (each client by itself),
      shuffled (every client once an epoch) or weighted (without replacement, in
      proportion to weights_path).
    cap: Poisson only: the most clients a round can hold; 0: chosen so that a
      larger draw has probability below 1e-9. A larger draw is truncated.
    weights_path: Weighted only: a .npy file with one weight a client.
    weighting: A delta's weight in the mean: equal, or its number of examples.
  """
  size: int = 100
  sampler: str = 'uniform'
  cap: int = 0
  weights_path: str = ''
  weighting: str = 'equal'

  def __post_init__(self):
    _at_least('cohort.size', self.size, 0)
    _at_least('cohort.cap', self.cap, 0)
    _one_of('cohort.sampler', self.sampler, SAMPLERS)
    _one_of('cohort.weighting', self.weighting, WEIGHTINGS)
    if self.cap and self.cap < self.size:
      raise ValueError(
          f'cohort.cap={self.cap} is below cohort.size={self.size}: more than '
          'half of the rounds would be truncated; raise it, or use 0.')
    if (self.sampler == 'weighted') != bool(self.weights_path):
      raise ValueError(
          f'cohort.sampler={self.sampler!r} with cohort.weights_path='
          f'{self.weights_path!r}: the weighted sampler, and no other, needs a '
          '.npy file with one weight a client.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
  """Performance only: results do not depend on these fields.

  Attributes:
    block_size: Clients trained at once on a device; memory grows with it.
      0: chosen for the backend.
    num_size_classes: Groups of clients of similar size, each compiled once.
      0: chosen from the data.
    rounds_per_call: Rounds in one compiled call; 0: as many as the evaluation
      and checkpoint intervals allow, up to 50.
  """
  block_size: int = 0
  num_size_classes: int = 0
  rounds_per_call: int = 0

  def __post_init__(self):
    for field in ('block_size', 'num_size_classes', 'rounds_per_call'):
      _at_least(f'engine.{field}', getattr(self, field), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
  """Which devices share the work.

  Attributes:
    mode: single, shard_map or pmap; auto: shard_map on several devices.
    num_devices: Local devices to use; 0: all.
  """
  mode: str = 'auto'
  num_devices: int = 0

  def __post_init__(self):
    _one_of('parallel.mode', self.mode, PARALLEL_MODES)
    _at_least('parallel.num_devices', self.num_devices, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """What the recommendations are worth, and on what.

  Attributes:
    protocol: full (rank all items) or sampled-99 (the published comparison's).
    ks: Cut-offs of the ranking metrics; 10 and 20 are always among them.
    every: Rounds between two looks at the validation set; 0: only at the end.
    selection: best (by validation NDCG@10) or last: the round that is tested.
    batch_size: Users ranked at once.
    bootstrap_samples: Resamples of the users for the 95 % intervals.
    num_groups: User-activity groups in the report.
    local_only: Whether to train the control without federation.
    local_only_epochs: Local epochs of that control; 0: as many as a client gets
      in the federated run, up to 20.
    fold_in_epochs: Local epochs that fit a held-out user's own parameters.
  """
  protocol: str = 'full'
  ks: tuple[int, ...] = (5, 10, 20)
  every: int = 10
  selection: str = 'best'
  batch_size: int = 512
  bootstrap_samples: int = 1000
  num_groups: int = 5
  local_only: bool = True
  local_only_epochs: int = 0
  fold_in_epochs: int = 20

  def __post_init__(self):
    _one_of('evaluation.protocol', self.protocol, PROTOCOLS)
    _one_of('evaluation.selection', self.selection, SELECTIONS)
    if not self.ks or min(self.ks) < 1 or len(set(self.ks)) < len(self.ks):
      raise ValueError(
          f'evaluation.ks={self.ks} needs distinct cut-offs of at least 1.')
    _at_least('evaluation.every', self.every, 0)
    _at_least('evaluation.batch_size', self.batch_size, 1)
    _at_least('evaluation.bootstrap_samples', self.bootstrap_samples, 100)
    _at_least('evaluation.num_groups', self.num_groups, 1)
    _at_least('evaluation.local_only_epochs', self.local_only_epochs, 0)
    _at_least('evaluation.fold_in_epochs', self.fold_in_epochs, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """What survives an interruption.

  Attributes:
    every: Rounds between two checkpoints; 0: only at the end.
    keep: Checkpoints kept.
  """
  every: int = 50
  keep: int = 2

  def __post_init__(self):
    _at_least('checkpoint.every', self.every, 0)
    _at_least('checkpoint.keep', self.keep, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A run, whole.

  Attributes:
    seed: Seed of everything random: initial values, cohorts, negatives.
    rounds: Federated rounds.
    data: The interactions.
    synthetic: The made-up population.
    split: Training, validation and test sets.
    model: The recommender.
    algorithm: The federated algorithm.
    objective: The loss.
    client: Training on the device.
    server: The server's step.
    cohort: Who takes part.
    engine: Performance only.
    parallel: Devices.
    evaluation: Metrics and protocol.
    checkpoint: Checkpoints.
  """
  seed: int = 0
  rounds: int = 200
  data: DataConfig = DataConfig()
  synthetic: SyntheticConfig = SyntheticConfig()
  split: SplitConfig = SplitConfig()
  model: ModelConfig = ModelConfig()
  algorithm: AlgorithmConfig = AlgorithmConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  client: ClientConfig = ClientConfig()
  server: ServerConfig = ServerConfig()
  cohort: CohortConfig = CohortConfig()
  engine: EngineConfig = EngineConfig()
  parallel: ParallelConfig = ParallelConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()

  def __post_init__(self):
    _at_least('rounds', self.rounds, 1)
    if not 0 <= self.seed < 2**31:
      raise ValueError(f'seed={self.seed} must lie in [0, 2^31).')
    if (self.data.source == 'ncf') != (self.split.name == 'published'):
      raise ValueError(
          f'data.source={self.data.source} with split.name={self.split.name}: '
          'the NCF files come with their own split and no other source does; '
          'use --data.source=ncf together with --split.name=published.')


def to_dict(config: Any) -> dict[str, Any]:
  """Returns the config as nested dicts of JSON types; tuples become lists."""
  def plain(value):
    if dataclasses.is_dataclass(value):
      return {f.name: plain(getattr(value, f.name))
              for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value
  return plain(config)


def from_dict(values: dict[str, Any], cls: type = Config) -> Any:
  """Rebuilds a config from `to_dict`'s result.

  Args:
    values: Nested dicts; a missing field takes its default.
    cls: The config class to build.

  Raises:
    ValueError: For a field that does not exist or a value that is refused.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  unknown = sorted(set(values) - set(fields))
  if unknown:
    raise ValueError(
        f'{cls.__name__} has no field {unknown[0]!r}; it has '
        f'{", ".join(fields)}.')
  kwargs = {}
  for name, value in values.items():
    kind = fields[name].type
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
      value = from_dict(value, kind)
    elif isinstance(value, list):
      value = tuple(value)
    kwargs[name] = value
  return cls(**kwargs)
