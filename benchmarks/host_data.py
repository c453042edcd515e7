"""What does it cost to keep the interactions on the host?

The same rounds with `engine.data=device`, with `host`, and with `host` and the
interactions in memory-mapped files. The next call's cohorts are read and sent
while the devices are busy, so a round should take no longer; the benchmark
checks that the losses are equal to the last bit.

  python benchmarks/host_data.py --population=200000 --cohort=1000
"""

import pathlib
import statistics
import tempfile
import time

import harness
import jax
import numpy as np
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation

_POPULATION = flags.DEFINE_integer('population', 100000, 'Clients.')
_HISTORY = flags.DEFINE_integer('history', 40, 'Ratings of a client.')
_ITEMS = flags.DEFINE_integer('items', 10000, 'Items in the catalogue.')
_COHORT = flags.DEFINE_integer('cohort', 1000, 'Clients in a round.')
_DIM = flags.DEFINE_integer('dim', 16, 'Dimension of the vectors.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each.')
_ROUNDS = flags.DEFINE_integer('rounds', 20, 'Rounds in a call.')


def main(_):
  """One row a place of the data."""
  harness.print_row(machine=harness.describe_machine())
  with tempfile.TemporaryDirectory() as folder:
    compare(pathlib.Path(folder))


def compare(folder: pathlib.Path) -> None:
  """Times the three side by side; files are written to `folder`."""
  offsets, items, labels = harness.make_population(
      _POPULATION.value, _HISTORY.value, _ITEMS.value)
  mapped = []
  for name, array in (('items', items), ('labels', labels)):
    np.save(folder / f'{name}.npy', array)
    mapped.append(np.load(folder / f'{name}.npy', mmap_mode='r'))
  variants = {
      'device': ('device', (items, labels)), 'host': ('host', (items, labels)),
      'host, mapped': ('host', mapped)}
  runs = {}
  for name, (place, arrays) in variants.items():
    begin = time.perf_counter()
    simulation = make_mf_simulation(
        make_mf_config(
            dim=_DIM.value, batch=20, cohort=_COHORT.value,
            rounds_per_call=_ROUNDS.value, data=place),
        (offsets, *arrays), _ITEMS.value, l2_clip_norm=0.5)
    state, metrics = simulation.run(simulation.init(), 0, _ROUNDS.value)
    jax.block_until_ready(state)
    runs[name] = {
        'simulation': simulation, 'state': state,
        'losses': [np.asarray(metrics.loss)],
        'first_s': time.perf_counter() - begin, 'wall': [], 'cpu': []}
  for repeat in range(1, _REPEATS.value + 1):
    for run in runs.values():
      cpu, wall = time.process_time(), time.perf_counter()
      run['state'], metrics = run['simulation'].run(
          run['state'], repeat * _ROUNDS.value, _ROUNDS.value)
      jax.block_until_ready(run['state'])
      run['wall'].append(time.perf_counter() - wall)
      run['cpu'].append(time.process_time() - cpu)
      run['losses'].append(np.asarray(metrics.loss))
  for run in runs.values():
    np.testing.assert_array_equal(run['losses'], runs['device']['losses'])
  base = statistics.median(runs['device']['wall'])
  harness.print_table([
      harness.print_row(
          data=name, population=_POPULATION.value, cohort=_COHORT.value,
          first_s=run['first_s'],
          median_s=statistics.median(run['wall']) / _ROUNDS.value,
          cpu_s=statistics.median(run['cpu']) / _ROUNDS.value,
          times_device=statistics.median(run['wall']) / base,
          data_mb_on_device=run['simulation'].memory.data / 1e6)
      for name, run in runs.items()])


if __name__ == '__main__':
  app.run(main)
