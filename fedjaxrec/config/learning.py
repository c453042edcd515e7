"""What is learnt and by whom: model, objective, client, server, cohort."""

import dataclasses

from fedjaxrec.config.corrections import NORMALIZATIONS
from fedjaxrec.config.rules import above, at_least, check_types, one_of

# Models whose user is the encoding of a sequence; for sequential alone.
SEQUENCE_MODELS = ('sasrec', 'gru4rec')
MODELS = ('mf', 'gmf', 'mlp', 'neumf', 'pfedrec', 'metamf', 'two_tower',
          *SEQUENCE_MODELS)
# Those that learn what a client starts from, or is made of.
META_LEARNERS = ('reptile', 'fomaml', 'perfedavg', 'metamf')
# Algorithms whose clients have models of their own.
PERSONALISED = ('pfedrec', 'gpfedrec', 'fedrap', 'fedrecon', 'ditto', 'fedper',
                'fedrep', 'apfl', 'fedpergnn', 'cofedrec')
# Those whose published figures come of a leaking protocol.
LEAKY_ALGORITHMS = ('pfedrec', 'gpfedrec', 'cofedrec')
# Where a client's negatives come from; pfedrec-leaky is the published flaw.
NEGATIVE_POOLS = ('unseen', 'pfedrec-leaky')
TABLE_DTYPES = ('float32', 'bfloat16')
ALGORITHMS = ('fedavg', 'ials', 'dpals', 'fcf', 'fedmf', *META_LEARNERS,
              'fedease', 'sequential', *PERSONALISED)
OBJECTIVES = ('bce', 'bpr', 'bpr_max', 'softmax', 'squared_error')
OPTIMIZERS = ('sgd', 'momentum', 'adagrad', 'adam', 'yogi')
ITEM_OPTIMIZERS = ('', *OPTIMIZERS, 'rowwise_adagrad')
ROW_NORMALIZATIONS = ('mean', 'sum', 'contributors')
SCHEDULES = ('constant', 'cosine', 'exponential')
SAMPLERS = ('uniform', 'poisson', 'shuffled', 'cyclic', 'cyclic_poisson',
            'weighted')
WEIGHTINGS = ('equal', 'examples')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The recommender.

  Attributes:
    name: mf (matrix factorisation with biases), gmf, mlp or neumf (FedNCF's
      three), two_tower (towers on side features), or
      pfedrec (personal score layer, no user vector), or metamf (networks that
      generate a client's model); or, for algorithm.name=
      sequential, sasrec (self-attention) or gru4rec (a recurrent network).
    dim: Dimension of user and item vectors.
    init_scale: Standard deviation of the initial vectors.
    hidden: Widths of the layers of mlp and neumf.
    max_length: Latest items of a client that sasrec and gru4rec read.
    num_blocks: SASRec's attention blocks.
    num_heads: Heads of each; divides dim.
    memory: MetaMF's collaborative vector: how many numbers (published: 128).
    generator_width: Hidden units of the networks that generate a client's
      model (published: 512); an item weighs (width + 1) * rank numbers.
    generator_rank: Numbers that are generated for an item. A generated matrix
      makes `dim` of them (published: 8).
    table_dtype: The item table's numbers at rest: float32 or bfloat16 (half the
      memory and the download; sums and steps are float32).
  """
  name: str = 'mf'
  dim: int = 32
  init_scale: float = 0.1
  hidden: tuple[int, ...] = (64, 32, 16)
  max_length: int = 50
  num_blocks: int = 2
  num_heads: int = 1
  memory: int = 64
  generator_width: int = 32
  generator_rank: int = 8
  table_dtype: str = 'float32'

  def __post_init__(self):
    check_types(self, 'model')
    for field in ('memory', 'generator_width', 'generator_rank'):
      at_least(f'model.{field}', getattr(self, field), 1)
    one_of('model.name', self.name, MODELS)
    one_of('model.table_dtype', self.table_dtype, TABLE_DTYPES)
    at_least('model.dim', self.dim, 1)
    if self.dim > 65_536:
      raise ValueError(
          f'model.dim={self.dim} is above 65,536: no item table of that width '
          'fits a device.')
    above('model.init_scale', self.init_scale, 0)
    for field in ('max_length', 'num_blocks', 'num_heads'):
      at_least(f'model.{field}', getattr(self, field), 1)
    if self.name == 'sasrec' and self.dim % self.num_heads:
      raise ValueError(
          f'model.num_heads={self.num_heads} does not divide model.dim='
          f'{self.dim}: every head has an equal part of a vector; choose a '
          'divisor, or another dim.')
    if not self.hidden or min(self.hidden) < 1:
      raise ValueError(
          f'model.hidden={self.hidden} needs at least one width, each at '
          'least 1.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
  """The federated algorithm.

  Attributes:
    name: fedavg (local training, then the server moves by the deltas), ials
      (exact alternating least squares), dpals (the same with central privacy),
      reptile, fomaml or perfedavg (clients adapt a start that all learn),
      metamf (the server generates clients' models, for model.name=metamf),
      fcf (the gradient of the whole item table), fedmf (gradients of
      explicit ratings), fedease (a linear item-item model from one round of
      sums) or sequential (FedAvg on clients' own sequences, for
      model.name=sasrec and gru4rec); or personalised: pfedrec
      (own score layer and view of the items), gpfedrec (the same, with a graph
      of the clients at the server), fedrap (own and shared rows add up),
      fedrecon (the personal part is made anew each round), ditto (own model,
      pulled to the global), fedper and fedrep (personal layers, trained with or
      before the rest), apfl (a mixture of own and global model), fedpergnn
      (the client's items add to its vector) or cofedrec (pfedrec in groups of
      clients that are alike in a cluster of the items).
  """
  name: str = 'fedavg'

  def __post_init__(self):
    check_types(self, 'algorithm')
    one_of('algorithm.name', self.name, ALGORITHMS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
  """What a client minimises.

  Attributes:
    name: bce (pointwise, labels 1 and 0), bpr (pairwise), softmax (an
      interaction among its negatives), bpr_max (pairwise,
      against the negatives that stand highest) or squared_error (explicit
      ratings, no negatives).
    num_negatives: Negatives drawn for each interaction, afresh each round,
      distinct, from the items that the client has no training interaction with.
    l2: Weight of the squared L2 norms: of the personal and the shared
      parameters, and, as a mean over the batch, of the item rows.
    negative_pool: unseen (items without a training interaction of the client)
      or pfedrec-leaky, the published comparison's flaw: a client's validation
      and test items are spared, which LEAKS them into training. Only to
      reproduce published figures; whatever comes of it is labelled as leaking.
    repeated_negatives: An item may be drawn twice in a round. So does the
      released code of pfedrec, gpfedrec and cofedrec, for which alone this is.
      pfedrec-leaky draws so in any case.
  """
  name: str = 'bce'
  num_negatives: int = 8
  l2: float = 2.5e-4
  negative_pool: str = 'unseen'
  repeated_negatives: bool = False

  def __post_init__(self):
    check_types(self, 'objective')
    one_of('objective.name', self.name, OBJECTIVES)
    one_of('objective.negative_pool', self.negative_pool, NEGATIVE_POOLS)
    at_least('objective.l2', self.l2, 0)
    at_least('objective.num_negatives', self.num_negatives, 0)
    if self.name != 'squared_error' and self.num_negatives < 1:
      raise ValueError(
          f'objective.num_negatives={self.num_negatives} with objective.name='
          f'{self.name}: without negatives every score grows for ever; use at '
          'least 1, or objective.name=squared_error.')

  @property
  def leaks(self) -> bool:
    """Whether training is told of the held-out items."""
    return self.negative_pool != 'unseen'

  @property
  def drawn_negatives(self) -> int:
    """Negatives drawn for each interaction: none for explicit ratings."""
    return 0 if self.name == 'squared_error' else self.num_negatives


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientConfig:
  """Training on the device, within one round.

  Attributes:
    optimizer: sgd, momentum, adagrad, adam or yogi, with b1=0.9, b2=0.99 and
      eps=1e-3; its state lasts one round.
    item_optimizer: The item rows' own optimizer, or empty for `optimizer`; also
      rowwise_adagrad (one accumulator a row). With sgd, adagrad and
      rowwise_adagrad a step costs its batch; with momentum, adam and yogi the
      client's whole local table, every row of which goes on moving.
      rowwise_adagrad keeps 1 number of state for the `dim` of adagrad, which
      pays with epochs or steps above 1; in a single epoch a row is stepped
      once, and neither keeps any.
    learning_rate: Learning rate of the personal and shared parameters.
    item_learning_rate: Learning rate of the item rows. The loss is a mean over
      the batch and an item stands in it once, so this is usually higher.
    momentum: Momentum of optimizer=momentum.
    epochs: Passes over the client's interactions in a round.
    steps: Gradient steps in a round; 0: as many as `epochs` asks for.
    batch_size: Interactions in a batch; their negatives come on top.
    proximal_mu: FedProx's mu; 0 switches the proximal term off.
    control_variates: SCAFFOLD: corrected steps. By what a client's own
      gradients were the last time, against what everybody's were. Sends twice
      as much, and keeps an item table a client
      (personalization.table_limit_gib). Plain sgd on clients only.
    schedule: How the learning rates change over the rounds: constant, cosine or
      exponential.
    final_fraction: Learning rate at the last round over the first's.
  """
  optimizer: str = 'sgd'
  item_optimizer: str = ''
  learning_rate: float = 7.0
  item_learning_rate: float = 60.0
  momentum: float = 0.9
  epochs: int = 1
  steps: int = 0
  batch_size: int = 64
  proximal_mu: float = 0.0
  control_variates: bool = False
  schedule: str = 'cosine'
  final_fraction: float = 0.1

  def __post_init__(self):
    check_types(self, 'client')
    one_of('client.optimizer', self.optimizer, OPTIMIZERS)
    one_of('client.item_optimizer', self.item_optimizer, ITEM_OPTIMIZERS)
    one_of('client.schedule', self.schedule, SCHEDULES)
    above('client.learning_rate', self.learning_rate, 0)
    at_least('client.item_learning_rate', self.item_learning_rate, 0)
    at_least('client.epochs', self.epochs, 1)
    at_least('client.steps', self.steps, 0)
    at_least('client.batch_size', self.batch_size, 1)
    at_least('client.proximal_mu', self.proximal_mu, 0)
    above('client.final_fraction', self.final_fraction, 0)
    if not 0 <= self.momentum < 1:
      raise ValueError(f'client.momentum={self.momentum} must lie in [0, 1).')
    if self.item_optimizer == 'rowwise_adagrad' and self.proximal_mu:
      raise ValueError(
          f'client.item_optimizer=rowwise_adagrad with client.proximal_mu='
          f'{self.proximal_mu}: the proximal term pulls every row at every '
          'step, and a row-wise optimizer steps only those of a batch; use '
          'client.item_optimizer=adagrad, or client.proximal_mu=0.')


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
      (mean), by 1 (sum; equal weights only), or by the clients that touched
      the row (contributors). auto: contributors, but mean with privacy or a
      secure sum, which hide who touched a row.
    lazy_rows: True: a row that nobody touched keeps its value and its moments;
      without effect with privacy or a secure sum.
    schedule: How the learning rate changes over the rounds: constant, cosine or
      exponential.
    final_fraction: Learning rate at the last round over the first's.
  """
  optimizer: str = 'adam'
  learning_rate: float = 0.028
  momentum: float = 0.9
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-2
  row_normalization: str = 'auto'
  lazy_rows: bool = True
  schedule: str = 'cosine'
  final_fraction: float = 0.1

  def __post_init__(self):
    check_types(self, 'server')
    one_of('server.optimizer', self.optimizer, OPTIMIZERS)
    one_of('server.row_normalization', self.row_normalization,
            ('auto', *ROW_NORMALIZATIONS))
    one_of('server.schedule', self.schedule, SCHEDULES)
    above('server.learning_rate', self.learning_rate, 0)
    above('server.eps', self.eps, 0)
    above('server.final_fraction', self.final_fraction, 0)
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
      shuffled (every client once an epoch, in a new order each), cyclic (the
      same in one order for all epochs), cyclic_poisson (each client by itself,
      of one of `groups` groups in turn) or weighted (without replacement, in
      proportion to weights_path).
    groups: cyclic_poisson only: the groups.
    cap: poisson and cyclic_poisson only: the most clients a round can hold; 0:
      chosen so that a larger draw has probability below 1e-9. A larger draw is
      truncated.
    weights_path: Weighted only: .npy, one weight a client.
    weighting: A delta's weight in the mean: equal, or its number of examples.
    normalization: none, or local_steps (FedNova): by how far steps reach. A
      delta is divided by how far the client's do, and the mean is walked as far
      as the cohort's on average: who takes more does not count for more.
  """
  size: int = 150
  sampler: str = 'uniform'
  groups: int = 0
  cap: int = 0
  weights_path: str = ''
  weighting: str = 'equal'
  normalization: str = 'none'

  def __post_init__(self):
    check_types(self, 'cohort')
    at_least('cohort.size', self.size, 0)
    at_least('cohort.cap', self.cap, 0)
    one_of('cohort.sampler', self.sampler, SAMPLERS)
    one_of('cohort.weighting', self.weighting, WEIGHTINGS)
    one_of('cohort.normalization', self.normalization, NORMALIZATIONS)
    if self.cap and self.cap < self.size:
      raise ValueError(
          f'cohort.cap={self.cap} is below cohort.size={self.size}: more than '
          'half of the rounds would be truncated; raise it, or use 0.')
    if self.cap and self.sampler not in ('poisson', 'cyclic_poisson'):
      raise ValueError(
          f'cohort.cap={self.cap} with cohort.sampler={self.sampler!r}: only '
          'the poisson samplers have cohorts of different sizes to cap; drop '
          'it.')
    at_least('cohort.groups', self.groups, 0)
    if (self.sampler == 'cyclic_poisson') != (self.groups > 0):
      raise ValueError(
          f'cohort.groups={self.groups} with cohort.sampler={self.sampler!r}: '
          'cyclic_poisson, and no other sampler, draws from groups in turn; '
          'give both, or neither.')
    if (self.sampler == 'weighted') != bool(self.weights_path):
      raise ValueError(
          f'cohort.sampler={self.sampler!r} with cohort.weights_path='
          f'{self.weights_path!r}: the weighted sampler, and no other, needs a '
          '.npy file with one weight a client.')
