"""How many clients train at once, and in which size classes, unless asked for.

Performance only: results do not depend on what is chosen here.
"""

import numpy as np

from fedjaxrec.config import Config
from fedjaxrec.participation.plan import choose_capacities, choose_tile

# On a CPU a block's rows should fit the cache of a core, and small blocks hold
# clients more alike; below 8 a call costs more than what it does.
_CPU_BLOCK_SIZES = (8, 16, 32)
_CPU_BLOCK_BYTES = 2**20
# An accelerator wants many at once, as far as its memory goes.
_ACCELERATOR_BLOCK_SIZE = 512
_ACCELERATOR_BLOCK_SHARE = 0.25
_SLOT_COPIES = 4
# A block stops when its longest client has: classes only bound its room, and
# each costs a second of compilation, for which it should save some.
_NUM_SIZE_CLASSES = 4
_LEAST_SAVING = 1.05


def choose_block_size(
    config: Config, platform: str, max_cohort: int, num_examples: np.ndarray,
    device_bytes: int = 0
) -> int:
  """Clients trained at once: as asked for, or what suits the backend.

  On a CPU 8, 16 or 32: the most whose rows, of clients of mean size, are within
  a megabyte. On an accelerator 512, or as many of the largest clients as a
  quarter of its memory holds.

  Args:
    config: The whole config.
    platform: Of the devices: cpu, gpu or tpu.
    max_cohort: The largest cohort; no block is larger.
    num_examples: int [num_clients]: training interactions.
    device_bytes: A device's memory; 0 where it is not known.
  """
  if config.engine.block_size:
    return min(max_cohort, config.engine.block_size)
  row_bytes = 4 * (config.model.dim + 1)
  if platform == 'cpu':
    client_bytes = row_bytes * _slots_of_client(config, num_examples)
    fit = [size for size in _CPU_BLOCK_SIZES
           if size * client_bytes <= _CPU_BLOCK_BYTES]
    return min(max_cohort, max(fit, default=_CPU_BLOCK_SIZES[0]))
  size = _ACCELERATOR_BLOCK_SIZE
  largest = _SLOT_COPIES * row_bytes * int(num_examples.max()) * (
      1 + config.objective.drawn_negatives)
  while device_bytes and size > 1 and (
      size * largest > _ACCELERATOR_BLOCK_SHARE * device_bytes):
    size //= 2
  return min(max_cohort, size)


def choose_classes(config: Config, num_examples: np.ndarray) -> tuple[int, ...]:
  """The size classes: as many as asked for, or as are worth compiling."""
  def choose(number):
    return choose_capacities(
        num_examples, number, config.client.batch_size,
        choose_tile(config.client.batch_size))

  def room(capacities):
    trains = num_examples[num_examples > 0]
    return np.asarray(capacities)[np.searchsorted(capacities, trains)].sum()

  if config.engine.num_size_classes:
    return choose(config.engine.num_size_classes)
  chosen = choose(1)
  for number in range(2, _NUM_SIZE_CLASSES + 1):
    finer = choose(number)
    if not finer or room(chosen) < _LEAST_SAVING * room(finer):
      break
    chosen = finer
  return chosen


def _slots_of_client(config: Config, num_examples: np.ndarray) -> float:
  """Item rows of a client of mean size."""
  return num_examples[num_examples > 0].mean() * (
      1 + config.objective.drawn_negatives)
