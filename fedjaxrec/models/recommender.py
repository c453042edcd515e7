"""Where each parameter lives, and the one adapter from Flax to plain pytrees.

A model marks its parameters by type: `Personal` stays on the client and never
travels; `ItemTable` (leading axis = item) lives on the server and travels row
by row; a plain `nnx.Param` lives on the server and travels whole. Below this
folder nobody imports Flax: everything sees three pytrees of arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

PyTree = Any


class Personal(nnx.Param):
  """A parameter that lives on the client and never leaves it."""


class ItemTable(nnx.Param):
  """A server parameter with one row an item; touched rows travel."""


class Recommender(NamedTuple):
  """A model as pure functions of plain pytrees.

  Attributes:
    init_server: key -> (item_table, shared). Leaves of item_table have the
      leading axis [num_items].
    init_personal: key -> personal, one client's. `jit` of `vmap` over keys
      makes a population; uncompiled, every client would make an item table too.
    score: (personal, item_rows, shared) -> float32 [num_rows], one client's
      scores of the items whose rows are given; leaves of item_rows have the
      leading axis [num_rows], any number of rows. A row's score depends on that
      row alone, not on which others are given or in which order.
    encode: (item_rows, used, shared) -> float32 [length, dim], the states of
      one client's sequence: leaves of item_rows are [length, ...], a row an
      item in order of time; used is bool [length], and what is padding comes
      first. A state depends on its item and on earlier ones, and personal is
      {'state': the last of them}. None: the model reads no sequence.
    numbered: Whether score must know which item a row is of: it then takes
      `population.Numbered` rows.
    penalty: (personal, item_rows, shared, used) -> float32 []: what the loss of
      a batch adds for its slots, summed over them; the batch divides it by its
      used slots. used is bool [batch, 1 + num_negatives], rows are flat. None:
      nothing.
    new_items: bool [num_items]: items that are not there in training, and not
      drawn; None: all are.
  """
  init_server: Callable[[jax.Array], tuple[PyTree, PyTree]]
  init_personal: Callable[[jax.Array], PyTree]
  score: Callable[[PyTree, PyTree, PyTree], jax.Array]
  encode: Callable[[PyTree, jax.Array, PyTree], jax.Array] | None = None
  numbered: bool = False
  penalty: Callable[..., jax.Array] | None = None
  new_items: np.ndarray | None = None


def make_recommender(
    make_model: Callable[[jax.Array], nnx.Module]
) -> Recommender:
  """Turns a Flax model into a `Recommender`.

  Args:
    make_model: key -> module. The module is called without arguments and scores
      every row that its item tables hold: float32 [num_rows]. A model of
      sequences has encode(used) beside that; see `Recommender`.

  Returns:
    The recommender. Its functions are pure and may be jitted and vmapped.
  """
  def split(key):
    return nnx.split(make_model(key), Personal, ItemTable, ...)

  # Shapes alone: a table of a million items is not built twice.
  shape = nnx.eval_shape(lambda: make_model(jax.random.key(0)))
  graphdef, *templates = nnx.split(shape, Personal, ItemTable, ...)

  def init_server(key):
    _, _, item_table, shared = split(key)
    return nnx.to_pure_dict(item_table), nnx.to_pure_dict(shared)

  def init_personal(key):
    return nnx.to_pure_dict(split(key)[1])

  def merge(personal, item_rows, shared):
    states = []
    for template, values in zip(
        templates, (personal, item_rows, shared), strict=True):
      state = jax.tree.map(lambda leaf: leaf, template)
      nnx.replace_by_pure_dict(state, values)
      states.append(state)
    return nnx.merge(graphdef, *states)

  def score(personal, item_rows, shared):
    return merge(personal, item_rows, shared)()

  def encode(item_rows, used, shared):
    nobody = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), nnx.to_pure_dict(templates[0]))
    return merge(nobody, item_rows, shared).encode(used)

  return Recommender(
      init_server, init_personal, score,
      encode if hasattr(shape, 'encode') else None)
