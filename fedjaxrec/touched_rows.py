"""The rows of the item table that a cohort touches: read, collected, merged.

Where the catalogue is large beside the cohort, a sum of the whole table would
be one more cold place of memory for each row, to add to, to read and to empty.
So the deltas are kept side by side, one slot each, and are added up by row at
the end of the round, in memory that the caches know.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.population import Client

PyTree = Any


class Touched(NamedTuple):
  """Which row a slot holds.

  Attributes:
    rows: int32 [num_slots]; num_items where a slot is not in use.
    start: The rows as they were, leaves float32 [num_slots, ...]: the server's
      step needs them again, and the table is a cold place.
    slot: int32 [num_items]: the slot that a row's deltas are added up in; of no
      meaning for a row that the round did not touch, so nothing empties it.
    filled: int32 []: slots that the blocks have used so far.
  """
  rows: jax.Array
  start: PyTree
  slot: jax.Array
  filled: jax.Array


def read_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
  """Gathers table [n, ...] at rows, int32 of any shape; zeros past the end."""
  def read(rows):
    return table.at[rows].get(mode='clip')

  if jax.default_backend() == 'cpu':
    # XLA's CPU compiler fuses a gather with the arithmetic on what it reads,
    # and then works out every single entry's row anew and waits for its memory:
    # 2.8 against 0.8 ms for 40,000 rows of 64 bytes out of a million. It does
    # not fuse over the border of a conditional whose condition it cannot know.
    found = jax.lax.cond(
        rows.reshape(-1)[0] >= 0, read,
        lambda rows: jnp.zeros((*rows.shape, *table.shape[1:]), table.dtype),
        rows)
  else:
    found = read(rows)
  inside = rows < len(table)
  return jnp.where(
      inside.reshape(*rows.shape, *[1] * (table.ndim - 1)), found, 0)


def choose_num_slots(
    draw: Callable[[Client, jax.Array], Any], num_items: int,
    capacities: Sequence[int], blocks: np.ndarray, block_size: int
) -> int:
  """Chooses between slots and a sum of the whole table.

  Args:
    draw: Of the algorithm; its rows are the slots of a client.
    num_items: Items in the catalogue.
    capacities: Interactions that each size class has room for.
    blocks: The most blocks of each class, from `most_blocks`.
    block_size: Clients of a block.

  Returns:
    Slots of the largest cohort; 0 where passes over the table cost less than
    visits to them.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  number = jax.ShapeDtypeStruct((), jnp.int32)
  slots = 0
  for capacity, count in zip(capacities, blocks, strict=True):
    rows = jax.eval_shape(draw, Client(
        number, number, jax.ShapeDtypeStruct((capacity,), jnp.int32),
        jax.ShapeDtypeStruct((capacity,), jnp.float32)), key).rows
    slots += int(count) * block_size * rows.size
  return slots if 2 * slots < num_items else 0


def make_touched(num_slots: int, num_items: int, table: PyTree) -> Touched:
  """No slot in use, of rows like those of an item table."""
  return Touched(
      jnp.full(num_slots, num_items, jnp.int32),
      jax.tree.map(
          lambda x: jnp.zeros((num_slots, *x.shape[1:]), jnp.float32), table),
      jnp.zeros(num_items, jnp.int32), jnp.int32(0))


def add_slots(
    sums: PyTree, touched: Touched, rows: jax.Array, parts: PyTree,
    start: PyTree
) -> tuple[PyTree, Touched]:
  """Puts a block's deltas behind those that are there.

  Args:
    sums: Leaves [num_slots, ...]: the deltas so far.
    touched: Their rows.
    rows: int32 [n]; num_items where a slot is not in use.
    parts: The block's deltas, leaves [n, ...].
    start: The rows as they were, leaves [n, ...].
  """
  def put(slots, part):
    return jax.lax.dynamic_update_slice_in_dim(slots, part, touched.filled, 0)

  return jax.tree.map(put, sums, parts), Touched(
      put(touched.rows, rows), jax.tree.map(put, touched.start, start),
      touched.slot, touched.filled + len(rows))


def merge_slots(
    sums: PyTree, touched: Touched
) -> tuple[PyTree, jax.Array, Touched]:
  """Adds the deltas up by row.

  Returns:
    The sums, leaves [num_slots, ...]; the row of each, int32 [num_slots], where
    each row is found once, and num_items elsewhere; and the slots, not in use.
    Cost: a few passes over the slots, none over the table.
  """
  num_slots, num_items = len(touched.rows), len(touched.slot)
  own = jnp.arange(num_slots, dtype=jnp.int32)
  # One slot of each row wins, no matter which.
  slot = touched.slot.at[touched.rows].set(own, mode='drop')
  into = slot.at[touched.rows].get(mode='fill', fill_value=num_slots)
  sums = jax.tree.map(
      lambda x: jnp.zeros_like(x).at[into].add(x, mode='drop'), sums)
  return sums, jnp.where(into == own, touched.rows, num_items), (
      touched._replace(rows=jnp.full_like(touched.rows, num_items), slot=slot,
                       filled=jnp.int32(0)))
