"""Personalised algorithms: their own settings, and what is personal at the end.

A table of every client is large: `personalization.table_limit_gib` bounds it.
"""

import dataclasses

from fedjaxrec.config.rules import above, at_least, check_types, one_of

SIMILARITIES = ('similarity', 'as_released')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PersonalizationConfig:
  """What clients keep beside the model, and training for themselves at the end.

  Attributes:
    table_limit_gib: Most GiB for the item tables that all clients keep; an
      algorithm that needs more is refused.
    finetune_steps: Gradient steps of each client on its own copy of the final
      model, its item rows included; it is then evaluated before and after. 0:
      none.
    finetune_fraction: The learning rates of these steps over the clients'.
  """
  table_limit_gib: float = 4.0
  finetune_steps: int = 0
  finetune_fraction: float = 0.1

  def __post_init__(self):
    check_types(self, 'personalization')
    at_least('personalization.table_limit_gib', self.table_limit_gib, 0)
    at_least('personalization.finetune_steps', self.finetune_steps, 0)
    above('personalization.finetune_fraction', self.finetune_fraction, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PFedRecConfig:
  """PFedRec; client.learning_rate is the score layer's.

  Attributes:
    lr_eta: An item row's rate is client.learning_rate * items * lr_eta; 0: it
      is client.item_learning_rate.
  """
  lr_eta: float = 80.0

  def __post_init__(self):
    check_types(self, 'pfedrec')
    at_least('pfedrec.lr_eta', self.lr_eta, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedRAPConfig:
  """FedRAP; client.learning_rate is the score layer's, item_ the tables'.

  Attributes:
    independence: lambda: weight of the mean squared distance of a client's item
      rows from the shared ones, which is rewarded.
    sparsity: mu: weight of the shared rows' L1 norm, a sum over the batch.
    batch_decay: Factor on all rates after each batch of a round.
    rising: Both weights rise over the rounds, as tanh(round / 10); the released
      code leaves them constant.
  """
  independence: float = 0.1
  sparsity: float = 1e-3
  batch_decay: float = 0.95
  rising: bool = True

  def __post_init__(self):
    check_types(self, 'fedrap')
    at_least('fedrap.independence', self.independence, 0)
    at_least('fedrap.sparsity', self.sparsity, 0)
    if not 0 < self.batch_decay <= 1:
      raise ValueError(
          f'fedrap.batch_decay={self.batch_decay} must lie in (0, 1].')


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPFedRecConfig:
  """GPFedRec; the server links clients by their item tables.

  Attributes:
    lr_eta: As pfedrec.lr_eta.
    pull: Weight of the mean squared distance of a client's item rows from its
      neighbours' table.
    threshold: A link is kept where it is above this many times the mean.
    layers: Times that a table is averaged over its links.
    similarity: similarity links clients whose tables have a small angle;
      as_released links by 1 minus the cosine, as the published code does, which
      is the least alike.
  """
  lr_eta: float = 80.0
  pull: float = 1.0
  threshold: float = 1.0
  layers: int = 1
  similarity: str = 'similarity'

  def __post_init__(self):
    check_types(self, 'gpfedrec')
    at_least('gpfedrec.lr_eta', self.lr_eta, 0)
    at_least('gpfedrec.pull', self.pull, 0)
    at_least('gpfedrec.threshold', self.threshold, 0)
    at_least('gpfedrec.layers', self.layers, 1)
    one_of('gpfedrec.similarity', self.similarity, SIMILARITIES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DittoConfig:
  """Ditto: a personal model beside the global one.

  Attributes:
    pull: lambda: weight of half the squared distance from the global model.
  """
  pull: float = 0.1

  def __post_init__(self):
    check_types(self, 'ditto')
    at_least('ditto.pull', self.pull, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedReconConfig:
  """FedRecon: the personal part is made anew in each round.

  Attributes:
    learning_rate: Of the reconstruction; the shared part's are the client's.
    epochs: Passes over the support set in a reconstruction.
    final_epochs: The same for evaluation, over all that the client has.
  """
  learning_rate: float = 7.0
  epochs: int = 5
  final_epochs: int = 20

  def __post_init__(self):
    check_types(self, 'fedrecon')
    above('fedrecon.learning_rate', self.learning_rate, 0)
    at_least('fedrecon.epochs', self.epochs, 1)
    at_least('fedrecon.final_epochs', self.final_epochs, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedRepConfig:
  """FedRep: the personal layers first, then the rest.

  Attributes:
    head_epochs: Passes that train the personal layers alone.
  """
  head_epochs: int = 5

  def __post_init__(self):
    check_types(self, 'fedrep')
    at_least('fedrep.head_epochs', self.head_epochs, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaConfig:
  """Meta-learning: clients adapt a start that all share.

  Attributes:
    learning_rate: alpha: of a client's adaptation; the client's rates are those
      of what it uploads.
    epochs: fomaml only: passes over the support set that adapt a client; the
      others refuse more than 1.
    final_epochs: Passes over all that a client has, which adapt it for
      evaluation.
    hessian: perfedavg only: what the first order drops is computed, by
      Hessian-vector products on a third part of each batch.
  """
  learning_rate: float = 2.0
  epochs: int = 1
  final_epochs: int = 5
  hessian: bool = False

  def __post_init__(self):
    check_types(self, 'meta')
    above('meta.learning_rate', self.learning_rate, 0)
    at_least('meta.epochs', self.epochs, 1)
    at_least('meta.final_epochs', self.final_epochs, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaMFConfig:
  """MetaMF; client.learning_rate is the generators', item_ the items' part.

  Attributes:
    user_learning_rate: Of a client's vector, from which its model is generated.
  """
  user_learning_rate: float = 1.0

  def __post_init__(self):
    check_types(self, 'metamf')
    above('metamf.user_learning_rate', self.user_learning_rate, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class APFLConfig:
  """APFL: a mixture of a personal and the global model.

  Attributes:
    alpha: The personal model's first share.
    alpha_rate: Learning rate of the share; 0: it stays.
  """
  alpha: float = 0.5
  alpha_rate: float = 0.01

  def __post_init__(self):
    check_types(self, 'apfl')
    at_least('apfl.alpha_rate', self.alpha_rate, 0)
    if not 0 <= self.alpha <= 1:
      raise ValueError(f'apfl.alpha={self.alpha} must lie in [0, 1].')
