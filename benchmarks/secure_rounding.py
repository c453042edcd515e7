r"""How far does the ring of a secure sum move one round's update?

One round of a run is taken apart: the cohort trains as the run would, from the
model that some rounds of float sums have made, and its deltas are summed three
ways, as floats, cut to the ring's bounds, and through the ring. Exact, on one
seed: no run of two that drift apart. All errors are relative to the L2 norm of
the float sum: `rounding` (ring against what it was given: the random part),
`cutting` (clip norm and entry bound: the bias) and `error` (both).

  python benchmarks/secure_rounding.py \
    --flagfile=scripts/movielens_1m_float.flags --after=0,60,120 \
    --rings=16:16:1,16:8:0.5,16:4:0.25

Rings are bits:clip norm:entry bound, with 0 for entries that are not cut, and,
for a rotation of so many entries or more, bits:clip norm:entry bound:rotation;
what is cut is then the rotated entries.
"""

import dataclasses
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from fedjaxrec.aggregation.ring import is_rotated, make_ring
from fedjaxrec.aggregation.rotation import rotate, rotate_back
from fedjaxrec.blocks import make_block_work
from fedjaxrec.config import SecureConfig
from fedjaxrec.data.sources import load_split
from fedjaxrec.flags import define_flags, read_config
from fedjaxrec.simulation import make_simulation
from fedjaxrec.uplink import PLAIN

_AFTER = flags.DEFINE_list('after', ['0'], 'Rounds done before the one.')
_RINGS = flags.DEFINE_list(
    'rings', ['16:16:1'], 'Bits:clip norm:entry bound[:rotation].')
define_flags()


def squares(tree: Any, axes: int = 0) -> jax.Array:
  """The squared L2 norm, of each element of so many leading axes."""
  return sum(jnp.square(x).reshape(*x.shape[:axes], -1).sum(-1)
             for x in jax.tree.leaves(tree))


def only_device(tree: Any) -> Any:
  """What stands on the first device, and there is no other."""
  return jax.tree.map(lambda x: x[0], tree)


def make_take_apart(simulation, num_clients, num_items, rings):
  """Builds (server, personal, data, plan, round) -> sums and facts."""
  algorithm = simulation.algorithm
  begin = make_block_work(algorithm, num_clients, num_items, 1, None, PLAIN)

  def cut(delta, clip_norm, entry_bound, rotation, key, row_axes):
    norm = jnp.sqrt(squares(delta))
    factor = jnp.minimum(1, clip_norm / jnp.maximum(norm, 1e-30))
    bound = entry_bound or clip_norm
    leaves, treedef = jax.tree.flatten(delta)
    axes = jax.tree.leaves(jax.tree.broadcast((row_axes, 0), delta))

    def one(x, lead, leaf_key):
      if not is_rotated(x.shape[lead:], rotation):
        return jnp.clip(x * factor, -bound, bound)
      flat = (x * factor).reshape(*x.shape[:lead], -1)
      return rotate_back(jnp.clip(
          rotate(flat, leaf_key), -bound, bound), leaf_key).reshape(x.shape)

    return treedef.unflatten([
        one(x, lead, jax.random.fold_in(key, i))
        for i, (x, lead) in enumerate(zip(leaves, axes, strict=True))])

  def take_apart(server, personal, data, plan, key):
    local_index, num_blocks = plan
    _, train = begin(server, data, key)
    round_key = jax.random.fold_in(key, server.round_index)
    empty = algorithm.empty_contribution(server)
    whole = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.uint32), empty)

    def add(total, rows, delta):
      flat = rows.reshape(-1)
      return (jax.tree.map(
          lambda t, d: t.at[flat].add(
              d.reshape(-1, *t.shape[1:]), mode='drop'), total[0], delta[0]),
              jax.tree.map(lambda t, d: t + d.sum(0), total[1], delta[1]))

    def block(capacity, members, carry):
      plain, parts, facts = carry
      trained = train(capacity, members, personal)
      rows, delta = trained.rows, trained.delta
      keys = jax.vmap(lambda c: jax.random.fold_in(round_key, c))(members)
      there = trained.weight > 0
      new = []
      row_axes = rows.ndim - 1
      for (_, clip_norm, entry_bound, turned, ring), (short, sums) in zip(
          rings, parts, strict=True):
        shorter = jax.vmap(
            lambda d, n=clip_norm, b=entry_bound, r=turned: cut(
                d, n, b, r, round_key, row_axes))(delta)
        values = jax.vmap(
            lambda d, k, ring=ring: ring.encode(
                d, jax.random.fold_in(k, 2), round_key, (row_axes, 0),
                clip=True).values)(delta, keys)
        new.append((add(short, rows, shorter), add(sums, rows, values)))
      norms = jnp.sqrt(squares(delta, 1))
      largest = jnp.stack([
          jnp.abs(x).reshape(len(x), -1).max(-1)
          for x in jax.tree.leaves(delta) if x.size]).max(0)
      facts = jax.tree.map(
          lambda all_members, x: all_members.at[members].set(
              jnp.where(there, x, jnp.nan), mode='drop'),
          facts, (norms, largest))
      return add(plain, rows, delta), tuple(new), facts

    carry = (empty, tuple((empty, whole) for _ in rings),
             (jnp.full(num_clients, jnp.nan), jnp.full(num_clients, jnp.nan)))
    for index, capacity in enumerate(simulation.capacities):
      carry = jax.lax.fori_loop(
          0, num_blocks[index],
          lambda b, c, index=index, capacity=capacity: block(
              capacity, local_index[index][b], c), carry)
    plain, parts, facts = carry
    norm = jnp.sqrt(squares(plain))
    errors = []
    for (*_, ring), (short, sums) in zip(rings, parts, strict=True):
      decoded = ring.decode(sums, round_key, (1, 0))
      errors.append([jnp.sqrt(squares(jax.tree.map(jnp.subtract, a, b))) / norm
                     for a, b in ((decoded, short), (short, plain),
                                  (decoded, plain))])
    return norm, facts, errors

  return jax.jit(take_apart)


def main(_):
  """One row a ring and a round."""
  harness.print_row(machine=harness.describe_machine())
  config = dataclasses.replace(
      read_config(), secure=SecureConfig())
  train = load_split(config).train
  num_items = train.num_items
  simulation = make_simulation(
      config, train.offsets, train.items, train.ratings, num_items)
  rings = []
  for text in _RINGS.value:
    bits, clip_norm, entry_bound, rotation = (*text.split(':'), '0')[:4]
    settings = (
        int(bits), float(clip_norm), float(entry_bound), int(rotation))
    rings.append((*settings, make_ring(
        settings[0], settings[1], simulation.max_cohort,
        entry_bound=settings[2] or None, rotation=settings[3])))
  take_apart = make_take_apart(
      simulation, len(train.counts), num_items, rings)
  state, done, rows = simulation.init(), 0, []
  for after in sorted(map(int, _AFTER.value)):
    while done < after:
      number = min(simulation.rounds_per_call, after - done)
      state, _ = simulation.run(state, done, number)
      done += number
    data, plan = simulation.plan(done, 1)
    local_index, num_blocks = only_device(tuple(plan))
    norm, (norms, largest), errors = take_apart(
        state.server, only_device(state.personal), only_device(data),
        (tuple(x[0] for x in local_index), num_blocks[0]), simulation.key)
    norms, largest = (np.asarray(x)[~np.isnan(np.asarray(norms))]
                      for x in (norms, largest))
    for (bits, clip_norm, entry_bound, rotation, ring), (
        rounding, cutting, error) in zip(rings, errors, strict=True):
      rows.append(harness.print_row(
          after=after, bits=bits, clip_norm=clip_norm, entry_bound=entry_bound,
          rotation=rotation, levels=ring.levels, clients=len(norms),
          rounding=float(rounding), cutting=float(cutting), error=float(error),
          sum_norm=float(norm),
          mean_delta_norm=float(norms.mean()),
          max_delta_norm=float(norms.max()),
          above_clip=float((norms > clip_norm).mean()),
          above_entry=float((largest > (entry_bound or clip_norm)).mean()),
          p99_entry=float(np.quantile(largest, 0.99))))
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
