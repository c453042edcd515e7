"""Which devices are chosen, and what lives where."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import parallel, population
from fedjaxrec.config import ParallelConfig

DEVICES = jax.local_devices()


class OfHost(NamedTuple):
  """As much of a device as choosing takes."""
  process_index: int
  id: int


def of_hosts(*counts):
  return [OfHost(process, i) for process, count in enumerate(counts)
          for i in range(count)]


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


def test_devices_of_all_hosts_are_used_host_by_host():
  mixed = [OfHost(1, 0), OfHost(0, 0), OfHost(1, 1), OfHost(0, 1)]
  placement = parallel.choose_placement(ParallelConfig(), mixed)
  assert placement.mode == 'shard_map'
  assert placement.devices == tuple(of_hosts(2, 2))
  assert placement.num_processes == 2
  assert placement.homes == range(2)  # This is process 0.


def test_one_device_on_each_of_two_hosts_is_several():
  placement = parallel.choose_placement(ParallelConfig(), of_hosts(1, 1))
  assert (placement.mode, placement.num_devices) == ('shard_map', 2)
  assert placement.homes == range(1)


def test_the_number_of_devices_is_of_each_host():
  placement = parallel.choose_placement(
      ParallelConfig(num_devices=2), of_hosts(4, 3))
  assert placement.devices == (
      OfHost(0, 0), OfHost(0, 1), OfHost(1, 0), OfHost(1, 1))


@pytest.mark.parametrize(('config', 'devices', 'message'), [
    (ParallelConfig(num_devices=3), of_hosts(4, 2),
     'parallel.num_devices=3, .* 2 local devices of process 1'),
    (ParallelConfig(), of_hosts(4, 2),
     '2 devices in process 1 and 4 in another.*parallel.num_devices=2'),
    (ParallelConfig(mode='single'), of_hosts(1, 1),
     'parallel.mode=single in 2 processes.*use shard_map'),
])
def test_hosts_that_do_not_fit_are_refused(config, devices, message):
  with pytest.raises(ValueError, match=message):
    parallel.choose_placement(config, devices)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'coordinator': 'node1'}, "coordinator='node1' must be auto, or the host"),
    ({'coordinator': ':1234'}, "coordinator=':1234' must be auto"),
    ({'coordinator': 'node1:'}, 'a port from 1 to 65535'),
    ({'coordinator': 'node1:0'}, 'a port from 1 to 65535'),
    ({'coordinator': 'node1:65536'}, 'a port from 1 to 65535'),
    ({'coordinator': 'node1:1'}, 'num_processes=0 with .*how many'),
    ({'coordinator': 'node1:1', 'num_processes': 2},
     'process_id=-1 must be from 0 to 1'),
    ({'coordinator': 'node1:1', 'num_processes': 2, 'process_id': 2},
     'process_id=2 must be from 0 to 1'),
    ({'num_processes': 2}, "coordinator='': they belong to the host:port"),
    ({'coordinator': 'auto', 'process_id': 0}, "coordinator='auto': they"),
    ({'coordinator': 'auto', 'join_timeout_s': 0}, 'join_timeout_s=0'),
    ({'num_processes': -1}, 'num_processes=-1'),
    ({'process_id': -2}, 'process_id=-2'),
    ({'coordinator': 'node1:1', 'num_processes': 2, 'process_id': 1,
      'mode': 'single'}, 'parallel.mode=single with parallel.num_processes=2'),
])
def test_a_launch_that_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    ParallelConfig(**fields)


@pytest.mark.parametrize('coordinator', ['auto', '[::1]:12355', 'a.b:1'])
def test_a_launch_that_can_be_is_accepted(coordinator):
  fields = {} if coordinator == 'auto' else {
      'num_processes': 3, 'process_id': 2}
  assert ParallelConfig(
      coordinator=coordinator, **fields).coordinator == coordinator


@pytest.mark.parametrize('presorted', [True, False])
@pytest.mark.parametrize('homes', [range(1), range(1, 3), range(3)])
def test_a_process_lays_out_its_own_clients_as_all_do(homes, presorted):
  """Seven clients on three devices, one without data."""
  rng = np.random.default_rng(0)
  counts = [3, 1, 0, 4, 2, 5, 1]
  offsets = np.concatenate([[0], np.cumsum(counts)])
  rows = [rng.permutation(20)[:count] for count in counts]
  items = np.concatenate(
      [np.sort(row) if presorted else row for row in rows]).astype(np.int32)
  labels = (items + 0.5).astype(np.float32)
  whole = population.place_clients(offsets, items, labels, 3)
  own = population.place_clients(offsets, items, labels, 3, homes)
  for name in ('offsets', 'items', 'labels'):
    np.testing.assert_array_equal(
        getattr(own, name), getattr(whole, name)[homes.start:homes.stop])
  for client, row in enumerate(rows):  # And all is what was given.
    start = whole.offsets[client % 3, client // 3]
    found = whole.items[client % 3, start:start + len(row)]
    np.testing.assert_array_equal(found, np.sort(row))
    np.testing.assert_array_equal(
        whole.labels[client % 3, start:start + len(row)],
        found + 0.5)


def test_a_process_begins_with_its_own_clients_parameters():
  def init(key):
    return jax.random.normal(key, (2,))

  key = jax.random.key(0)
  whole = population.make_init_personal(init, 7, 3)(key)
  own = population.make_init_personal(init, 7, 3, range(1, 3))(key)
  np.testing.assert_array_equal(own, whole[1:])


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
  server_before = parallel.put_everywhere(jnp.int32(1000), placement)
  personal_before = parallel.put_at_home(home, placement)
  server, personal, metrics = parallel.distribute(run, placement)(
      server_before, personal_before, parallel.put_at_home(home, placement),
      parallel.put_at_home(np.zeros((n, 1)), placement), jnp.int32(2),
      parallel.put_everywhere(jax.random.key(0), placement))
  assert int(metrics) == 506  # 0 + 1 + 4 + ... + 121.
  assert int(server) == 1000 + 2 * 506
  np.testing.assert_array_equal(personal, home + 1)
  np.testing.assert_array_equal(
      parallel.gather(personal, placement), home + 1)
  assert parallel.spread(personal, placement) is personal
  # In no mode is there a second copy of the state.
  assert server_before.is_deleted() and personal_before.is_deleted()
