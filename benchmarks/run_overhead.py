"""How much of a run is compiled rounds, and how much is everything else?

A run of `--rounds` rounds at the default config on a population of ML-100K's
shape: planning, transfers, logging of losses and the compiled rounds, without
evaluation. Compares the wall clock with the same rounds from plans made before.

  python benchmarks/run_overhead.py --rounds=500
"""

import time

import harness
import jax
import numpy as np
from absl import app, flags

from fedjaxrec.config import Config
from fedjaxrec.simulation import make_simulation

_ROUNDS = flags.DEFINE_integer('rounds', 500, 'Rounds of the run.')


def main(_):
  """One row."""
  harness.print_row(machine=harness.describe_machine())
  simulation = make_simulation(
      Config(rounds=_ROUNDS.value), *harness.make_long_tailed_population(),
      1682)
  state, _ = simulation.run(simulation.init(), 0, 0)
  jax.block_until_ready(state)
  in_rounds, losses = 0.0, []
  begin = time.perf_counter()
  step = simulation.rounds_per_call
  for first in range(0, _ROUNDS.value, step):
    rounds = min(step, _ROUNDS.value - first)
    plan = simulation.plan(first, rounds)
    start = time.perf_counter()
    state, metrics = simulation.execute(state, plan, rounds)
    losses.append(np.asarray(metrics.loss)[:rounds])
    in_rounds += time.perf_counter() - start
  total = time.perf_counter() - begin
  assert np.isfinite(np.concatenate(losses)).all()
  harness.print_table([harness.print_row(
      rounds=_ROUNDS.value, total_s=total, in_compiled_rounds_s=in_rounds,
      share_in_compiled_rounds=in_rounds / total)])


if __name__ == '__main__':
  app.run(main)
