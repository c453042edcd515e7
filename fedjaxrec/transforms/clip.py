"""Bounding what one client can contribute."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


def l2_norm(tree: PyTree) -> jax.Array:
  """The L2 norm of all leaves together: float32 []."""
  return jnp.sqrt(sum(
      jnp.sum(jnp.square(x.astype(jnp.float32)))
      for x in jax.tree.leaves(tree)))


def clip_by_l2(l2_clip_norm: float | jax.Array) -> optax.GradientTransformation:
  """Scales a client's whole delta down to an L2 norm of at most l2_clip_norm.

  Formal guarantee: the output's L2 norm is at most l2_clip_norm (up to float32
  rounding, a relative 1e-6 for a million entries), whatever the input: so the
  sum over clients has L2 sensitivity l2_clip_norm under adding or removing one
  client, and twice that under replacing one. Unit of privacy: the client whose
  whole delta is the input.

  | input | output |
  |---|---|
  | norm at most l2_clip_norm | the input, unchanged |
  | norm above | the input, scaled to that norm |
  | all zeros | all zeros |
  | a NaN or an infinity anywhere | all zeros |
  | l2_clip_norm = 0 | all zeros |
  | l2_clip_norm = inf | the input, if it is finite |

  Wire cost: none; shapes and dtypes are kept. Time: two passes over the delta.

  Args:
    l2_clip_norm: The bound, not negative; may be traced.

  Raises:
    ValueError: For a negative or NaN bound that is known before tracing.

  References:
    McMahan et al., 2018, `Learning Differentially Private Recurrent Language
    Models <https://arxiv.org/abs/1710.06963>`_.
  """
  if isinstance(l2_clip_norm, (int, float)) and not l2_clip_norm >= 0:
    raise ValueError(
        f'l2_clip_norm={l2_clip_norm} must be a number of at least 0; it is '
        "the largest L2 norm that one client's delta keeps.")

  def update(updates, state, params=None):
    del params
    # The norm of finite entries can overflow float32; scaling by the largest
    # entry first keeps it finite. A NaN or an infinity in an entry shows in it.
    largest = jnp.max(jnp.stack([
        jnp.max(jnp.abs(x.astype(jnp.float32)), initial=0)
        for x in jax.tree.leaves(updates)]))
    usable = jnp.isfinite(largest)
    unit = jnp.where(usable & (largest > 0), largest, 1)
    norm = unit * l2_norm(jax.tree.map(lambda x: x / unit, updates))
    scale = jnp.where(
        norm > l2_clip_norm, l2_clip_norm / jnp.where(norm > 0, norm, 1), 1)
    return jax.tree.map(
        lambda x: jnp.where(usable, x * scale.astype(x.dtype), 0), updates
    ), state

  return optax.GradientTransformation(optax.init_empty_state, update)
