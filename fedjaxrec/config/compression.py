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
SKETCHES = ('none', 'low_rank')

MIN_FRACTION = 1e-4
MAX_BITS = 16
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
    sketch: none or low_rank: item rows are projected on `rank` random
      directions, the same for all clients of a round.
    rank: Numbers that are sent for an item row with sketch=low_rank.
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

  @property
  def is_on(self) -> bool:
    """Whether a delta is changed at all."""
    return (self.sparsify, self.quantize, self.sketch) != ('none',) * 3


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
