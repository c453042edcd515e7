"""Does a round's time depend on the clients that do not take part?

The work of `round_throughput` at a fixed cohort and growing populations.

  python benchmarks/population_scaling.py --populations=10000,10000000
"""

import harness
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation, make_rounds_call

_POPULATIONS = flags.DEFINE_list(
    'populations', ['10000', '1000000', '10000000'], 'Clients.')
_ITEMS = flags.DEFINE_integer('items', 1000, 'Items in the catalogue.')
_DIM = flags.DEFINE_integer('dim', 16, 'Dimension of the vectors.')
_HISTORY = flags.DEFINE_integer('history', 40, 'Ratings of a client.')
_COHORT = flags.DEFINE_integer('cohort', 1000, 'Clients in a round.')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed calls of each size.')
_ROUNDS = flags.DEFINE_integer('rounds', 20, 'Rounds in a call.')


def main(_):
  """One row a population: planning, transfer and rounds together."""
  harness.print_row(machine=harness.describe_machine())
  config = make_mf_config(
      dim=_DIM.value, batch=20, cohort=_COHORT.value,
      rounds_per_call=_ROUNDS.value)
  calls = {}
  for size in map(int, _POPULATIONS.value):
    population = harness.make_population(size, _HISTORY.value, _ITEMS.value)
    calls[size] = make_rounds_call(
        make_mf_simulation(config, population, _ITEMS.value, l2_clip_norm=0.5),
        _ROUNDS.value)
    del population
  times = harness.measure(calls, _REPEATS.value)
  smallest = times[int(_POPULATIONS.value[0])]['median_s']
  rows = [
      harness.print_row(
          population=size, cohort=_COHORT.value, history=_HISTORY.value,
          median_s=t['median_s'] / _ROUNDS.value,
          min_s=t['min_s'] / _ROUNDS.value,
          times_the_smallest=t['median_s'] / smallest)
      for size, t in times.items()]
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
