"""The one compiled path: many federated rounds in one call.

The hot path is `make_round`: for every size class, for every block of clients:
gather their rows, train them side by side, scatter their deltas into the sum;
then one `psum` over the devices and one server step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.local_training import Contribution, View
from fedjaxrec.population import Client, gather_clients
from fedjaxrec.server import Server, ServerState, Sum

PyTree = Any
ClientTransform = Callable[[jax.Array], optax.GradientTransformation]


class RoundMetrics(NamedTuple):
  """What a round reports; leaves [rounds] after `make_run_rounds`.

  Attributes:
    loss: float32: mean training loss over the cohort's examples.
    reported: int32: clients whose delta was counted.
    num_examples: float32: scores trained on, negatives and epochs included;
      exact up to 2^24.
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
    client_transform: key -> Optax transform of one client's delta, the pair
      (item rows, shared); None for none. Unused slots are zeros before it.
    server: The server's step.
    learning_rate_scale: round_index -> the clients' factor.
    weight_by_examples: Whether a client's weight is its number of interactions;
      otherwise 1.
    score: The recommender's score, for evaluation.
  """
  init_server: Callable[[jax.Array], ServerState]
  init_personal: Callable[[jax.Array], PyTree]
  draw: Callable[[Client, jax.Array], Any]
  client_update: Callable[..., tuple[Contribution, PyTree]]
  client_transform: ClientTransform | None
  server: Server
  learning_rate_scale: Callable[[jax.Array], jax.Array]
  weight_by_examples: bool
  score: Callable[[PyTree, PyTree, PyTree], jax.Array]


class Round(NamedTuple):
  """One round on one device, as pure functions.

  Attributes:
    empty_sum: ServerState -> the zeros that a round begins and ends with.
    step: (server, personal, total, data, (local_index, num_blocks), key) ->
      (server, personal, total, RoundMetrics), where total is an empty sum,
      personal, data and the plan's round are this device's own, and the
      server's state is the same on all devices.
  """
  empty_sum: Callable[[ServerState], Sum]
  step: Callable[..., tuple[ServerState, PyTree, Sum, RoundMetrics]]


def make_round(
    algorithm: Algorithm,
    capacities: tuple[int, ...],
    num_clients: int,
    num_items: int,
    num_devices: int = 1,
    axis_name: str | None = None,
    visit_touched_rows: bool = False,
) -> Round:
  """Builds one round.

  Args:
    algorithm: What clients and server do.
    capacities: Interactions that each size class has room for.
    num_clients: Clients in the population.
    num_items: Items in the catalogue.
    num_devices: Devices that share the population.
    axis_name: The mapped axis of the devices; None on a single one.
    visit_touched_rows: The server visits the rows that the cohort touched, by
      a second walk over its blocks, and not the whole table: for catalogues
      that are large beside the cohort. Same numbers. Needs a single device and
      a server whose untouched rows stand still.

  Returns:
    The round. Memory: one sum of the item table, and B clients' slots; time:
    the cohort's slots, and, unless visit_touched_rows, passes over the table.

  Raises:
    ValueError: If visit_touched_rows is asked for where it cannot be, or if
      weights would undo what a client's transform bounds.
  """
  server_side = algorithm.server
  if visit_touched_rows and (
      axis_name is not None or not server_side.rows_stand_still):
    raise ValueError(
        f'visit_touched_rows=True with axis_name={axis_name!r}: it needs one '
        'device, and a server that leaves untouched rows alone (sgd, or '
        'server.lazy_rows, and no transform of the sum).')

  if algorithm.client_transform is not None and algorithm.weight_by_examples:
    raise ValueError(
        "cohort.weighting='examples' with a transform of the clients' deltas: "
        'the weight would undo its bound; use cohort.weighting=equal.')

  def empty_sum(server):
    table, shared = jax.tree.map(
        jnp.zeros_like, (server.item_table, server.shared))
    rows = num_items if server_side.needs_row_weight else 0
    return Sum(table, shared, jnp.zeros(rows), jnp.float32(0))

  def step(server, personal, total, data, plan, key):
    local_index, num_blocks = plan
    round_key = jax.random.fold_in(key, server.round_index)
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    learning_rate_scale = algorithm.learning_rate_scale(server.round_index)
    start = server

    def read_block(capacity, members):
      """A block's clients, their keys, and what they train on."""
      per_device = data.offsets.shape[0] - 1
      client_id = jnp.where(
          members < per_device, members * num_devices + device, num_clients)
      clients = gather_clients(data, members, client_id, capacity, num_items)
      keys = jax.vmap(lambda c: jax.random.fold_in(round_key, c))(client_id)
      return clients, keys, jax.vmap(algorithm.draw)(clients, keys)

    def train_block(capacity, members, carry):
      total, personal, metrics = carry
      clients, keys, examples = read_block(capacity, members)
      view = View(
          jax.tree.map(
              lambda x: x.at[examples.rows].get(mode='fill', fill_value=0),
              start.item_table),
          jax.tree.map(
              lambda x: jnp.broadcast_to(x, (len(members), *x.shape)),
              start.shared),
          jax.tree.map(lambda x: x.at[members].get(mode='clip'), personal),
          learning_rate_scale)
      contribution, own = algorithm.client_update(
          view, examples, clients.num_examples)
      delta = (contribution.item_rows, contribution.shared)
      if algorithm.client_transform is not None:
        delta = jax.vmap(_transform, (None, 0, 0))(
            algorithm.client_transform, delta, keys)
      weight = clients.num_examples.astype(jnp.float32)
      if not algorithm.weight_by_examples:
        weight = (weight > 0).astype(jnp.float32)
      # Equal weights are no pass over the deltas: a padding client's rows are
      # dropped, and its other deltas are zero, unless a transform made them.
      weighted = algorithm.weight_by_examples or (
          algorithm.client_transform is not None)
      total = _add_block(total, examples.rows, *delta, weight, weighted)
      personal = jax.tree.map(
          lambda x, new: x.at[members].set(new, mode='drop'), personal, own)
      return total, personal, jax.tree.map(jnp.add, metrics, (
          contribution.loss_sum.sum(), contribution.loss_count.sum(),
          (weight > 0).sum(dtype=jnp.int32),
          contribution.num_examples.sum().astype(jnp.float32)))

    def visit_block(capacity, members, carry):
      server, total = carry
      rows = read_block(capacity, members)[2].rows.reshape(-1)
      server = server_side.update_rows(server, total, rows)

      def clear(x):
        # A row that comes again, in a later block, finds nothing left to do.
        # The zeros are made of what was read: with plain zeros nothing orders
        # the reading before the writing, and XLA copies the sum every block.
        left = x.at[rows].get(mode='clip')
        zeros = jnp.where(jnp.isfinite(left), left - left, 0)
        return x.at[rows].set(zeros, mode='drop')

      return server, total._replace(
          item_table=jax.tree.map(clear, total.item_table),
          row_weight=clear(total.row_weight) if (
              server_side.needs_row_weight) else total.row_weight)

    def for_each_block(visit, carry):
      for index, capacity in enumerate(capacities):
        carry = jax.lax.fori_loop(
            0, num_blocks[index],
            lambda b, c, index=index, capacity=capacity: visit(
                capacity, local_index[index][b], c),
            carry)
      return carry

    nothing = (jnp.float32(0), jnp.float32(0), jnp.int32(0), jnp.float32(0))
    total, personal, metrics = for_each_block(
        train_block, (total, personal, nothing))
    if axis_name is not None:
      total, metrics = jax.lax.psum((total, metrics), axis_name)
    if visit_touched_rows:
      server, total = for_each_block(visit_block, (server, total))
      server = server_side.update_rest(server, total)
      total = total._replace(
          shared=jax.tree.map(jnp.zeros_like, total.shared),
          weight=jnp.zeros_like(total.weight))
    else:
      server = server_side.update(server, total)
      total = jax.tree.map(jnp.zeros_like, total)
    loss_sum, loss_count, reported, num_examples = metrics
    return server, personal, total, RoundMetrics(
        loss_sum / jnp.maximum(loss_count, 1), reported, num_examples)

  return Round(empty_sum, step)


def _transform(make_transform, delta, key):
  """One client's delta through its chain, with a key of its own."""
  transform = make_transform(jax.random.fold_in(key, 1))
  return transform.update(delta, transform.init(delta), None)[0]


def _add_block(total, rows, item_rows, shared, weight, weighted):
  """Adds a block's deltas, leaves [B, ...], to the sum."""
  def weigh(x):
    return x * weight.reshape(-1, *[1] * (x.ndim - 1)) if weighted else x

  flat = rows.reshape(-1)
  row_weight = total.row_weight
  if row_weight.size:
    row_weight = row_weight.at[flat].add(
        jnp.repeat(weight, flat.size // weight.size), mode='drop')
  return Sum(
      jax.tree.map(
          lambda t, d: t.at[flat].add(
              weigh(d).reshape(-1, *t.shape[1:]), mode='drop'),
          total.item_table, item_rows),
      jax.tree.map(lambda t, d: t + weigh(d).sum(0), total.shared, shared),
      row_weight, total.weight + weight.sum())


def make_run_rounds(one_round: Round) -> Callable:
  """Builds run(server, personal, data, plan, num_rounds, key) over a chunk.

  Args:
    one_round: From `make_round`.

  Returns:
    run(...) -> (server, personal, RoundMetrics with leaves [rounds of the
    plan]). num_rounds is data: a shorter last chunk does not retrace.
  """
  def run(server, personal, data, plan, num_rounds, key):
    rounds = plan.num_blocks.shape[0]
    empty = RoundMetrics(
        jnp.zeros(rounds), jnp.zeros(rounds, jnp.int32), jnp.zeros(rounds))

    def body(r, carry):
      server, personal, total, collected = carry
      server, personal, total, metrics = one_round.step(
          server, personal, total, data,
          jax.tree.map(lambda x: x[r], tuple(plan)), key)
      collected = jax.tree.map(
          lambda all_rounds, one: all_rounds.at[r].set(one), collected, metrics)
      return server, personal, total, collected

    server, personal, _, collected = jax.lax.fori_loop(
        0, num_rounds, body,
        (server, personal, one_round.empty_sum(server), empty))
    return server, personal, collected

  return run
