"""The one compiled path: many federated rounds in one call.

The hot path is `make_round`: for every size class, for every block of clients:
gather their rows, train them side by side, scatter their deltas into the sum;
then one `psum` over the devices and one server step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjaxrec.blocks import Algorithm, make_block_work, spread, widen
from fedjaxrec.server import ServerState, Sum
from fedjaxrec.touched_rows import add_slots, make_touched, merge_slots
from fedjaxrec.uplink import PLAIN, Uplink

PyTree = Any


class RoundMetrics(NamedTuple):
  """What a round reports; leaves [rounds] after `make_run_rounds`.

  Attributes:
    loss: float32: mean training loss over the examples of who reported; NaN
      where the deltas of all who trained were not finite.
    reported: int32: clients whose delta was counted.
    num_examples: float32: scores trained on, negatives and epochs included;
      exact up to 2^24.
    rejected: int32: clients whose delta was not finite and did not count.
    uplink_bytes: (int32, int32): bytes that the clients sent, in units of 4,096
      and the rest; () where `Uplink.message_length` does not count them.
  """
  loss: jax.Array
  reported: jax.Array
  num_examples: jax.Array
  rejected: jax.Array
  uplink_bytes: PyTree = ()


class Round(NamedTuple):
  """One round on one device, as pure functions.

  Attributes:
    empty_sum: ServerState -> what a round begins and ends with: (an empty sum,
      the rows of its slots where it has slots).
    step: (server, personal, total, data, (local_index, num_blocks), key) ->
      (server, personal, total, RoundMetrics), where total is an empty_sum,
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
    counts_bytes: Whether its metrics have uplink_bytes.
  """
  empty_sum: Callable[[ServerState], Sum]
  step: Callable[..., tuple[ServerState, PyTree, Sum, RoundMetrics]]
  upload: Callable[..., Any] | None = None
  finish: Callable[..., ServerState] | None = None
  counts_bytes: bool = False


def make_round(
    algorithm: Algorithm,
    capacities: tuple[int, ...],
    num_clients: int,
    num_items: int,
    num_devices: int = 1,
    axis_name: str | None = None,
    num_slots: int = 0,
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
    num_slots: Room for all item rows that a cohort's blocks touch, from
      `choose_num_slots`: their deltas are kept side by side and summed by row,
      and the server steps these rows alone: for catalogues that are large
      beside the cohort. 0: a sum of the whole table. Same numbers. Needs a
      single device and a server whose untouched rows stand still.
    uplink: What happens to a delta on its way to the sum.

  Returns:
    The round. Memory: one sum of the item table, or three rows for each of
    num_slots, and B clients' slots; time: the cohort's slots, and, without
    num_slots, passes over the table.

  Raises:
    ValueError: If num_slots is given where it cannot be used, or if
      weights would undo what a client's transform bounds.
  """
  server_side = algorithm.server
  if num_slots and (
      axis_name is not None or not server_side.rows_stand_still
      or uplink.codec is not None):
    raise ValueError(
        f'num_slots={num_slots} with axis_name={axis_name!r}: it needs one '
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
    rows = num_slots or num_items
    table = jax.tree.map(
        lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), table)
    total = Sum(
        table, shared, jnp.zeros(rows) if server_side.needs_row_weight else (),
        jnp.float32(0), empty_reports(server))
    if not num_slots:
      return total, ()
    return total, make_touched(num_slots, num_items, server.item_table)

  def add_block(total, touched, block):
    """Adds a block's deltas to the sum."""
    weight = block.weight
    flat = block.rows.reshape(-1)

    def weigh(x):
      # Equal weights are no pass over the deltas: a padding client's rows are
      # dropped, and its other deltas are zero.
      if not algorithm.weight_by_examples:
        return x
      return x * widen(weight, x)

    def by_row(x, like):
      return x.reshape(flat.size, *like.shape[1:])

    sums = (total.item_table, total.row_weight)
    parts = (
        jax.tree.map(
            lambda t, d: by_row(weigh(d), t), sums[0], block.delta[0]),
        count_rows(block, flat) if server_side.needs_row_weight else ())
    if num_slots:
      sums, touched = add_slots(
          sums, touched, flat, parts,
          jax.tree.map(by_row, block.start, touched.start))
    else:
      sums = jax.tree.map(
          lambda t, part: t.at[flat].add(part, mode='drop'), sums, parts)
    shared = jax.tree.map(
        lambda t, d: t + weigh(d).sum(0), total.shared, block.delta[1])
    return Sum(
        sums[0], shared, sums[1], total.weight + weight.sum(),
        jax.tree.map(jnp.add, total.reports, block.reports)), touched

  def count_rows(block, flat):
    """What each row adds to its row_weight, float32 [rows]."""
    weight = block.weight
    if uplink.count_norm is not None:
      touched = (block.rows < num_items).reshape(len(weight), -1).sum(1)
      weight = weight * jnp.minimum(
          1, uplink.count_norm / jnp.sqrt(jnp.maximum(touched, 1)))
    return jnp.repeat(weight, flat.size // weight.size)

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

  counts_bytes = uplink.message_length is not None
  nothing = (jnp.float32(0), jnp.float32(0), jnp.int32(0), jnp.float32(0),
             jnp.int32(0),
             (jnp.int32(0), jnp.int32(0)) if counts_bytes else ())

  def step(server, personal, total, data, plan, key):
    local_index, num_blocks = plan
    before = personal
    _, train = work(server, data, key)

    def train_block(capacity, members, carry):
      total, touched, personal, metrics = carry
      block = train(capacity, members, personal)
      total, touched = add_block(total, touched, block)
      return (total, touched, block.personal,
              jax.tree.map(jnp.add, metrics, block.metrics))

    carry = (*total, personal, nothing)
    for index, capacity in enumerate(capacities):
      carry = jax.lax.fori_loop(
          0, num_blocks[index],
          lambda b, c, index=index, capacity=capacity: train_block(
              capacity, local_index[index][b], c),
          carry)
    total, touched, personal, metrics = carry
    if axis_name is not None:
      total, metrics = jax.lax.psum((total, metrics), axis_name)
    if uplink.has_memory and uplink.codec is not None:
      # Of a sum that stays closed nobody has sent anything. A copy of the
      # memory a round is what that costs.
      opened = total.weight >= uplink.codec.least
      personal = personal._replace(memory=jax.tree.map(
          lambda new, old: jnp.where(opened, new, old), personal.memory,
          before.memory))
    if num_slots:
      (table, row_weight), rows, touched = merge_slots(
          (total.item_table, total.row_weight), touched)
      merged = total._replace(item_table=table, row_weight=row_weight)
      server = server_side.update_rest(
          server_side.update_rows(server, merged, rows, touched.start), merged)
      # A slot that is not in use may hold anything.
      total = total._replace(**jax.tree.map(jnp.zeros_like, {
          name: getattr(total, name)
          for name in ('shared', 'weight', 'reports')}))
    else:
      server = server_side.update(server, decode(total, key, server))
      total = jax.tree.map(jnp.zeros_like, total)
    if algorithm.mix_clients is not None:
      server, personal = algorithm.mix_clients(server, personal)
    return server, personal, (total, touched), collect(metrics)

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
    loss_sum, loss_count, reported, num_examples, rejected, sent = metrics
    loss = loss_sum / jnp.maximum(loss_count, 1)
    if uplink.codec is not None:
      reported = jnp.where(reported >= uplink.codec.least, reported, 0)
    else:
      # Where nobody's delta is finite, training has diverged: say so.
      loss = jnp.where((reported == 0) & (rejected > 0), jnp.nan, loss)
    return RoundMetrics(loss, reported, num_examples, rejected, sent)

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
        block = train(capacity, local_index[index][b], personal)
        table, shared = block.delta
        dense = (table if uplink.is_dense else spread(
            table, block.rows, num_items), shared)
        place = first + b * block_size
        messages = jax.tree.map(
            lambda x, part: jax.lax.dynamic_update_slice_in_dim(
                x, part, place, 0), messages, dense)
        return (messages, jax.lax.dynamic_update_slice_in_dim(
            reported, block.weight > 0, place, 0), block.personal,
                jax.tree.map(jnp.add, metrics, block.metrics))

      carry = jax.lax.fori_loop(0, num_blocks[index], one_block, carry)
      first += local_index[index].shape[0] * block_size
    messages, reported, personal, metrics = carry
    return personal, messages, reported, collect(metrics)

  def finish(server, delta, reported, key):
    total = empty_sum(server)[0]._replace(
        item_table=delta[0], shared=delta[1], weight=reported)
    return server_side.update(server, decode(total, key, server))

  hosted = axis_name is None and uplink.codec is not None
  return Round(
      empty_sum, step, upload if hosted else None, finish if hosted else None,
      counts_bytes)


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
        jnp.zeros(rounds, jnp.int32),
        (jnp.zeros(rounds, jnp.int32),) * 2 if one_round.counts_bytes else ())

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
