"""The server's step: a function of the sum of the clients' contributions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.touched_rows import read_rows

PyTree = Any


class ServerState(NamedTuple):
  """What the server carries from round to round.

  Attributes:
    round_index: int32 []: rounds done.
    item_table: Leaves [num_items, ...].
    shared: The parameters that travel whole.
    item_opt_state: Optimizer state of the item table.
    shared_opt_state: Optimizer state of the shared parameters.
    transform_state: State of the transform of the sum.
  """
  round_index: jax.Array
  item_table: PyTree
  shared: PyTree
  item_opt_state: optax.OptState
  shared_opt_state: optax.OptState
  transform_state: optax.OptState = optax.EmptyState()


class Sum(NamedTuple):
  """The cohort's contributions, summed with the clients' weights.

  Attributes:
    item_table: Leaves [num_items, ...]: summed row deltas.
    shared: Summed deltas.
    row_weight: float32 [num_items]: summed weight of the clients that touched
      the row; () where the server does not ask for it.
    weight: float32 []: summed weight of the clients that reported.
    reports: Summed numbers that the clients' transforms reported.
  """
  item_table: PyTree
  shared: PyTree
  row_weight: PyTree
  weight: jax.Array
  reports: PyTree = ()


class Server(NamedTuple):
  """The server's side of an algorithm.

  Attributes:
    init: (item_table, shared) -> ServerState.
    update: (ServerState, Sum) -> ServerState.
    update_rows: (ServerState, Sum, rows, table) -> ServerState: the same step
      for some rows of the item table alone: int32 [n], distinct, but that
      num_items, which is no row, may stand in it often. Table, and item_table
      and row_weight of the sum, are those of these rows, [n, ...]. With
      `update_rest` once afterwards, the rows that were touched make an
      `update`, if rows_stand_still.
    update_rest: (ServerState, Sum) -> ServerState: all but the rows.
    rows_stand_still: Whether a row that nobody touched stays as it is.
    needs_row_weight: Whether an update reads Sum.row_weight.
  """
  init: Callable[[PyTree, PyTree], ServerState]
  update: Callable[[ServerState, Sum], ServerState]
  update_rows: Callable[[ServerState, Sum, jax.Array, PyTree], ServerState]
  update_rest: Callable[[ServerState, Sum], ServerState]
  rows_stand_still: bool
  needs_row_weight: bool


def make_whole_server(
    init: Callable[[PyTree, PyTree], ServerState],
    update: Callable[[ServerState, Sum], ServerState],
    *,
    needs_row_weight: bool = False,
) -> Server:
  """Builds a server that steps, or solves for, all rows at once.

  Args:
    init: See `Server`.
    update: See `Server`; every round it visits the whole table.
    needs_row_weight: See `Server`.
  """
  def no_rows(*_):
    raise ValueError('this server steps all rows at once.')

  return Server(init, update, no_rows, no_rows, rows_stand_still=False,
                needs_row_weight=needs_row_weight)


def make_server(
    item_optimizer: optax.GradientTransformation,
    shared_optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    row_normalization: str = 'mean',
    lazy_rows: bool = False,
    transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
    table_dtype: str = 'float32',
    count_floor: Any = None,
) -> Server:
  """Builds the server's step from Optax optimizers.

  An optimizer descends, so its gradient is minus the mean delta. A row of the
  item table is divided by the summed weight of the cohort (mean), by 1 (sum) or
  by the summed weight of the clients that touched it (contributors).

  Args:
    item_optimizer: Optimizer of the item table; a row's step must depend on
      that row alone, as all of `optimizers` do.
    shared_optimizer: Optimizer of the shared parameters.
    schedule: round_index -> factor on both learning rates.
    row_normalization: mean, sum or contributors. The number of contributors of
      a row is itself private information of the cohort.
    lazy_rows: A row that nobody touched keeps its value and its moments. With
      a stateless optimizer it does so anyway, and nothing is computed for it.
    transform: What happens to the raw sum, (item_table, shared), before it is
      divided: noise, for example. It sees the whole table, and the clients'
      reports as the extra argument `reports`.
    expected_cohort: What a mean divides by, in place of the clients that
      reported: a public number, where their number is private.
    table_dtype: Of the item table at rest. Sums, optimizer state and the step
      are float32, and only the row that results is rounded.
    count_floor: Where given, the transform is of the triple (item_table,
      shared, row_weight), and what it makes of the third, at least this, is
      what contributors divides by: numbers that were released with noise. Above
      0; may be traced. None: row_weight is no part of what is transformed.

  Raises:
    ValueError: For a transform of the sum together with lazy rows of an
      optimizer with state, or with contributors that it does not count: both
      would undo it on the rows that nobody touched, and so show which ones
      were. For a count_floor without transform or contributors.
  """
  # The state for one row: only what follows the parameters' shape counts.
  has_state = bool(jax.tree.leaves(
      jax.eval_shape(item_optimizer.init, jnp.zeros((1, 1)))))
  if transform is not None:
    transform = optax.with_extra_args_support(transform)
  mask_rows = lazy_rows and has_state
  needs_row_weight = mask_rows or row_normalization == 'contributors'
  counts = count_floor is not None
  if counts and (transform is None or row_normalization != 'contributors'):
    raise ValueError(
        f'count_floor={count_floor} with row_normalization='
        f'{row_normalization!r}: counts that are released with noise are for '
        'server.row_normalization=contributors under a transform of the sum.')
  if transform is not None and (
      mask_rows or needs_row_weight and not counts):
    raise ValueError(
        f'lazy_rows={lazy_rows} and row_normalization={row_normalization!r} '
        'with a transform of the sum: what it does to rows that nobody touched '
        'would be masked or divided by a private count; use '
        'server.lazy_rows=false and server.row_normalization=mean or sum.')

  def init(item_table, shared):
    start = jax.tree.map(lambda x: x.astype(table_dtype), item_table)
    return ServerState(
        jnp.int32(0), start, shared, item_optimizer.init(item_table),
        shared_optimizer.init(shared),
        optax.EmptyState() if transform is None else transform.init(
            (item_table, shared, jnp.zeros(
                len(jax.tree.leaves(item_table)[0]))) if counts
            else (item_table, shared)))

  def map_row_state(fn, opt_state, *others):
    """Maps the leaves of optimizer state that have one row an item."""
    is_row = optax.tree.map_params(
        item_optimizer, lambda _: True, opt_state,
        transform_non_params=lambda _: False)
    return jax.tree.map(
        lambda row, x, *rest: fn(x, *rest) if row else x, is_row, opt_state,
        *others)

  def someone_reported(weight):
    # Nobody: the sums are zero, and so must be the step; but noise, which does
    # not depend on who was there, is applied in any case.
    return weight > 0 if transform is None else jnp.bool_(True)

  def step_rows(state, table, opt_state, sums, row_weight, weight):
    """One step of some rows, given with their state, sums and weights."""
    def per_row(vector, leaf):
      return vector.reshape(-1, *[1] * (leaf.ndim - 1))

    reported = someone_reported(weight)
    weight = weight if expected_cohort is None else expected_cohort
    if row_normalization == 'contributors':
      share = -1 / jnp.where(row_weight > 0, row_weight, 1)
      gradient = jax.tree.map(lambda x: x * per_row(share, x), sums)
    else:
      share = -1 / jnp.where(weight > 0, weight, 1)
      gradient = optax.tree.scale(
          share if row_normalization == 'mean' else -1, sums)
    start = jax.tree.map(lambda x: x.astype(jnp.float32), table)
    step, new_state = item_optimizer.update(gradient, opt_state, start)
    step = optax.tree.scale(schedule(state.round_index), step)
    new_state = jax.tree.map(
        lambda new, old: jnp.where(reported, new, old), new_state, opt_state)
    if mask_rows:
      touched = row_weight > 0
      step = jax.tree.map(
          lambda x: jnp.where(per_row(touched, x), x, 0), step)
      new_state = map_row_state(
          lambda new, old: jnp.where(per_row(touched, new), new, old),
          new_state, opt_state)
    table = jax.tree.map(
        lambda x, d, old: jnp.where(reported, (x + d).astype(old.dtype), old),
        start, step, table)
    return table, new_state

  def update_shared(state, sums, weight):
    reported = someone_reported(weight)
    weight = weight if expected_cohort is None else expected_cohort
    step, opt_state = shared_optimizer.update(
        optax.tree.scale(-1 / jnp.where(weight > 0, weight, 1), sums),
        state.shared_opt_state, state.shared)
    shared = optax.apply_updates(
        state.shared, optax.tree.scale(schedule(state.round_index), step))
    shared, opt_state = jax.tree.map(
        lambda new, old: jnp.where(reported, new, old),
        (shared, opt_state), (state.shared, state.shared_opt_state))
    return state._replace(
        round_index=state.round_index + 1, shared=shared,
        shared_opt_state=opt_state)

  def update(state: ServerState, total: Sum) -> ServerState:
    sums: Any = (total.item_table, total.shared)
    transform_state = state.transform_state
    row_weight = total.row_weight
    if transform is not None:
      sums, transform_state = transform.update(
          (*sums, row_weight) if counts else sums, transform_state,
          (state.item_table, state.shared), reports=total.reports)
    if counts:
      row_weight = jnp.maximum(sums[2], count_floor)
    table, opt_state = step_rows(
        state, state.item_table, state.item_opt_state, sums[0],
        row_weight, total.weight)
    return update_shared(state, sums[1], total.weight)._replace(
        item_table=table, item_opt_state=opt_state,
        transform_state=transform_state)

  def update_rows(state: ServerState, total: Sum, rows, table) -> ServerState:
    def put(leaf, part):
      return leaf.at[rows].set(part.astype(leaf.dtype), mode='drop')

    table, opt_state = step_rows(
        state, table,
        map_row_state(lambda x: read_rows(x, rows), state.item_opt_state),
        total.item_table,
        total.row_weight, total.weight)
    return state._replace(
        item_table=jax.tree.map(put, state.item_table, table),
        item_opt_state=map_row_state(put, state.item_opt_state, opt_state))

  def update_rest(state: ServerState, total: Sum) -> ServerState:
    # No row at all: what is left of the item optimizer's state is its count.
    none = jnp.zeros(0, jnp.int32)
    empty = jax.tree.map(lambda x: x[none], state.item_table)
    _, opt_state = step_rows(
        state, empty, map_row_state(lambda x: x[none], state.item_opt_state),
        empty, jnp.zeros(0), total.weight)
    return update_shared(state, total.shared, total.weight)._replace(
        item_opt_state=map_row_state(
            lambda _, old: old, opt_state, state.item_opt_state))

  rows_stand_still = transform is None and (mask_rows or not has_state)
  return Server(
      init, update, update_rows, update_rest, rows_stand_still,
      needs_row_weight)
