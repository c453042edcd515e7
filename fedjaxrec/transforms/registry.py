"""Every transform in one table, with what it claims.

`tests/transforms/conformance_test.py` walks the table and holds each row to its
claims, so a transform that is not listed is a transform that nobody checks. A
row is an example: a constructor with settings small enough to be tested.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.config.compression import CompressionConfig, num_kept
from fedjaxrec.transforms.clip import (
    clip_by_l1,
    clip_by_l2,
    clip_groups_by_l2,
    clip_item_rows,
    clip_rows_by_l2,
)
from fedjaxrec.transforms.correlated_noise import (
    add_banded_noise,
    add_buffered_toeplitz_noise,
)
from fedjaxrec.transforms.error_feedback import with_error_feedback
from fedjaxrec.transforms.local_privacy import (
    add_local_gaussian_noise,
    add_local_laplace_noise,
)
from fedjaxrec.transforms.noise import add_gaussian_noise
from fedjaxrec.transforms.priv_unit import priv_unit
from fedjaxrec.transforms.quantize import qsgd, sign, ternary
from fedjaxrec.transforms.rotate import with_rotation
from fedjaxrec.transforms.sketch import count_sketch, low_rank
from fedjaxrec.transforms.sparsify import random_k, threshold, top_k

Bound = Callable[[jax.Array], Any]


class Row(NamedTuple):
  """What a transform claims. Every transform keeps shapes and dtypes.

  Attributes:
    make: Typed key -> the transform, with example settings.
    side: client (one delta) or server (the sum).
    zero_to_zero: All zeros stay all zeros.
    non_finite_to_zero: A NaN or an infinity anywhere makes all zeros.
    ignores_padding: Rows that are not in use, after those that are, change
      nothing in the latter; it gets the mask as an extra argument.
    norm_never_grows: The output's L2 norm is at most the input's.
    unbiased: The output's mean over keys is the input.
    linear: The output of a sum is the sum of the outputs, under one key.
    largest_error: Leaf -> a bound on |output - leaf| in every entry.
    squared_error: Leaf -> a bound on the mean of |output - leaf|^2 over keys.
    wire: The config under which `communication.wire_bytes` is its wire cost.
  """
  make: Callable[[jax.Array], optax.GradientTransformation]
  side: str = 'client'
  zero_to_zero: bool = True
  non_finite_to_zero: bool = True
  ignores_padding: bool = True
  norm_never_grows: bool = False
  unbiased: bool = False
  linear: bool = False
  largest_error: Bound | None = None
  squared_error: Bound | None = None
  wire: CompressionConfig | None = None


def _square(x):
  return jnp.sum(jnp.square(x))


def _largest(x):
  return jnp.max(jnp.abs(x))


def _lost(fraction, by_rows):
  """The share of a leaf's squared norm that may be lost with the rest."""
  def bound(x):
    n = x.shape[0] if by_rows and x.ndim else x.size
    return (1 - num_kept(n, fraction) / n) * _square(x)
  return bound


def _scaled(bound, factor):
  return lambda x: bound(x) * factor


def _sign_error(x):
  return _square(x) - jnp.square(jnp.sum(jnp.abs(x))) / jnp.maximum(
      jnp.sum(x != 0), 1)


def _rotated_error(x):
  # A level is at most |x| / 7 wide, and there are so many coefficients.
  return -(-x.size // 8) * 8 * _square(x) / (4 * 7**2)


def _on_pair(
    inner: optax.GradientTransformation
) -> optax.GradientTransformation:
  """A transform of (item rows, shared) on any tree: what has rows, the rest."""
  def split(tree):
    leaves = jax.tree.leaves(tree)
    return tuple([x if (x.ndim > 0 and x.size > 0) == rows else None
                  for x in leaves] for rows in (True, False))

  def update(updates, state, params=None):
    del params
    (table, shared), state = inner.update(split(updates), state)
    return jax.tree.unflatten(jax.tree.structure(updates), [
        b if a is None else a for a, b in zip(table, shared)]), state

  return optax.GradientTransformation(
      lambda params: inner.init(split(params)), update)


_RK = 0.25
_CONFIG = CompressionConfig

TRANSFORMS: dict[str, Row] = {
    # Clipping and noise.
    'clip_by_l2': Row(
        lambda key: clip_by_l2(1.0), norm_never_grows=True),
    'clip_by_l1': Row(
        lambda key: clip_by_l1(1.0), norm_never_grows=True),
    'clip_groups_by_l2': Row(
        lambda key: _on_pair(clip_groups_by_l2((1.0, 0.25))),
        norm_never_grows=True),
    'clip_rows_by_l2': Row(
        # Shared parameters have no rows, and stay as they are, finite or not.
        lambda key: _on_pair(
            optax.masked(clip_rows_by_l2(1.0), (True, False))),
        norm_never_grows=True, non_finite_to_zero=False),
    'clip_item_rows': Row(
        lambda key: _on_pair(clip_item_rows(1.0)),
        norm_never_grows=True, non_finite_to_zero=False),
    'add_gaussian_noise': Row(
        lambda key: add_gaussian_noise(0.5, key), side='server',
        zero_to_zero=False, non_finite_to_zero=False, ignores_padding=False,
        unbiased=True, squared_error=lambda x: 0.25 * x.size),
    'add_banded_noise': Row(
        lambda key: add_banded_noise(0.5, np.array([0.8, 0.5]), key),
        side='server', zero_to_zero=False, non_finite_to_zero=False,
        ignores_padding=False, unbiased=True,
        squared_error=lambda x: (0.5 / 0.8) ** 2 * x.size),
    'add_buffered_toeplitz_noise': Row(
        lambda key: add_buffered_toeplitz_noise(
            0.5, np.array([0.9]), np.array([0.3]), key),
        side='server', zero_to_zero=False, non_finite_to_zero=False,
        ignores_padding=False, unbiased=True,
        squared_error=lambda x: 0.25 * x.size),
    'add_local_gaussian_noise': Row(
        lambda key: add_local_gaussian_noise(20.0, 8.0, 1e-5, key),
        zero_to_zero=False, non_finite_to_zero=False, ignores_padding=False,
        unbiased=True),
    'add_local_laplace_noise': Row(
        lambda key: add_local_laplace_noise(99.0, 8.0, key),
        zero_to_zero=False, non_finite_to_zero=False, ignores_padding=False,
        unbiased=True),
    'priv_unit': Row(
        lambda key: priv_unit(20.0, 8.0, key),
        zero_to_zero=False, non_finite_to_zero=False, ignores_padding=False,
        unbiased=True),
    # Sparsification.
    'top_k rows': Row(
        lambda key: top_k(_RK), norm_never_grows=True,
        largest_error=_largest, squared_error=_lost(_RK, True),
        wire=_CONFIG(sparsify='top_k', fraction=_RK)),
    'top_k entries': Row(
        lambda key: top_k(_RK, granularity='entries'), norm_never_grows=True,
        largest_error=_largest, squared_error=_lost(_RK, False),
        wire=_CONFIG(sparsify='top_k', fraction=_RK, granularity='entries')),
    'random_k rows': Row(
        lambda key: random_k(0.5, key), unbiased=True,
        squared_error=_square,
        wire=_CONFIG(sparsify='random_k', fraction=0.5)),
    'random_k entries, a contraction': Row(
        lambda key: random_k(
            _RK, key, granularity='entries', unbiased=False),
        norm_never_grows=True, largest_error=_largest,
        squared_error=_lost(_RK, False),
        wire=_CONFIG(sparsify='random_k', fraction=_RK,
                     granularity='entries')),
    'threshold': Row(
        lambda key: threshold(0.5), norm_never_grows=True,
        largest_error=lambda x: 0.5,
        wire=_CONFIG(sparsify='threshold', threshold=0.5)),
    # Quantization.
    'sign': Row(
        lambda key: sign(), norm_never_grows=True, squared_error=_sign_error,
        wire=_CONFIG(quantize='sign')),
    'ternary': Row(
        ternary, unbiased=True, largest_error=_largest,
        squared_error=lambda x: _largest(x) * jnp.sum(jnp.abs(x)) - _square(x),
        wire=_CONFIG(quantize='ternary')),
    'qsgd 4 bits': Row(
        lambda key: qsgd(4, key), unbiased=True,
        largest_error=_scaled(_largest, 1 / 7),
        squared_error=lambda x: x.size * _largest(x)**2 / (4 * 7**2),
        wire=_CONFIG(quantize='qsgd', bits=4)),
    'with_rotation(qsgd 4 bits)': Row(
        lambda key: with_rotation(
            qsgd(4, key), jax.random.fold_in(key, 1), chunk_size=8),
        unbiased=True, squared_error=_rotated_error),
    # Sketches.
    'low_rank': Row(
        lambda key: low_rank(2, key), norm_never_grows=True, linear=True,
        squared_error=lambda x: (
            1 - 2 / x.shape[1] if x.ndim > 1 and x.shape[1] > 2 else 0
        ) * _square(x),
        wire=_CONFIG(sketch='low_rank', rank=2)),
    'low_rank, unbiased': Row(
        lambda key: low_rank(2, key, unbiased=True), unbiased=True, linear=True,
        squared_error=lambda x: (
            x.shape[1] / 2 - 1 if x.ndim > 1 and x.shape[1] > 2 else 0
        ) * _square(x),
        wire=_CONFIG(sketch='low_rank', rank=2)),
    'count_sketch': Row(
        lambda key: count_sketch(64, 3, key), unbiased=True, linear=True,
        wire=_CONFIG(sketch='count', sketch_width=64, sketch_depth=3)),
    'count_sketch, a contraction': Row(
        lambda key: count_sketch(8, 2, key, unbiased=False), linear=True,
        wire=_CONFIG(sketch='count', sketch_width=8, sketch_depth=2)),
    # Memory.
    'with_error_feedback(top_k rows)': Row(
        lambda key: with_error_feedback(top_k(_RK)),
        squared_error=_lost(_RK, True)),
}
