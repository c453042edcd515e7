"""How the cohort's updates are summed without being seen one by one."""

import dataclasses
import math
from typing import Any

from fedjaxrec.config.algorithms import LOOK_AT_EACH
from fedjaxrec.config.rules import at_least, check_types, one_of

LEVELS = ('none', 'ideal', 'masked', 'protocol', 'shares', 'he')
ROW_SECRECY = ('dense', 'union', 'chosen')
DISTRIBUTED_NOISE = ('none', 'skellam', 'discrete_gaussian')
TRANSPORTS = ('in_process', 'tcp')
MAX_HE_BITS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecureConfig:
  """Secure aggregation: at which level it is simulated, and how.

  Attributes:
    level: none (float sums in the clear), ideal (sums modulo 2^bits, no
      cryptography), masked (real masks, keys dealt by the simulator), protocol
      (pairwise masks with key agreement, secret shares, dropout recovery),
      shares (additive shares between several servers) or he (CKKS).
    bits: The ring has 2^bits elements; 0: 16, or the fewest that the cohort and
      the clip norm need.
    l2_clip_norm: Most that a delta may weigh, which bounds the ring; 0: that
      of the privacy section, or 1. Where the privacy section clips, its norm
      bounds the ring, and another one is refused.
    entry_bound: Where a single entry of a delta is cut, so that the ring spends
      its integers on what deltas are like. A bias: entries beyond it are
      shortened to it, of whom that hits. 0: nothing is cut, and one entry may
      hold the whole clip norm.
    rotation: A power of two: vectors of so many entries or more (an item's row,
      a shared array) are rotated at random before they are rounded, by a key
      that the clients of a round share, and back when they are summed; shorter
      ones stay as they are. What stands in one entry is then spread over all,
      so that secure.entry_bound cuts less; without it nothing is cut, and
      rounding is what it was. Sums never wrap around. 0: no rotation.
    rows: How the rows that a client touched stay hidden: dense (the whole table
      travels), union (a secure sum finds the union of the cohort's rows, and
      the table restricted to it travels: the server learns the union) or chosen
      (the rows of privacy.head_items travel and no others; with
      privacy.head_source=private a noisy secure sum chooses them).
    noise: Noise that the clients add inside the ring, so that the sum is
      private without a trusted server: none, skellam or discrete_gaussian, with
      the privacy section's noise multiplier.
    dropout: Probability that a client of the cohort falls silent at each stage
      of the protocol after its first message.
    num_neighbors: Neighbours of a client in the protocol's graph; 0: chosen for
      the cohort, a quarter of corrupt clients and the dropout.
    threshold: Shares that recover a secret; 0: chosen with num_neighbors.
    min_survivors: Fewest clients whose sum is opened; 0: half of the cohort.
    num_servers: Servers of level=shares.
    norm_check: Whether the clients of level=shares prove the norm of what they
      send, on shares, and one that cannot is left out.
    transport: in_process or tcp (loopback) for level=protocol.
  """
  level: str = 'none'
  bits: int = 0
  l2_clip_norm: float = 0.0
  entry_bound: float = 0.0
  rotation: int = 0
  rows: str = 'dense'
  noise: str = 'none'
  dropout: float = 0.0
  num_neighbors: int = 0
  threshold: int = 0
  min_survivors: int = 0
  num_servers: int = 2
  norm_check: bool = False
  transport: str = 'in_process'

  def __post_init__(self):
    check_types(self, 'secure')
    one_of('secure.level', self.level, LEVELS)
    one_of('secure.rows', self.rows, ROW_SECRECY)
    one_of('secure.noise', self.noise, DISTRIBUTED_NOISE)
    one_of('secure.transport', self.transport, TRANSPORTS)
    if self.bits and not 8 <= self.bits <= 32:
      raise ValueError(
          f'secure.bits={self.bits} must lie in [8, 32], or be 0 for the bits '
          'that the cohort and the clip norm need.')
    at_least('secure.l2_clip_norm', self.l2_clip_norm, 0)
    at_least('secure.entry_bound', self.entry_bound, 0)
    if self.rotation and (
        self.rotation < 2 or self.rotation & (self.rotation - 1)):
      raise ValueError(
          f'secure.rotation={self.rotation} must be a power of two, or 0 for '
          'no rotation: it is the least number of entries that are rotated '
          'together.')
    if self.rotation and self.level == 'none':
      raise ValueError(
          f'secure.rotation={self.rotation} with secure.level=none: nothing is '
          'rounded that a rotation could spread; use secure.level=ideal, or '
          'any other.')
    at_least('secure.num_neighbors', self.num_neighbors, 0)
    at_least('secure.threshold', self.threshold, 0)
    at_least('secure.min_survivors', self.min_survivors, 0)
    at_least('secure.num_servers', self.num_servers, 2)
    if not 0 <= self.dropout < 0.5:
      raise ValueError(
          f'secure.dropout={self.dropout} must lie in [0, 0.5): with more, no '
          'threshold is both safe and reached.')
    if self.level == 'none' and self.noise != 'none':
      raise ValueError(
          f'secure.noise={self.noise} with secure.level=none: the clients add '
          'it inside the ring; use secure.level=ideal, or any other.')
    if self.dropout and self.level not in ('masked', 'protocol', 'shares'):
      raise ValueError(
          f'secure.dropout={self.dropout} with secure.level={self.level}: '
          'clients fall silent within a protocol; use secure.level=protocol, '
          'masked or shares.')

    self._check_combinations()

  def _check_combinations(self):
    """Refuses settings that do not go together."""
    if self.threshold and not self.num_neighbors:
      raise ValueError(
          f'secure.threshold={self.threshold} without secure.num_neighbors: '
          'one is chosen for the other; give both, or neither.')
    if self.min_survivors == 1:
      raise ValueError(
          'secure.min_survivors=1: the sum of one client is its update; use at '
          'least 2, or 0 for half of the cohort.')
    if self.transport == 'tcp' and self.level != 'protocol':
      raise ValueError(
          f'secure.transport=tcp with secure.level={self.level}: only the '
          'protocol sends messages; use secure.level=protocol.')
    if self.norm_check and (self.level != 'shares' or self.noise != 'none'):
      raise ValueError(
          f'secure.norm_check=true with secure.level={self.level} and '
          f'secure.noise={self.noise}: norms are proved on shares, and noise '
          'has no bound; use secure.level=shares and secure.noise=none.')
    if self.level == 'none' and self.rows != 'dense':
      raise ValueError(
          f'secure.rows={self.rows} with secure.level=none: there are no '
          'secure sums to send rows to; use secure.level=ideal, or any other.')
    if self.rows == 'union' and self.level == 'he':
      raise ValueError(
          'secure.rows=union with secure.level=he: encrypted sums do not wrap '
          'around, so random multiples would show how many clients touched a '
          'row; use secure.rows=dense.')
    if self.rows == 'union' and self.noise != 'none':
      raise ValueError(
          f'secure.rows=union with secure.noise={self.noise}: the union is '
          'found without noise, so epsilon would not cover it; use '
          'secure.rows=dense or chosen.')
    if self.level == 'he' and self.bits > MAX_HE_BITS:
      raise ValueError(
          f'secure.bits={self.bits} with secure.level=he: decrypted sums are '
          'float32 and are rounded back to integers, which is exact up to '
          f'{MAX_HE_BITS} bits; use fewer.')
    if self.noise != 'none' and self.entry_bound:
      raise ValueError(
          f'secure.entry_bound={self.entry_bound} with secure.noise='
          f'{self.noise}: noise is calibrated to a ring whose entries may hold '
          'the whole clip norm; drop it.')

  def survivor_threshold(self, cohort: float) -> int:
    """Fewest clients whose sum is opened.

    Args:
      cohort: Clients expected in a round, a public number.
    """
    return self.min_survivors or max(2, math.ceil(cohort / 2))

  @property
  def is_on(self) -> bool:
    """Whether updates are summed in the ring."""
    return self.level != 'none'

  @property
  def on_host(self) -> bool:
    """Whether the sum is taken on the host, outside the compiled round."""
    return self.level not in ('none', 'ideal')


def check_secure(config: Any) -> None:
  """Refuses what a whole run's other sections make of its secure sums.

  Raises:
    ValueError: With the way out.
  """
  secure, privacy = config.secure, config.privacy
  if not secure.is_on:
    return
  if config.algorithm.name in LOOK_AT_EACH:
    raise ValueError(
        f'algorithm.name={config.algorithm.name} with secure.level='
        f'{secure.level}: its server looks at each client, whose update a '
        'secure sum hides; use it without privacy, compression and secure sums '
        '(secure.level=none), or one that needs the sum alone, as pfedrec.')
  if config.server.row_normalization == 'contributors':
    raise ValueError(
        f'server.row_normalization=contributors with secure.level='
        f'{secure.level}: how many clients touched a row is what a secure sum '
        'hides; use server.row_normalization=mean (auto does).')
  if privacy.enabled and secure.noise == 'none':
    raise ValueError(
        f'privacy.epsilon={privacy.epsilon}, privacy.noise_multiplier='
        f'{privacy.noise_multiplier} with secure.level={secure.level}: '
        'rounding to integers lengthens a delta beyond its clip norm, and a '
        'sum of too few is not opened, which the noise of a server does not '
        'cover; use secure.noise=skellam or discrete_gaussian.')
  if config.compression.is_on:
    compression = config.compression
    raise ValueError(
        f'compression.sparsify={compression.sparsify}, compression.quantize='
        f'{compression.quantize}, compression.sketch={compression.sketch} with '
        f'secure.level={secure.level}: its messages hold every number of the '
        'rows that travel, of secure.bits bits each, whatever was emptied or '
        'rounded before: accuracy would be lost, and no byte saved. Switch '
        'compression off, and use fewer secure.bits, or secure.rows=union or '
        'chosen; or secure.level=none.')
  bound = privacy.l2_clip_norm or math.hypot(
      privacy.item_clip_norm, privacy.shared_clip_norm)
  if secure.l2_clip_norm and bound and not math.isclose(
      secure.l2_clip_norm, bound, rel_tol=1e-6):
    raise ValueError(
        f'secure.l2_clip_norm={secure.l2_clip_norm} with a clip norm of '
        f'{bound:.7g} in the section privacy: a delta is clipped once, and '
        'that norm bounds the ring; drop --secure.l2_clip_norm, or privacy.'
        'l2_clip_norm (item_clip_norm and shared_clip_norm).')
  if secure.min_survivors > config.cohort.size > 0:
    raise ValueError(
        f'secure.min_survivors={secure.min_survivors} with cohort.size='
        f'{config.cohort.size}: no round would have so many; lower it.')
  if config.cohort.size == 1:
    raise ValueError(
        f'cohort.size=1 with secure.level={secure.level}: the sum of one '
        'client is its update; invite more.')
  parallel = config.parallel
  if secure.on_host and (
      parallel.mode in ('shard_map', 'pmap') or parallel.num_devices > 1
      or parallel.num_processes > 1):
    raise ValueError(
        f'secure.level={secure.level} with parallel.mode={parallel.mode}, '
        f'parallel.num_devices={parallel.num_devices}: its sums are taken on '
        'the host, from a single device; use parallel.mode=single, or '
        'secure.level=ideal, which has the same sums.')
  if secure.rows == 'chosen' and not privacy.head_items:
    raise ValueError(
        'secure.rows=chosen with privacy.head_items=0: these are the rows that '
        'travel; give --privacy.head_items.')
  if secure.rows == 'union' and privacy.head_items:
    raise ValueError(
        f'secure.rows=union with privacy.head_items={privacy.head_items}: the '
        'rows that travel are chosen already; use secure.rows=chosen.')
  if secure.noise != 'none':
    _check_noise(secure, privacy)


def _check_noise(secure: SecureConfig, privacy: Any) -> None:
  if not privacy.enabled:
    raise ValueError(
        f'secure.noise={secure.noise} without a budget: it adds as much as '
        'privacy.noise_multiplier or privacy.epsilon says; give one.')
  for field, wanted in (
      ('mechanism', 'gaussian'), ('clipping', 'fixed'),
      ('deployment_cohort', 0), ('release_counts', False)):
    value = getattr(privacy, field)
    if value != wanted:
      raise ValueError(
          f'privacy.{field}={value} with secure.noise={secure.noise}: the '
          'clients add the noise, independent in every round, and nobody adds '
          f'another; use privacy.{field}={wanted}.')
