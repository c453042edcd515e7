"""Integer noise that the clients add themselves, so that the sum is private.

Each client adds a share of the noise to its integers before the secure sum, and
the server only ever sees the sum with all shares in it. Skellam noise (the
difference of two Poisson draws) sums to Skellam noise; discrete Gaussian shares
sum to almost a discrete Gaussian.

Draws come from a table of the distribution (alias method), made once on the
host: two random words and one look-up an entry, no loop, and a statistical
distance of at most 2^-32 from the distribution. `jax.random.poisson` is not
used: it computes in float32, and from a mean of 5e5 on its variance is several
per cent wrong.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]

# Beyond 8.5 standard deviations lies less than a table's last bit.
_REACH = 8.5
# A table of 2^18 entries, 2 MiB.
_MAX_TABLE_STDDEV = 15_000.0
_MAX_DRAWS = 64


def _half_width(stddev: float) -> int:
  """How far a table reaches; small Skellam noise has heavier tails."""
  return math.ceil(_REACH * stddev) + 40


def skellam_pmf(stddev: float) -> np.ndarray:
  """P(k) for k = -w..w: float64 [2 w + 1]; variance stddev^2."""
  width = _half_width(stddev)
  # The inverse of the characteristic function exp(stddev^2 (cos t - 1)).
  size = 1 << (2 * width + 1).bit_length()
  wave = np.exp(stddev**2 * (np.cos(
      2 * np.pi * np.arange(size // 2 + 1) / size) - 1))
  pmf = np.fft.irfft(wave, size)
  return _centred(pmf, width)


def discrete_gaussian_pmf(stddev: float, num_shares: int = 1) -> np.ndarray:
  """P(k) of a sum of discrete Gaussians, k = -w..w: float64 [2 w + 1].

  Args:
    stddev: The parameter sigma of one share: P(k) ~ exp(-k^2 / (2 sigma^2)).
    num_shares: How many are summed.
  """
  width = _half_width(stddev * math.sqrt(num_shares))
  size = 1 << (2 * width + 1).bit_length()
  k = np.fft.fftfreq(size, 1 / size)
  one = np.exp(-0.5 * (k / stddev) ** 2)
  one /= one.sum()
  if num_shares == 1:
    return _centred(one, width)
  # One share is even, so its transform is real.
  return _centred(
      np.fft.irfft(np.fft.rfft(one).real ** num_shares, size), width)


def _centred(pmf: np.ndarray, width: int) -> np.ndarray:
  """Turns FFT order into -w..w, and rounding noise into a distribution."""
  pmf = np.maximum(np.concatenate([pmf[-width:], pmf[:width + 1]]), 0)
  pmf = (pmf + pmf[::-1]) / 2
  return pmf / pmf.sum()


def alias_table(pmf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The alias table of a distribution over 0..len(pmf)-1.

  Returns:
    (keep, other), uint32 and int32 [size], a power of two: a uniform index i
    stands if a uniform 32-bit word is below keep[i], otherwise other[i] is
    taken.

  References:
    Vose, 1991, A Linear Algorithm for Generating Random Numbers with a Given
    Distribution, IEEE Transactions on Software Engineering 17(9).
  """
  size = 1 << (len(pmf) - 1).bit_length()
  share = np.zeros(size)
  share[:len(pmf)] = pmf * size
  left = share.tolist()
  other = list(range(size))
  small = [i for i, p in enumerate(left) if p < 1]
  large = [i for i, p in enumerate(left) if p >= 1]
  while small and large:
    poor, rich = small.pop(), large[-1]
    other[poor] = rich
    left[rich] -= 1 - left[poor]
    if left[rich] < 1:
      small.append(large.pop())
  keep = np.array(left)
  # What is left over is 1 up to rounding.
  keep[small + large] = 1
  keep = np.minimum(np.round(np.clip(keep, 0, 1) * 2.0**32), 2.0**32 - 1)
  return keep.astype(np.uint32), np.array(other, np.int32)


@functools.lru_cache(maxsize=8)
def _table(kind: str, stddev: float, num_shares: int):
  if kind == 'skellam':
    pmf = skellam_pmf(stddev * math.sqrt(num_shares))
  else:
    pmf = discrete_gaussian_pmf(stddev, num_shares)
  return (*alias_table(pmf), len(pmf) // 2)


def _make_draw(kind: str, stddev: float, num_shares: int) -> Draw:
  keep, other, zero = _table(kind, stddev, num_shares)
  bits = len(keep).bit_length() - 1

  def draw(key, shape):
    index_key, keep_key = jax.random.split(key)
    index = jax.random.bits(index_key, shape) >> (32 - bits)
    stands = jax.random.bits(keep_key, shape) < jnp.asarray(keep)[index]
    return jnp.where(
        stands, index.astype(jnp.int32), jnp.asarray(other)[index]) - zero

  return draw


def make_skellam(noise_stddev: float, num_shares: int = 1) -> Draw:
  """Builds draw(key, shape) -> int32 Skellam noise of mean zero.

  The sum of n independent Skellam shares is one Skellam of n times the variance
  (exactly), so a simulation that plays all clients may draw the sum at once:
  num_shares = n. Real clients each draw one share.

  Time: 15 ns an entry on a CPU core. A standard deviation above 15,000 is the
  sum of up to 64 draws, and takes as many times as long.

  Args:
    noise_stddev: Standard deviation of one share, in integers.
    num_shares: Shares that are summed.

  Raises:
    ValueError: For a standard deviation that is not in (0, 120000].

  References:
    Agarwal, Kairouz and Liu, 2021, `The Skellam Mechanism for Differentially
    Private Federated Learning <https://arxiv.org/abs/2110.04995>`_.
  """
  _check(noise_stddev, num_shares, _MAX_TABLE_STDDEV * math.sqrt(_MAX_DRAWS))
  total = noise_stddev * math.sqrt(num_shares)
  draws = math.ceil((total / _MAX_TABLE_STDDEV) ** 2)
  one = _make_draw('skellam', total / math.sqrt(draws), 1)
  if draws == 1:
    return one

  def draw(key, shape):
    return jax.lax.fori_loop(
        0, draws, lambda i, x: x + one(jax.random.fold_in(key, i), shape),
        jnp.zeros(shape, jnp.int32))

  return draw


def make_discrete_gaussian(noise_stddev: float, num_shares: int = 1) -> Draw:
  """Builds draw(key, shape) -> int32 discrete Gaussian noise of mean zero.

  P(k) is proportional to exp(-k^2 / (2 noise_stddev^2)). A sum of n shares is
  not a discrete Gaussian; with num_shares = n the table is that of the sum
  itself, so a simulation may draw it at once.

  Args:
    noise_stddev: The parameter of one share, in integers; from 1 on it is the
      standard deviation as well, to 1e-6.
    num_shares: Shares that are summed.

  Raises:
    ValueError: If the standard deviation of the sum is not in (0, 15000].

  References:
    Canonne, Kamath and Steinke, 2020, `The Discrete Gaussian for Differential
    Privacy <https://arxiv.org/abs/2004.00010>`_.
  """
  _check(noise_stddev, num_shares, _MAX_TABLE_STDDEV)
  return _make_draw('discrete_gaussian', float(noise_stddev), num_shares)


def add_skellam(
    tree: PyTree, key: jax.Array, noise_stddev: float, *, num_shares: int = 1,
    bits: int = 32
) -> PyTree:
  """Adds Skellam noise to integers of the ring, modulo 2^b.

  Formal guarantee: with shares from all clients of a sum, and integers of L2
  sensitivity D (`Ring.l2_bound_squared`), the sum is the Skellam mechanism with
  variance num_clients * noise_stddev^2; fedjaxrec/privacy/distributed.py turns
  that into epsilon. Unit of privacy: the client. The guarantee is that of ideal
  noise: draws are threefry's, reproducible from the seed by whoever knows it,
  and each is within 2^-32 of the distribution.

  Args:
    tree: uint32 pytree, values modulo 2^b.
    key: The client's typed key of this round, used once.
    noise_stddev: Standard deviation of one share, in integers.
    num_shares: 1 on a client; in a simulation, n on the sum of n clients.
    bits: b.

  Returns:
    uint32 pytree, the same shapes. Every entry gets noise, touched or not.

  Raises:
    ValueError: As `make_skellam`, and for leaves that are not uint32.
  """
  return _add(tree, key, make_skellam(noise_stddev, num_shares), bits)


def add_discrete_gaussian(
    tree: PyTree, key: jax.Array, noise_stddev: float, *, num_shares: int = 1,
    bits: int = 32
) -> PyTree:
  """Adds discrete Gaussian noise to integers of the ring, modulo 2^b.

  Formal guarantee: that of the distributed discrete Gaussian with shares of
  noise_stddev, see `add_skellam`; the same arguments, result and errors.
  """
  return _add(tree, key, make_discrete_gaussian(noise_stddev, num_shares), bits)


def _add(tree, key, draw, bits):
  leaves, treedef = jax.tree.flatten(tree)
  for leaf in leaves:
    if leaf.dtype != jnp.uint32:
      raise ValueError(
          f'dtype={leaf.dtype} must be uint32: noise is added to the integers '
          'of the ring; encode the delta first.')
  mask = jnp.uint32(2**bits - 1)
  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(treedef, [
      (x + draw(k, x.shape).astype(jnp.uint32)) & mask
      for x, k in zip(leaves, keys)])


def _check(noise_stddev, num_shares, most):
  """Refuses what no table can be made of."""
  if not (type(num_shares) is int and num_shares >= 1):
    raise ValueError(
        f'num_shares={num_shares} must be a whole number of at least 1; it is '
        'the clients whose noise is in the sum.')
  if not isinstance(noise_stddev, (int, float)):
    raise ValueError(
        f'noise_stddev={noise_stddev} must be a number that is known before '
        'tracing: the table of the distribution is made from it.')
  if not 0 < noise_stddev * math.sqrt(num_shares) <= most:
    raise ValueError(
        f'noise_stddev={noise_stddev} with num_shares={num_shares} must give '
        f'a standard deviation above 0 and at most {most:.0f} integers; lower '
        'the scale of the ring, which the noise is counted in.')
