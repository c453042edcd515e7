"""How long does the default run's round take to compile, and is it once?

Times tracing, lowering and compiling together, in a process that has compiled
nothing before, for the default config on a population of ML-100K's shape; then
runs chunks of different lengths and cohorts and counts compilations.

  python benchmarks/compile_time.py
"""

import time

import harness
import jax
import numpy as np
from absl import app, flags

from fedjaxrec.config import CohortConfig, Config
from fedjaxrec.simulation import make_simulation

_SAMPLER = flags.DEFINE_string('sampler', 'poisson', 'Varies the cohort.')


def main(_):
  """One row."""
  harness.print_row(machine=harness.describe_machine())
  simulation = make_simulation(
      Config(cohort=CohortConfig(size=150, sampler=_SAMPLER.value)),
      *harness.make_long_tailed_population(), 1682)
  state = jax.block_until_ready(simulation.init())
  begin, begin_cpu = time.perf_counter(), time.process_time()
  state, _ = simulation.run(state, 0, 0)
  jax.block_until_ready(state)
  compile_s = time.perf_counter() - begin
  compile_cpu_s = time.process_time() - begin_cpu

  compilations = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda name, secs, **kw: compilations.append(name)
      if name.endswith('backend_compile_duration') else None)
  reported = []
  for first, rounds in ((0, 25), (25, 25), (50, 7), (57, 1)):
    state, metrics = simulation.run(state, first, rounds)
    reported += np.asarray(metrics.reported)[:rounds].tolist()
  rows = [harness.print_row(
      compile_s=compile_s, compile_cpu_s=compile_cpu_s,
      size_classes=len(simulation.capacities), later_chunks=4,
      compilations_of_later_chunks=len(compilations),
      smallest_cohort=min(reported), largest_cohort=max(reported))]
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
