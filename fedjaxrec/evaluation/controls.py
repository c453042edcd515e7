"""Controls: popularity, and the same clients without the federation.

Popularity is what a recommender must beat. Local only trains every client by
itself, on a table of its own: on a sound protocol it is near chance, for what a
client has never seen it cannot rank; where it does well, the protocol leaks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.blocks import Algorithm
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.local_training import View
from fedjaxrec.participation.plan import choose_capacities
from fedjaxrec.population import gather_personal, scatter_personal
from fedjaxrec.refit import read_clients
from fedjaxrec.server import ServerState

PyTree = Any

_NUM_SIZE_CLASSES = 3
# Copies of the item table held at once: at most so many, or half a gigabyte.
_BLOCK_SIZE = 32
_MAX_TABLE_BYTES = 2**29


def score_popularity(
    personal: PyTree, item_rows: jax.Array, shared: PyTree
) -> jax.Array:
  """The score of an item is its row: its number of training interactions."""
  del personal, shared
  return item_rows


def popularity(train: Interactions) -> np.ndarray:
  """Training interactions of each item: float32 [num_items]."""
  return np.bincount(train.items, minlength=train.num_items).astype(np.float32)


def score_from_matrix(
    personal: jax.Array, item_rows: jax.Array, shared: PyTree
) -> jax.Array:
  """Looks scores up: personal float32 [num_items], item_rows int32 [rows]."""
  del shared
  return personal[item_rows]


def train_local_only(
    algorithm: Algorithm,
    server: ServerState,
    personal: PyTree,
    train: Interactions,
    clients: np.ndarray,
    rounds: int,
    batch_size: int,
    key: jax.Array,
    labels: np.ndarray | None = None,
) -> np.ndarray:
  """Trains clients by themselves and scores the catalogue for each.

  A client starts from the server's initial parameters and adds each round's
  delta to a copy of its own, whole: nothing comes from other clients. Learning
  rates are those of the first round throughout.

  Args:
    algorithm: The federated run's; its server side is not used.
    server: The server's initial state.
    personal: Leaves [len(clients), ...]: the clients' initial parameters.
    train: The training interactions.
    clients: int [n]: who trains; one without interactions keeps its start.
    rounds: Rounds of local training.
    batch_size: Interactions in a batch, for choosing size classes.
    key: Typed key; a client's draws are as in the federated run.
    labels: float32 [num_interactions]: what clients read beside an item; None:
      its rating.

  Returns:
    float32 [n, num_items]. Memory on the device: some copies of the item table,
    32 or half a gigabyte.
  """
  counts = train.counts[clients]
  num_items = train.num_items
  # A table of 16 bits is for the server's rest; a copy of its own is trained.
  server = server._replace(item_table=jax.tree.map(
      lambda x: np.asarray(x, np.float32), server.item_table))

  train_block = _make_train_block(
      algorithm.draw, algorithm.client_update, algorithm.learning_rate_scale,
      algorithm.score, algorithm.broadcast, rounds,
      algorithm.refit if algorithm.is_encoded else None)
  start_of_all = jax.device_put(server)
  table_bytes = sum(x.nbytes for x in jax.tree.leaves(server.item_table))
  block_size = max(1, min(_BLOCK_SIZE, _MAX_TABLE_BYTES // table_bytes))
  scores = np.zeros((len(clients), num_items), np.float32)
  order = np.argsort(counts, kind='stable')
  # Where nobody has an interaction, one class holds them all.
  capacities = choose_capacities(
      counts, _NUM_SIZE_CLASSES, batch_size) or (1,)
  class_of = np.searchsorted(capacities, counts)
  for index, capacity in enumerate(capacities):
    members = order[class_of[order] == index]
    for start in range(0, len(members), block_size):
      mine = members[start:start + block_size]
      padded = np.pad(mine, (0, block_size - len(mine)), mode='edge')
      block = read_clients(
          train.offsets, train.items,
          train.ratings if labels is None else labels, num_items,
          clients[padded], capacity)
      out = train_block(
          start_of_all, key, block,
          jax.tree.map(lambda x, places=padded: x[places], personal))
      scores[mine] = np.asarray(out)[:len(mine)]
  return scores


@functools.lru_cache(maxsize=16)
def _make_train_block(
    draw, client_update, learning_rate_scale, score, broadcast, rounds, refit
):
  """Builds the compiled training of a block of clients, each by itself."""
  def gather(table, rows):
    return table.at[rows].get(mode='fill', fill_value=0)

  def scatter(table, rows, delta):
    return table.at[rows].add(delta, mode='drop')

  @jax.jit
  def train_block(start, key, block, own):
    def look(r, item_table, shared, own):
      round_key = jax.random.fold_in(key, r)
      keys = jax.vmap(lambda c: jax.random.fold_in(round_key, c))(
          block.client_id)
      examples = jax.vmap(draw)(block, keys)
      item_rows = jax.tree.map(
          lambda table: jax.vmap(gather)(table, examples.rows), item_table)
      whole = jax.vmap(lambda table, rest: broadcast(
          start._replace(item_table=table, shared=rest)))(item_table, shared)
      return examples, View(
          item_rows, whole, gather_personal(own, everybody, examples.rows),
          learning_rate_scale(jnp.int32(0)))

    def one_round(r, carry):
      item_table, shared, own = carry
      examples, view = look(r, *carry)
      contribution, new = client_update(view, examples, block.num_examples)
      own = scatter_personal(own, everybody, examples.rows, new)
      item_table = jax.tree.map(
          lambda table, delta: jax.vmap(scatter)(table, examples.rows, delta),
          item_table, contribution.item_rows)
      return (item_table, jax.tree.map(jnp.add, shared, contribution.shared),
              own)

    everybody = jnp.arange(len(block.client_id))
    copies = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (len(block.client_id), *x.shape)),
        (start.item_table, start.shared))
    item_table, shared, own = jax.lax.fori_loop(
        0, rounds, one_round, (*copies, own))
    if refit is not None:
      examples, view = look(rounds, item_table, shared, own)
      own = refit(view, examples, block.num_examples)
    return jax.vmap(score)(own, item_table, shared)

  return train_block
