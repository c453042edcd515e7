"""Bounding what one client can contribute."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


def l2_norm(tree: PyTree) -> jax.Array:
  """The L2 norm of all leaves together: float32 []; 0 without leaves."""
  return jnp.sqrt(sum(
      (jnp.sum(jnp.square(x.astype(jnp.float32)))
       for x in jax.tree.leaves(tree)), start=jnp.float32(0)))


def l1_norm(tree: PyTree) -> jax.Array:
  """The L1 norm of all leaves together: float32 []; 0 without leaves."""
  return sum(
      (jnp.sum(jnp.abs(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)),
      start=jnp.float32(0))


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
  _check_bound('l2_clip_norm', l2_clip_norm)
  return optax.GradientTransformation(
      optax.init_empty_state,
      lambda updates, state, params=None: (
          _scale_down(updates, l2_clip_norm, l2_norm), state))


def clip_by_l1(l1_clip_norm: float | jax.Array) -> optax.GradientTransformation:
  """Scales a client's whole delta down to an L1 norm of at most l1_clip_norm.

  Formal guarantee: the output's L1 norm is at most l1_clip_norm (up to float32
  rounding), whatever the input: so the sum over clients has L1 sensitivity
  l1_clip_norm under adding or removing one client, and twice that under
  replacing one. Unit of privacy: the client. What is not finite becomes zeros.

  Wire cost: none; shapes and dtypes are kept. Time: two passes over the delta.

  Args:
    l1_clip_norm: The bound, not negative; may be traced.

  Raises:
    ValueError: For a negative or NaN bound that is known before tracing.

  References:
    Dwork, McSherry, Nissim and Smith, 2006, Calibrating Noise to Sensitivity in
    Private Data Analysis, TCC: the L1 sensitivity that Laplace noise asks for.
  """
  _check_bound('l1_clip_norm', l1_clip_norm)
  return optax.GradientTransformation(
      optax.init_empty_state,
      lambda updates, state, params=None: (
          _scale_down(updates, l1_clip_norm, l1_norm), state))


def clip_groups_by_l2(l2_clip_norms: PyTree) -> optax.GradientTransformation:
  """Clips each group of a delta to an L2 norm of its own.

  Item rows and shared parameters differ in size and in scale; one norm for both
  lets the larger drown the smaller.

  Formal guarantee: each group's L2 norm is at most its bound, so the sum over
  clients has L2 sensitivity `groups_l2_sensitivity(l2_clip_norms)`, the root of
  the sum of the squared bounds, under adding or removing one client, and twice
  that under replacing one. Unit of privacy: the client whose whole delta is the
  input. A NaN or an infinity in any group makes all groups zeros.

  Wire cost: none; shapes and dtypes are kept. Time: three passes.

  Args:
    l2_clip_norms: A tree of bounds, not negative, that is a prefix of the
      delta's tree: `(1.0, 0.5)` for the pair (item rows, shared). Each bound
      holds for all leaves below it together. May be traced.

  Raises:
    ValueError: For a negative or NaN bound that is known before tracing.

  References:
    McMahan et al., 2018, `Learning Differentially Private Recurrent Language
    Models <https://arxiv.org/abs/1710.06963>`_, section 3 (per-layer clipping).
  """
  for bound in jax.tree.leaves(l2_clip_norms):
    _check_bound('l2_clip_norms', bound)

  def update(updates, state, params=None):
    del params
    usable = is_finite_update(updates)
    return jax.tree.map(
        lambda bound, group: _scale_down(group, bound, l2_norm, usable),
        l2_clip_norms, updates), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def clip_rows_by_l2(
    l2_clip_norm: float | jax.Array, row_axes: int = 1
) -> optax.GradientTransformation:
  """Clips each row of a delta of item rows to the L2 norm l2_clip_norm.

  Row r is made of row r of every leaf. For the pair (item rows, shared), where
  only the first has rows, wrap it: `optax.masked(clip_rows_by_l2(c), (True,
  False))`.

  Formal guarantee: with k rows in the delta its L2 norm is at most sqrt(k) *
  l2_clip_norm, and the sum of its rows' norms at most k * l2_clip_norm. So the
  sum over clients has, under adding or removing one client of at most k rows,
  the L2 sensitivity `rows_l2_sensitivity(l2_clip_norm, k)`; a single row of the
  sum has l2_clip_norm. Rows touched is a public bound (the slots that a client
  may fill), not the client's own number. Unit of privacy: the client. A row
  with a NaN or an infinity makes all rows zeros.

  By itself it is no bound for an accountant, because the sensitivity grows with
  the rows touched: privacy.row_clip_norm (`clip_item_rows`) stands before the
  clipping of the whole delta.

  Wire cost: none; shapes and dtypes are kept. Time: three passes.

  Args:
    l2_clip_norm: A row's bound, not negative; may be traced.
    row_axes: Leading axes that count rows; the leaves agree in them.

  Raises:
    ValueError: For a negative or NaN bound that is known before tracing; in the
      update, for leaves that disagree in their leading axes.

  References:
    McMahan et al., 2018, `Learning Differentially Private Recurrent Language
    Models <https://arxiv.org/abs/1710.06963>`_, section 3: per-layer clipping,
    here with every row of the item table as a layer.
  """
  _check_bound('l2_clip_norm', l2_clip_norm)

  def update(updates, state, params=None):
    del params
    leading = {x.shape[:row_axes] for x in jax.tree.leaves(updates)}
    if not leading:
      return updates, state
    if len(leading) > 1:
      raise ValueError(
          f'row_axes={row_axes}: the leaves have the leading axes {leading}; '
          'they must agree, because row r is made of row r of every leaf. Mask '
          'the leaves that have no rows with optax.masked.')
    usable = is_finite_update(updates)
    clip_row = lambda row: _scale_down(row, l2_clip_norm, l2_norm, usable)
    for _ in range(row_axes):
      clip_row = jax.vmap(clip_row)
    return clip_row(updates), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def clip_item_rows(
    l2_clip_norm: float | jax.Array
) -> optax.GradientTransformationExtraArgs:
  """`clip_rows_by_l2` of the item rows of a delta (item rows, shared).

  Formal guarantee: every item's row, of all item leaves together, has an L2
  norm of at most l2_clip_norm (up to float32 rounding), provided that a delta
  has each item once, as the engine's have. So a single row of the sum has that
  L2 sensitivity under adding or removing one client, and twice that under
  replacing one; the whole sum has not. No entry grows, so that whatever bound
  the whole delta had it keeps: an epsilon rests on the clipping of the whole
  that follows, and is the same with this before it. Unit of privacy: the
  client.

  Wire cost: none. Shared parameters pass as they are; item rows with a NaN or
  an infinity anywhere become zeros. Time: three passes over the rows.

  Args:
    l2_clip_norm: A row's bound, not negative; may be traced.

  Returns:
    A transform of pairs, with the extra argument `mask` (see
    `leaves.rows_in_use`), whose axes say which axes count rows; without it, the
    first.

  Raises:
    ValueError: As `clip_rows_by_l2`.
  """
  clip_rows_by_l2(l2_clip_norm)  # Refuses a bound before the first update.

  def update(updates, state, params=None, *, mask=None, **extra_args):
    del params, extra_args
    rows, shared = updates
    masks = [] if mask is None else jax.tree.leaves(mask[0])
    clip = clip_rows_by_l2(
        l2_clip_norm, jnp.ndim(masks[0]) if masks else 1)
    return (clip.update(rows, ())[0], shared), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def groups_l2_sensitivity(l2_clip_norms: PyTree) -> float:
  """The L2 sensitivity of a sum of deltas that were clipped by groups."""
  return math.sqrt(sum(
      float(bound) ** 2 for bound in jax.tree.leaves(l2_clip_norms)))


def rows_l2_sensitivity(l2_clip_norm: float, max_rows: int) -> float:
  """The L2 sensitivity of a sum of deltas of at most max_rows clipped rows."""
  return l2_clip_norm * math.sqrt(max_rows)


def is_finite_update(updates: PyTree) -> jax.Array:
  """Whether every entry is finite: bool []. True for a tree without entries.

  The transforms of this file make zeros of an update that is not; how many
  were, the round counts by this function on the deltas before them. The count
  is itself a statistic of the cohort: it is released without noise.
  """
  return jnp.isfinite(_largest(updates))


def _largest(updates):
  """The largest absolute entry; a NaN or an infinity shows in it."""
  return jnp.max(jnp.stack([jnp.float32(0), *(
      jnp.max(jnp.abs(x.astype(jnp.float32)), initial=0)
      for x in jax.tree.leaves(updates))]))


def _scale_down(updates, bound, norm_fn, usable=True):
  """Scales a tree to a norm of at most bound; zeros if it is not usable."""
  # The norm of finite entries can overflow float32; scaling by the largest
  # entry first keeps it finite.
  largest = _largest(updates)
  usable = usable & jnp.isfinite(largest)
  unit = jnp.where(usable & (largest > 0), largest, 1)
  norm = unit * norm_fn(jax.tree.map(lambda x: x / unit, updates))
  scale = jnp.where(norm > bound, bound / jnp.where(norm > 0, norm, 1), 1)
  return jax.tree.map(
      lambda x: jnp.where(usable, x * scale.astype(x.dtype), 0), updates)


def _check_bound(name, bound):
  if isinstance(bound, (int, float)) and not bound >= 0:
    raise ValueError(
        f'{name}={bound} must be a number of at least 0; it is the largest '
        "norm that one client's delta keeps.")
