"""Rounds whose sum is taken outside the device, by a protocol on the host.

The compiled round is cut in two at the sum: the clients' messages come to the
host, whoever sums them there sees nothing but messages, and the sum goes back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.blocks import WithMemory
from fedjaxrec.rounds import Round, RoundMetrics

PyTree = Any


class HostSum(NamedTuple):
  """What came of a round's sum.

  Attributes:
    total: uint32 [dimension]; zeros where the round was aborted.
    reported: Clients whose messages are in it; 0 where it was aborted.
    counted: Who these are.
  """
  total: np.ndarray
  reported: int
  counted: tuple[int, ...] = ()


class SumOnHost(Protocol):
  """Sums the messages of a round; may lose some of them, or all."""

  def __call__(
      self, messages: dict[int, np.ndarray], round_index: int
  ) -> HostSum:
    """Client -> its message, uint32 [dimension]."""


def make_hosted_execute(
    one_round: Round, rounds_per_call: int
) -> Callable:
  """Builds execute(server, personal, data, plan, num_rounds, key, sum_on_host).

  Args:
    one_round: A round with both halves.
    rounds_per_call: Rounds that the metrics have room for.

  Returns:
    execute -> (server, personal, RoundMetrics): as a compiled call of rounds,
    but the host is asked in the middle of each. The plan and the data have the
    leading axis [1] of a single device. A call of no rounds compiles. The
    memory of error feedback moves on only for clients that are counted: for the
    others, and in a round that is aborted, nothing was sent. Memory: a message
    of every client of the cohort at once, on the device and on the host; with
    error feedback, the clients' memory twice.
  """
  upload, finish = one_round.upload, one_round.finish
  if upload is None or finish is None:
    raise ValueError(
        'sums on the host need a single device and a codec of integers; use '
        'parallel.mode=single and a secure.level.')
  first_half = jax.jit(upload, donate_argnums=1)
  # What the clients remember is looked at again when the sum is known.
  keeping = jax.jit(upload)
  second_half = jax.jit(finish)

  def execute(server, personal, data, plan, num_rounds, key, sum_on_host):
    drop = lambda tree: jax.tree.map(lambda x: x[0], tree)
    personal, data = drop(personal), drop(data)
    local_index, num_blocks = (drop(part) for part in plan)
    collected = []
    remembers = isinstance(personal, WithMemory)
    train = keeping if remembers else first_half
    if not num_rounds:
      # No block trains, nobody is asked, and what they return is dropped.
      personal, messages, _, _ = train(
          server, personal, data,
          (tuple(x[0] for x in local_index), jnp.zeros_like(num_blocks[0])),
          key)
      nothing = jax.tree.map(
          lambda x: jnp.zeros(x.shape[1:], jnp.uint32), messages)
      jax.block_until_ready(second_half(server, nothing, jnp.float32(0), key))
    for r in range(int(num_rounds)):
      members = tuple(x[r] for x in local_index)
      round_index = int(server.round_index)
      before = personal
      personal, messages, reported, metrics = train(
          server, personal, data, (members, num_blocks[r]), key)
      leaves = jax.tree.leaves(messages)
      sent = np.flatnonzero(np.asarray(reported))
      places = np.concatenate([np.asarray(x).reshape(-1) for x in members])
      if data.home is not None:
        # Where the data stay on the host, a place is not yet a client.
        places = np.take(np.asarray(data.home), places, mode='clip')
      rows = np.concatenate(
          [np.asarray(x).reshape(len(x), -1) for x in leaves], axis=1)
      result = sum_on_host(
          {int(places[i]): rows[i] for i in sent}, round_index)
      ends = np.cumsum([x[0].size for x in leaves])[:-1]
      total = jax.tree.unflatten(jax.tree.structure(messages), [
          jnp.asarray(part.reshape(x.shape[1:]), jnp.uint32)
          for part, x in zip(np.split(result.total, ends), leaves)])
      server = second_half(server, total, jnp.float32(result.reported), key)
      if remembers:
        personal = personal._replace(memory=_moved_on(
            before.memory, personal.memory, result.counted))
      collected.append(metrics._replace(
          reported=np.int32(result.reported)))
    return server, jax.tree.map(lambda x: x[None], personal), RoundMetrics(*(
        _pad([np.asarray(getattr(m, name)) for m in collected],
             rounds_per_call)
        for name in RoundMetrics._fields if name != 'uplink_bytes'))

  return execute


def _moved_on(old, new, counted):
  """The memory of all clients: the new one of those who were counted."""
  def choose(before, after):
    moved = np.zeros(len(before), bool)
    moved[list(counted)] = True
    return jnp.where(
        jnp.asarray(moved).reshape(-1, *[1] * (before.ndim - 1)), after, before)

  return jax.tree.map(choose, old, new)


def _pad(values, length):
  padded = np.zeros(length, values[0].dtype if values else np.float32)
  padded[:len(values)] = values
  return padded
