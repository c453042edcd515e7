"""Which devices are chosen, and what lives where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import parallel
from fedjaxrec.config import ParallelConfig

DEVICES = jax.local_devices()


@pytest.mark.parametrize(('config', 'mode', 'num_devices'), [
    (ParallelConfig(), 'shard_map', 4),
    (ParallelConfig(num_devices=1), 'single', 1),
    (ParallelConfig(num_devices=3), 'shard_map', 3),
    (ParallelConfig(mode='single'), 'single', 1),
    (ParallelConfig(mode='single', num_devices=1), 'single', 1),
    (ParallelConfig(mode='shard_map', num_devices=1), 'shard_map', 1),
    (ParallelConfig(mode='pmap'), 'pmap', 4),
    (ParallelConfig(mode='pmap', num_devices=2), 'pmap', 2),
])
def test_the_placement_is_the_one_asked_for(config, mode, num_devices):
  placement = parallel.choose_placement(config, DEVICES)
  assert placement.mode == mode
  assert placement.devices == tuple(DEVICES[:num_devices])
  assert placement.num_devices == num_devices
  assert (placement.axis_name is None) == (mode == 'single')


def test_devices_can_be_handed_in():
  placement = parallel.choose_placement(ParallelConfig(), DEVICES[2:3])
  assert placement == parallel.Placement('single', (DEVICES[2],))


def test_more_devices_than_there_are_is_refused():
  with pytest.raises(
      ValueError, match='parallel.num_devices=5, .* 4 .*XLA_FLAGS'):
    parallel.choose_placement(ParallelConfig(num_devices=5), DEVICES)


def test_several_devices_for_the_mode_of_one_are_refused():
  with pytest.raises(ValueError, match='parallel.num_devices=2 with .*single'):
    parallel.choose_placement(
        ParallelConfig(mode='single', num_devices=2), DEVICES)


@pytest.mark.parametrize('mode', ['shard_map', 'pmap'])
def test_home_is_one_device_and_everywhere_is_all(mode):
  placement = parallel.choose_placement(ParallelConfig(mode=mode), DEVICES)
  leaf = np.arange(8.0).reshape(4, 2)
  home = parallel.put_at_home({'x': leaf}, placement)['x']
  assert len(home.addressable_shards) == 4
  for shard in home.addressable_shards:
    place = DEVICES.index(shard.device)
    np.testing.assert_array_equal(shard.data, leaf[place:place + 1])
  everywhere = parallel.put_everywhere({'x': leaf}, placement)['x']
  assert everywhere.is_fully_replicated
  assert len(everywhere.addressable_shards) == 4


@pytest.mark.parametrize('config', [
    ParallelConfig(mode='single'),
    ParallelConfig(mode='shard_map', num_devices=2),
    ParallelConfig(mode='shard_map'),
    ParallelConfig(mode='pmap', num_devices=2),
    ParallelConfig(mode='pmap'),
], ids=lambda c: f'{c.mode} {c.num_devices}')
def test_a_sum_over_the_devices_reaches_all_of_them(config):
  """Integers, so that every mode gives the same bits."""
  placement = parallel.choose_placement(config, DEVICES)
  n = placement.num_devices

  def run(server, personal, data, plan, num_rounds, key):
    del plan, key
    total = (personal * data).sum()
    if placement.axis_name is not None:
      total = jax.lax.psum(total, placement.axis_name)
    return server + total * num_rounds, personal + 1, total

  home = np.arange(12).reshape(n, 12 // n)
  server, personal, metrics = parallel.distribute(run, placement)(
      parallel.put_everywhere(jnp.int32(1000), placement),
      parallel.put_at_home(home, placement),
      parallel.put_at_home(home, placement),
      parallel.put_at_home(np.zeros((n, 1)), placement), jnp.int32(2),
      parallel.put_everywhere(jax.random.key(0), placement))
  assert int(metrics) == 506  # 0 + 1 + 4 + ... + 121.
  assert int(server) == 1000 + 2 * 506
  np.testing.assert_array_equal(personal, home + 1)
