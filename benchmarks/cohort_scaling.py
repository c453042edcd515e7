"""Do time and memory follow the cohort as they should?

The work of `round_throughput` at growing cohorts and a fixed block size: time a
client should fall to a constant, and the compiled round's temporary memory,
which the compiler reports, should not grow but for the plan's few integers.

  python benchmarks/cohort_scaling.py --cohorts=100,1000,10000 --block=16
"""

import harness
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation, make_rounds_call

_COHORTS = flags.DEFINE_list(
    'cohorts', ['100', '300', '1000', '3000', '10000'], 'Clients in a round.')
_POPULATION = flags.DEFINE_integer('population', 10000, 'Clients.')
_ITEMS = flags.DEFINE_integer('items', 1000, 'Items in the catalogue.')
_DIM = flags.DEFINE_integer('dim', 16, 'Dimension of the vectors.')
_BLOCK = flags.DEFINE_integer('block', 16, 'Clients in a block.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each size.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Rounds in a call.')


def main(_):
  """One row a cohort."""
  harness.print_row(machine=harness.describe_machine())
  population = harness.make_population(_POPULATION.value, 40, _ITEMS.value)
  calls, memory = {}, {}
  for cohort in map(int, _COHORTS.value):
    simulation = make_mf_simulation(
        make_mf_config(
            dim=_DIM.value, batch=20, cohort=cohort, block=_BLOCK.value,
            rounds_per_call=_ROUNDS.value),
        population, _ITEMS.value, l2_clip_norm=0.5)
    memory[cohort] = simulation.temporary_bytes()
    calls[cohort] = make_rounds_call(simulation, _ROUNDS.value)
  times = harness.measure(calls, _REPEATS.value)
  rows = [
      harness.print_row(
          cohort=cohort, block=_BLOCK.value, items=_ITEMS.value,
          median_s=t['median_s'] / _ROUNDS.value,
          microseconds_a_client=t['median_s'] / _ROUNDS.value / cohort * 1e6,
          temporary_mb=memory[cohort] / 1e6)
      for cohort, t in times.items()]
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
