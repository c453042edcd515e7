"""Does the work divide over devices and hosts, under shard_map and under pmap?

The work of `round_throughput` on 1, 2, ... devices. On a CPU they are virtual
devices that share its cores: equality of the results is what that shows, and
the cost of the wrapping, not a speed-up. With a coordinator, every process runs
this command, each row is of the devices of all of them (but for `single`, one
device of each), and process 0 prints.

  XLA_FLAGS=--xla_force_host_platform_device_count=4 \
      python benchmarks/multi_device.py
  for i in 0 1; do python benchmarks/multi_device.py --process_id=$i \
      --coordinator=localhost:12355 --num_processes=2 & done; wait
"""

import dataclasses

import harness
import jax
import numpy as np
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation, make_rounds_call

from fedjaxrec.config import ParallelConfig
from fedjaxrec.orchestration import hosts

_COHORT = flags.DEFINE_integer('cohort', 1000, 'Clients in a round.')
_ITEMS = flags.DEFINE_integer('items', 1000, 'Items in the catalogue.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Rounds in a call.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', '', 'host:port of process 0, or auto; empty: one process.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', 0, 'Processes.')
_PROCESS_ID = flags.DEFINE_integer('process_id', -1, 'This one, from 0.')


def main(_):
  """One row a mode and number of devices."""
  hosts.join(ParallelConfig(
      coordinator=_COORDINATOR.value, num_processes=_NUM_PROCESSES.value,
      process_id=_PROCESS_ID.value))
  if hosts.is_first():
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
        config, population, _ITEMS.value, l2_clip_norm=0.5,
        devices=jax.local_devices() if mode == 'single' else None)
    state, _ = simulation.run(simulation.init(), 0, _ROUNDS.value)
    tables[mode, devices] = np.asarray(state.server.item_table['item'])
    calls[mode, devices] = make_rounds_call(simulation, _ROUNDS.value)
  times = harness.measure(calls, _REPEATS.value)
  if not hosts.is_first():
    return
  reference = tables['single', 1]
  processes = jax.process_count()
  harness.print_table([
      harness.print_row(
          mode=mode, processes=1 if mode == 'single' else processes,
          devices=devices * (1 if mode == 'single' else processes),
          cohort=_COHORT.value,
          median_s=t['median_s'] / _ROUNDS.value,
          clients_per_s=_COHORT.value * _ROUNDS.value / t['median_s'],
          largest_difference=float(
              np.abs(tables[mode, devices] - reference).max()))
      for (mode, devices), t in times.items()])


if __name__ == '__main__':
  app.run(main)
