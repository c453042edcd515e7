"""Sums modulo 2^b: the path of secure aggregation inside the compiled round.

A client's delta is scaled, optionally rotated, rounded at random to integers
and taken modulo 2^b; sums are plain uint32 additions, so they are exact and do
not depend on order, block size or devices. The same integers go through the
masked protocol, the secret shares or, in simulation, straight into the sum.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjaxrec.aggregation import ranges
from fedjaxrec.aggregation.rotation import rotate, rotate_back, rotated_together
from fedjaxrec.examples import mix_bits

PyTree = Any

# A clipped delta passes its bound by float32 rounding only.
_NORM_SLACK = 1e-4
_ATTEMPTS = 8


class Encoded(NamedTuple):
  """One client's upload.

  Attributes:
    values: uint32 pytree, below 2^b, the shapes of the delta.
    accepted: bool []: False where the delta was refused (NaN, infinity, or an
      L2 norm above the clip norm): the values are then all zeros, and the
      client is not to be counted.
  """
  values: PyTree
  accepted: jax.Array


class Ring(NamedTuple):
  """The ring of one run.

  Attributes:
    encode: (delta, key, sign_key=None, leading_axes=0, clip=False) -> Encoded,
      for one client; vmap it over a block. delta: float pytree. clip: whether
      a longer delta is scaled down to the clip norm, and not refused: the same
      norm serves both, and saves the passes of a transform that clips. key: the
      client's typed key of the round. sign_key and leading_axes matter with
      rotation only: the round's key, and how many leading axes address rows (an
      int, or a prefix of the delta's tree): entries are mixed behind them.
    decode: (total, sign_key=None, leading_axes=0) -> float32 pytree: what a sum
      of `values` stands for: signed, times float32(1 / scale), rotated back.
      total: uint32 pytree.
    bits: b.
    scale: Integers a unit.
    levels: Largest integer of one client's entry, where entries are cut; with
      wrap_sigmas they are not, and it is the size that got room.
    l2_bound_squared: What the squared norm of a client's integers never
      passes; None without conditional rounding.
  """
  encode: Callable[..., Encoded]
  decode: Callable[..., PyTree]
  bits: int
  scale: float
  levels: int
  l2_bound_squared: int | None


def make_ring(
    bits: int,
    l2_clip_norm: float,
    max_cohort: int,
    *,
    scale: float | None = None,
    entry_bound: float | None = None,
    noise_multiplier: float = 0.0,
    rotation: int = 0,
    wrap_sigmas: float | None = None,
    dimension: int | None = None,
    beta: float = ranges.BETA,
) -> Ring:
  """Builds the ring of a run: pure functions for the device.

  Overflow is impossible by construction: an entry is at most
  ceil(bound * scale) in size, cut where float32 rounding would pass it, and the
  scale is such that max_cohort of them fit below 2^(b-1). One coordinate may
  hold a client's whole norm, so the default bound of an entry is l2_clip_norm.
  Two options spend the range better:

  - entry_bound: entries are cut to +-entry_bound (a bias where they are
    larger; the norm only shrinks). Still no overflow.
  - wrap_sigmas = k, with rotation: entries of the rotated sum are subgaussian
    with a standard deviation of at most max_cohort * l2_clip_norm /
    sqrt(rotation) whatever the deltas are, and k of them get room: a coordinate
    wraps around with a probability of at most 2 exp(-k^2 / 2) a round, and is
    then off by 2^b / scale.

  Rounding: x * scale goes up or down so that the expectation is x * scale, to
  2^-24 of an integer; without rotation zero stays exactly zero. Error of an
  entry of the sum: at most sqrt(cohort) / (2 * scale) in standard deviation.

  Formal guarantee (with `dimension`): every client's integers have a squared
  norm of at most l2_bound_squared, whatever the delta is: the L2 sensitivity of
  the sum under adding or removing one client. Rounding is drawn again until it
  holds, at most eight times, then it is towards zero, which always holds.

  Randomness: bits from an integer hash of (client's key, leaf, flat index). An
  entry's draw depends on its flat index alone, so zero rows at the end of the
  leading axis change nothing. It simulates rounding; it is not for masks.

  | delta | values | accepted |
  |---|---|---|
  | L2 norm at most l2_clip_norm (1e-4 of slack for float32) | rounded | True |
  | a larger norm | zeros; with clip, rounded at the clip norm | False; True |
  | a NaN or an infinity anywhere, or squares beyond float32 | zeros | False |

  Cost: about 20 integer operations an entry; 4 bytes an entry, b bits on the
  wire.

  Args:
    bits: b, 2 to 32.
    l2_clip_norm: What a client's delta was clipped to.
    max_cohort: Most clients that are ever summed.
    scale: Integers a unit; by default the largest that fits.
    entry_bound: Where entries are cut; by default they are not.
    noise_multiplier: Standard deviation, over l2_clip_norm, of the noise that
      the clients together add to the sum: eight of them get room.
    rotation: 0 for none; otherwise the least number of entries that are rotated
      together, a power of two. A leaf with fewer behind its leading axes stays
      as it is; with wrap_sigmas there must be none.
    wrap_sigmas: k; None for no wrap-around at all.
    dimension: Most non-zero entries of a client's delta, after its rotation;
      turns conditional rounding on, as distributed noise needs it.
    beta: Chance that a rounding is drawn again, in [0, 1).

  Raises:
    ValueError: For a range that does not fit; the message names the smallest b
      that does.

  References:
    Bonawitz et al., 2017, Practical Secure Aggregation, CCS; Kairouz et al.,
    2021, `The Distributed Discrete Gaussian Mechanism
    <https://arxiv.org/abs/2102.06387>`_ (conditional rounding, wrap-around).
  """
  _check(bits, l2_clip_norm, max_cohort, scale, entry_bound, rotation,
         wrap_sigmas, dimension)
  bound = min(l2_clip_norm, entry_bound or l2_clip_norm)
  if wrap_sigmas is not None:
    bound = min(bound, wrap_sigmas * l2_clip_norm / rotation**0.5)
  fitting = ranges.largest_scale(
      bits, max_cohort, l2_clip_norm, noise_multiplier, bound / l2_clip_norm)
  if dimension is not None:
    fitting = min(
        fitting, ranges.largest_conditional_scale(l2_clip_norm, dimension))
  if scale is None:
    scale = fitting
  elif scale > fitting:
    needed = ranges.required_bits(
        max_cohort, bound, scale, noise_multiplier * l2_clip_norm * scale)
    if needed > bits:
      raise ValueError(
          f'secure.bits={bits} cannot hold {max_cohort} clients of '
          f'l2_clip_norm={l2_clip_norm} at scale={scale}: the sum could wrap '
          f'around; use secure.bits={needed}, or a scale of at most '
          f'{fitting:.6g}.' if needed <= ranges.MAX_BITS else
          f'scale={scale} needs {needed} bits and a ring has at most 32; use a '
          f'scale of at most {fitting:.6g}.')
    if dimension is not None:
      raise ValueError(
          f'scale={scale} with dimension={dimension}: conditional rounding '
          f'sums squares in 32 bits; use a scale of at most {fitting:.6g}.')
  levels = ranges.magnitude(bound, scale)
  l2_bound_squared = None if dimension is None else int(
      ranges.rounded_l2_bound(l2_clip_norm * scale, dimension, beta) ** 2)
  mask = 2**bits - 1
  half = 2 ** (bits - 1)

  def to_leaves(tree, sign_key, leading_axes, turn):
    leaves, treedef = jax.tree.flatten(tree)
    if not rotation:
      return leaves, treedef
    if sign_key is None:
      raise ValueError(
          f'rotation={rotation} with sign_key=None: all clients of a round '
          'rotate by one key; pass it.')
    axes = jax.tree.leaves(jax.tree.broadcast(leading_axes, tree))
    return [_turn(turn, x, jax.random.fold_in(sign_key, i), a, rotation)
            if wrap_sigmas is not None or is_rotated(x.shape[a:], rotation)
            else x for i, (x, a) in enumerate(zip(leaves, axes))], treedef

  def encode(delta, key, sign_key=None, leading_axes=0, clip=False):
    delta = jax.tree.map(lambda x: x.astype(jnp.float32), delta)
    # NaN and overflow compare as False.
    unit = sum((jnp.sum(jnp.square(x * jnp.float32(1 / l2_clip_norm)))
                for x in jax.tree.leaves(delta)), start=jnp.float32(0))
    if clip:
      accepted = jnp.isfinite(unit)
      shorten = jnp.where(unit > 1, jax.lax.rsqrt(unit), 1)
      delta = jax.tree.map(
          lambda x: jnp.where(accepted, x * shorten, 0), delta)
    else:
      accepted = jnp.asarray(unit <= (1 + _NORM_SLACK) ** 2)
      delta = jax.tree.map(lambda x: jnp.where(accepted, x, 0), delta)
    leaves, treedef = to_leaves(delta, sign_key, leading_axes, rotate)
    cut = levels if wrap_sigmas is None else 2**31 - 128
    scaled = [jnp.clip(x * jnp.float32(scale), -cut, cut) for x in leaves]

    def draw(attempt):
      low, high = _words(key, attempt)
      return [jnp.clip(_round(x, low, high, i), -cut, cut)
              for i, x in enumerate(scaled)]

    rounded = draw(0)
    if l2_bound_squared is not None:
      # XLA loops carry a state, so the first draw is inside as well.
      def too_long(values):
        return sum(jnp.sum(jnp.square(v.astype(jnp.uint32)))
                   for v in values) > jnp.uint32(l2_bound_squared)

      def again(state):
        attempt, _, _ = state
        values = draw(attempt)
        return attempt + 1, too_long(values), values

      _, failed, rounded = jax.lax.while_loop(
          lambda state: state[1] & (state[0] < _ATTEMPTS), again,
          (jnp.uint32(1), too_long(rounded), rounded))
      # Shorter by more than the slack: within l2_clip_norm * scale for sure.
      rounded = [
          jnp.where(failed, jnp.trunc(
              x * (1 - 2 * _NORM_SLACK)).astype(jnp.int32), v)
          for x, v in zip(scaled, rounded)]
    values = [v.astype(jnp.uint32) & jnp.uint32(mask) for v in rounded]
    return Encoded(treedef.unflatten(values), accepted)

  def decode(total, sign_key=None, leading_axes=0):
    def signed(x):
      x = (x & jnp.uint32(mask)) ^ jnp.uint32(half)
      x = jax.lax.bitcast_convert_type(x - jnp.uint32(half), jnp.int32)
      return x.astype(jnp.float32) * jnp.float32(1 / scale)

    leaves, treedef = to_leaves(
        jax.tree.map(signed, total), sign_key, leading_axes, rotate_back)
    return treedef.unflatten(leaves)

  return Ring(encode, decode, bits, scale, levels, l2_bound_squared)


def is_rotated(shape: tuple[int, ...], rotation: int) -> bool:
  """Whether a leaf's vectors of this shape are rotated, if it is optional."""
  size = math.prod(shape)
  return 0 < rotation <= size and rotated_together(size) >= rotation


def _turn(turn, x, key, leading_axes, least):
  """Rotates what stands behind the leading axes of one leaf."""
  lead, size = x.shape[:leading_axes], math.prod(x.shape[leading_axes:])
  if size < 1 or rotated_together(size) < least:
    raise ValueError(
        f'rotation={least} with a leaf of shape {x.shape}, {leading_axes} '
        f'leading axes: only {size} entries can be rotated together; use a '
        'smaller rotation.')
  return turn(x.reshape(*lead, size), key).reshape(x.shape)


def _words(key, attempt):
  """Two words that tell this client's rounding from all others."""
  data = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)
  low = mix_bits(data[0] ^ jnp.uint32(0x52494e47))
  high = mix_bits(data[-1] + jnp.uint32(0x9e3779b9) * (
      jnp.uint32(attempt) + jnp.uint32(1)))
  return low, high


def random_bits(low, high, leaf: int, shape) -> jax.Array:
  """One pseudo-random word an entry, of its flat index: uint32 [shape]."""
  start = mix_bits(low + jnp.uint32((leaf + 1) * 0x85ebca6b & 0xffffffff))
  counter = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
  return mix_bits((counter * jnp.uint32(0x9e3779b9) + start) ^ high)


def _round(x, low, high, leaf):
  """Rounds to int32 at random; the expectation is x, to 2^-24."""
  whole = jnp.floor(x)
  # Below 2^24 the fraction is exact, but for rounding that 2^-24 allows;
  # beyond it there is none.
  fraction = (x - whole) * 2.0**24
  bits = (random_bits(low, high, leaf, x.shape) >> 8).astype(jnp.float32)
  return whole.astype(jnp.int32) + (bits < fraction).astype(jnp.int32)


def _check(bits, l2_clip_norm, max_cohort, scale, entry_bound, rotation,
           wrap_sigmas, dimension):
  """Refuses what no ring can be made of."""
  if not (type(bits) is int and 2 <= bits <= ranges.MAX_BITS):
    raise ValueError(
        f'secure.bits={bits} must be a whole number from 2 to 32: sums are '
        'taken in 32-bit words.')
  if not (type(max_cohort) is int and max_cohort >= 1):
    raise ValueError(
        f'max_cohort={max_cohort} must be a whole number of at least 1; it is '
        'the most clients that are ever summed.')
  numbers = {'l2_clip_norm': l2_clip_norm, 'scale': scale,
             'entry_bound': entry_bound, 'wrap_sigmas': wrap_sigmas}
  for name, value in numbers.items():
    if value is not None and not 0 < value < float('inf'):
      raise ValueError(
          f'{name}={value} must be a finite number above 0; the range of the '
          'ring is computed from it.')
  if rotation and (rotation < 2 or rotation & (rotation - 1)):
    raise ValueError(
        f'rotation={rotation} must be 0, for none, or a power of two: the '
        'least number of entries that are rotated together.')
  if wrap_sigmas is not None and not rotation:
    raise ValueError(
        f'wrap_sigmas={wrap_sigmas} with rotation=0: only rotated entries are '
        'subgaussian; set rotation as well, or leave wrap_sigmas out.')
  if wrap_sigmas is not None and entry_bound is not None:
    raise ValueError(
        f'wrap_sigmas={wrap_sigmas} with entry_bound={entry_bound}: rotated '
        'entries are either cut or wrapped; choose one.')
  if dimension is not None and not dimension >= 1:
    raise ValueError(
        f'dimension={dimension} must be at least 1; it is the most non-zero '
        "entries of a client's delta.")
