"""What do eight seeds in one program cost, against eight runs one by one?

The main job's rounds (default config, a population of ML-100K's shape, made up)
with `--seeds` seeds: side by side in one compiled program, and one after
another, each with a program of its own as `fedjaxrec train` has it. Both do the
same rounds: losses are compared. Compilation apart; then rounds by rounds.

  python benchmarks/studies.py --seeds=8 --rounds=25
"""

import dataclasses
import time

import harness
import jax
import numpy as np
from absl import app, flags

from fedjaxrec.config import Config, ParallelConfig
from fedjaxrec.simulation import make_simulation
from fedjaxrec.study import make_study

_SEEDS = flags.DEFINE_integer('seeds', 8, 'Members of the study.')
_ROUNDS = flags.DEFINE_integer('rounds', 25, 'Rounds of a timed call.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Timed calls of each.')
_COHORT = flags.DEFINE_integer('cohort', 150, 'Clients a round.')
_DIM = flags.DEFINE_integer('dim', 32, "The model's dimension.")


def compile_and_start(runner):
  """Returns (seconds to compile and to start, the state)."""
  begin = time.perf_counter()
  state, _ = runner.run(runner.init(), 0, 0)
  jax.block_until_ready(state)
  return time.perf_counter() - begin, state


def main(_):
  """One row for each way."""
  harness.print_row(machine=harness.describe_machine())
  population = harness.make_long_tailed_population()
  base = Config(rounds=10**6, parallel=ParallelConfig(mode='single'))
  base = dataclasses.replace(
      base, cohort=dataclasses.replace(base.cohort, size=_COHORT.value),
      model=dataclasses.replace(base.model, dim=_DIM.value),
      engine=dataclasses.replace(base.engine, rounds_per_call=_ROUNDS.value))
  configs = [dataclasses.replace(base, seed=seed)
             for seed in range(_SEEDS.value)]
  study = make_study(configs, [population] * len(configs), 1682)
  singles = [make_simulation(c, *population, 1682) for c in configs]

  study_compile_s, study_state = compile_and_start(study)
  started = [compile_and_start(single) for single in singles]
  states = {'study': study_state, 'singles': [s for _, s in started]}
  holder = {'round': 0}

  def run_study():
    states['study'], metrics = study.run(
        states['study'], holder['round'], _ROUNDS.value)
    return metrics.loss

  def run_singles():
    losses = []
    for index, single in enumerate(singles):
      states['singles'][index], metrics = single.run(
          states['singles'][index], holder['round'], _ROUNDS.value)
      losses.append(np.asarray(metrics.loss))
    return np.stack(losses)

  times = {'one program': [], 'one by one': []}
  for _ in range(_REPEATS.value):
    found = {}
    for name, call in (('one program', run_study), ('one by one', run_singles)):
      begin = time.perf_counter()
      found[name] = np.asarray(call())
      times[name].append(time.perf_counter() - begin)
    np.testing.assert_allclose(
        found['one program'], found['one by one'], rtol=1e-3)
    holder['round'] += _ROUNDS.value

  rows = []
  for name, compile_s in (
      ('one program', study_compile_s),
      ('one by one', sum(seconds for seconds, _ in started))):
    median_s = float(np.median(times[name]))
    rows.append(harness.print_row(
        variant=name, seeds=len(configs), rounds=_ROUNDS.value,
        compile_s=compile_s, median_s=median_s,
        rounds_per_s=len(configs) * _ROUNDS.value / median_s,
        # Of a run of 500 rounds a seed, compilation included.
        total_of_500_rounds_s=compile_s + 500 / _ROUNDS.value * median_s))
  for row in rows:
    row['times_faster'] = rows[1]['total_of_500_rounds_s'] / row[
        'total_of_500_rounds_s']
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
