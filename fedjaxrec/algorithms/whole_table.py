"""Local training on a copy of the whole item table, which the client keeps.

For methods whose client keeps or uploads all rows, or whose negatives repeat: a
slot is a place in the table here and holds no row of its own. It costs a table
for each client of a block, and a pass over it for each client and round.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms.local_steps import (
    PER_CLIENT,
    Batch,
    Trained,
    select,
)
from fedjaxrec.blocks import Algorithm, widen
from fedjaxrec.config import ClientConfig, Config
from fedjaxrec.examples import draw_examples, nth_absent
from fedjaxrec.local_training import walk_batches
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.population import ByItem, Client

PyTree = Any


class WholeExamples(NamedTuple):
  """A client's interactions of one round, on a whole item table.

  Attributes:
    rows: int32 [num_items]: every item; num_items for a padding client.
    slots: int32 [capacity, 1 + num_negatives]: items in training order;
      num_items where a slot is unused.
    labels: float32 [capacity].
    used: bool, the shape of slots.
  """
  rows: jax.Array
  slots: jax.Array
  labels: jax.Array
  used: jax.Array


def draw_whole(
    client: Client, key: jax.Array, num_items: int, num_negatives: int,
    repeated: bool = False, spared: jax.Array | None = None
) -> WholeExamples:
  """Draws as `draw_examples` does, or as the released PFedRec code does.

  Args:
    client: One client, without block axis.
    key: Typed key of this client and round.
    num_items: Items in the catalogue.
    num_negatives: Negatives for each interaction.
    repeated: Negatives are independent draws, so that some stand there twice.
    spared: int32 [n], num_items for none: items that are no negatives either,
      the leak of `leaky_negatives`, with repeated draws. None: the sound draw.
  """
  drawn = draw_examples(client, key, num_items, num_negatives)
  slots = drawn.rows
  if spared is None and repeated:
    spared = jnp.full(1, num_items, jnp.int32)
  if spared is not None:
    present = jnp.sort(jnp.concatenate([client.items, spared]))
    num_present = client.num_examples + (spared < num_items).sum(
        dtype=jnp.int32)
    # A key for each interaction: no draw depends on the padding behind them.
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(
        jnp.arange(slots.shape[0]))
    absent = jax.vmap(lambda k: jax.random.randint(
        k, (num_negatives,), 0, jnp.maximum(num_items - num_present, 1)))(keys)
    slots = jnp.concatenate(
        [slots[:, :1], nth_absent(present, num_present, absent)], 1)
    slots = jnp.where(drawn.used[:, :1], slots, num_items)
  return WholeExamples(
      jnp.where(client.num_examples > 0,
                jnp.arange(num_items, dtype=jnp.int32), num_items),
      slots, drawn.labels, slots < num_items)


def make_table_steps(
    step: Callable, *, batch_size: int, epochs: int = 1, steps: int = 0,
    drift: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None
) -> Callable[..., Trained]:
  """Builds run(table, whole, examples, num_examples, scale, fixed).

  Args:
    step: As in `make_local_steps`: (rows, whole, Batch) -> (rows, whole, loss
      sum, terms). An item that stands in a batch twice moves by both its moves.
    batch_size: Interactions in a batch.
    epochs: Passes over the interactions.
    steps: Steps; 0: as many as the epochs need.
    drift: (table, fixed, scale) -> what all rows of the table move by at every
      step beside that, from where they were before it; None: nothing.

  Returns:
    run; leaves of table and fixed are [B, num_items, ...], and so are those of
    the result's rows.
  """
  step_block = jax.vmap(step, in_axes=(0, 0, PER_CLIENT))

  def run(table: PyTree, whole: PyTree, examples: WholeExamples,
          num_examples: jax.Array, scale: jax.Array, fixed: PyTree = ()
          ) -> Trained:
    block, capacity = examples.labels.shape
    size = min(batch_size, capacity)
    who = jnp.arange(block)[:, None, None]

    def cut(x, start):
      return jax.lax.dynamic_slice_in_dim(x, start, size, 1)

    def one_step(batch, active, carry: Trained) -> Trained:
      start = batch * size
      used = cut(examples.used, start) & active[:, None, None]
      slots = cut(examples.slots, start)
      old = jax.tree.map(
          lambda x: x.at[who, slots].get(mode='fill', fill_value=0), carry.rows)
      new, dense, loss_sum, count = step_block(
          old, carry.whole,
          Batch((), (), cut(examples.labels, start), used, scale))

      rows = carry.rows
      if drift is not None:
        rows = jax.tree.map(
            lambda x, move: x + jnp.where(widen(active, move), move, 0),
            rows, drift(rows, fixed, scale))
      rows = jax.tree.map(
          lambda x, n, o: x.at[who, slots].add(
              jnp.where(widen(used, n), n - o, 0), mode='drop'), rows, new, old)
      return Trained(
          rows, select(active, dense, carry.whole),
          carry.loss_sum + jnp.where(active, loss_sum, 0),
          carry.loss_count + jnp.where(active, count, 0),
          carry.num_examples + used.sum((1, 2), dtype=jnp.int32))

    zero = jnp.zeros(block)
    return walk_batches(
        one_step,
        Trained(table, whole, zero, zero, jnp.zeros(block, jnp.int32)),
        num_examples, batch_size, epochs, steps)

  return run


def pull_towards(rate: float | jax.Array) -> Callable:
  """Builds drift(table, fixed, scale): down rate / 2 |table - fixed|^2.

  See `make_table_steps`; rate is times scale, the round's factor.
  """
  return lambda table, fixed, scale: optax.tree.scale(
      -rate * scale, optax.tree.sub(table, fixed))


def choose_item_rate(
    client: ClientConfig, num_items: int, lr_eta: float) -> float | jax.Array:
  """The learning rate of an item row, of methods that follow PFedRec.

  Args:
    client: The section client; its rates may be traced.
    num_items: Items in the catalogue.
    lr_eta: The method's setting; 0: client.item_learning_rate.
  """
  if lr_eta:
    return client.learning_rate * num_items * lr_eta
  return client.item_learning_rate


def keep_tables(
    algorithm: Algorithm, config: Config, recommender: Recommender,
    num_items: int, has_table: Callable[[Any], jax.Array]
) -> Algorithm:
  """The algorithm, whose clients draw from, hold and send whole tables.

  A client recommends with the table that it keeps, once it has one, and the one
  model for all is the server's table with the client's own layer.

  Args:
    algorithm: What else clients and server do; what it keeps of a client has
      the fields layer and table.
    config: The whole config; the section objective is read.
    recommender: The model.
    num_items: Items in the catalogue.
    has_table: What is kept of one client -> bool []: whether that table counts.
  """
  objective = config.objective

  def score(own, item_rows, shared):
    rows = select(has_table(own), own.table.rows, item_rows)
    return recommender.score(own.layer, rows, shared)

  return algorithm._replace(
      draw=lambda client, key: draw_whole(
          client, key, num_items, objective.drawn_negatives,
          objective.repeated_negatives),
      touched_rows=lambda counts: num_items * (counts > 0), score=score,
      aggregated_score=lambda own, item_rows, shared: recommender.score(
          own.layer, item_rows, shared))


def begin_alike(
    config: Config, recommender: Recommender) -> tuple[PyTree, ByItem]:
  """One client's first (personal layer, table of zeros), the same for all.

  If they began apart, the mean of their tables would mean nothing.
  """
  key = jax.random.key(config.seed)
  table, _ = jax.eval_shape(recommender.init_server, key)
  return recommender.init_personal(key), ByItem(
      optax.tree.zeros_like(table, jnp.float32))


def mean_over(there: jax.Array, tables: PyTree) -> PyTree:
  """The mean of some clients' tables, in the clear; zeros of nobody's.

  Args:
    there: bool [num_clients]: whose count.
    tables: Leaves [num_clients, ...].
  """
  share = there / jnp.maximum(there.sum(), 1)
  return jax.tree.map(lambda x: jnp.einsum('n,n...->...', share, x), tables)


def mean_table(there: jax.Array, tables: PyTree, old: PyTree) -> PyTree:
  """The mean of `mean_over` as the server's table; where nobody is, the old."""
  return jax.tree.map(
      lambda mean, x: jnp.where(there.any(), mean, x).astype(x.dtype),
      mean_over(there, tables), old)


def flatten_each(tree: PyTree) -> jax.Array:
  """Leaves [n, ...] as one array float32 [n, numbers]."""
  return jnp.concatenate(
      [x.astype(jnp.float32).reshape(len(x), -1)
       for x in jax.tree.leaves(tree)], 1)
