"""Interactions on the host: the same numbers, wherever they are."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.hosted_clients import make_cohort_reader
from fedjaxrec.participation.plan import Plan
from fedjaxrec.population import place_clients
from fedjaxrec.simulation import make_simulation
from tests import oracles

COUNTS = [3, 5, 1, 8, 0, 7, 2, 4, 6, 9, 2]
NUM_ITEMS = 40
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=5)
CONFIG = config.Config(
    rounds=7, model=config.ModelConfig(dim=3),
    client=config.ClientConfig(batch_size=4),
    cohort=config.CohortConfig(size=4),
    engine=config.EngineConfig(
        block_size=2, num_size_classes=2, rounds_per_call=3))


def run(mode, place, items=POPULATION.items):
  settings = dataclasses.replace(
      CONFIG, parallel=config.ParallelConfig(mode=mode),
      engine=dataclasses.replace(CONFIG.engine, data=place))
  simulation = make_simulation(
      settings, POPULATION.offsets, items, POPULATION.labels, NUM_ITEMS)
  state, losses = simulation.init(), []
  # A shorter call than the plan that was made ahead, and one round twice.
  for first, num in ((0, 3), (3, 1), (4, 3)):
    state, metrics = simulation.run(state, first, num)
    losses.append(np.asarray(metrics.loss)[:num])
  return jax.tree.map(np.asarray, (
      state.server, simulation.personal_by_client(state),
      np.concatenate(losses)))


@pytest.fixture(scope='module')
def on_device():
  return run('single', 'device')


@pytest.mark.parametrize('mode', ['single', 'shard_map'])
def test_a_run_is_the_same_bit_for_bit(mode, on_device):
  expected = on_device if mode == 'single' else run(mode, 'device')
  jax.tree.map(np.testing.assert_array_equal, run(mode, 'host'), expected)


def test_a_memory_mapped_population_is_read_where_it_lies(on_device, tmp_path):
  np.save(tmp_path / 'items.npy', POPULATION.items)
  mapped = np.load(tmp_path / 'items.npy', mmap_mode='r')
  jax.tree.map(
      np.testing.assert_array_equal, run('single', 'host', mapped), on_device)


@pytest.mark.parametrize('num_devices', [1, 3])
def test_a_plan_gets_its_clients_and_no_others(num_devices):
  per_device = -(-len(COUNTS) // num_devices)
  rng = np.random.default_rng(1)
  # Some are invited twice, and some places are empty.
  local_index = tuple(
      rng.integers(0, per_device + 1, (num_devices, 2, 1, 2)).astype(np.int32)
      for _ in range(2))
  for array in local_index:
    home = np.arange(num_devices).reshape(-1, 1, 1, 1)
    array[array * num_devices + home >= len(COUNTS)] = per_device
  plan = Plan(local_index, np.ones((num_devices, 2, 2), np.int32))
  read = make_cohort_reader(
      POPULATION.offsets, POPULATION.items, POPULATION.labels, num_devices,
      range(num_devices), 4, 2)
  data, moved = read(plan)
  resident = place_clients(
      POPULATION.offsets, POPULATION.items, POPULATION.labels, num_devices)
  invited = set()
  for d in range(num_devices):
    for place, local in zip(
        np.concatenate([x[d].reshape(-1) for x in moved.local_index]),
        np.concatenate([x[d].reshape(-1) for x in plan.local_index])):
      if local == per_device:
        assert place == len(data.home[d])
        continue
      invited.add((d, local))
      assert data.home[d, place] == local
      for name in ('items', 'labels'):
        mine = slice(*data.offsets[d, place:place + 2])
        whole = slice(*resident.offsets[d, local:local + 2])
        np.testing.assert_array_equal(
            getattr(data, name)[d, mine], getattr(resident, name)[d, whole])
  assert (data.home < per_device).sum() == len(invited)
  np.testing.assert_array_equal(moved.num_blocks, plan.num_blocks)


def test_two_chunks_have_one_shape():
  read = make_cohort_reader(
      POPULATION.offsets, POPULATION.items, POPULATION.labels, 1, range(1), 4,
      2)
  shapes = []
  for clients in ([0, 1, 2, 3], [9, 9, 4, 11]):
    data, _ = read(Plan(
        (np.array(clients, np.int32).reshape(1, 2, 1, 2),),
        np.ones((1, 2, 1), np.int32)))
    shapes.append(jax.tree.map(np.shape, data))
  assert shapes[0] == shapes[1]


def test_a_chunk_too_large_for_its_offsets_is_refused():
  offsets = np.array([0, 2**31])
  with pytest.raises(ValueError, match=r'engine\.rounds_per_call=5'):
    make_cohort_reader(
        offsets, np.zeros(1, np.int32), np.zeros(1, np.float32), 1, range(1), 1,
        5)
