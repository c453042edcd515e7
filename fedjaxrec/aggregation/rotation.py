"""The randomised Hadamard rotation: spreads a vector evenly over its entries.

Signs at random, then the orthonormal Walsh-Hadamard transform. It is linear
and keeps L2 norms, so vectors that were rotated alike can be summed and the sum
rotated back. Shapes are kept: where the size is no power of two, two
overlapping transforms cover it.
"""

import math

import jax
import jax.numpy as jnp


def rotated_together(size: int) -> int:
  """The largest power of two that is at most size: entries of one transform."""
  return 1 << (size.bit_length() - 1)


def _hadamard(x: jax.Array) -> jax.Array:
  """The orthonormal transform along the last axis, a power of two long."""
  size = x.shape[-1]
  lead = x.shape[:-1]
  half = 1
  while half < size:
    pairs = x.reshape(*lead, size // (2 * half), 2, half)
    low, high = pairs[..., 0, :], pairs[..., 1, :]
    x = jnp.stack([low + high, low - high], -2).reshape(*lead, size)
    half *= 2
  return x / math.sqrt(size)


def _flip(x: jax.Array, key: jax.Array, transform: int) -> jax.Array:
  """Flips entries by the random signs of the first or second transform."""
  signs = jax.random.rademacher(
      jax.random.fold_in(key, transform), x.shape[-1:], jnp.float32)
  return x * jnp.broadcast_to(signs, x.shape)


def rotate(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rotates every vector along the last axis by the same random rotation.

  Every entry of the result is subgaussian with the standard deviation
  ||x|| / sqrt(rotated_together(size)): it exceeds k times that with a
  probability of at most 2 exp(-k^2 / 2) over the key, whatever x is.

  Args:
    x: float32 [..., size].
    key: Typed key: the same for all whose vectors are summed.

  Returns:
    float32 [..., size]; the same L2 norms. Time: log2(size) passes.

  References:
    Suresh et al., 2017, `Distributed Mean Estimation with Limited Communication
    <https://arxiv.org/abs/1611.00429>`_.
  """
  size = x.shape[-1]
  block = rotated_together(size)
  first = _hadamard(_flip(x[..., :block], key, 0))
  x = jnp.concatenate([first, x[..., block:]], -1)
  if block == size:
    return x
  last = _hadamard(_flip(x[..., size - block:], key, 1))
  return jnp.concatenate([x[..., :size - block], last], -1)


def rotate_back(x: jax.Array, key: jax.Array) -> jax.Array:
  """Undoes `rotate` with the same key, up to float32 rounding."""
  size = x.shape[-1]
  block = rotated_together(size)
  if block < size:
    last = _flip(_hadamard(x[..., size - block:]), key, 1)
    x = jnp.concatenate([x[..., :size - block], last], -1)
  first = _flip(_hadamard(x[..., :block]), key, 0)
  return jnp.concatenate([first, x[..., block:]], -1)
