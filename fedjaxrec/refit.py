"""Fitting clients to the final shared model, outside the rounds.

Between its last round and the end of the run the model moves on, and a client
that never trained has nothing of its own. An algorithm that can compute a
client's parameters from the shared model and the client's data alone says so by
`Algorithm.refit`; evaluation then ranks with these, as a device would.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.blocks import Algorithm
from fedjaxrec.local_training import View
from fedjaxrec.population import Client, gather_personal, scatter_personal
from fedjaxrec.server import ServerState

PyTree = Any
Refit = Callable[[ServerState, PyTree], PyTree]

# Keeps the draws apart from those of every round.
_STREAM = 0x7EF17


def read_clients(
    offsets: np.ndarray, items: np.ndarray, labels: np.ndarray, num_items: int,
    clients: np.ndarray, capacity: int) -> Client:
  """Reads clients, padded to a capacity, with items sorted: leaves [B, ...].

  Args:
    offsets: int64 [num_clients + 1].
    items: int32 [num_interactions].
    labels: float32 [num_interactions].
    num_items: Items in the catalogue.
    clients: int [B].
    capacity: At least the most interactions of one of them.
  """
  starts, counts = offsets[clients], np.diff(offsets)[clients]
  column = np.arange(capacity)[None, :]
  mine = column < counts[:, None]
  place = np.where(mine, starts[:, None] + column, 0)
  rows = np.where(mine, items[place], num_items)
  order = np.argsort(rows, axis=1, kind='stable')
  values = np.where(mine, labels[place], 0)
  return Client(
      clients.astype(np.int32), counts.astype(np.int32),
      np.take_along_axis(rows, order, 1).astype(np.int32),
      np.take_along_axis(values, order, 1).astype(np.float32))


def make_refit(
    algorithm: Algorithm,
    offsets: np.ndarray,
    items: np.ndarray,
    labels: np.ndarray,
    num_items: int,
    capacities: tuple[int, ...],
    block_size: int,
    key: jax.Array,
) -> Refit | None:
  """Builds refit(server, personal) -> personal, for every client with data.

  Args:
    algorithm: What clients do; its `refit` is what is computed.
    offsets: int64 [num_clients + 1].
    items: int32 [num_interactions].
    labels: float32 [num_interactions].
    num_items: Items in the catalogue.
    capacities: The size classes.
    block_size: Clients side by side.
    key: The run's client key.

  Returns:
    refit: (the server's state, personal by client: leaves [num_clients, ...])
    -> new leaves as NumPy arrays; clients without an interaction keep theirs.
    On one device, block by block. None if the algorithm has no refit.
  """
  fit = algorithm.refit
  if fit is None:
    return None
  counts = np.diff(offsets)
  round_key = jax.random.fold_in(key, _STREAM)

  @jax.jit
  def fit_block(table, whole, block, own):
    keys = jax.vmap(lambda c: jax.random.fold_in(round_key, c))(
        block.client_id)
    examples = jax.vmap(algorithm.draw)(block, keys)
    rows = examples.rows
    places = jnp.arange(len(rows), dtype=jnp.int32)
    view = View(
        jax.tree.map(
            lambda x: x.at[rows].get(mode='fill', fill_value=0).astype(
                jnp.float32), table),
        jax.tree.map(
            lambda x: jnp.broadcast_to(x, (len(rows), *x.shape)), whole),
        gather_personal(own, places, rows), jnp.float32(1))
    new = fit(view, examples, block.num_examples)
    return scatter_personal(own, places, rows, new)

  broadcast = jax.jit(algorithm.broadcast)

  def refit(server, personal):
    server = jax.tree.map(np.asarray, server)
    result = jax.tree.map(np.array, personal)
    table, whole = jax.device_put(server.item_table), broadcast(server)
    order = np.argsort(counts, kind='stable')
    order = order[counts[order] > 0]
    class_of = np.searchsorted(capacities, counts[order])
    for index, capacity in enumerate(capacities):
      members = order[class_of == index]
      for start in range(0, len(members), block_size):
        mine = members[start:start + block_size]
        padded = np.pad(mine, (0, block_size - len(mine)), mode='edge')
        new = fit_block(
            table, whole,
            read_clients(offsets, items, labels, num_items, padded, capacity),
            jax.tree.map(lambda x, places=padded: x[places], personal))
        def put(x, part, places=mine):
          x[places] = np.asarray(part)[:len(places)]
        jax.tree.map(put, result, new)
    return result

  return refit
