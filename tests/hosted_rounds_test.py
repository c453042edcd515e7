"""A round that is cut in two at its sum: what it compiles, and what it keeps.

The halves are made by hand, so that nothing of the engine compiles.
"""

import functools
import logging
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.blocks import WithMemory
from fedjaxrec.hosted_rounds import HostSum, make_hosted_execute
from fedjaxrec.population import ByItem
from fedjaxrec.rounds import Round, RoundMetrics

CLIENTS, D = 5, 3


class Server(NamedTuple):
  round_index: jax.Array
  total: jax.Array


class Data(NamedTuple):
  home: None = None


def upload(server, personal, data, plan, key):
  """Every client of a block of two sends its id, and adds one to its rows."""
  del data, key
  (members,), num_blocks = plan
  busy = jnp.arange(len(members)) < num_blocks[0]
  ids = members.reshape(-1)
  used = jnp.repeat(busy, 2) & (ids < CLIENTS)
  sent = jnp.where(used, ids, 0).astype(jnp.uint32)
  at = jnp.where(used, ids, CLIENTS)
  step = lambda x: x.at[at].add(1, mode='drop')
  personal = (
      WithMemory(step(personal.personal), jax.tree.map(step, personal.memory))
      if isinstance(personal, WithMemory) else step(personal))
  metrics = RoundMetrics(
      jnp.float32(0), used.sum(dtype=jnp.int32), jnp.float32(0), jnp.int32(0))
  return personal, jnp.broadcast_to(
      sent[:, None], (len(sent), D)), used, metrics


def finish(server, total, reported, key):
  del key
  return Server(
      server.round_index + (reported >= 0), server.total + total)


def start(remembers):
  personal = jnp.zeros((1, CLIENTS, 2))
  if remembers:
    personal = WithMemory(personal, (
        ByItem(jnp.zeros((1, CLIENTS, 4, 2))), jnp.zeros((1, CLIENTS, 3))))
  plan = ((jnp.array([[[[0, 1], [3, 5]], [[2, 4], [5, 5]]]]),),
          jnp.array([[[2], [1]]]))
  return (Server(jnp.int32(0), jnp.zeros(D, jnp.uint32)), personal, Data(),
          plan)


def run(sum_on_host, num_rounds=1, remembers=True, execute=None):
  execute = execute or make_hosted_execute(
      Round(lambda s: None, lambda *_: None, upload, finish), 2)
  server, personal, data, plan = start(remembers)
  return execute(
      server, personal, data, plan, num_rounds, jax.random.key(0), sum_on_host)


def adding(leave_out=(), asked=None):
  """Sums all messages but those of a few clients."""
  def call(messages, round_index):
    if asked is not None:
      asked.append((round_index, sorted(messages)))
    counted = tuple(c for c in messages if c not in leave_out)
    total = sum((messages[c] for c in counted), np.zeros(D, np.uint32))
    return HostSum(total, len(counted), counted)
  return call


@pytest.mark.parametrize('leave_out', [(), (1,), (0, 3), (0, 1, 3)])
def test_the_memory_moves_on_for_those_who_are_counted_alone(leave_out):
  server, personal, metrics = run(adding(leave_out))
  counted = [float(c in (0, 1, 3) and c not in leave_out) for c in range(5)]
  for leaf in jax.tree.leaves(personal.memory):
    np.testing.assert_array_equal(leaf[0].reshape(5, -1)[:, 0], counted)
    assert (leaf[0].reshape(5, -1) == np.array(counted)[:, None]).all()
  # They have trained all the same.
  np.testing.assert_array_equal(personal.personal[0, :, 0], [1, 1, 0, 1, 0])
  assert int(metrics.reported[0]) == 3 - len(leave_out)
  assert int(server.total[0]) == sum({0, 1, 3} - set(leave_out))


def test_without_a_memory_nothing_is_taken_back():
  _, personal, _ = run(adding((0,)), remembers=False)
  np.testing.assert_array_equal(personal[0, :, 0], [1, 1, 0, 1, 0])


def copy_of(function):
  return functools.wraps(function)(lambda *args: function(*args))


def compiled_by(call):
  """Names of the programs that JAX compiles during a call."""
  names = []
  handler = logging.Handler()
  handler.emit = lambda record: names.extend(
      re.findall(r'Compiling jit\((\w+)\)', record.getMessage()))
  logger = logging.getLogger('jax._src.interpreters.pxla')
  logger.addHandler(handler)
  try:
    with jax.log_compiles():
      call()
  finally:
    logger.removeHandler(handler)
  return set(names)


@pytest.mark.parametrize('remembers', [False, True])
def test_a_call_of_no_rounds_compiles_asks_nobody_and_changes_nothing(
    remembers):
  # Functions of their own: JAX remembers what it has compiled.
  execute, other = (make_hosted_execute(Round(
      lambda s: None, lambda *_: None, copy_of(upload), copy_of(finish)), 2)
                    for _ in range(2))
  asked = []
  server, personal, metrics = run(
      adding(asked=asked), 0, remembers, execute)
  assert not asked and int(server.round_index) == 0
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(personal))
  assert not np.asarray(metrics.reported).any()
  halves = {'upload', 'finish'}
  assert not halves & compiled_by(
      lambda: run(adding(asked=asked), 2, remembers, execute))
  assert asked == [(0, [0, 1, 3]), (1, [2, 4])]
  # The control: without such a call the first round compiles them.
  assert halves <= compiled_by(
      lambda: run(adding(), 1, remembers, other))
