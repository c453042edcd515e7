"""What does central privacy cost a round: clipping, then noise as well?

The work of `round_throughput`: matrix factorisation FedAvg on explicit ratings,
by default 1,000 clients of 40 ratings in batches of 20, 16 dimensions and 1,000
items, the lightest there is; with `--negatives` of implicit feedback, which is
what the default run trains on. The variants are timed side by side, one after
the other in every repeat; `over_plain` is the median of the ratios within a
repeat, less one.

  python benchmarks/privacy_cost.py --items=1000 --cohort=1000
  python benchmarks/privacy_cost.py --dim=32 --batch=64 --negatives=8 --rounds=2
"""

import statistics
import time

import harness
import jax
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation, make_rounds_call

_ITEMS = flags.DEFINE_integer('items', 1000, 'Items in the catalogue.')
_DIM = flags.DEFINE_integer('dim', 16, 'Dimension of the vectors.')
_HISTORY = flags.DEFINE_integer('history', 40, 'Ratings of a client.')
_BATCH = flags.DEFINE_integer('batch', 20, 'Ratings in a batch.')
_NEGATIVES = flags.DEFINE_integer(
    'negatives', 0, 'Negatives of an interaction; 0: explicit ratings.')
_COHORT = flags.DEFINE_integer('cohort', 1000, 'Clients in a round.')
_POPULATION = flags.DEFINE_integer('population', 2000, 'Clients.')
_REPEATS = flags.DEFINE_integer('repeats', 15, 'Timed calls of each variant.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Rounds in a call.')

_VARIANTS = {
    'plain': {},
    'clipped': {'l2_clip_norm': 0.5},
    'clipped and noised': {'l2_clip_norm': 0.5, 'noise_multiplier': 1.0},
}


def main(_):
  """A row a variant."""
  harness.print_row(machine=harness.describe_machine())
  population = harness.make_population(
      _POPULATION.value, _HISTORY.value, _ITEMS.value)
  config = make_mf_config(
      dim=_DIM.value, batch=_BATCH.value, cohort=_COHORT.value,
      rounds_per_call=_ROUNDS.value, num_negatives=_NEGATIVES.value)
  calls = {
      name: make_rounds_call(
          make_mf_simulation(config, population, _ITEMS.value, **settings),
          _ROUNDS.value)
      for name, settings in _VARIANTS.items()}
  seconds = {name: [] for name in calls}
  for repeat in range(_REPEATS.value + 1):
    for name, call in calls.items():
      begin = time.perf_counter()
      jax.block_until_ready(call())
      if repeat:  # The first one compiles.
        seconds[name].append((time.perf_counter() - begin) / _ROUNDS.value)
  harness.print_table([
      harness.print_row(
          variant=name, items=_ITEMS.value, cohort=_COHORT.value,
          negatives=_NEGATIVES.value,
          repeats=_REPEATS.value, median_s=statistics.median(times),
          min_s=min(times), over_plain=statistics.median(
              own / plain for own, plain in zip(
                  times, seconds['plain'], strict=True)) - 1,
          over_plain_by_min=min(times) / min(seconds['plain']) - 1)
      for name, times in seconds.items()])


if __name__ == '__main__':
  app.run(main)
