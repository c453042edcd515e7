"""What oracles take from the engine: its draws, and the shapes of a start."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.examples import draw_examples
from fedjaxrec.population import Client


def make_start(algorithm, num_clients, scale=0.5):
  """Makes (ServerState, personal by client) of NumPy arrays, compiling nothing.

  The parameters are normal, biases as well; optimizers start from zeros.
  """
  rng = np.random.default_rng(0)

  def normal(shapes, *leading):
    return jax.tree.map(
        lambda leaf: rng.normal(
            0, scale, (*leading, *leaf.shape)).astype(np.float32), shapes)

  key = jax.random.key(0)
  server = jax.eval_shape(algorithm.init_server, key)
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), server)
  return zeros._replace(
      item_table=normal(server.item_table), shared=normal(server.shared)
  ), normal(jax.eval_shape(algorithm.init_personal, key), num_clients)


def make_draw(population, key, num_negatives):
  """Builds draw(round, client) -> (rows, labels), of the interactions alone.

  The key is fold_in(fold_in(key, round), client), whoever else takes part, and
  every client is padded to the longest one's room, not to its size class's.
  """
  counts = population.counts
  capacity = max(counts)
  items = np.full((len(counts), capacity), population.num_items, np.int32)
  labels = np.zeros((len(counts), capacity), np.float32)
  for c, count in enumerate(counts):
    mine, mine_labels = population.client(c)
    order = np.argsort(mine)
    items[c, :count], labels[c, :count] = mine[order], mine_labels[order]
  everyone = Client(
      jnp.arange(len(counts)), jnp.asarray(counts, jnp.int32), items, labels)

  @jax.jit
  def draw_everyone(r):
    round_key = jax.random.fold_in(key, r)
    return jax.vmap(lambda client: draw_examples(
        client, jax.random.fold_in(round_key, client.client_id),
        population.num_items, num_negatives))(everyone)

  rounds = {}

  def draw(r, c):
    if r not in rounds:
      rounds[r] = jax.tree.map(np.asarray, draw_everyone(r))
    return (rounds[r].rows[c, :counts[c]], rounds[r].labels[c, :counts[c]])

  return draw
