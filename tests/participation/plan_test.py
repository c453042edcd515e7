"""Size classes against brute force; a plan holds each member exactly once."""

import collections
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec.participation.plan import (
    choose_capacities,
    make_planner,
    most_blocks,
)

POSITIVE_COUNTS = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def room(counts, capacities):
  """Places that a population takes, each client padded to its class."""
  return sum(min(c for c in capacities if c >= n) for n in counts if n)


def least_room(counts, num_classes, batch_size):
  """Tries every choice of capacities among those that are allowed."""
  allowed = range(1, max(counts) + batch_size)
  allowed = [c for c in allowed if c <= batch_size or c % batch_size == 0]
  return min(
      room(counts, chosen)
      for k in range(1, num_classes + 1)
      for chosen in itertools.combinations(allowed, min(k, len(allowed)))
      if max(chosen) >= max(counts))


@hypothesis.given(POSITIVE_COUNTS, st.integers(1, 3), st.integers(1, 5))
def test_no_choice_of_capacities_wastes_less(counts, num_classes, batch_size):
  capacities = choose_capacities(np.array(counts), num_classes, batch_size)
  assert list(capacities) == sorted(set(capacities))
  assert len(capacities) <= num_classes
  assert all(isinstance(c, int) for c in capacities)
  assert all(c <= batch_size or c % batch_size == 0 for c in capacities)
  assert capacities[-1] >= max(counts)
  assert room(counts, capacities) == least_room(
      counts, num_classes, batch_size)


def test_capacities_by_hand():
  counts = np.array([1, 1, 1, 1, 9, 10, 100])
  assert choose_capacities(counts, 1, 128) == (100,)
  assert choose_capacities(counts, 2, 128) == (10, 100)
  assert choose_capacities(counts, 3, 128) == (1, 10, 100)
  # More classes than sizes are not used; above a batch, whole batches.
  assert choose_capacities(counts, 9, 128) == (1, 9, 10, 100)
  assert choose_capacities(counts, 3, 8) == (1, 16, 104)


def test_clients_without_interactions_ask_for_no_room():
  counts = np.array([0, 0, 0, 3, 5])
  assert choose_capacities(counts, 2, 4) == (3, 8)


def test_many_distinct_sizes_still_hold_everybody():
  """More sizes than candidates: classes stay valid and nearly as good."""
  counts = np.arange(1, 3001)
  capacities = choose_capacities(counts, 4, 10_000)
  assert len(capacities) == 4 and capacities[-1] == 3000
  # Uniform sizes are best cut into equal quarters.
  best = room(counts, (750, 1500, 2250, 3000))
  assert room(counts, capacities) <= 1.01 * best


def members_of(plan, num_classes, num_devices, per_device):
  """Reads a plan back: {(round): [(client, class, device, place), ...]}."""
  found = {}
  rounds = plan.num_blocks.shape[1]
  for d, r, k in itertools.product(
      range(num_devices), range(rounds), range(num_classes)):
    blocks = plan.local_index[k][d, r]
    for b, place in np.ndindex(blocks.shape):
      local = blocks[b, place]
      if local == per_device:
        continue
      assert b < plan.num_blocks[d, r, k], 'a member in a block that is not run'
      found.setdefault(r, []).append((local * num_devices + d, k, (d, k, b)))
  return found


@st.composite
def planning_problems(draw):
  counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=25).filter(
      any))
  eligible = np.flatnonzero(counts)
  cohorts = draw(st.lists(
      st.lists(st.sampled_from(list(eligible)), unique=True), min_size=1,
      max_size=3))
  return np.array(counts), [np.array(c, np.int32) for c in cohorts]


@hypothesis.given(
    planning_problems(), st.integers(1, 4), st.integers(1, 5),
    st.integers(1, 4))
def test_each_member_is_planned_once_at_home_with_room(
    problem, num_devices, block_size, num_classes):
  counts, cohorts = problem
  capacities = choose_capacities(counts, num_classes, 4)
  max_cohort = max(1, max(len(c) for c in cohorts))
  plan_rounds = len(cohorts) + 1
  planner = make_planner(
      counts, capacities, block_size, num_devices, max_cohort, plan_rounds)
  plan = planner(lambda r: cohorts[r - 10], 10, len(cohorts))
  per_device = -(-len(counts) // num_devices)
  found = members_of(plan, len(capacities), num_devices, per_device)
  room = most_blocks(counts, capacities, block_size, max_cohort) @ capacities
  if num_devices == 1:
    assert (plan.num_blocks[0] @ capacities).max() <= room
  for r, cohort in enumerate(cohorts):
    placed = found.get(r, [])
    assert sorted(c for c, _, _ in placed) == sorted(cohort)
    # A block belongs to the class of its longest client: all have room.
    blocks = collections.defaultdict(list)
    for client, of_class, place in placed:
      blocks[of_class, place].append(counts[client])
    for (of_class, _), lengths in blocks.items():
      assert of_class == min(
          k for k, room in enumerate(capacities) if room >= max(lengths))
    # No more blocks are run than the cohort needs.
    for d in range(num_devices):
      here = sum(c % num_devices == d for c in cohort)
      assert plan.num_blocks[d, r].sum() == -(-here // block_size)
  assert not plan.num_blocks[:, len(cohorts):].any()
  # Shapes depend on the population alone, not on who was drawn.
  empty = planner(lambda r: np.zeros(0, np.int32), 0, 1)
  assert [a.shape for a in empty.local_index] == [
      a.shape for a in plan.local_index]
  assert not empty.num_blocks.any()
  assert all(a.dtype == np.int32 for a in (*plan.local_index, plan.num_blocks))
  assert all(a.shape[:2] == (num_devices, plan_rounds)
             and a.shape[3] == block_size for a in plan.local_index)


def test_alike_clients_share_a_block():
  """A block runs as long as its longest client."""
  counts = np.array([8, 1, 7, 2, 6, 3])
  plan = make_planner(counts, (8,), 2, 1, 6, 1)(
      lambda r: np.arange(6, dtype=np.int32), 0, 1)
  blocks = plan.local_index[0][0, 0]
  assert [sorted(counts[b]) for b in blocks] == [[7, 8], [3, 6], [1, 2]]


def test_a_plan_has_room_for_no_more_than_can_come():
  """Not more than the class has on a device, nor more than the cohort."""
  counts = np.array([1] * 100 + [5] * 3)
  planner = make_planner(counts, (1, 5), 4, 1, 20, 1)
  plan = planner(lambda r: np.zeros(0, np.int32), 0, 1)
  assert [a.shape[2] for a in plan.local_index] == [5, 1]


@pytest.mark.parametrize('num_devices', [1, 3])
def test_every_client_can_come_at_once(num_devices):
  counts = np.random.default_rng(0).integers(1, 9, 50)
  capacities = choose_capacities(counts, 3, 4)
  planner = make_planner(counts, capacities, 4, num_devices, 50, 1)
  plan = planner(lambda r: np.arange(50, dtype=np.int32), 0, 1)
  per_device = -(-50 // num_devices)
  found = members_of(plan, len(capacities), num_devices, per_device)
  assert sorted(c for c, _, _ in found[0]) == list(range(50))
