"""Local differential privacy: what a client makes noisy before it sends."""

import dataclasses
from typing import Any

from fedjaxrec.config.algorithms import FACTORISATIONS
from fedjaxrec.config.privacy import fraction_of_failure
from fedjaxrec.config.rules import above, at_least, check_types, one_of

LOCAL_MECHANISMS = ('none', 'gaussian', 'laplace', 'priv_unit')
HEAD_CHOICES = ('public', 'randomized_response', 'one_hot', 'hadamard')
# Beyond it float32 draws do not tell the mechanism's branches apart.
MAX_REPORT_EPSILON = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalPrivacyConfig:
  """Local differential privacy; the unit is the user, the server untrusted.

  A client's whole upload is randomised on the device: every row that travels,
  whether it touched it or not. It pays for each round that it takes part in.

  Attributes:
    mechanism: What is done to a client's delta: none, gaussian, laplace or
      priv_unit (a private direction).
    epsilon: Of one upload, so of one participation of a user.
    delta: Probability that the guarantee of a user's whole run may fail; with
      mechanism=gaussian also that of one upload. 0: clients^-1.1.
    clip_norm: Norm to which a delta is clipped before it is randomised: L2,
      with mechanism=laplace L1.
    head_items: Item rows that travel and are trained, the most popular ones;
      the others stay as they are. Fewer rows are less noise. 0: all rows.
    head_choice: Where their popularity is from: public (declared to be known),
      or one report of one of its items from every client before the first
      round, by k-ary randomized_response, one_hot (a unary encoding with
      flipped bits) or hadamard (Hadamard response).
    head_epsilon: Of that one report.
  """
  mechanism: str = 'none'
  epsilon: float = 0.0
  delta: float = 0.0
  clip_norm: float = 1.0
  head_items: int = 0
  head_choice: str = 'public'
  head_epsilon: float = 1.0

  def __post_init__(self):
    check_types(self, 'local_privacy')
    one_of('local_privacy.mechanism', self.mechanism, LOCAL_MECHANISMS)
    one_of('local_privacy.head_choice', self.head_choice, HEAD_CHOICES)
    at_least('local_privacy.head_items', self.head_items, 0)
    above('local_privacy.clip_norm', self.clip_norm, 0)
    if self.delta:
      fraction_of_failure(self.delta, 'local_privacy.delta')
    if not 0 < self.head_epsilon <= MAX_REPORT_EPSILON:
      raise ValueError(
          f'local_privacy.head_epsilon={self.head_epsilon} must be above 0 and '
          f'at most {MAX_REPORT_EPSILON}: a larger one hides nothing.')
    if not self.is_on:
      for field in dataclasses.fields(self):
        value = getattr(self, field.name)
        if value != field.default:
          raise ValueError(
              f'local_privacy.{field.name}={value} with '
              'local_privacy.mechanism=none: nothing is randomised, and '
              'nothing may look as if it were; give --local_privacy.mechanism='
              'gaussian, laplace or priv_unit, or drop it.')
      return
    above('local_privacy.epsilon', self.epsilon, 0)
    if self.head_choice != 'public' and not self.head_items:
      raise ValueError(
          f'local_privacy.head_choice={self.head_choice} with local_privacy.'
          'head_items=0: there is nothing to choose; give '
          '--local_privacy.head_items.')
    if self.head_choice == 'public' and self.head_epsilon != 1.0:
      raise ValueError(
          f'local_privacy.head_epsilon={self.head_epsilon} with local_privacy.'
          'head_choice=public: nobody reports; use randomized_response, '
          'one_hot or hadamard, or drop it.')

  @property
  def is_on(self) -> bool:
    """Whether a delta is randomised."""
    return self.mechanism != 'none'


def check_local(config: Any) -> None:
  """Refuses what would undo local privacy, or be undone by it.

  Args:
    config: The whole config.

  Raises:
    ValueError: By name, with the way out.
  """
  local = config.local_privacy
  if not local.is_on:
    return
  said = f'local_privacy.mechanism={local.mechanism}'
  privacy, secure = config.privacy, config.secure
  if privacy.enabled or privacy.clips:
    raise ValueError(
        f'{said} with privacy.epsilon={privacy.epsilon} and '
        f'privacy.l2_clip_norm={privacy.l2_clip_norm}: a delta that is '
        'randomised on the device has its own bound, and needs no noise on the '
        'sum; use one of the sections local_privacy and privacy.')
  if secure.is_on:
    raise ValueError(
        f'{said} with secure.level={secure.level}: the ring would cut what the '
        'noise made long; use secure.level=none, or noise that the clients add '
        'in the ring (secure.noise=skellam, with the section privacy).')
  if config.compression.is_on:
    compression = config.compression
    raise ValueError(
        f'{said} with compression.sparsify={compression.sparsify}, compression.'
        f'quantize={compression.quantize} and compression.sketch='
        f'{compression.sketch}: which entries are sent, and what is remembered '
        'of them, would tell what the noise hides; switch compression off, or '
        'send fewer rows (--local_privacy.head_items).')
  if config.cohort.weighting == 'examples':
    raise ValueError(
        f'{said} with cohort.weighting=examples: the weight would undo the '
        'bound, and is private itself; use cohort.weighting=equal.')
  if config.algorithm.name in FACTORISATIONS and (
      config.algorithm.name != 'fedmf'):
    raise ValueError(
        f'{said} with algorithm.name={config.algorithm.name}: what its clients '
        'send are statistics, which clipping and noise made for deltas would '
        'bend; use algorithm.name=fedavg, or dpals with the section privacy.')
