"""The server's step: a function of the sum of the clients' contributions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class ServerState(NamedTuple):
  """What the server carries from round to round.

  Attributes:
    round_index: int32 []: rounds done.
    item_table: Leaves [num_items, ...].
    shared: The parameters that travel whole.
    item_opt_state: Optimizer state of the item table.
    shared_opt_state: Optimizer state of the shared parameters.
  """
  round_index: jax.Array
  item_table: PyTree
  shared: PyTree
  item_opt_state: optax.OptState
  shared_opt_state: optax.OptState


class Sum(NamedTuple):
  """The cohort's contributions, summed with the clients' weights.

  Attributes:
    item_table: Leaves [num_items, ...]: summed row deltas.
    shared: Summed deltas.
    row_weight: float32 [num_items]: summed weight of the clients that touched
      the row; [0] where the server does not ask for it.
    weight: float32 []: summed weight of the clients that reported.
  """
  item_table: PyTree
  shared: PyTree
  row_weight: jax.Array
  weight: jax.Array


class Server(NamedTuple):
  """The server's side of an algorithm.

  Attributes:
    init: (item_table, shared) -> ServerState.
    update: (ServerState, Sum) -> ServerState.
    needs_row_weight: Whether update reads Sum.row_weight.
  """
  init: Callable[[PyTree, PyTree], ServerState]
  update: Callable[[ServerState, Sum], ServerState]
  needs_row_weight: bool


def make_server(
    item_optimizer: optax.GradientTransformation,
    shared_optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    row_normalization: str = 'mean',
    lazy_rows: bool = False,
) -> Server:
  """Builds the server's step from Optax optimizers.

  An optimizer descends, so its gradient is minus the mean delta. A row of the
  item table is divided by the summed weight of the cohort (mean), by 1 (sum) or
  by the summed weight of the clients that touched it (contributors).

  Args:
    item_optimizer: Optimizer of the item table.
    shared_optimizer: Optimizer of the shared parameters.
    schedule: round_index -> factor on both learning rates.
    row_normalization: mean, sum or contributors. The number of contributors of
      a row is itself private information of the cohort.
    lazy_rows: A row that nobody touched keeps its value and its moments. With
      a stateless optimizer it does so anyway, and nothing is computed for it.
  """
  # Without rows, only state that follows the shape of the parameters is left.
  probe = jax.eval_shape(item_optimizer.init, jnp.zeros((1, 1)))
  mask_rows = lazy_rows and bool(jax.tree.leaves(probe))
  needs_row_weight = mask_rows or row_normalization == 'contributors'

  def init(item_table, shared):
    return ServerState(
        jnp.int32(0), item_table, shared, item_optimizer.init(item_table),
        shared_optimizer.init(shared))

  def per_row(vector, leaf):
    return vector.reshape(-1, *[1] * (leaf.ndim - 1))

  def update(state: ServerState, total: Sum) -> ServerState:
    learning_rate = schedule(state.round_index)
    # Nobody reported: the sums are zero, and so must be the step.
    reported = total.weight > 0
    share = -1 / jnp.where(reported, total.weight, 1)
    if row_normalization == 'contributors':
      divisor = -1 / jnp.where(total.row_weight > 0, total.row_weight, 1)
      gradient = jax.tree.map(
          lambda x: x * per_row(divisor, x), total.item_table)
    else:
      gradient = optax.tree.scale(
          share if row_normalization == 'mean' else -1, total.item_table)
    step, item_opt_state = item_optimizer.update(
        gradient, state.item_opt_state, state.item_table)
    step = optax.tree.scale(learning_rate, step)
    if mask_rows:
      touched = total.row_weight > 0
      keep = lambda new, old: jnp.where(per_row(touched, new), new, old)  # noqa: E731
      step = jax.tree.map(lambda x: keep(x, jnp.zeros_like(x)), step)
      is_row_state = optax.tree.map_params(
          item_optimizer, lambda _: True, state.item_opt_state,
          transform_non_params=lambda _: False)
      item_opt_state = jax.tree.map(
          lambda is_rows, new, old: keep(new, old) if is_rows else new,
          is_row_state, item_opt_state, state.item_opt_state)
    item_table = optax.apply_updates(state.item_table, step)
    step, shared_opt_state = shared_optimizer.update(
        optax.tree.scale(share, total.shared), state.shared_opt_state,
        state.shared)
    shared = optax.apply_updates(
        state.shared, optax.tree.scale(learning_rate, step))
    moved = ServerState(
        state.round_index + 1, item_table, shared, item_opt_state,
        shared_opt_state)
    still = state._replace(round_index=state.round_index + 1)
    return jax.tree.map(
        lambda new, old: jnp.where(reported, new, old), moved, still)

  return Server(init, update, needs_row_weight)
