"""The estimate before compiling, against what the compiler then reports."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.memory import Memory, check_memory, size_of
from fedjaxrec.simulation import make_simulation
from tests import oracles

CONFIG = config.Config(
    rounds=2, model=config.ModelConfig(dim=16),
    cohort=config.CohortConfig(size=40),
    parallel=config.ParallelConfig(mode='single'),
    engine=config.EngineConfig(block_size=8, num_size_classes=1))
CHAIN = config.CompressionConfig(sparsify='top_k', quantize='qsgd')


def simulate(num_items, **sections):
  population = oracles.make_population([20, 30] * 30, num_items, seed=1)
  return make_simulation(
      dataclasses.replace(CONFIG, **sections), population.offsets,
      population.items, population.labels, num_items)


@pytest.mark.parametrize(('num_items', 'sections'), [
    (400, {'engine': config.EngineConfig(block_size=40, num_size_classes=1)}),
    (50_000, {}),
    (400, {'compression': CHAIN}),
], ids=['block', 'table', 'chain'])
def test_the_compiled_round_needs_about_what_was_estimated(
    num_items, sections):
  simulation = simulate(num_items, **sections)
  memory = simulation.memory
  ratio = (memory.step + memory.block) / simulation.temporary_bytes()
  assert 0.5 < ratio < 2, ratio


def test_the_parts_at_rest_are_what_they_weigh():
  simulation = simulate(400)
  state = simulation.init()
  assert simulation.memory.server == size_of(state.server)
  assert simulation.memory.personal == size_of(state.personal)


def test_what_does_not_fit_is_refused_by_its_largest_part():
  memory = Memory(data=2**30, personal=0, server=0, step=0, block=3 * 2**30,
                  plan=0)
  check_memory(memory, 4 * 2**30, 'cpu')
  with pytest.raises(ValueError, match=(
      r'about 4\.0 GiB on each device \(cpu has 3\.9\): lower '
      r'--engine\.block_size; the largest part is block with 3\.0 GiB')):
    check_memory(memory, int(3.9 * 2**30), 'cpu')
  for part in Memory._fields:
    big = Memory(*(2**40 if name == part else 1 for name in Memory._fields))
    with pytest.raises(ValueError, match=f'largest part is {part}'):
      check_memory(big, 2**30, 'cpu')


def test_a_size_counts_bytes_of_any_type():
  assert size_of({'a': jnp.zeros((3, 2), jnp.bfloat16),
                  'b': np.zeros(5, np.int32)}) == 12 + 20


def test_smaller_tables_are_seen():
  half = simulate(
      50_000, model=dataclasses.replace(CONFIG.model, table_dtype='bfloat16'))
  whole = simulate(50_000)
  saved = whole.memory.server - half.memory.server
  assert saved == 50_000 * (16 + 1) * 2
