"""From cohorts to blocks: size classes, and the plan of a chunk of rounds."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
  """Who trains where, for a chunk of rounds.

  The arrays have the leading axis [num_devices]; each device gets its own slice
  without it.

  Attributes:
    local_index: A tuple, one for each size class: int32 [rounds, blocks, B],
      clients by their index on this device; clients_per_device where the place
      is empty.
    num_blocks: int32 [rounds, classes]: blocks in use.
  """
  local_index: tuple[np.ndarray, ...]
  num_blocks: np.ndarray


def choose_tile(batch_size: int) -> int:
  """Interactions of a batch that are computed at once.

  A client's last batch is rarely whole; by tiles it costs little more than it
  holds. Smaller ones are hardly better packed, and cost more to begin.

  Args:
    batch_size: Interactions in a batch.

  Returns:
    The largest divisor of batches of 32 and more from 8 to 24; 0 where there is
    none: the whole batch at once.
  """
  if batch_size < 32:
    return 0
  return max((tile for tile in range(8, 25) if batch_size % tile == 0),
             default=0)


def choose_capacities(
    num_examples: np.ndarray, num_classes: int, batch_size: int, tile: int = 0
) -> tuple[int, ...]:
  """Chooses size classes that waste the least room.

  Each client is padded to the capacity of the smallest class that holds it; the
  capacities minimise the padded total over the population (exact dynamic
  programme over the distinct sizes). A capacity above batch_size is a multiple
  of it, because batches are whole slices.

  Args:
    num_examples: int [num_clients]: training interactions.
    num_classes: Most classes to use.
    batch_size: Interactions in a batch.
    tile: Smaller capacities are multiples of it, from `choose_tile`.

  Returns:
    Increasing capacities; the last holds every client. Cost: O(distinct sizes
    ^ 2 * classes), with the sizes thinned to 512 candidates.
  """
  counts = np.asarray(num_examples)
  counts = counts[counts > 0]
  rounded = np.where(
      counts > batch_size, -(-counts // batch_size) * batch_size,
      -(-counts // max(tile, 1)) * max(tile, 1))
  sizes, frequency = np.unique(rounded, return_counts=True)
  if len(sizes) > 512:
    kept = np.unique(np.linspace(0, len(sizes) - 1, 512).astype(int))
    group = np.searchsorted(kept, np.arange(len(sizes)))
    sizes, frequency = sizes[kept], np.bincount(group, frequency)
  below = np.concatenate([[0], np.cumsum(frequency)])
  # best[j]: least room for the clients of the first j sizes.
  best = np.concatenate([[0.0], np.full(len(sizes), np.inf)])
  choices = []
  for _ in range(min(num_classes, len(sizes))):
    # Room if sizes i..j-1 make one class: their clients times the largest.
    room = best[:, None] + np.where(
        np.arange(len(sizes) + 1)[:, None] < np.arange(len(sizes) + 1),
        (below[None, :] - below[:, None])
        * np.concatenate([[0], sizes])[None, :], np.inf)
    choices.append(room.argmin(0))
    best = np.minimum.reduce(room)
    best[0] = 0.0
  capacities, end = [], len(sizes)
  for choice in reversed(choices):
    if end == 0:
      break
    capacities.append(int(sizes[end - 1]))
    end = choice[end]
  return tuple(reversed(capacities))


def most_blocks(
    num_examples: np.ndarray, capacities: tuple[int, ...], block_size: int,
    max_cohort: int
) -> np.ndarray:
  """Blocks of each size class, if the largest clients come together.

  No cohort has more room in its blocks: ordered by size, each of its clients is
  at most as large as the one in its place here.

  Returns:
    int64 [classes].
  """
  longest = np.sort(num_examples)[::-1][:max_cohort:block_size]
  return np.bincount(
      np.searchsorted(capacities, longest), minlength=len(capacities))


def room_of_plan(
    num_examples: np.ndarray, capacities: tuple[int, ...], block_size: int,
    num_devices: int, max_cohort: int
) -> np.ndarray:
  """Most blocks of each size class on a device, in whatever cohort.

  Not all classes can have as many in one cohort; see `most_blocks`.

  Returns:
    int64 [classes], each at least 1.
  """
  num_classes = len(capacities)
  trains = np.flatnonzero(num_examples)
  # No round can have more of a class on a device than live there, and a block
  # belongs to the class of its longest client.
  members = np.bincount(
      (trains % num_devices) * num_classes
      + np.searchsorted(capacities, num_examples[trains]),
      minlength=num_devices * num_classes).reshape(num_devices, -1).max(0)
  return np.maximum(-(-np.minimum(members, max_cohort) // block_size), 1)


def make_planner(
    num_examples: np.ndarray,
    capacities: tuple[int, ...],
    block_size: int,
    num_devices: int,
    max_cohort: int,
    plan_rounds: int,
) -> Callable[[Callable[[int], np.ndarray], int, int], Plan]:
  """Builds plan(sample, first_round, num_rounds), of one static shape.

  Args:
    num_examples: int [num_clients]: training interactions.
    capacities: The size classes, from `choose_capacities`.
    block_size: Clients trained at once.
    num_devices: Devices that share the population; client c is at home on
      c % num_devices.
    max_cohort: The largest cohort that a round can have.
    plan_rounds: Rounds that a plan has room for.

  Returns:
    plan(sample, first_round, num_rounds) -> Plan of NumPy arrays with the
    leading axis [num_devices], for the rounds first_round, ..., first_round +
    num_rounds - 1; num_rounds is at most plan_rounds.
  """
  num_classes = len(capacities)
  per_device = -(-len(num_examples) // num_devices)
  class_of = np.searchsorted(capacities, num_examples).astype(np.int32)
  blocks = room_of_plan(
      num_examples, capacities, block_size, num_devices, max_cohort)

  def plan(sample, first_round, num_rounds):
    local_index = tuple(
        np.full((num_devices, plan_rounds, count, block_size), per_device,
                np.int32) for count in blocks)
    num_blocks = np.zeros((num_devices, plan_rounds, num_classes), np.int32)
    for r in range(num_rounds):
      cohort = sample(first_round + r)
      # Alike clients share a block, for it runs as long as its longest. Only a
      # device's last block can have empty places: where a class runs out, the
      # next smaller one fills its block.
      home = cohort % num_devices
      order = np.lexsort((cohort, -num_examples[cohort], home))
      cohort, home = cohort[order], home[order]
      starts = np.searchsorted(home, np.arange(num_devices))
      block, lane = np.divmod(
          np.arange(len(cohort)) - starts[home], block_size)
      longest = np.arange(len(cohort)) - lane
      of_class = class_of[cohort[longest]]
      # Classes fall along a device's blocks, so each has consecutive ones.
      opens = lane == 0
      np.add.at(num_blocks[:, r], (home[opens], of_class[opens]), 1)
      before = np.cumsum(num_blocks[:, r, ::-1], 1)[:, ::-1] - num_blocks[:, r]
      for index, array in enumerate(local_index):
        mine = of_class == index
        array[home[mine], r, block[mine] - before[home[mine], index],
              lane[mine]] = cohort[mine] // num_devices
    return Plan(local_index, num_blocks)

  return plan
