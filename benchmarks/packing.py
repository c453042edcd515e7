"""How much of what is computed is useful?

Useful examples over examples computed, for a list of client sizes: by default a
log-normal population of ML-1M's shape, or the counts in a file (one integer a
line), such as the training interactions of each ML-1M user.

  python benchmarks/packing.py --counts=FILE --cohorts=1000,6040
"""

import harness
import numpy as np
from absl import app, flags

from fedjaxrec.participation.plan import (
    choose_capacities,
    choose_tile,
    make_planner,
)

_COUNTS = flags.DEFINE_string('counts', '', 'File of client sizes.')
_COHORTS = flags.DEFINE_list('cohorts', ['200', '1000', '6040'], 'Cohorts.')
_BLOCKS = flags.DEFINE_list('blocks', ['8', '16', '32'], 'Block sizes.')
_CLASSES = flags.DEFINE_list('classes', ['1', '4', '8'], 'Size classes.')
_BATCH = flags.DEFINE_integer('batch', 64, 'Interactions in a batch.')
_TILES = flags.DEFINE_bool('tiles', True, 'Compute batches by tiles.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Cohorts drawn.')


def load_counts() -> np.ndarray:
  """Client sizes: of the file, or made up like ML-1M's."""
  if _COUNTS.value:
    return np.loadtxt(_COUNTS.value, dtype=np.int64)
  rng = np.random.default_rng(0)
  sizes = np.exp(rng.normal(np.log(95), 1.0, 6040))
  return np.clip(sizes, 19, 2313).astype(np.int64)


def useful_share(counts, cohort, block, classes) -> float:
  """Of all slots that local training steps over, those with an example."""
  batch = _BATCH.value
  tile = choose_tile(batch) if _TILES.value else 0
  capacities = choose_capacities(counts, classes, batch, tile)
  plan = make_planner(counts, capacities, block, 1, cohort, 1)
  sizes = np.append(counts, 0)
  useful = computed = 0
  for seed in range(_ROUNDS.value):
    members = np.random.default_rng(seed).choice(
        len(counts), cohort, replace=False)
    planned = plan(lambda r, members=members: members, 0, 1)
    for capacity, places, used in zip(
        capacities, planned.local_index, planned.num_blocks[0, 0], strict=True):
      blocks = sizes[places[0, 0, :used]]  # [blocks, B]
      step = min(tile or batch, capacity)
      computed += (-(-blocks.max(1) // step) * step * block).sum()
    useful += counts[members].sum()
  return useful / computed


def main(_):
  """One row a combination of cohort, block and number of classes."""
  counts = load_counts()
  harness.print_row(
      clients=len(counts), mean=counts.mean(), max=int(counts.max()),
      source=_COUNTS.value and 'file' or 'log-normal')
  rows = [
      harness.print_row(
          cohort=min(int(cohort), len(counts)), block=int(block),
          classes=int(classes), batch=_BATCH.value,
          tile=choose_tile(_BATCH.value) if _TILES.value else 0,
          useful=useful_share(
              counts, min(int(cohort), len(counts)), int(block), int(classes)))
      for cohort in _COHORTS.value for block in _BLOCKS.value
      for classes in _CLASSES.value]
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
