"""A proof on shared vectors that a squared norm keeps its bound.

A client shares v, integers in the prime field, among servers. It proves that
the squared norm of v *as integers* is at most a bound, and the servers learn
that one bit. Three checks, each on shares:

1. No wrap-around. The servers draw 40 random subsets after v is fixed; each
   subset sum, less half of the total as the client fixed it beforehand, is
   shown to be in a small range. An entry that is not small moves half of the
   subset sums out of the range, so it passes all with probability 2^-40. Small
   entries have a sum of squares below the prime: it is the integers' own.
2. The square. The client deals a random mask a, and shares of <a, a>, <a, v>
   and of s = <v, v>. At a random t the servers open u = a + t v, which is
   uniform, and compare <u, u> with <a, a> + 2 t <a, v> + t^2 s. A false s
   passes with probability 2 / 2^61.
3. The ranges. The subset sums and bound - s are shared bit by bit. That they
   are bits is checked as in 2, bit by bit; that they are the bits *of those
   numbers* is linear.

An honest client fails with a probability below 2^-49: a subset sum is then
beyond 4.4 times the bound.
"""

import dataclasses
import math

import numpy as np

from fedjaxrec.aggregation import prime_field as field

PROJECTIONS = 40
# A subset sum less half of the total is subgaussian with deviation norm / 2:
# beyond 4.4 norms with a probability of at most 2 exp(-2 * 4.4^2) < 2^-54.8.
_REACH = 4.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
  """What is proven: of a vector of `length` integers.

  Attributes:
    length: d.
    bound_squared: The largest squared norm.
  """
  length: int
  bound_squared: int

  def __post_init__(self):
    if self.bound_squared < 1:
      raise ValueError(
          f'l2_bound: its square, {self.bound_squared}, must be at least 1; '
          'the bound counts integers of the ring.')
    if (self.length << 2 * self.range_bits) + (
        1 << self.slack_bits) >= field.PRIME:
      most = 2 ** (int((60 - math.log2(self.length)) / 2) - 1) / _REACH
      raise ValueError(
          f'l2_bound: {math.isqrt(self.bound_squared)} integers over d='
          f'{self.length} are too many for the proof: sums of squares must '
          f'stay below 2^61; use a bound of at most {int(most)}, that is a '
          'smaller scale of the ring.')

  @property
  def range_bits(self) -> int:
    """w: subset sums lie in [-2^(w-1), 2^(w-1))."""
    reach = math.ceil(_REACH * math.sqrt(self.bound_squared)) + 1
    return 1 + reach.bit_length()

  @property
  def slack_bits(self) -> int:
    """Bits of bound - s."""
    return self.bound_squared.bit_length()

  @property
  def num_bits(self) -> int:
    """Shared bits of a proof."""
    return PROJECTIONS * self.range_bits + self.slack_bits


def subsets(words: np.ndarray, length: int) -> np.ndarray:
  """Random bytes -> 40 subsets, four entries a nibble: uint8 [40, groups]."""
  groups = -(-length // 4)
  pairs = words[:PROJECTIONS * (groups + 1 >> 1)].reshape(PROJECTIONS, -1)
  return np.stack([pairs & 15, pairs >> 4], -1).reshape(
      PROJECTIONS, -1)[:, :groups]


def subset_bytes(length: int) -> int:
  """How many random bytes `subsets` takes."""
  return PROJECTIONS * (-(-length // 4) + 1 >> 1)


def subset_sums(chosen: np.ndarray, x: np.ndarray) -> list[int]:
  """The sum of every subset's entries, modulo the prime; x: elements [d]."""
  groups = chosen.shape[1]
  padded = np.zeros(4 * groups, np.uint64)
  padded[:len(x)] = x
  # All 16 subset sums of each four entries: below 2^63.
  table = np.zeros((groups, 16), np.uint64)
  for bit, column in enumerate(padded.reshape(groups, 4).T):
    size = 1 << bit
    table[:, size:2 * size] = table[:, :size] + column[:, None]
  flat = table.reshape(-1)
  start = np.arange(groups, dtype=np.int64) * 16
  return [field.total(flat[start + row]) for row in chosen]


def bits_of(value: int, count: int) -> np.ndarray:
  """The lowest bits of any integer, lowest first: uint64 [count]."""
  return np.array([value >> k & 1 for k in range(count)], np.uint64)


def proof_bits(
    statement: Statement, sums: list[int], half: int, squared_norm: int
) -> np.ndarray:
  """The bits that a client shares: uint64 [num_bits].

  Args:
    statement: What is proven.
    sums: Its subset sums, signed.
    half: Half of its total, as it was fixed before the subsets were known.
    squared_norm: s.
  """
  width = statement.range_bits
  shifted = [y - half + (1 << width - 1) for y in sums]
  return np.concatenate(
      [bits_of(y, width) for y in shifted]
      + [bits_of(statement.bound_squared - squared_norm, statement.slack_bits)])


def linear_check(
    statement: Statement, sums: list[int], half: int, squared_norm: int,
    bits: np.ndarray, first: bool
) -> list[int]:
  """One server's shares of 41 values that are all zero if the bits are right.

  Args:
    statement: What is proven.
    sums: Shares of the subset sums.
    half: Share of half of the total.
    squared_norm: Share of s.
    bits: Shares of the bits.
    first: Whether this server adds the constants.
  """
  width = statement.range_bits
  weights = [1 << k for k in range(max(width, statement.slack_bits))]
  values = bits.tolist()
  numbers = [
    sum(w * b for w, b in zip(weights, values[j * width:(j + 1) * width]))
    for j in range(PROJECTIONS)]
  slack = sum(w * b for w, b in zip(weights, values[PROJECTIONS * width:]))
  offset = (1 << width - 1) if first else 0
  bound = statement.bound_squared if first else 0
  out = [y - half + offset - number for y, number in zip(sums, numbers)]
  return [x % field.PRIME for x in (*out, bound - squared_norm - slack)]
