"""How an upload is made smaller, before any of it is compiled.

Plain arithmetic that the device and the encoder of messages must agree on (how
many entries a share is) stands here, where both can import it.
"""

import dataclasses
import fractions
from typing import Any

from fedjaxrec.config.algorithms import FACTORISATIONS, LOOK_AT_EACH
from fedjaxrec.config.rules import above, at_least, check_types, one_of

SPARSIFIERS = ('none', 'top_k', 'random_k', 'threshold')
GRANULARITIES = ('rows', 'entries')
QUANTIZERS = ('none', 'sign', 'ternary', 'qsgd')
SKETCHES = ('none', 'low_rank', 'count')

MIN_FRACTION = 1e-4
MAX_BITS = 16
MAX_DEPTH = 16
# With fewer, a quantizer's error may undo the contraction of a sketch.
_MIN_BITS_OF_MEMORY = 4
# Entries that are rotated together: a power of two.
ROTATION_CHUNK = 256


def num_kept(num_entries: Any, fraction: float) -> Any:
  """Returns ceil(fraction * num_entries), exactly, in whole numbers.

  The fraction is read as the decimal it is written as (0.05 is 1/20), so that
  int, NumPy and traced JAX integers all give the same number.

  Args:
    num_entries: Whole number or integer array, not negative.
    fraction: In [1e-4, 1].

  Raises:
    ValueError: For a fraction outside that range.
  """
  if not MIN_FRACTION <= fraction <= 1:
    raise ValueError(
        f'fraction={fraction} must lie in [{MIN_FRACTION}, 1]; it is the share '
        'of the entries in use that is kept.')
  share = fractions.Fraction(str(float(fraction))).limit_denominator(10_000)
  p, q = share.numerator, share.denominator
  # The product of num_entries and p may not fit 32 bits.
  return num_entries // q * p - -(num_entries % q * p) // q


def num_levels(bits: int) -> int:
  """Returns the levels on each side of zero that `bits` bits tell apart.

  Args:
    bits: From 2 to 16.

  Raises:
    ValueError: For another number of bits.
  """
  if not (isinstance(bits, int) and 2 <= bits <= MAX_BITS):
    raise ValueError(
        f'bits={bits} must be a whole number from 2 to {MAX_BITS}; for fewer '
        'bits use sign (1 bit) or ternary (1.6 bits).')
  return 2 ** (bits - 1) - 1


def rounds_row(size: int, bits: int) -> bool:
  """Whether a downloaded row of `size` float32 is shorter with `bits` bits.

  It has a scale of 32 bits beside its numbers; where that is no gain (a bias),
  the row travels as it is.
  """
  return bits > 0 and 32 + size * bits < 32 * size


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionConfig:
  """How what travels is made smaller: a client's delta, and its download.

  Attributes:
    sparsify: none, top_k (the largest), random_k (at random) or threshold (all
      that reach it).
    granularity: What top_k and random_k select: rows (whole item rows, by L2
      norm: fewest bytes) or entries. Shared parameters have no rows and are
      selected by entries.
    fraction: The share that top_k and random_k keep of the entries (or rows)
      in use, rounded up.
    threshold: The magnitude that an entry must reach with sparsify=threshold.
    quantize: none (float32), sign (1 bit), ternary (1.6 bits) or qsgd (`bits`
      bits), of what sparsify and sketch leave.
    bits: Bits a value with quantize=qsgd, from 2 to 16.
    rotate: Whether a random rotation comes before the quantizer.
    sketch: none, low_rank (item rows are projected on `rank` random directions)
      or count (all entries of the whole table are summed with random signs in
      hashed buckets); the same for all clients of a round.
    rank: Numbers that are sent for an item row with sketch=low_rank.
    sketch_width: Buckets in a row of sketch=count.
    sketch_depth: Rows of buckets, each with hashes of its own, up to 16; the
      error falls with width times depth.
    error_feedback: Whether a client remembers what was not sent and adds it the
      next time; a dense copy of the model for every client.
    error_feedback_limit_gib: GiB that those copies may take; more is refused.
    downlink_bits: Bits of a number in the item rows that a client downloads,
      from 2 to 16; each row has a scale of its own, and what is rounded is the
      copy, not the server's table. 0: the rows as they are.
  """
  sparsify: str = 'none'
  granularity: str = 'rows'
  fraction: float = 0.05
  threshold: float = 0.01
  quantize: str = 'none'
  bits: int = 8
  rotate: bool = False
  sketch: str = 'none'
  rank: int = 8
  sketch_width: int = 4096
  sketch_depth: int = 3
  error_feedback: bool = False
  error_feedback_limit_gib: float = 4.0
  downlink_bits: int = 0

  def __post_init__(self):
    check_types(self, 'compression')
    one_of('compression.sparsify', self.sparsify, SPARSIFIERS)
    one_of('compression.granularity', self.granularity, GRANULARITIES)
    one_of('compression.quantize', self.quantize, QUANTIZERS)
    one_of('compression.sketch', self.sketch, SKETCHES)
    if not MIN_FRACTION <= self.fraction <= 1:
      raise ValueError(
          f'compression.fraction={self.fraction} must lie in [{MIN_FRACTION}, '
          '1]; it is the share that top_k and random_k keep.')
    above('compression.threshold', self.threshold, 0)
    if not 2 <= self.bits <= MAX_BITS:
      raise ValueError(
          f'compression.bits={self.bits} must lie in [2, {MAX_BITS}]; for '
          'fewer bits use compression.quantize=sign or ternary.')
    if self.downlink_bits and not 2 <= self.downlink_bits <= MAX_BITS:
      raise ValueError(
          f'compression.downlink_bits={self.downlink_bits} must lie in [2, '
          f'{MAX_BITS}], or be 0 for rows as they are.')
    at_least('compression.rank', self.rank, 1)
    at_least('compression.sketch_width', self.sketch_width, 1)
    if not 1 <= self.sketch_depth <= MAX_DEPTH:
      raise ValueError(
          f'compression.sketch_depth={self.sketch_depth} must lie in [1, '
          f'{MAX_DEPTH}]; more buckets in a row (sketch_width) do the same.')
    above('compression.error_feedback_limit_gib',
          self.error_feedback_limit_gib, 0)
    if self.rotate and self.quantize == 'none':
      raise ValueError(
          f'compression.rotate={self.rotate} with compression.quantize=none: a '
          'rotation alone saves nothing; choose a quantizer, or drop it.')
    if self.rotate and self.sparsify != 'none':
      raise ValueError(
          f'compression.rotate={self.rotate} with compression.sparsify='
          f'{self.sparsify}: the rotation would fill what was emptied; drop '
          'one of them.')
    if self.sketch != 'none' and (self.sparsify != 'none' or self.rotate):
      raise ValueError(
          f'compression.sketch={self.sketch} with compression.sparsify='
          f'{self.sparsify} and compression.rotate={self.rotate}: a sketch '
          'goes with a quantizer alone; drop the others.')
    if self.error_feedback and not self.is_on:
      raise ValueError(
          f'compression.error_feedback={self.error_feedback} with nothing to '
          'compress by: there is no error to feed back; choose sparsify, '
          'quantize or sketch.')
    self._check_count()

  def _check_count(self):
    """Quantizers that do not go with a count sketch."""
    if self.sketch != 'count':
      return
    if self.quantize == 'sign':
      raise ValueError(
          'compression.quantize=sign with compression.sketch=count: the signs '
          'of hashed sums say nothing of their sum, and where nothing fell in '
          'a bucket a message grows by its position; use '
          'compression.quantize=qsgd.')
    if self.error_feedback and (
        self.quantize == 'ternary' or self.quantize == 'qsgd'
        and self.bits < _MIN_BITS_OF_MEMORY):
      raise ValueError(
          f'compression.error_feedback=True with compression.quantize='
          f'{self.quantize}, compression.bits={self.bits} and '
          'compression.sketch=count: what such coarse levels lose of a bucket '
          'may be more than all of it, and a memory of that grows; use '
          'compression.quantize=qsgd with at least '
          f'{_MIN_BITS_OF_MEMORY} bits, or none.')

  @property
  def is_on(self) -> bool:
    """Whether a delta is changed at all."""
    return (self.sparsify, self.quantize, self.sketch) != ('none',) * 3


def check_count_sketch(config: Any) -> None:
  """Refuses a count sketch where more is asked for than the tables' sum.

  Args:
    config: The whole config.

  Raises:
    ValueError: By name, with the way out.
  """
  if config.compression.sketch != 'count':
    return
  privacy = config.privacy
  if privacy.enabled or privacy.clips:
    raise ValueError(
        f'compression.sketch=count with privacy.l2_clip_norm='
        f'{privacy.l2_clip_norm}, privacy.item_clip_norm='
        f'{privacy.item_clip_norm}, privacy.row_clip_norm='
        f'{privacy.row_clip_norm} and privacy.epsilon={privacy.epsilon}: what '
        'is decoded of a clipped delta is longer than its bound, and the '
        "server, which sees the tables' sum alone, cannot clip it again; use "
        'compression.sketch=low_rank, or switch the section privacy off.')
  if config.server.row_normalization == 'contributors':
    raise ValueError(
        'server.row_normalization=contributors with compression.sketch=count: '
        "the tables' sum moves every row, whoever touched it, and the noise in "
        'a row that few touched would be divided by few; use '
        'server.row_normalization=mean (auto does), or '
        'compression.sketch=low_rank.')


def check_downlink(config: Any) -> None:
  """Refuses rounded downloads where nothing could round them, or count them.

  Args:
    config: The whole config.

  Raises:
    ValueError: By name, with the way out.
  """
  bits = config.compression.downlink_bits
  if bits and config.secure.is_on:
    raise ValueError(
        f'compression.downlink_bits={bits} with secure.level='
        f'{config.secure.level}: its downloads are whole tables, counted by '
        'themselves; use compression.downlink_bits=0.')
  if bits and config.algorithm.name in FACTORISATIONS:
    raise ValueError(
        f'compression.downlink_bits={bits} with algorithm.name='
        f'{config.algorithm.name}: it solves with the vectors and their '
        'Gramian, which rounded vectors would not fit; use fedavg, or '
        'compression.downlink_bits=0.')
  if bits and config.algorithm.name in LOOK_AT_EACH:
    raise ValueError(
        f'compression.downlink_bits={bits} with algorithm.name='
        f'{config.algorithm.name}: its clients start from tables of their own '
        'or of their group, which are not rounded; use pfedrec, or '
        'compression.downlink_bits=0.')
