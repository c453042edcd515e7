"""The references outside the federation, and what each can be tuned by.

Defaults are what random searches on ML-100K's validation set chose
(leave-one-out by time, NDCG@10 of the full ranking, one seed): all 8 of ease,
all 30 of item_knn, 16 of mf, and of ials 60 of a wide and 28 of a narrower
grid. `references/tuning.py` has the grids, `benchmarks/references.py` searches.
"""

import dataclasses
from collections.abc import Mapping

from fedjaxrec.config.learning import MODELS, OBJECTIVES, SEQUENCE_MODELS
from fedjaxrec.config.rules import above, at_least, check_types, one_of

PRECISIONS = ('float64', 'float32')
REFERENCES = ('popularity', 'item_knn', 'ease', 'ials', 'mf', 'sequential')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PopularityConfig:
  """An item's score is its number of training interactions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemKNNConfig:
  """Items that the same people like.

  Attributes:
    num_neighbors: Most similar items that an item keeps; 0: all.
    shrinkage: Added to the cosine's denominator: distrusts small counts.
  """
  num_neighbors: int = 400
  shrinkage: float = 5.0

  def __post_init__(self):
    check_types(self, 'item_knn')
    at_least('item_knn.num_neighbors', self.num_neighbors, 0)
    at_least('item_knn.shrinkage', self.shrinkage, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EaseConfig:
  """A linear item-item model in closed form.

  Attributes:
    l2: Ridge penalty, in interactions.
  """
  l2: float = 100.0

  def __post_init__(self):
    check_types(self, 'ease')
    above('ease.l2', self.l2, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IALSConfig:
  """Implicit alternating least squares.

  Attributes:
    dim: Dimension of the factors.
    sweeps: Times that all users, then all items, are solved for.
    regularization: lambda, the ridge penalty.
    unobserved_weight: a0, the weight of a pair without an interaction.
    frequency_exponent: nu; a user's penalty is lambda (n_u + a0 m)^nu, an
      item's likewise. 0: the same for all; 1: as in the paper.
    init_scale: The item factors start as N(0, init_scale^2 / dim).
    precision: float64 (exact), or float32 (twice as fast).
  """
  dim: int = 128
  sweeps: int = 16
  regularization: float = 0.01
  unobserved_weight: float = 0.8
  frequency_exponent: float = 0.75
  init_scale: float = 0.1
  precision: str = 'float64'

  def __post_init__(self):
    check_types(self, 'ials')
    at_least('ials.dim', self.dim, 1)
    at_least('ials.sweeps', self.sweeps, 1)
    above('ials.regularization', self.regularization, 0)
    at_least('ials.unobserved_weight', self.unobserved_weight, 0)
    at_least('ials.frequency_exponent', self.frequency_exponent, 0)
    above('ials.init_scale', self.init_scale, 0)
    one_of('ials.precision', self.precision, PRECISIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentralizedConfig:
  """A federated run's model, trained in one place by Adam.

  Attributes:
    model: The model's name, as `model.name`.
    dim: Dimension of its vectors.
    init_scale: Standard deviation of its initial vectors.
    objective: The loss's name, as `objective.name`.
    num_negatives: Negatives an interaction, drawn anew every epoch, uniformly
      from what the user has not in train.
    epochs: Passes over the training interactions.
    batch_size: Interactions in a batch.
    learning_rate: Adam's.
    l2: Penalty on the vectors that an example reads: of their squares' sum.
  """
  model: str = 'mf'
  dim: int = 32
  init_scale: float = 0.1
  objective: str = 'bce'
  num_negatives: int = 4
  epochs: int = 10
  batch_size: int = 1024
  learning_rate: float = 0.01
  l2: float = 0.003

  def __post_init__(self):
    check_types(self, 'mf')
    one_of('mf.model', self.model, MODELS)
    if self.model in SEQUENCE_MODELS:
      raise ValueError(
          f'mf.model={self.model} reads sequences, and batches here are pairs '
          'of users and items; use the reference sequential.')
    one_of('mf.objective', self.objective, OBJECTIVES)
    for field in ('dim', 'epochs', 'batch_size'):
      at_least(f'mf.{field}', getattr(self, field), 1)
    at_least('mf.num_negatives', self.num_negatives,
             0 if self.objective == 'squared_error' else 1)
    above('mf.init_scale', self.init_scale, 0)
    above('mf.learning_rate', self.learning_rate, 0)
    at_least('mf.l2', self.l2, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentralizedSequenceConfig:
  """A federated run's sequence model, trained in one place by Adam.

  Attributes:
    model: sasrec or gru4rec, as `model.name`.
    dim: As `model.dim`.
    max_length: As `model.max_length`.
    num_blocks: As `model.num_blocks`.
    num_heads: As `model.num_heads`.
    init_scale: As `model.init_scale`.
    objective: As `objective.name`: bce, bpr, bpr_max or softmax.
    num_negatives: Negatives a place, drawn anew every epoch, uniformly from
      what the user has not in train.
    epochs: Passes over the users.
    batch_size: Users in a batch.
    learning_rate: Adam's.
    b2: Adam's second moment's decay.
  """
  model: str = 'sasrec'
  dim: int = 32
  max_length: int = 50
  num_blocks: int = 2
  num_heads: int = 1
  init_scale: float = 0.05
  objective: str = 'bce'
  num_negatives: int = 4
  epochs: int = 40
  batch_size: int = 128
  learning_rate: float = 0.003
  b2: float = 0.98

  def __post_init__(self):
    check_types(self, 'sequential')
    one_of('sequential.model', self.model, SEQUENCE_MODELS)
    one_of('sequential.objective', self.objective,
           tuple(name for name in OBJECTIVES if name != 'squared_error'))
    for field in ('dim', 'max_length', 'num_blocks', 'num_heads',
                  'num_negatives', 'epochs', 'batch_size'):
      at_least(f'sequential.{field}', getattr(self, field), 1)
    if self.dim % self.num_heads:
      raise ValueError(
          f'sequential.num_heads={self.num_heads} does not divide '
          f'sequential.dim={self.dim}; choose a divisor.')
    above('sequential.init_scale', self.init_scale, 0)
    above('sequential.learning_rate', self.learning_rate, 0)
    if not 0 <= self.b2 < 1:
      raise ValueError(f'sequential.b2={self.b2} must lie in [0, 1).')


ReferenceConfig = (
    PopularityConfig | ItemKNNConfig | EaseConfig | IALSConfig
    | CentralizedConfig | CentralizedSequenceConfig)
REFERENCE_CONFIGS: Mapping[str, type[ReferenceConfig]] = {
    'popularity': PopularityConfig,
    'item_knn': ItemKNNConfig,
    'ease': EaseConfig,
    'ials': IALSConfig,
    'mf': CentralizedConfig,
    'sequential': CentralizedSequenceConfig,
}
