"""The one compiled path: many federated rounds in one call.

The hot path is `make_round`: for every size class, for every block of clients:
gather their rows, train them side by side, scatter their deltas into the sum;
then one `psum` over the devices and one server step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjaxrec.local_training import Contribution, View
from fedjaxrec.population import Client, gather_clients
from fedjaxrec.server import ServerState, Sum

PyTree = Any


class RoundMetrics(NamedTuple):
  """What a round reports; leaves [rounds] after `run_rounds`.

  Attributes:
    loss: float32: mean training loss over the cohort's examples.
    reported: int32: clients whose delta was counted.
    num_examples: int32: examples trained on.
  """
  loss: jax.Array
  reported: jax.Array
  num_examples: jax.Array


class Algorithm(NamedTuple):
  """All that a federated algorithm is.

  Attributes:
    init_server: key -> ServerState.
    init_personal: key -> one client's personal parameters.
    draw: (Client, key) -> examples; examples.rows (int32, any shape [...], with
      num_items for unused slots) are the item rows that the client touches.
    client_update: (View, examples, num_examples) -> (Contribution, personal),
      for a block of clients; leaves of View.item_rows are [B, *rows.shape,
      ...].
    server_update: (ServerState, Sum) -> ServerState.
    learning_rate_scale: round_index -> the clients' factor.
    needs_row_weight: Whether server_update reads Sum.row_weight.
    weight_by_examples: Whether a client's weight is its number of interactions;
      otherwise 1.
    score: The recommender's score, for evaluation.
  """
  init_server: Callable[[jax.Array], ServerState]
  init_personal: Callable[[jax.Array], PyTree]
  draw: Callable[[Client, jax.Array], Any]
  client_update: Callable[..., tuple[Contribution, PyTree]]
  server_update: Callable[[ServerState, Sum], ServerState]
  learning_rate_scale: Callable[[jax.Array], jax.Array]
  needs_row_weight: bool
  weight_by_examples: bool
  score: Callable[[PyTree, PyTree, PyTree], jax.Array]


def make_round(
    algorithm: Algorithm,
    capacities: tuple[int, ...],
    num_clients: int,
    num_items: int,
    num_devices: int = 1,
    axis_name: str | None = None,
) -> Callable:
  """Builds round_fn(server, personal, data, plan, key), for one device.

  Args:
    algorithm: What clients and server do.
    capacities: Interactions that each size class has room for.
    num_clients: Clients in the population.
    num_items: Items in the catalogue.
    num_devices: Devices that share the population.
    axis_name: The mapped axis of the devices; None on a single one.

  Returns:
    round_fn(server, personal, data, (local_index, num_blocks), key) ->
    (server, personal, RoundMetrics), where personal, data and the plan's round
    are this device's own and the server's state is the same on all.
    Memory: one sum of the item table, and B clients' slots.
  """
  def round_fn(server, personal, data, plan, key):
    local_index, num_blocks = plan
    round_key = jax.random.fold_in(key, server.round_index)
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    learning_rate_scale = algorithm.learning_rate_scale(server.round_index)

    def train_block(capacity, members, carry):
      total, personal, metrics = carry
      per_device = data.offsets.shape[0] - 1
      client_id = jnp.where(
          members < per_device, members * num_devices + device, num_clients)
      clients = gather_clients(data, members, client_id, capacity, num_items)
      keys = jax.vmap(lambda c: jax.random.fold_in(round_key, c))(client_id)
      examples = jax.vmap(algorithm.draw)(clients, keys)
      view = View(
          jax.tree.map(
              lambda x: x.at[examples.rows].get(mode='fill', fill_value=0),
              server.item_table),
          jax.tree.map(
              lambda x: jnp.broadcast_to(x, (len(members), *x.shape)),
              server.shared),
          jax.tree.map(lambda x: x.at[members].get(mode='clip'), personal),
          learning_rate_scale)
      contribution, own = algorithm.client_update(
          view, examples, clients.num_examples)
      weight = clients.num_examples.astype(jnp.float32)
      if not algorithm.weight_by_examples:
        weight = (weight > 0).astype(jnp.float32)

      def weigh(x):
        # Without weights this is no pass over the deltas: a padding client's
        # rows are dropped, and its other deltas are zero.
        if not algorithm.weight_by_examples:
          return x
        return x * weight.reshape(-1, *[1] * (x.ndim - 1))

      rows = examples.rows.reshape(-1)
      row_weight = total.row_weight
      if algorithm.needs_row_weight:
        row_weight = row_weight.at[rows].add(
            jnp.repeat(weight, rows.size // weight.size), mode='drop')
      total = Sum(
          jax.tree.map(
              lambda t, d: t.at[rows].add(
                  weigh(d).reshape(-1, *t.shape[1:]), mode='drop'),
              total.item_table, contribution.item_rows),
          jax.tree.map(
              lambda t, d: t + weigh(d).sum(0), total.shared,
              contribution.shared),
          row_weight,
          total.weight + weight.sum())
      personal = jax.tree.map(
          lambda x, new: x.at[members].set(new, mode='drop'), personal, own)
      loss_sum, loss_count, reported, num_examples = metrics
      metrics = (
          loss_sum + contribution.loss_sum.sum(),
          loss_count + contribution.loss_count.sum(),
          reported + (weight > 0).sum(),
          num_examples + contribution.num_examples.sum())
      return total, personal, metrics

    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)  # noqa: E731
    total = Sum(
        zeros(server.item_table), zeros(server.shared),
        jnp.zeros(num_items if algorithm.needs_row_weight else 0),
        jnp.float32(0))
    carry = (total, personal, (
        jnp.float32(0), jnp.float32(0), jnp.int32(0), jnp.int32(0)))
    for index, capacity in enumerate(capacities):
      carry = jax.lax.fori_loop(
          0, num_blocks[index],
          lambda b, c, index=index, capacity=capacity: train_block(
              capacity, local_index[index][b], c),
          carry)
    total, personal, metrics = carry
    if axis_name is not None:
      total, metrics = jax.lax.psum((total, metrics), axis_name)
    loss_sum, loss_count, reported, num_examples = metrics
    return algorithm.server_update(server, total), personal, RoundMetrics(
        loss_sum / jnp.maximum(loss_count, 1), reported, num_examples)

  return round_fn


def make_run_rounds(round_fn: Callable) -> Callable:
  """Builds run(server, personal, data, plan, num_rounds, key) over a chunk.

  Args:
    round_fn: From `make_round`.

  Returns:
    run(...) -> (server, personal, RoundMetrics with leaves [rounds of the
    plan]). num_rounds is data: a shorter last chunk does not retrace.
  """
  def run(server, personal, data, plan, num_rounds, key):
    rounds = plan.num_blocks.shape[0]
    empty = RoundMetrics(
        jnp.zeros(rounds), jnp.zeros(rounds, jnp.int32),
        jnp.zeros(rounds, jnp.int32))

    def body(r, carry):
      server, personal, collected = carry
      server, personal, metrics = round_fn(
          server, personal, data, jax.tree.map(lambda x: x[r], tuple(plan)),
          key)
      collected = jax.tree.map(
          lambda all_rounds, one: all_rounds.at[r].set(one), collected, metrics)
      return server, personal, collected

    return jax.lax.fori_loop(0, num_rounds, body, (server, personal, empty))

  return run
