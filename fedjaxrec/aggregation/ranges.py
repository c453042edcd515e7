"""How many bits a sum of rounded vectors needs, and how far rounding reaches.

Plain formulas, for both sides: the ring on the device, the check of a config
and the accounting on the host compute the same numbers.
"""

import math

MAX_BITS = 32
# Room for noise on the sum: a wrap has probability 1e-15 a coordinate.
NOISE_SIGMAS = 8.0
# The longest vector of integers whose squares are summed exactly in uint32,
# with a little slack for the clip norm's own float32 rounding.
MAX_ROUNDED_NORM = 65_500.0
# Chance that conditional rounding draws again, at most; far less in practice.
BETA = math.exp(-0.5)


def magnitude(entry_bound: float, scale: float) -> int:
  """The largest integer that a rounded entry of one client can be.

  Args:
    entry_bound: Largest absolute value of an entry; the L2 clip norm bounds it.
    scale: Integers a unit.
  """
  return math.ceil(entry_bound * scale)


def required_bits(
    max_cohort: int,
    l2_clip_norm: float,
    scale: float,
    noise_stddev: float = 0.0,
) -> int:
  """The smallest b in which the sum cannot wrap around.

  The sum is exact where |sum| <= 2^(b-1) - 1, and max_cohort clients reach at
  most max_cohort * ceil(l2_clip_norm * scale): one coordinate may hold a
  client's whole norm.

  Args:
    max_cohort: Most clients that are ever summed.
    l2_clip_norm: The bound of an entry.
    scale: Integers a unit.
    noise_stddev: Standard deviation of noise on the sum, in integers; eight of
      them get room.

  Returns:
    b, possibly above the 32 that a ring can have.
  """
  reach = max_cohort * magnitude(l2_clip_norm, scale) + math.ceil(
      NOISE_SIGMAS * noise_stddev)
  return 1 + max(1, reach.bit_length())


def largest_scale(
    bits: int,
    max_cohort: int,
    l2_clip_norm: float,
    noise_multiplier: float = 0.0,
    spread: float = 1.0,
) -> float:
  """The largest scale whose sum fits into b bits, wrap-around impossible.

  Solves max_cohort * (l2_clip_norm * spread * scale + 1) + 8 * noise_multiplier
  * l2_clip_norm * scale = 2^(b-1) - 1.

  Args:
    bits: b, 2 to 32.
    max_cohort: Most clients that are ever summed, at least 1.
    l2_clip_norm: The clip norm, above 0.
    noise_multiplier: Stddev of the noise on the sum over the clip norm.
    spread: The largest entry over the clip norm, at most 1.

  Raises:
    ValueError: If not even a scale that tells the clip norm from zero fits.
  """
  room = 2 ** (bits - 1) - 1 - max_cohort
  reach = max_cohort * spread + NOISE_SIGMAS * noise_multiplier
  levels = room / reach * spread
  if levels < 1:
    # The smallest b whose largest entry is one integer.
    needed = math.ceil(reach / spread) + max_cohort + 1
    smallest = 1 + (needed - 1).bit_length()
    way_out = (f'use secure.bits={smallest}' if smallest <= MAX_BITS else
               'no ring of 32 bits holds it; use a smaller cohort')
    raise ValueError(
        f'secure.bits={bits} cannot hold a sum of {max_cohort} clients with '
        f'noise_multiplier={noise_multiplier}: it must leave each client one '
        f'integer on either side of zero; {way_out}.')
  # A trifle less, so that float64 rounding cannot make it one integer more.
  return room / reach / l2_clip_norm * (1 - 1e-12)


def largest_conditional_scale(l2_clip_norm: float, dimension: int) -> float:
  """The largest scale at which conditional rounding can check its norm.

  It leaves about 2^16 integers to the clip norm; rounding is then 2^-17 of it,
  and more would gain nothing.
  """
  room = MAX_ROUNDED_NORM - math.sqrt(dimension)
  if room <= 0:
    raise ValueError(
        f'dimension={dimension} must be below 2^31: squares of rounded entries '
        'are summed in 32 bits; send fewer entries.')
  return room / l2_clip_norm


def rounded_l2_bound(
    scaled_norm: float, dimension: int, beta: float = BETA
) -> float:
  """The L2 bound that conditional rounding keeps, in integers.

  Formal guarantee: stochastic rounding of a vector of norm scaled_norm with at
  most `dimension` non-zero entries stays within this bound with probability at
  least 1 - beta; drawn again until it does, every rounded vector has it as its
  L2 sensitivity.

  Args:
    scaled_norm: l2_clip_norm * scale.
    dimension: Most entries of a client's vector that are not zero.
    beta: Probability of one rejected draw, in [0, 1); 0 gives the bound that no
      draw passes.

  References:
    Kairouz, Liu and Steinke, 2021, `The Distributed Discrete Gaussian Mechanism
    for Federated Learning with Secure Aggregation
    <https://arxiv.org/abs/2102.06387>`_, proposition 22.
  """
  if not 0 <= beta < 1:
    raise ValueError(
        f'beta={beta} must lie in [0, 1); it is the chance that a rounding is '
        'drawn again; 0 asks for the bound of the worst rounding.')
  worst = scaled_norm + math.sqrt(dimension)
  if beta == 0:
    return worst
  mean = scaled_norm**2 + dimension / 4
  deviation = scaled_norm + math.sqrt(dimension) / 2
  return min(worst, math.sqrt(
      mean + math.sqrt(2 * math.log(1 / beta)) * deviation))
