"""A run, whole, and its stages around the learning."""

import copy
import dataclasses
from typing import Any

from fedjaxrec.config.algorithms import (
  FACTORISATIONS,
  DPALSConfig,
  FCFConfig,
  FedEASEConfig,
  FedMFConfig,
  IALSConfig,
  check_fedease,
)
from fedjaxrec.config.compression import (
  CompressionConfig,
  check_count_sketch,
  check_downlink,
)
from fedjaxrec.config.corrections import check_corrections
from fedjaxrec.config.data import (
  PUBLISHED_SPLITS,
  DataConfig,
  SplitConfig,
  SyntheticConfig,
)
from fedjaxrec.config.evaluation import (
  CheckpointConfig,
  EvaluationConfig,
  check_evaluation,
)
from fedjaxrec.config.graph import CoFedRecConfig, FedPerGNNConfig
from fedjaxrec.config.learning import (
  LEAKY_ALGORITHMS,
  SEQUENCE_MODELS,
  AlgorithmConfig,
  ClientConfig,
  CohortConfig,
  ModelConfig,
  ObjectiveConfig,
  ServerConfig,
)
from fedjaxrec.config.local_privacy import LocalPrivacyConfig, check_local
from fedjaxrec.config.personalized import (
  APFLConfig,
  DittoConfig,
  FedRAPConfig,
  FedReconConfig,
  FedRepConfig,
  GPFedRecConfig,
  MetaConfig,
  MetaMFConfig,
  PersonalizationConfig,
  PFedRecConfig,
)
from fedjaxrec.config.privacy import PrivacyConfig
from fedjaxrec.config.rules import at_least, check_types, one_of
from fedjaxrec.config.secure import SecureConfig, check_secure
from fedjaxrec.config.two_tower import TwoTowerConfig, check_side_features
from fedjaxrec.config.unread import check_unread, drop_unread

PARALLEL_MODES = ('auto', 'single', 'shard_map', 'pmap')
DATA_PLACES = ('device', 'host')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
  """Performance only: results do not depend on these fields.

  Attributes:
    block_size: Clients trained at once on a device; memory grows with it.
      0: on a CPU 8 to 32, so that a block's rows fit its cache; on an
      accelerator 512, or what fits a quarter of its memory.
    num_size_classes: Groups of clients of similar size, each compiled once.
      0: up to 4, as long as one more saves a twentieth of the room.
    rounds_per_call: Rounds in one compiled call; 0: as many as the evaluation
      and checkpoint intervals allow, up to 50.
    data: Where the interactions are: device (all of them, once) or host (each
      call's cohorts are sent ahead of it, by a thread), for populations that do
      not fit a device.
  """
  block_size: int = 0
  num_size_classes: int = 0
  rounds_per_call: int = 0
  data: str = 'device'

  def __post_init__(self):
    check_types(self, 'engine')
    one_of('engine.data', self.data, DATA_PLACES)
    for field in ('block_size', 'num_size_classes', 'rounds_per_call'):
      at_least(f'engine.{field}', getattr(self, field), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
  """Which devices share the work, on one host or on several.

  Attributes:
    mode: single, shard_map or pmap; auto: shard_map on several devices.
    num_devices: Local devices to use, on each host; 0: all.
    coordinator: Where several processes meet: host:port of process 0, or auto
      on Slurm, cloud TPU and what else JAX recognises. Empty: one process.
    num_processes: Processes that meet at host:port.
    process_id: This process among them, from 0.
    join_timeout_s: Seconds to wait for all processes.
  """
  mode: str = 'auto'
  num_devices: int = 0
  coordinator: str = ''
  num_processes: int = 0
  process_id: int = -1
  join_timeout_s: int = 300

  def __post_init__(self):
    check_types(self, 'parallel')
    one_of('parallel.mode', self.mode, PARALLEL_MODES)
    at_least('parallel.num_devices', self.num_devices, 0)
    at_least('parallel.num_processes', self.num_processes, 0)
    at_least('parallel.process_id', self.process_id, -1)
    at_least('parallel.join_timeout_s', self.join_timeout_s, 1)
    if self.coordinator in ('', 'auto'):
      if self.num_processes or self.process_id >= 0:
        raise ValueError(
            f'parallel.num_processes={self.num_processes} and parallel.'
            f'process_id={self.process_id} with parallel.coordinator='
            f'{self.coordinator!r}: they belong to the host:port of process 0 '
            '(auto finds them by itself); give it, or drop them.')
      return
    host, colon, port = self.coordinator.rpartition(':')
    if not (host and colon and port.isascii() and port.isdigit()
            and 0 < int(port) < 2**16):
      raise ValueError(
          f'parallel.coordinator={self.coordinator!r} must be auto, or the '
          'host:port of process 0 with a port from 1 to 65535, for example '
          'node1:12355.')
    if self.num_processes < 1:
      raise ValueError(
          f'parallel.num_processes={self.num_processes} with parallel.'
          f'coordinator={self.coordinator}: say how many processes meet there.')
    if not 0 <= self.process_id < self.num_processes:
      raise ValueError(
          f'parallel.process_id={self.process_id} must be from 0 to '
          f'{self.num_processes - 1} with parallel.num_processes='
          f'{self.num_processes}, another one in each process.')
    if self.mode == 'single' and self.num_processes > 1:
      raise ValueError(
          f'parallel.mode=single with parallel.num_processes='
          f'{self.num_processes}: one device is all that mode uses; use '
          'shard_map, or drop one of the two.')


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
    two_tower: Settings of model.name=two_tower.
    algorithm: The federated algorithm.
    ials: Settings of algorithm.name=ials and dpals.
    dpals: What algorithm.name=dpals adds.
    fcf: Settings of algorithm.name=fcf.
    fedmf: Settings of algorithm.name=fedmf.
    fedease: Settings of algorithm.name=fedease.
    personalization: What clients keep beside the model.
    pfedrec: Settings of algorithm.name=pfedrec.
    gpfedrec: Settings of algorithm.name=gpfedrec.
    fedrap: Settings of algorithm.name=fedrap.
    fedrecon: Settings of algorithm.name=fedrecon.
    ditto: Settings of algorithm.name=ditto.
    fedrep: Settings of algorithm.name=fedrep.
    apfl: Settings of algorithm.name=apfl.
    meta: Settings of algorithm.name=reptile, fomaml and perfedavg.
    metamf: Settings of algorithm.name=metamf.
    fedpergnn: Settings of algorithm.name=fedpergnn.
    cofedrec: Settings of algorithm.name=cofedrec.
    objective: The loss.
    client: Training on the device.
    server: The server's step.
    cohort: Who takes part.
    compression: How an upload is made smaller.
    privacy: Central differential privacy.
    local_privacy: Local differential privacy.
    secure: How updates are summed unseen.
    engine: Performance only.
    parallel: Devices.
    evaluation: Metrics and protocol.
    checkpoint: Checkpoints.
  """
  seed: int = 0
  rounds: int = 500
  data: DataConfig = DataConfig()
  synthetic: SyntheticConfig = SyntheticConfig()
  split: SplitConfig = SplitConfig()
  model: ModelConfig = ModelConfig()
  two_tower: TwoTowerConfig = TwoTowerConfig()
  algorithm: AlgorithmConfig = AlgorithmConfig()
  ials: IALSConfig = IALSConfig()
  dpals: DPALSConfig = DPALSConfig()
  fcf: FCFConfig = FCFConfig()
  fedmf: FedMFConfig = FedMFConfig()
  fedease: FedEASEConfig = FedEASEConfig()
  personalization: PersonalizationConfig = PersonalizationConfig()
  pfedrec: PFedRecConfig = PFedRecConfig()
  gpfedrec: GPFedRecConfig = GPFedRecConfig()
  fedrap: FedRAPConfig = FedRAPConfig()
  fedrecon: FedReconConfig = FedReconConfig()
  ditto: DittoConfig = DittoConfig()
  fedrep: FedRepConfig = FedRepConfig()
  apfl: APFLConfig = APFLConfig()
  meta: MetaConfig = MetaConfig()
  metamf: MetaMFConfig = MetaMFConfig()
  fedpergnn: FedPerGNNConfig = FedPerGNNConfig()
  cofedrec: CoFedRecConfig = CoFedRecConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  client: ClientConfig = ClientConfig()
  server: ServerConfig = ServerConfig()
  cohort: CohortConfig = CohortConfig()
  compression: CompressionConfig = CompressionConfig()
  privacy: PrivacyConfig = PrivacyConfig()
  local_privacy: LocalPrivacyConfig = LocalPrivacyConfig()
  secure: SecureConfig = SecureConfig()
  engine: EngineConfig = EngineConfig()
  parallel: ParallelConfig = ParallelConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()

  def __post_init__(self):
    check_types(self)
    at_least('rounds', self.rounds, 1)
    if not 0 <= self.seed < 2**31:
      raise ValueError(f'seed={self.seed} must lie in [0, 2^31).')
    if (self.server.row_normalization == 'sum'
        and self.cohort.weighting == 'examples'):
      raise ValueError(
          "server.row_normalization='sum' with cohort.weighting='examples': "
          'every row would move by its deltas times the numbers of examples; '
          'use row_normalization=mean, or weighting=equal.')
    check_secure(self)
    check_evaluation(self)
    check_local(self)
    check_downlink(self)
    check_count_sketch(self)
    check_corrections(self)
    check_fedease(self)
    self._check_factorisation()
    self._check_sequences()
    check_side_features(self)
    if (self.objective.repeated_negatives
        and self.algorithm.name not in LEAKY_ALGORITHMS):
      raise ValueError(
          'objective.repeated_negatives=True with algorithm.name='
          f'{self.algorithm.name}, whose clients hold each touched row once; '
          f'use false, or algorithm.name={" or ".join(LEAKY_ALGORITHMS)}.')
    if self.objective.leaks and (
        self.split.name != 'leave_one_out'
        or self.algorithm.name not in LEAKY_ALGORITHMS):
      raise ValueError(
          f'objective.negative_pool={self.objective.negative_pool} with '
          f'split.name={self.split.name} and algorithm.name='
          f'{self.algorithm.name}: it reproduces published figures of '
          'leave-one-out splits by algorithm.name='
          f'{" and ".join(LEAKY_ALGORITHMS)}; use '
          'objective.negative_pool=unseen.')
    if (self.data.source in PUBLISHED_SPLITS) != (
        self.split.name == 'published'):
      raise ValueError(
          f'data.source={self.data.source} with split.name={self.split.name}: '
          f'{" and ".join(PUBLISHED_SPLITS)} come with their own split and no '
          'other source does; use them, and nothing else, together with '
          '--split.name=published.')
    check_unread(self)

  @property
  def predicts_ratings(self) -> bool:
    """Whether a score is a prediction of a rating."""
    name = self.algorithm.name
    return name == 'fedmf' or (
        name not in FACTORISATIONS
        and self.objective.name == 'squared_error')

  def _check_factorisation(self):
    """What algorithms of closed forms cannot be combined with."""
    name = self.algorithm.name
    if name not in FACTORISATIONS:
      return
    if self.model.name != 'mf':
      raise ValueError(
          f'algorithm.name={name} with model.name={self.model.name}: it solves '
          'for the vectors of a scalar product; use model.name=mf (without its '
          'biases), or algorithm.name=fedavg.')
    if self.cohort.weighting != 'equal':
      raise ValueError(
          f'algorithm.name={name} with cohort.weighting='
          f'{self.cohort.weighting}: its sums count every client once; use '
          'cohort.weighting=equal.')
    if self.model.table_dtype != 'float32':
      raise ValueError(
          f'algorithm.name={name} with model.table_dtype='
          f'{self.model.table_dtype}: a solution is not an average of small '
          'steps, and its rounding would not average out; use float32.')
    if name == 'fedmf':
      return  # Its clients send gradients, which bend as deltas do.
    if self.compression.is_on or self.secure.is_on:
      raise ValueError(
          f'algorithm.name={name} with compression or a secure sum: what its '
          'clients send are no deltas, and a chain made for deltas would bend '
          'the sums that it solves with; switch both off, or use '
          'algorithm.name=fedavg.')
    if name == 'dpals':
      self._check_dpals()
    elif self.privacy.enabled or self.privacy.clips:
      raise ValueError(
          f'algorithm.name={name} with a section privacy that is on: clipping '
          'a whole upload would not bound a solution made of sums of squares; '
          'use algorithm.name=dpals, or fedavg.')

  def _check_sequences(self):
    """What models and algorithms of sequences cannot be combined with."""
    is_sequential = self.algorithm.name == 'sequential'
    if is_sequential != (self.model.name in SEQUENCE_MODELS):
      raise ValueError(
          f'algorithm.name={self.algorithm.name} with model.name='
          f'{self.model.name}: sequences are what algorithm.name=sequential '
          f'trains, and model.name={" and ".join(SEQUENCE_MODELS)} are all '
          'that reads them; use these together, or, for example, '
          'algorithm.name=fedavg with model.name=mf.')
    if is_sequential and self.objective.name == 'squared_error':
      raise ValueError(
          'objective.name=squared_error with algorithm.name=sequential: its '
          'model says which item comes next, and not how it is rated; use '
          'objective.name=bce, bpr, bpr_max or softmax.')

  def _check_dpals(self):
    privacy = self.privacy
    if not privacy.l2_clip_norm:
      raise ValueError(
          'algorithm.name=dpals with privacy.l2_clip_norm=0: what a client '
          'sends is bounded through its vector; give --privacy.l2_clip_norm, '
          'for example 1.0.')
    for field, wanted in (
        ('mechanism', 'gaussian'), ('clipping', 'fixed'),
        ('deployment_cohort', 0), ('release_counts', False), ('head_items', 0)):
      if getattr(privacy, field) != wanted:
        raise ValueError(
            f'privacy.{field}={getattr(privacy, field)!r} with algorithm.name='
            f'dpals, which has its own counts and its own noise; use {wanted!r}'
            ', and the section dpals.')
    if self.cohort.size or 'poisson' in self.cohort.sampler:
      raise ValueError(
          f'cohort.size={self.cohort.size} and cohort.sampler='
          f'{self.cohort.sampler} with algorithm.name=dpals: its guarantee is '
          'for every client in every round, whose number is public and stands '
          'in the penalties; use --cohort.size=0 --cohort.sampler=uniform.')
    if self.rounds <= self.dpals.num_count_rounds:
      raise ValueError(
          f'rounds={self.rounds} with algorithm.name=dpals: the first '
          f'{self.dpals.num_count_rounds} only count the items; use more.')


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

  A setting without an effect, which earlier versions accepted, takes its
  default: the run that it was read from is the same without.

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
  if cls is Config:
    kwargs = drop_unread(
        {name: field.default for name, field in fields.items()} | kwargs)
  return cls(**kwargs)


def with_sections(config: Config, **sections: Any) -> Config:
  """A copy with other sections, which are not checked against each other.

  For what a run makes of its own config: there it does no harm that a setting
  is not read.

  Args:
    config: A valid config.
    **sections: Its fields' other values, each valid by itself.
  """
  result = copy.copy(config)
  for name, value in sections.items():
    object.__setattr__(result, name, value)
  return result
