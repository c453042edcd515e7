"""A client's own copy of the model, where a method keeps one beside the global.

Only rows that the client has ever touched are its own; for the others its model
is the server's. Memory: one item table a client, whatever it touched.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms.local_steps import select
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.population import ByItem

PyTree = Any


class OwnModel(NamedTuple):
  """What a client keeps of a model of its own.

  Attributes:
    layer: What the model marks as personal.
    table: ByItem of (item rows, known: float32, 1 where a row is the client's).
    shared: The rest; of no meaning before `trained`.
    trained: float32 []: 1 once the client has trained.
  """
  layer: PyTree
  table: ByItem
  shared: PyTree
  trained: jax.Array


def init_own_model(
    recommender: Recommender, num_items: int, key: jax.Array
) -> OwnModel:
  """A model of one client that knows no row yet, and so is the server's.

  Args:
    recommender: The model.
    num_items: Items in the catalogue.
    key: Typed key of the client: of its personal part.
  """
  table, shared = optax.tree.zeros_like(
      jax.eval_shape(recommender.init_server, key), jnp.float32)
  return OwnModel(
      recommender.init_personal(key), ByItem((table, jnp.zeros(num_items))),
      shared, jnp.float32(0))


def own_values(
    own: OwnModel, item_rows: PyTree, shared: PyTree
) -> tuple[PyTree, PyTree]:
  """A client's (item rows, shared parameters), the server's where it has none.

  Args:
    own: One client's, or a block's with the leading axis [B].
    item_rows: The server's, leaves [..., rows, ...] like own.table's.
    shared: The server's.
  """
  mine, known = own.table.rows
  return (select(known > 0, mine, item_rows),
          select(own.trained > 0, own.shared, shared))


def keep_own(
    layer: PyTree, item_rows: PyTree, shared: PyTree, used: jax.Array
) -> OwnModel:
  """A block's models after training.

  Args:
    layer: What the model marks as personal, leaves [B, ...].
    item_rows: Leaves [*used.shape, ...].
    shared: Leaves [B, ...].
    used: bool [B, ...]: slots that hold an item, which is the client's now.
  """
  return OwnModel(
      layer, ByItem((item_rows, used.astype(jnp.float32))), shared,
      jnp.ones(len(used)))
