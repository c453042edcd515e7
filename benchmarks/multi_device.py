"""Does the work divide over devices, under shard_map and under pmap?

The work of `round_throughput` on 1, 2, ... devices. On a CPU they are virtual
devices that share its cores: equality of the results is what that shows, and
the cost of the wrapping, not a speed-up.

  XLA_FLAGS=--xla_force_host_platform_device_count=4 \
      python benchmarks/multi_device.py
"""

import dataclasses

import harness
import jax
import numpy as np
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation, make_rounds_call

from fedjaxrec.config import ParallelConfig

_COHORT = flags.DEFINE_integer('cohort', 1000, 'Clients in a round.')
_ITEMS = flags.DEFINE_integer('items', 1000, 'Items in the catalogue.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Rounds in a call.')


def main(_):
  """One row a mode and number of devices."""
  harness.print_row(machine=harness.describe_machine())
  population = harness.make_population(2 * _COHORT.value, 40, _ITEMS.value)
  settings = [('single', 1)] + [
      (mode, n) for n in (1, 2, 4, 8) for mode in ('shard_map', 'pmap')
      if n <= len(jax.local_devices())]
  calls, tables = {}, {}
  for mode, devices in settings:
    config = dataclasses.replace(
        make_mf_config(dim=16, batch=20, cohort=_COHORT.value,
                       rounds_per_call=_ROUNDS.value),
        parallel=ParallelConfig(mode=mode, num_devices=devices))
    simulation = make_mf_simulation(
        config, population, _ITEMS.value, l2_clip_norm=0.5)
    state, _ = simulation.run(simulation.init(), 0, _ROUNDS.value)
    tables[mode, devices] = np.asarray(state.server.item_table['item'])
    calls[mode, devices] = make_rounds_call(simulation, _ROUNDS.value)
  times = harness.measure(calls, _REPEATS.value)
  reference = tables['single', 1]
  harness.print_table([
      harness.print_row(
          mode=mode, devices=devices, cohort=_COHORT.value,
          median_s=t['median_s'] / _ROUNDS.value,
          clients_per_s=_COHORT.value * _ROUNDS.value / t['median_s'],
          largest_difference=float(
              np.abs(tables[mode, devices] - reference).max()))
      for (mode, devices), t in times.items()])


if __name__ == '__main__':
  app.run(main)
