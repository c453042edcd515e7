"""What is chosen for a machine and a population, where nothing is asked for."""

import dataclasses

import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.participation.plan import choose_tile
from fedjaxrec.participation.sizes import choose_block_size, choose_classes

CONFIG = config.Config(
    model=config.ModelConfig(dim=31),
    objective=config.ObjectiveConfig(num_negatives=7))


def block(mean, platform='cpu', cohort=1000, device_bytes=0):
  counts = np.array([mean, 0, mean])
  return choose_block_size(CONFIG, platform, cohort, counts, device_bytes)


def test_on_a_cpu_a_block_fits_a_megabyte_where_it_can():
  # A client of n interactions: 8 n rows of 32 numbers, 1 KiB for each n.
  assert [block(n) for n in (1, 32, 33, 64, 65, 128, 4096)] == [
      32, 32, 16, 16, 8, 8, 8]


def test_on_an_accelerator_a_block_fits_a_quarter_of_its_memory():
  # The largest client, four times: 4 MiB.
  assert block(1024, 'gpu') == 512
  assert block(1024, 'gpu', device_bytes=8 * 2**30) == 512
  assert block(1024, 'gpu', device_bytes=8 * 2**30 - 1) == 256
  assert block(1024, 'gpu', device_bytes=1) == 1


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_a_block_is_no_larger_than_the_cohort_and_as_asked_for(platform):
  assert block(1, platform, cohort=5) == 5
  asked = dataclasses.replace(
      CONFIG, engine=config.EngineConfig(block_size=100))
  assert choose_block_size(asked, platform, 1000, np.array([9])) == 100
  assert choose_block_size(asked, platform, 7, np.array([9])) == 7


def test_a_class_is_made_where_it_saves_room():
  batch = config.ClientConfig().batch_size
  assert choose_classes(CONFIG, np.full(9, 100)) == (2 * batch,)
  assert choose_classes(CONFIG, np.array([64] * 99 + [640])) == (64, 640)
  # Two thirds of a percent: not worth a program.
  assert choose_classes(CONFIG, np.array([640] * 99 + [64])) == (640,)
  asked = dataclasses.replace(
      CONFIG, engine=config.EngineConfig(num_size_classes=2))
  assert choose_classes(asked, np.array([640] * 99 + [64])) == (64, 640)


def test_tiles_divide_their_batch():
  assert [choose_tile(n) for n in (1, 20, 31, 32, 51, 53, 64, 100, 256)] == [
      0, 0, 0, 16, 17, 0, 16, 20, 16]
