"""What compressors share: masks of rows in use, keys, and what is finite."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class KeyState(NamedTuple):
  """The key of the next draw: part of a checkpoint, never used twice.

  Attributes:
    key_data: uint32 [...]: a plain array, as checkpoints store it.
  """
  key_data: jax.Array


def init_key(key: jax.Array) -> Callable[[PyTree], KeyState]:
  """Builds the init of a transform that draws."""
  return lambda params: KeyState(jax.random.key_data(key))


def next_key(state: KeyState) -> tuple[jax.Array, KeyState]:
  """Returns (a key to draw with, the state that has moved on)."""
  following, key = jax.random.split(jax.random.wrap_key_data(state.key_data))
  return key, KeyState(jax.random.key_data(following))


def zeros_unless_finite(updates: PyTree) -> PyTree:
  """Zeroes every leaf if the squared L2 norm is no finite float32.

  So a NaN, an infinity, or a norm above 1.8e19 makes the whole delta zeros, as
  `clip_by_l2` does it, and no scale is ever made of one.
  """
  square = sum(
      jnp.sum(jnp.square(x.astype(jnp.float32)))
      for x in jax.tree.leaves(updates))
  usable = jnp.isfinite(jnp.asarray(square))
  return jax.tree.map(lambda x: jnp.where(usable, x, 0), updates)


def rows_in_use(updates: PyTree, mask: PyTree | None) -> list[jax.Array]:
  """Returns, for every leaf, which of its rows are in use.

  Args:
    updates: The delta.
    mask: A tree prefix of the delta. Its leaves are bool; their axes are the
      leading axes of the delta's leaves, the axes of rows: an item leaf
      [capacity, 1 + negatives, ...] has a mask [capacity, 1 + negatives], and a
      scalar mask says that the leaf has no rows. None: everything is in use,
      and the rows lie along the first axis.

  Returns:
    bool arrays in the order of the leaves.

  Raises:
    ValueError: For a mask that does not fit.
  """
  leaves = jax.tree.leaves(updates)
  if mask is None:
    return [jnp.ones(x.shape[:1], bool) for x in leaves]
  masks = jax.tree.leaves(jax.tree.broadcast(mask, updates))
  masks = [jnp.asarray(m) for m in masks]
  for x, m in zip(leaves, masks):
    if m.dtype != bool or x.shape[:m.ndim] != m.shape:
      raise ValueError(
          f'mask.shape={m.shape} with mask.dtype={m.dtype} does not fit a leaf '
          f'of shape {x.shape}: a mask is of booleans and has the leading axes '
          'of its leaves; give one for the axes of the rows.')
  return masks


def rebuild(tree: PyTree, leaves: Iterable[Any]) -> PyTree:
  """Returns a tree of the same structure with other leaves."""
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def over_entries(rows: jax.Array, leaf: jax.Array) -> jax.Array:
  """Spreads a value of each row over its entries: the shape of the leaf."""
  shape = (*rows.shape, *[1] * (leaf.ndim - rows.ndim))
  return jnp.broadcast_to(rows.reshape(shape), leaf.shape)


def drawing(
    compress: Callable[[PyTree, jax.Array, PyTree | None], PyTree],
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
  """Builds a transform from compress(updates, key, mask) and its first key."""
  def update(updates, state, params=None, *, mask=None, **extra_args):
    del params, extra_args
    draw_key, state = next_key(state)
    return compress(zeros_unless_finite(updates), draw_key, mask), state

  return optax.GradientTransformationExtraArgs(init_key(key), update)


def without_draws(
    compress: Callable[[PyTree, PyTree | None], PyTree],
) -> optax.GradientTransformationExtraArgs:
  """Builds a transform without state from compress(updates, mask)."""
  def update(updates, state, params=None, *, mask=None, **extra_args):
    del params, extra_args
    return compress(zeros_unless_finite(updates), mask), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
