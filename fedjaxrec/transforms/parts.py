"""Transforms of the sum, (item table, shared), by its parts."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def in_units_of(
    norms: tuple[Any, Any], transform: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Transforms a pair, each part in units of its own clip norm."""
  def scaled(updates, power):
    return tuple(
        jax.tree.map(lambda x, n=norm: x * n**power, part)
        for norm, part in zip(norms, updates))

  def update(updates, state, params=None):
    del params
    new, state = transform.update(scaled(updates, -1), state)
    return scaled(new, 1), state

  return optax.GradientTransformation(
      lambda params: transform.init(tuple(params)), update)


def only_rows(
    transform: optax.GradientTransformation, open_rows: jax.Array
) -> optax.GradientTransformationExtraArgs:
  """Keeps the closed rows of the sum as they are: zero, as nobody sent them.

  Args:
    transform: Of the pair (item table, shared).
    open_rows: bool [num_items]: the rows that it may change.
  """
  transform = optax.with_extra_args_support(transform)

  def update(updates, state, params=None, **extra):
    new, state = transform.update(updates, state, params, **extra)
    table = jax.tree.map(
        lambda x, old: jnp.where(
            open_rows.reshape(-1, *[1] * (x.ndim - 1)), x, old),
        new[0], updates[0])
    return (table, new[1]), state

  return optax.GradientTransformationExtraArgs(transform.init, update)
