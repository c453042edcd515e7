"""What bounds a round: the bytes it moves, or its arithmetic?

Both are counted from shapes, for a round as the engine does it, and divided by
what this machine was measured to do in the same process: bytes a second of
passes over a megabyte (a block's rows, and tables that fit the last cache) and
over an array beyond all caches (larger tables), and operations a second of a
matrix product. `ratio` is the measured time over the larger of the two bounds.
Drawing negatives is integer arithmetic and is in neither.

  python benchmarks/round_bound.py
"""

import statistics
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation

from fedjaxrec.config import Config, EngineConfig, ParallelConfig
from fedjaxrec.simulation import make_simulation

_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed calls.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Rounds in a call.')
_COPY_MB = flags.DEFINE_integer('copy_mb', 256, 'Megabytes copied.')
_CACHE_MB = flags.DEFINE_integer('cache_mb', 16, 'Of the last cache.')
_MATRIX = flags.DEFINE_integer('matrix', 1024, 'Side of the multiplied matrix.')
_ITEMS = flags.DEFINE_list(
    'items', ['1000', '1000000'], 'Catalogues of the task of round_throughput.')


def quickest(call, repeats: int) -> float:
  """Wall-clock seconds of the quickest call, after one that compiles."""
  jax.block_until_ready(call())
  seconds = []
  for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - begin)
  return min(seconds)


def copy_speed(megabytes: int) -> float:
  """Bytes a second, read and written, of passes over one array in place."""
  passes = max(1, 1024 // megabytes)
  x = jnp.zeros(megabytes * 10**6 // 4)
  call = jax.jit(lambda x: jax.lax.fori_loop(
      0, passes, lambda _, x: x + 1, x), donate_argnums=0)
  holder = {'x': x}

  def again():
    holder['x'] = call(holder['x'])
    return holder['x']

  return 2 * x.nbytes * passes / quickest(again, _REPEATS.value)


def measure_machine() -> tuple[float, float, float]:
  """Returns (bytes a second in a cache, in memory, operations a second)."""
  a = jnp.ones((_MATRIX.value, _MATRIX.value))
  product = jax.jit(lambda a: a @ a)
  peak = 2 * _MATRIX.value**3 / quickest(lambda: product(a), _REPEATS.value)
  return copy_speed(1), copy_speed(_COPY_MB.value), peak


def count(
    slots: float, dim: int, num_items: int, whole_table_passes: int
) -> tuple[float, float, float]:
  """Returns (bytes of blocks, of tables, operations) of a round of factors.

  Args:
    slots: Item rows that the cohort touches.
    dim: Dimension of the vectors.
    num_items: Items in the catalogue.
    whole_table_passes: Reads and writes of the item table by the server's
      step; 0 where the deltas lie side by side in slots.
  """
  row = 4 * (dim + 1)
  # Gathered rows are written, read to train, and their deltas written and read;
  # ids are written and read twice.
  blocks = slots * (4 * row + 3 * 4)
  if whole_table_passes:
    # A row is gathered; a row of the sum is read and written.
    tables = slots * 3 * row + whole_table_passes * num_items * row
  else:
    # A row is gathered and written, and a slot elected for it. Slots: delta and
    # start written and read, their sum emptied, read and written, and read.
    tables = slots * (2 * row + 8)
    blocks += slots * (8 * row + 4 * 4)
  # Score, gradients of row and user: 2 dim each; L2 and steps: 2 each for a
  # number of row; the sum: 1.
  return blocks, tables, slots * (11 * dim + 20)


def cases():
  """Yields (name, simulation, slots of a cohort, dim, items, passes)."""
  for num_items in map(int, _ITEMS.value):
    config = make_mf_config(
        dim=16, batch=20, cohort=1000, rounds_per_call=_ROUNDS.value)
    yield (f'same work, {num_items} items', make_mf_simulation(
        config, harness.make_population(2000, 40, num_items), num_items),
           40_000, 16, num_items, 0 if 2 * 40_000 < num_items else 4)
  config = Config(
      rounds=10**6, engine=EngineConfig(rounds_per_call=_ROUNDS.value),
      parallel=ParallelConfig(mode='single'))
  population = harness.make_long_tailed_population()
  slots = np.diff(population[0]).mean() * config.cohort.size * (
      1 + config.objective.num_negatives)
  # Table, sum, contributors and two moments, read and written.
  yield ('default run', make_simulation(config, *population, 1682), slots,
         config.model.dim, 1682, 8)


def main(_):
  """One row a task."""
  harness.print_row(machine=harness.describe_machine())
  in_cache, in_memory, peak = measure_machine()
  harness.print_row(
      cache_gb_per_s=in_cache / 1e9, memory_gb_per_s=in_memory / 1e9,
      gflop_per_s=peak / 1e9)
  rows = []
  for name, simulation, slots, dim, num_items, passes in cases():
    blocks, tables, operations = count(slots, dim, num_items, passes)
    state, _ = simulation.run(simulation.init(), 0, _ROUNDS.value)
    jax.block_until_ready(state)
    wall, cpu = [], []
    for repeat in range(1, _REPEATS.value + 1):
      plan = simulation.plan(repeat * _ROUNDS.value, _ROUNDS.value)
      jax.block_until_ready(plan)
      begin, begin_cpu = time.perf_counter(), time.process_time()
      state, _ = simulation.execute(state, plan, _ROUNDS.value)
      jax.block_until_ready(state)
      wall.append((time.perf_counter() - begin) / _ROUNDS.value)
      cpu.append((time.process_time() - begin_cpu) / _ROUNDS.value)
    # Table and sum, side by side.
    is_cached = 2 * num_items * 4 * (dim + 1) <= _CACHE_MB.value * 10**6
    moving = blocks / in_cache + tables / (in_cache if is_cached else in_memory)
    bound = max(moving, operations / peak)
    rows.append(harness.print_row(
        task=name, moved_mb=(blocks + tables) / 1e6, mflop=operations / 1e6,
        bytes_bound_s=moving, flop_bound_s=operations / peak,
        bound_s=bound, median_s=statistics.median(wall), min_s=min(wall),
        cpu_s=statistics.median(cpu), ratio=statistics.median(wall) / bound,
        ratio_of_cpu=statistics.median(cpu) / bound))
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
