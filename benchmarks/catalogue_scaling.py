"""Does a round's time depend on the catalogue?

The work of `round_throughput`, without noise (noise is one pass over the table,
whoever touched it, and is reported apart), at growing catalogues.

A row of a large table is a page of memory that no cache knows; with
--huge_pages there are fewer pages to know. For a run of one's own, the same is
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in front of its command.

  python benchmarks/catalogue_scaling.py --items=1000,10000,100000,1000000
"""

import harness
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation, make_rounds_call

_ITEMS = flags.DEFINE_list(
    'items', ['1000', '10000', '100000', '1000000'], 'Catalogue sizes.')
_DIM = flags.DEFINE_integer('dim', 16, 'Dimension of the vectors.')
_HISTORY = flags.DEFINE_integer('history', 40, 'Ratings of a client.')
_COHORT = flags.DEFINE_integer('cohort', 1000, 'Clients in a round.')
_POPULATION = flags.DEFINE_integer('population', 2000, 'Clients.')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed calls of each size.')
_HUGE_PAGES = flags.DEFINE_bool(
    'huge_pages', False, 'Starts anew with memory in huge pages.')
_ROUNDS = flags.DEFINE_integer('rounds', 20, 'Rounds in a call.')


def main(_):
  """One row a catalogue size, with clipping, without and with noise."""
  if _HUGE_PAGES.value:
    harness.use_huge_pages()
  harness.print_row(machine=harness.describe_machine())
  config = make_mf_config(
      dim=_DIM.value, batch=20, cohort=_COHORT.value,
      rounds_per_call=_ROUNDS.value)
  calls = {}
  for items in map(int, _ITEMS.value):
    population = harness.make_population(
        _POPULATION.value, _HISTORY.value, items)
    for noise in (0.0, 1.0):
      calls[items, noise] = make_rounds_call(make_mf_simulation(
          config, population, items, l2_clip_norm=0.5, noise_multiplier=noise),
          _ROUNDS.value)
  times = harness.measure(calls, _REPEATS.value)
  smallest = times[int(_ITEMS.value[0]), 0.0]['median_s']
  rows = [
      harness.print_row(
          items=items, noise_multiplier=noise, cohort=_COHORT.value,
          huge_pages=_HUGE_PAGES.value,
          median_s=t['median_s'] / _ROUNDS.value,
          min_s=t['min_s'] / _ROUNDS.value,
          times_the_smallest=t['median_s'] / smallest)
      for (items, noise), t in times.items()]
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
