"""The one compiled path: many federated rounds in one call.

The hot path is `make_round`: for every size class, for every block of clients:
gather their rows, train them side by side, scatter their deltas into the sum;
then one `psum` over the devices and one server step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjaxrec.blocks import Algorithm, make_block_work, spread
from fedjaxrec.server import ServerState, Sum
from fedjaxrec.uplink import PLAIN, Uplink

PyTree = Any


class RoundMetrics(NamedTuple):
  """What a round reports; leaves [rounds] after `make_run_rounds`.

  Attributes:
    loss: float32: mean training loss over the cohort's examples.
    reported: int32: clients whose delta was counted.
    num_examples: float32: scores trained on, negatives and epochs included;
      exact up to 2^24.
    rejected: int32: clients whose delta was not finite and did not count.
  """
  loss: jax.Array
  reported: jax.Array
  num_examples: jax.Array
  rejected: jax.Array


class Round(NamedTuple):
  """One round on one device, as pure functions.

  Attributes:
    empty_sum: ServerState -> the zeros that a round begins and ends with.
    step: (server, personal, total, data, (local_index, num_blocks), key) ->
      (server, personal, total, RoundMetrics), where total is an empty sum,
      personal, data and the plan's round are this device's own, and the
      server's state is the same on all devices.
    upload: (server, personal, data, (local_index, num_blocks), key) ->
      (personal, messages, reported, RoundMetrics): the first half of a step, up
      to the sum, for a sum that is not taken here: messages are the encoded
      deltas, leaves [places, ...] of uint32, item leaves with every row, and
      reported (bool [places]) says which of the plan's places sent one. Needs a
      single device and a dense codec.
    finish: (server, delta, reported, key) -> server: the other half; delta is
      the sum of messages, reported their number, float32 [].
  """
  empty_sum: Callable[[ServerState], Sum]
  step: Callable[..., tuple[ServerState, PyTree, Sum, RoundMetrics]]
  upload: Callable[..., Any] | None = None
  finish: Callable[..., ServerState] | None = None


def make_round(
    algorithm: Algorithm,
    capacities: tuple[int, ...],
    num_clients: int,
    num_items: int,
    num_devices: int = 1,
    axis_name: str | None = None,
    visit_touched_rows: bool = False,
    uplink: Uplink = PLAIN,
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
    uplink: What happens to a delta on its way to the sum.

  Returns:
    The round. Memory: one sum of the item table, and B clients' slots; time:
    the cohort's slots, and, unless visit_touched_rows, passes over the table.

  Raises:
    ValueError: If visit_touched_rows is asked for where it cannot be, or if
      weights would undo what a client's transform bounds.
  """
  server_side = algorithm.server
  if visit_touched_rows and (
      axis_name is not None or not server_side.rows_stand_still
      or uplink.codec is not None):
    raise ValueError(
        f'visit_touched_rows=True with axis_name={axis_name!r}: it needs one '
        'device, sums of floats, and a server that leaves untouched rows alone '
        '(sgd, or server.lazy_rows, and no transform of the sum).')

  if algorithm.mix_clients is not None and (
      num_devices > 1 or not uplink.is_plain):
    raise ValueError(
        f'num_devices={num_devices} and a transform or codec of updates with '
        'an algorithm whose server looks at each client: its clients must be '
        'on one device, and their updates in the clear; use '
        'parallel.num_devices=1, without privacy, compression and secure sums.')

  if not uplink.is_plain and algorithm.weight_by_examples:
    raise ValueError(
        "cohort.weighting='examples' with a transform of the clients' deltas: "
        'the weight would undo its bound; use cohort.weighting=equal.')

  work = make_block_work(
      algorithm, num_clients, num_items, num_devices, axis_name, uplink)

  def empty_sum(server):
    table, shared = algorithm.empty_contribution(server)
    if uplink.codec is not None:
      table, shared = jax.tree.map(
          lambda x: jnp.zeros(x.shape, jnp.uint32), (table, shared))
    rows = num_items if server_side.needs_row_weight else 0
    return Sum(table, shared, jnp.zeros(rows), jnp.float32(0),
               empty_reports(server))

  def empty_reports(server):
    make_transform = uplink.transform
    if make_transform is None:
      return ()

    def report(key):
      delta = algorithm.empty_contribution(server)
      transform = make_transform(key, key, server.transform_state)
      return uplink.report(transform.init(delta))

    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.float32),
        jax.eval_shape(report, jax.random.key(0)))

  nothing = (jnp.float32(0), jnp.float32(0), jnp.int32(0), jnp.float32(0),
             jnp.int32(0))

  def step(server, personal, total, data, plan, key):
    local_index, num_blocks = plan
    before = personal
    read_block, train = work(server, data, key)

    def train_block(capacity, members, carry):
      total, personal, metrics = carry
      rows, delta, weight, reports, personal, measured = train(
          capacity, members, personal)
      # Equal weights are no pass over the deltas: a padding client's rows are
      # dropped, and its other deltas are zero.
      total = _add_block(
          total, rows, delta[0], delta[1], weight, algorithm.weight_by_examples,
          uplink.count_norm)
      total = total._replace(
          reports=jax.tree.map(jnp.add, total.reports, reports))
      return total, personal, jax.tree.map(jnp.add, metrics, measured)

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

    total, personal, metrics = for_each_block(
        train_block, (total, personal, nothing))
    if axis_name is not None:
      total, metrics = jax.lax.psum((total, metrics), axis_name)
    if uplink.has_memory and uplink.codec is not None:
      # Of a sum that stays closed nobody has sent anything. A copy of the
      # memory a round is what that costs.
      opened = total.weight >= uplink.codec.least
      personal = personal._replace(memory=jax.tree.map(
          lambda new, old: jnp.where(opened, new, old), personal.memory,
          before.memory))
    if visit_touched_rows:
      server, total = for_each_block(visit_block, (server, total))
      server = server_side.update_rest(server, total)
      total = total._replace(
          shared=jax.tree.map(jnp.zeros_like, total.shared),
          weight=jnp.zeros_like(total.weight),
          reports=jax.tree.map(jnp.zeros_like, total.reports))
    else:
      server = server_side.update(server, decode(total, key, server))
      total = jax.tree.map(jnp.zeros_like, total)
    if algorithm.mix_clients is not None:
      server, personal = algorithm.mix_clients(server, personal)
    return server, personal, total, collect(metrics)

  def decode(total, key, server):
    if uplink.codec is None:
      return total
    round_key = jax.random.fold_in(key, server.round_index)
    table, shared = uplink.codec.decode(
        (total.item_table, total.shared),
        jax.random.fold_in(round_key, num_clients), total.weight)
    # Too few, and the round is as if nobody had come.
    opened = total.weight >= uplink.codec.least
    table, shared = jax.tree.map(
        lambda x: jnp.where(opened, x, 0), (table, shared))
    return total._replace(
        item_table=table, shared=shared,
        weight=jnp.where(opened, total.weight, 0))

  def collect(metrics):
    loss_sum, loss_count, reported, num_examples, rejected = metrics
    if uplink.codec is not None:
      reported = jnp.where(reported >= uplink.codec.least, reported, 0)
    return RoundMetrics(
        loss_sum / jnp.maximum(loss_count, 1), reported, num_examples, rejected)

  def upload(server, personal, data, plan, key):
    local_index, num_blocks = plan
    _, train = work(server, data, key)
    messages = jax.tree.map(
        lambda x: jnp.zeros(
            (sum(m.shape[0] * m.shape[1] for m in local_index), *x.shape),
            jnp.uint32), algorithm.empty_contribution(server))
    first = 0
    carry = (messages, jnp.zeros(len(jax.tree.leaves(messages)[0]), bool),
             personal, nothing)
    for index, capacity in enumerate(capacities):
      block_size = local_index[index].shape[1]

      def one_block(b, carry, index=index, capacity=capacity, first=first,
                    block_size=block_size):
        messages, reported, personal, metrics = carry
        rows, delta, weight, _, personal, measured = train(
            capacity, local_index[index][b], personal)
        dense = delta if uplink.is_dense else (
            spread(delta[0], rows, num_items), delta[1])
        place = first + b * block_size
        messages = jax.tree.map(
            lambda x, part: jax.lax.dynamic_update_slice_in_dim(
                x, part, place, 0), messages, dense)
        return (messages, jax.lax.dynamic_update_slice_in_dim(
            reported, weight > 0, place, 0), personal,
                jax.tree.map(jnp.add, metrics, measured))

      carry = jax.lax.fori_loop(0, num_blocks[index], one_block, carry)
      first += local_index[index].shape[0] * block_size
    messages, reported, personal, metrics = carry
    return personal, messages, reported, collect(metrics)

  def finish(server, delta, reported, key):
    total = empty_sum(server)._replace(
        item_table=delta[0], shared=delta[1], weight=reported)
    return server_side.update(server, decode(total, key, server))

  hosted = axis_name is None and uplink.codec is not None
  return Round(
      empty_sum, step, upload if hosted else None, finish if hosted else None)


def _add_block(
    total, rows, item_rows, shared, weight, weighted, count_norm=None):
  """Adds a block's deltas, leaves [B, ...], to the sum."""
  def weigh(x):
    return x * weight.reshape(-1, *[1] * (x.ndim - 1)) if weighted else x

  flat = rows.reshape(-1)
  row_weight = total.row_weight
  if row_weight.size:
    share = weight
    if count_norm is not None:
      touched = (rows < len(row_weight)).reshape(len(weight), -1).sum(1)
      share = weight * jnp.minimum(
          1, count_norm / jnp.sqrt(jnp.maximum(touched, 1)))
    row_weight = row_weight.at[flat].add(
        jnp.repeat(share, flat.size // weight.size), mode='drop')
  return Sum(
      jax.tree.map(
          lambda t, d: t.at[flat].add(
              weigh(d).reshape(-1, *t.shape[1:]), mode='drop'),
          total.item_table, item_rows),
      jax.tree.map(lambda t, d: t + weigh(d).sum(0), total.shared, shared),
      row_weight, total.weight + weight.sum(), total.reports)


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
        jnp.zeros(rounds), jnp.zeros(rounds, jnp.int32), jnp.zeros(rounds),
        jnp.zeros(rounds, jnp.int32))

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
