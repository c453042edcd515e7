"""Central differential privacy: the budget, the bound, the noise."""

import dataclasses
import math

from fedjaxrec.config.rules import (
  above,
  at_least,
  check_types,
  one_of,
)

PRIVACY_MECHANISMS = ('gaussian', 'banded', 'blt')
CLIPPINGS = ('fixed', 'adaptive')
HEAD_SOURCES = ('public', 'private')
ACCOUNTANTS = ('pld', 'rdp')
# What clips without noise; every other field needs a budget to mean anything.
_CLIP_ONLY = {'l2_clip_norm', 'item_clip_norm', 'shared_clip_norm',
              'row_clip_norm'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
  """Central differential privacy; the unit is the client.

  Attributes:
    epsilon: Budget of the run, from which the noise is calibrated. 0: no noise
      and no guarantee.
    delta: Probability that the guarantee may fail; it should be far below 1 /
      clients. 0: clients^-1.1.
    l2_clip_norm: L2 norm to which a client's whole delta is clipped. 0: none,
      which only a run without noise may have.
    item_clip_norm: L2 norm of the item rows' part of a delta, clipped by
      itself, in place of l2_clip_norm. 0: clip the whole delta.
    shared_clip_norm: The same for the shared parameters; give both or none.
    row_clip_norm: L2 norm to which every item row of a delta is clipped, before
      the whole delta is (or its parts are), and again after compression. No
      epsilon rests on it: a budget needs l2_clip_norm beside it. 0: rows as
      they are.
    noise_multiplier: Noise in units of the clip norm, in place of epsilon. 0:
      calibrated from epsilon.
    mechanism: gaussian (independent noise), banded (banded matrix
      factorisation) or blt (buffered Toeplitz, DP-FTRL).
    bands: Bands of mechanism=banded.
    buffers: Buffers of mechanism=blt.
    min_separation: Rounds between two participations of a client, for
      mechanism=banded and blt. 0: what the sampler guarantees.
    deployment_cohort: Cohort of the deployment that is simulated; the noise on
      the mean is what that cohort would see. 0: the simulation's own cohort.
    clipping: fixed, or adaptive (a quantile of the norms, learnt privately).
    target_quantile: Share of the clients whose norm lies below the adaptive
      clip norm.
    clip_learning_rate: Rate of the adaptive clip norm's geometric steps.
    bit_noise_stddev: Noise on the number of clients below the adaptive clip
      norm; 0: a
      twentieth of the cohort, and at least the noise multiplier.
    release_counts: Whether the numbers of contributors of the item rows are
      released, with noise, for server.row_normalization=contributors.
    count_share: Share of a round's budget (of 1 / noise_multiplier^2) that the
      counts get.
    count_clip_norm: L2 norm to which a client's 0/1 vector of touched rows is
      scaled down. Both need release_counts.
    head_items: Item rows that are trained, the most popular ones; the others
      stay as they are and get no noise. 0: all rows, dense noise.
    head_source: Where the popularity is from: public (declared to be known) or
      private (one release with noise, charged to the budget).
    head_epsilon_share: Share of epsilon that a private choice may spend.
    accountant: pld (tight) or rdp (the cross-check, looser).
  """
  epsilon: float = 0.0
  delta: float = 0.0
  l2_clip_norm: float = 0.0
  item_clip_norm: float = 0.0
  shared_clip_norm: float = 0.0
  row_clip_norm: float = 0.0
  noise_multiplier: float = 0.0
  mechanism: str = 'gaussian'
  bands: int = 8
  buffers: int = 4
  min_separation: int = 0
  deployment_cohort: int = 0
  clipping: str = 'fixed'
  target_quantile: float = 0.5
  clip_learning_rate: float = 0.2
  bit_noise_stddev: float = 0.0
  release_counts: bool = False
  count_share: float = 0.1
  count_clip_norm: float = 10.0
  head_items: int = 0
  head_source: str = 'public'
  head_epsilon_share: float = 0.1
  accountant: str = 'pld'

  def __post_init__(self):
    check_types(self, 'privacy')
    for field in ('epsilon', 'delta', 'l2_clip_norm', 'item_clip_norm',
                  'shared_clip_norm', 'row_clip_norm', 'noise_multiplier',
                  'min_separation', 'deployment_cohort', 'bit_noise_stddev',
                  'head_items'):
      at_least(f'privacy.{field}', getattr(self, field), 0)
    for field in ('bands', 'buffers'):
      at_least(f'privacy.{field}', getattr(self, field), 1)
    for field in ('clip_learning_rate', 'count_clip_norm'):
      above(f'privacy.{field}', getattr(self, field), 0)
    for field in ('target_quantile', 'count_share', 'head_epsilon_share'):
      value = getattr(self, field)
      if not 0 < value < 1:
        raise ValueError(
            f'privacy.{field}={value} must lie strictly between 0 and 1.')
    one_of('privacy.mechanism', self.mechanism, PRIVACY_MECHANISMS)
    one_of('privacy.clipping', self.clipping, CLIPPINGS)
    one_of('privacy.head_source', self.head_source, HEAD_SOURCES)
    one_of('privacy.accountant', self.accountant, ACCOUNTANTS)
    if self.delta:
      fraction_of_failure(self.delta)
    self._check_groups()
    if not self.enabled:
      self._check_off()
    else:
      self._check_on()

  @property
  def enabled(self) -> bool:
    """Whether noise is added, and a guarantee given."""
    return self.epsilon > 0 or self.noise_multiplier > 0

  @property
  def clips_groups(self) -> bool:
    """Whether item rows and shared parameters have clip norms of their own."""
    return self.item_clip_norm > 0

  @property
  def clips_rows(self) -> bool:
    """Whether every item row is clipped, before anything else is."""
    return self.row_clip_norm > 0

  @property
  def clips_whole(self) -> bool:
    """Whether a delta is bounded as a whole, or in both of its parts."""
    return self.clips_groups or self.l2_clip_norm > 0

  @property
  def clips(self) -> bool:
    """Whether a client's delta is clipped, with noise or without."""
    return self.clips_whole or self.clips_rows

  def _check_groups(self):
    if (self.item_clip_norm > 0) != (self.shared_clip_norm > 0):
      raise ValueError(
          f'privacy.item_clip_norm={self.item_clip_norm} with '
          f'privacy.shared_clip_norm={self.shared_clip_norm}: a part without a '
          'bound has no guarantee; give both, or neither.')
    if self.clips_groups and self.l2_clip_norm:
      raise ValueError(
          f'privacy.l2_clip_norm={self.l2_clip_norm} with '
          f'privacy.item_clip_norm={self.item_clip_norm}: clip the whole delta '
          'or its parts; drop one of them.')

  def _check_off(self):
    """Without a budget nothing may look as if it protected somebody."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in _CLIP_ONLY and value != field.default:
        raise ValueError(
            f'privacy.{field.name}={value} without a budget: privacy.epsilon=0 '
            'adds no noise and gives no guarantee; give --privacy.epsilon (or '
            '--privacy.noise_multiplier), or drop it.')

  def _check_on(self):
    if self.epsilon and self.noise_multiplier:
      raise ValueError(
          f'privacy.noise_multiplier={self.noise_multiplier} with '
          f'privacy.epsilon={self.epsilon}: one follows from the other; give '
          'the budget or the noise, not both.')
    if not self.clips_whole:
      beside = (f' and privacy.row_clip_norm={self.row_clip_norm}'
                if self.clips_rows else '')
      rows = ('; a bound on every row grows with the rows that a client '
              'touches' if self.clips_rows else '')
      raise ValueError(
          f'privacy.l2_clip_norm={self.l2_clip_norm}{beside} with a budget: '
          f'noise protects only what is bounded{rows}; give '
          '--privacy.l2_clip_norm, for example 1.0.')
    if self.clipping == 'adaptive' and self.clips_groups:
      raise ValueError(
          f"privacy.clipping='adaptive' with privacy.item_clip_norm="
          f'{self.item_clip_norm}: one quantile is learnt, of the norm of the '
          'whole delta; use --privacy.l2_clip_norm as its start.')
    if self.mechanism != 'gaussian':
      for field, value in (('clipping', self.clipping == 'adaptive'),
                           ('release_counts', self.release_counts)):
        if value:
          raise ValueError(
              f'privacy.{field}={getattr(self, field)!r} with '
              f'privacy.mechanism={self.mechanism!r}: correlated noise is '
              'accounted once for the whole run, at one clip norm; use '
              'privacy.mechanism=gaussian.')
    if self.mechanism == 'gaussian' and self.min_separation:
      raise ValueError(
          f'privacy.min_separation={self.min_separation} with '
          "privacy.mechanism='gaussian': independent noise does not use it; "
          'drop it, or use privacy.mechanism=blt.')
    if self.bit_noise_stddev and self.clipping != 'adaptive':
      raise ValueError(
          f'privacy.bit_noise_stddev={self.bit_noise_stddev} with '
          f'privacy.clipping={self.clipping!r}: only adaptive clipping counts '
          'clients; drop it.')
    for field, default in (('count_share', 0.1), ('count_clip_norm', 10.0)):
      value = getattr(self, field)
      if value != default and not self.release_counts:
        raise ValueError(
            f'privacy.{field}={value} with privacy.release_counts=False: no '
            'counts are released; give --privacy.release_counts=true, or drop '
            'it.')
    if self.head_source == 'private' and not self.head_items:
      raise ValueError(
          "privacy.head_source='private' with privacy.head_items=0: there is "
          'nothing to choose; give --privacy.head_items.')
    if self.head_source == 'private' and not self.epsilon:
      raise ValueError(
          "privacy.head_source='private' with privacy.epsilon=0: the choice "
          'gets a share of epsilon; give --privacy.epsilon in place of '
          '--privacy.noise_multiplier.')


def fraction_of_failure(delta: float, name: str = 'privacy.delta') -> None:
  """Refuses a delta that is no probability strictly between 0 and 1."""
  if not (math.isfinite(delta) and 0 < delta < 1):
    raise ValueError(
        f'{name}={delta} must lie strictly between 0 and 1, far below '
        'one over the number of clients.')
