"""Spreading every entry over many before they are quantized.

A vector of n entries whose one large entry sets the quantizer's scale loses the
others; after a random rotation all entries are about |x| / sqrt(n).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.config.compression import ROTATION_CHUNK
from fedjaxrec.transforms.leaves import (
    KeyState,
    next_key,
    over_entries,
    rebuild,
    rows_in_use,
    zeros_unless_finite,
)

PyTree = Any


def _sylvester(n: int) -> np.ndarray:
  """The Hadamard matrix of size n, scaled to a rotation: float32 [n, n]."""
  place = np.arange(n)
  common = np.bitwise_count(place[:, None] & place[None, :]).astype(int)
  return ((1 - 2 * (common % 2)) / np.sqrt(n)).astype(np.float32)


def hadamard(x: jax.Array) -> jax.Array:
  """The Walsh-Hadamard transform of the last axis, its own inverse.

  Args:
    x: float [..., n], n a power of two.

  Returns:
    x H / sqrt(n), x's shape and dtype; an isometry. Time: about 2 sqrt(n)
    products an entry: as two products with matrices of size sqrt(n), which run
    and compile faster than log2(n) passes of additions.
  """
  n, shape = x.shape[-1], x.shape
  left = 1 << (n.bit_length() - 1) // 2
  x = x.reshape(*shape[:-1], left, n // left)
  x = jnp.einsum('...lr,lm->...mr', x, _sylvester(left).astype(x.dtype),
                 precision='highest')
  x = jnp.matmul(x, _sylvester(n // left).astype(x.dtype), precision='highest')
  return x.reshape(shape)


def _num_chunks(leaf: jax.Array, chunk_size: int) -> int:
  return -(-leaf.size // chunk_size)


def rotation_signs(
    key: jax.Array, updates: PyTree, chunk_size: int = ROTATION_CHUNK
) -> list[jax.Array]:
  """The random signs of every leaf: int8 [chunks, chunk_size], 1 or -1.

  Args:
    key: Typed key.
    updates: The delta, or its shapes.
    chunk_size: Entries that are rotated together.
  """
  leaves = jax.tree.leaves(updates)
  keys = jax.random.split(key, max(len(leaves), 1))
  return [jax.random.rademacher(
      k, (_num_chunks(x, chunk_size), chunk_size), jnp.int8)
          for x, k in zip(leaves, keys)]


def with_rotation(
    inner: optax.GradientTransformation, key: jax.Array,
    chunk_size: int = ROTATION_CHUNK,
) -> optax.GradientTransformationExtraArgs:
  """Wraps a quantizer: rotates, quantizes, and rotates back.

  Every leaf is cut into chunks of chunk_size entries in row-major order, the
  last one filled up with zeros; a chunk's entries get random signs and go
  through a Hadamard transform. Entries that are not in use are zeros again
  afterwards.

  Wire cost: the inner one's for chunk_size ceil(n / chunk_size) values a leaf
  of n entries in use, and a 64-bit seed if the server does not know the key.
  Error: the L2 error is the inner one's on the rotated values, as the rotation
  is an isometry. With `qsgd` its scale is below |chunk| sqrt(2 ln(2 n / p) /
  chunk_size) with probability 1 - p, for the largest L2 norm of a chunk, where
  without rotation it is up to |chunk|.
  Bias: that of the inner one. Sensitivity: the L2 norm grows as the inner one
  lets it, and not otherwise. Privacy: none by itself. All zeros stay zeros; a
  delta that is not finite becomes zeros.

  Args:
    inner: The quantizer. It sees leaves [chunks, chunk_size].
    key: Typed key of the first rotation; the inner one needs another.
    chunk_size: A power of two.

  Returns:
    A transform with the extra argument `mask`, see `leaves.rows_in_use`. Time:
    two `hadamard`s.

  Raises:
    ValueError: For a chunk_size that is no power of two.

  References:
    Suresh et al., 2017, `Distributed Mean Estimation with Limited Communication
    <https://arxiv.org/abs/1611.00429>`_.
  """
  if chunk_size < 1 or chunk_size & (chunk_size - 1):
    raise ValueError(
        f'chunk_size={chunk_size} must be a power of two, for example '
        f'{ROTATION_CHUNK}: a Hadamard matrix has that size.')
  inner = optax.with_extra_args_support(inner)

  def chunked(x):
    padding = _num_chunks(x, chunk_size) * chunk_size - x.size
    return jnp.pad(x.reshape(-1), (0, padding)).reshape(-1, chunk_size)

  def init(params):
    return (KeyState(jax.random.key_data(key)),
            inner.init(jax.tree.map(chunked, params)))

  def update(updates, state, params=None, *, mask=None, **extra_args):
    del params
    key_state, inner_state = state
    draw_key, key_state = next_key(key_state)
    updates = zeros_unless_finite(updates)
    leaves = jax.tree.leaves(updates)
    signs = rotation_signs(draw_key, updates, chunk_size)
    used = [over_entries(m, x)
            for x, m in zip(leaves, rows_in_use(updates, mask))]
    rotated = [
        hadamard(chunked(x) * s.astype(x.dtype)) for x, s in zip(leaves, signs)]
    sent, inner_state = inner.update(
        rebuild(updates, rotated), inner_state, None,
        mask=rebuild(updates, [chunked(m).any(1) for m in used]), **extra_args)

    def back(y, x, s, m):
      y = (hadamard(y) * s.astype(x.dtype)).reshape(-1)[:x.size]
      return jnp.where(m, y.reshape(x.shape), 0)

    return rebuild(updates, map(
        back, jax.tree.leaves(sent), leaves, signs, used)), (
            key_state, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)
