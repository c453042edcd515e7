"""Sending fewer bits a value: one, a little more, or b.

Leaves are treated one by one, each with a scale of its own, which depends on
the entries that are not zero: padding with zeros changes nothing. Entries that
are zero stay zero, so a quantizer can follow a sparsifier.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.config.compression import num_levels, rounds_row
from fedjaxrec.transforms.leaves import drawing, rebuild, without_draws

PyTree = Any


def sign() -> optax.GradientTransformationExtraArgs:
  """Sends the sign of every entry, and one magnitude for a leaf.

  The output is m sign(x), where m is the mean magnitude of the leaf's entries
  that are not zero.

  Wire cost: 1 bit an entry, 32 bits a leaf for m, and the coded positions of
  exact zeros among what is sent (usually none).
  Error: |x - output|^2 = |x|_2^2 - |x|_1^2 / n, with n entries that are not
  zero: a contraction, as error feedback needs. Bias: biased, not vanishing.
  Sensitivity: the L2 norm never grows (|x|_1 <= sqrt(n) |x|_2). Privacy: none
  by itself. A delta that is not finite becomes zeros.

  References:
    Bernstein et al., 2018, `signSGD <https://arxiv.org/abs/1802.04434>`_; with
    the mean magnitude as Karimireddy et al., 2019, `Error Feedback Fixes
    SignSGD <https://arxiv.org/abs/1901.09847>`_, scale it.
  """
  def one(x):
    values = jnp.abs(x.astype(jnp.float32))
    # The mean of numbers that may not add up in float32.
    largest = jnp.max(values, initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    count = jnp.maximum(jnp.sum(x != 0, dtype=jnp.int32), 1)
    mean = unit * (jnp.sum(values / unit) / count)
    return jnp.sign(x) * mean.astype(x.dtype)

  return without_draws(lambda updates, mask: jax.tree.map(one, updates))


def qsgd(bits: int, key: jax.Array) -> optax.GradientTransformationExtraArgs:
  """Rounds every entry at random onto a uniform grid, without bias.

  A leaf with s = max|x| is sent as whole numbers in [-L, L], L = 2^(bits-1) - 1
  and decoded as l (s / L).

  Wire cost: `bits` bits an entry, and 32 bits a leaf for s.
  Error: |output - x| <= s / L in every entry (plus float rounding), and
  E|output - x|^2 <= n s^2 / (4 L^2) for n entries that are not zero.
  Bias: E[output] = x, up to 2^-23 of a level. Sensitivity: the L2 norm can
  grow, by at most sqrt(n) s / L; the largest magnitude cannot. Privacy: none by
  itself. Zeros stay zeros, and a delta that is not finite becomes zeros.

  Args:
    bits: Bits an entry, from 2 to 16.
    key: Typed key of the first draw; give every client its own.

  Raises:
    ValueError: For another number of bits.

  References:
    Alistarh et al., 2017, `QSGD <https://arxiv.org/abs/1610.02132>`_; here with
    the largest magnitude as the scale and values of fixed length.
  """
  return _stochastic(num_levels(bits), key)


def ternary(key: jax.Array) -> optax.GradientTransformationExtraArgs:
  """Sends -1, 0 or 1 for every entry, at random and without bias.

  The output is s sign(x) with probability |x| / s, otherwise zero, where s is
  the leaf's largest magnitude.

  Wire cost: 1.6 bits an entry (five in a byte), and 32 bits a leaf for s.
  Error: |output - x| < s in every entry, E|output - x|^2 = s |x|_1 - |x|_2^2.
  Bias: E[output] = x, up to 2^-23 s. Sensitivity: the L2 norm can grow, to at
  most sqrt(n) s; the largest magnitude cannot. Privacy: none by itself. Zeros
  stay zeros, and a delta that is not finite becomes zeros.

  Args:
    key: Typed key of the first draw; give every client its own.

  References:
    Wen et al., 2017, `TernGrad <https://arxiv.org/abs/1705.07878>`_, without
    its clipping: put `clip` before it.
  """
  return _stochastic(1, key)


def round_rows(item_rows: PyTree, row_ndim: int, bits: int) -> PyTree:
  """Rounds every row to the nearest point of a uniform grid of its own.

  A row with s = max|x| is sent as whole numbers in [-L, L], L = 2^(bits-1) - 1,
  and read as l (s / L). Rows that this would not make shorter stay as they are
  (`config.compression.rounds_row`).

  Wire cost: `bits` bits an entry, and 32 bits a row for s.
  Error: |output - x| <= s / (2 L) in every entry, plus float rounding. Bias:
  rounding to the nearest is not unbiased; nothing adds up, where what is
  rounded is a copy. Zeros stay zeros. Privacy: a function of what is public.

  Args:
    item_rows: Leaves float32 [*rows, ...]; of one row or of many.
    row_ndim: How many leading axes count rows.
    bits: From 2 to 16.
  """
  levels = num_levels(bits)
  inverse = np.float32(1 / levels)

  def one(x):
    if not rounds_row(math.prod(x.shape[row_ndim:]), bits):
      return x
    scale = jnp.max(
        jnp.abs(x), axis=tuple(range(row_ndim, x.ndim)), keepdims=True)
    level = jnp.round(x / jnp.where(scale > 0, scale, 1) * levels)
    return level * (scale * inverse)

  return jax.tree.map(one, item_rows)


def _stochastic(levels: int, key: jax.Array):
  # One rounded step for a leaf, and one product for an entry: what XLA makes of
  # longer formulas depends on where they stand, and the decoder of a message
  # must find the same bits.
  inverse = np.float32(1 / levels)

  def one(x, leaf_key):
    values = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(values), initial=0)
    level = jnp.minimum(
        jnp.abs(values) / jnp.where(scale > 0, scale, 1) * levels, levels)
    whole = jnp.floor(level)
    # Not floor(level + uniform): that sum can round up past the grid.
    up = jax.random.uniform(leaf_key, x.shape) < level - whole
    step = scale * inverse
    return (jnp.sign(values) * (whole + up) * step).astype(x.dtype)

  def compress(updates, draw_key, mask):
    del mask
    leaves = jax.tree.leaves(updates)
    keys = jax.random.split(draw_key, max(len(leaves), 1))
    return rebuild(updates, map(one, leaves, keys))

  return drawing(compress, key)
