"""Algorithms that are not gradient steps on a loss: their own settings."""

import dataclasses
from typing import Any

from fedjaxrec.config.corrections import sections_on
from fedjaxrec.config.rules import above, at_least, check_types, one_of

SAMPLINGS = ('uniform', 'tail', 'adaptive')
# Algorithms of vectors alone, whose clients upload sums and no deltas.
FACTORISATIONS = ('ials', 'dpals', 'fcf', 'fedmf')
# Algorithms whose server needs more than the sum of the updates.
LOOK_AT_EACH = ('gpfedrec', 'cofedrec')


@dataclasses.dataclass(frozen=True, kw_only=True)
class IALSConfig:
  """Federated alternating least squares on implicit feedback.

  Attributes:
    unobserved_weight: a0, the weight of a pair without an interaction.
    regularization: lambda, the ridge penalty.
    frequency_exponent: nu; a user's penalty is lambda (n_u + a0 items)^nu, an
      item's lambda (n_i + a0 clients)^nu. 0: the same for all; 1: as in the
      paper.
  """
  unobserved_weight: float = 0.8
  regularization: float = 0.01
  frequency_exponent: float = 0.75

  def __post_init__(self):
    check_types(self, 'ials')
    at_least('ials.unobserved_weight', self.unobserved_weight, 0)
    above('ials.regularization', self.regularization, 0)
    at_least('ials.frequency_exponent', self.frequency_exponent, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPALSConfig:
  """What private alternating least squares adds to the section ials.

  The bound of a user vector is privacy.l2_clip_norm; the noise follows from
  privacy.epsilon or privacy.noise_multiplier, which is that of one round.

  Attributes:
    items_per_client: Items that a client may contribute to in a round, k.
    sampling: Which ones: uniform (k at random), tail (the k with the smallest
      noisy counts) or adaptive (all of them, with weights by noisy count).
    adaptive_exponent: Power of the noisy count in the weights of
      sampling=adaptive; at most 0.
    item_fraction: Share of the items that are trained, those with the largest
      noisy counts; 1: all. Below 1 the counts are taken twice.
    gramian_share: Share of a round's budget (of 1 / noise_multiplier^2) for the
      Gramian of all clients.
    vector_share: The same for the items' vectors; the items' Gramians get the
      rest.
  """
  items_per_client: int = 50
  sampling: str = 'tail'
  adaptive_exponent: float = -0.5
  item_fraction: float = 1.0
  gramian_share: float = 0.1
  vector_share: float = 0.5

  def __post_init__(self):
    check_types(self, 'dpals')
    at_least('dpals.items_per_client', self.items_per_client, 1)
    one_of('dpals.sampling', self.sampling, SAMPLINGS)
    if not -10 <= self.adaptive_exponent <= 0:
      raise ValueError(
          f'dpals.adaptive_exponent={self.adaptive_exponent} must lie in '
          '[-10, 0]: rare items get the larger weights.')
    if not 0 < self.item_fraction <= 1:
      raise ValueError(
          f'dpals.item_fraction={self.item_fraction} must lie in (0, 1].')
    for field in ('gramian_share', 'vector_share'):
      above(f'dpals.{field}', getattr(self, field), 0)
    if self.gramian_share + self.vector_share >= 1:
      raise ValueError(
          f'dpals.gramian_share={self.gramian_share} and dpals.vector_share='
          f'{self.vector_share} must add up to less than 1: the rest is the '
          "items' Gramians' share.")

  @property
  def num_count_rounds(self) -> int:
    """Rounds, from the first, that release counts and no statistics."""
    return 1 if self.item_fraction == 1 else 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class FCFConfig:
  """Federated collaborative filtering; the server's step is section server.

  Attributes:
    alpha: Confidence of an interaction: its weight is 1 + alpha, that of a pair
      without one is 1.
    regularization: lambda, the ridge penalty on both sides.
  """
  alpha: float = 4.0
  regularization: float = 1.0

  def __post_init__(self):
    check_types(self, 'fcf')
    at_least('fcf.alpha', self.alpha, 0)
    above('fcf.regularization', self.regularization, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedMFConfig:
  """Federated matrix factorisation by gradients of explicit ratings.

  Attributes:
    learning_rate: Of the client's step on its own vector.
    user_regularization: lambda, the ridge penalty on a client's vector.
    item_regularization: mu, the ridge penalty on an item's vector, once for
      each rating of it.
  """
  learning_rate: float = 0.01
  user_regularization: float = 1e-4
  item_regularization: float = 1e-4

  def __post_init__(self):
    check_types(self, 'fedmf')
    above('fedmf.learning_rate', self.learning_rate, 0)
    at_least('fedmf.user_regularization', self.user_regularization, 0)
    at_least('fedmf.item_regularization', self.item_regularization, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedEASEConfig:
  """Federated EASE: a linear item-item model from one round of sums.

  Attributes:
    l2: Ridge penalty.
    damping: An item counts n^-damping, n being the clients that have it, so
      that the model is less of the popular ones; 0: 1, as in the paper. l2 is
      then of smaller squares.
    window: Two items of a client count together by exp(-distance / window),
      distance being how many of its interactions lie between; 0: all count
      alike, as in the paper. Needs timestamps.
    recency: To recommend, a client's item weighs floor + (1 - floor)
      exp(-age / recency), age being how many of its interactions are later; 0:
      all weigh alike, as in the paper. Needs timestamps.
    floor: What an old item still weighs with recency, from 0 to 1.
  """
  l2: float = 100.0
  damping: float = 0.0
  window: float = 0.0
  recency: float = 0.0
  floor: float = 0.0

  def __post_init__(self):
    check_types(self, 'fedease')
    above('fedease.l2', self.l2, 0)
    at_least('fedease.damping', self.damping, 0)
    at_least('fedease.window', self.window, 0)
    at_least('fedease.recency', self.recency, 0)
    if not 0 <= self.floor <= 1:
      raise ValueError(
          f'fedease.floor={self.floor} must lie in [0, 1]: it is what an old '
          'item weighs beside a new one.')
    if self.floor and not self.recency:
      raise ValueError(
          f'fedease.floor={self.floor} with fedease.recency=0, by which all '
          'items weigh alike; give a recency, or floor=0.')

  @property
  def reads_order(self) -> bool:
    """Whether it makes a difference in which order interactions came."""
    return self.window > 0 or self.recency > 0


def check_fedease(config: Any) -> None:
  """Refuses what federated EASE cannot be combined with.

  Args:
    config: The whole config.

  Raises:
    ValueError: With the way out.
  """
  if config.algorithm.name != 'fedease':
    return
  if config.model.name != 'mf':
    raise ValueError(
        f'algorithm.name=fedease with model.name={config.model.name}: its '
        'model is a matrix of items by items, and no other; leave '
        'model.name=mf, whose vectors it does not use, or choose '
        'algorithm.name=fedavg.')
  if config.rounds != 1 or config.cohort.size:
    raise ValueError(
        f'algorithm.name=fedease with rounds={config.rounds} and cohort.size='
        f'{config.cohort.size}: its sums do not depend on a model, so that one '
        'round of all clients says everything; use --rounds=1 '
        '--cohort.size=0.')
  if config.cohort.weighting != 'equal':
    raise ValueError(
        f'algorithm.name=fedease with cohort.weighting='
        f'{config.cohort.weighting}: its sums count every client once; use '
        'cohort.weighting=equal.')
  if config.objective.name == 'squared_error':
    raise ValueError(
        'algorithm.name=fedease with objective.name=squared_error: it ranks, '
        'and predicts no ratings; use objective.name=bce, which it does not '
        'read, or algorithm.name=fedmf.')
  if config.model.table_dtype != 'float32':
    raise ValueError(
        f'algorithm.name=fedease with model.table_dtype='
        f'{config.model.table_dtype}: a solution is not an average of small '
        'steps, and its rounding would not average out; use float32.')
  for section in sections_on(config):
    raise ValueError(
        f'algorithm.name=fedease with a section {section} that is on: what its '
        'clients send are no deltas, and a chain made for deltas would bend '
        'the sums that it solves with; switch it off, or use '
        'algorithm.name=dpals for privacy, fedavg for the others.')
