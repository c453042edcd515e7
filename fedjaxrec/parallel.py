"""One device or many: the same per-device function under jit, shard_map, pmap.

Every client has a home device; its data and its personal parameters stay there.
The server's state is replicated, and one `psum` a round is all that crosses.
The devices may be those of several processes, one on each host: then an array
at home is spread over them, and each process holds and sends its own rows only.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjaxrec.config import ParallelConfig

PyTree = Any
AXIS = 'clients'


class Placement(NamedTuple):
  """The devices in use and how they are driven.

  Attributes:
    mode: single, shard_map or pmap.
    devices: The devices of all processes, in order of their clients' ids modulo
      their number. Those of a process stand together, as many in each.
  """
  mode: str
  devices: tuple[jax.Device, ...]

  @property
  def num_devices(self) -> int:
    """How many devices share the work."""
    return len(self.devices)

  @property
  def axis_name(self) -> str | None:
    """The mapped axis of the devices; None on a single one."""
    return None if self.mode == 'single' else AXIS

  @property
  def homes(self) -> range:
    """Places in `devices` of those that this process drives."""
    mine = [place for place, device in enumerate(self.devices)
            if device.process_index == jax.process_index()]
    return range(mine[0], mine[-1] + 1)

  @property
  def num_processes(self) -> int:
    """How many processes drive them."""
    return len({device.process_index for device in self.devices})


def choose_placement(
    config: ParallelConfig, devices: Sequence[jax.Device] | None = None
) -> Placement:
  """Chooses the devices and the mode.

  Args:
    config: The parallel config; num_devices are taken of each process.
    devices: Devices to choose from; None: all of all processes.

  Raises:
    ValueError: If more devices are asked for than there are, if processes have
      different numbers of them, or if one device is meant and several processes
      have been joined.
  """
  by_process: dict[int, list[jax.Device]] = {}
  for device in jax.devices() if devices is None else devices:
    by_process.setdefault(device.process_index, []).append(device)
  wanted = config.num_devices or max(map(len, by_process.values()))
  if config.mode == 'single':
    if config.num_devices > 1:
      raise ValueError(
          f'parallel.num_devices={config.num_devices} with parallel.mode='
          'single: one device is all that mode uses; drop one of the two.')
    if len(by_process) > 1:
      raise ValueError(
          f'parallel.mode=single in {len(by_process)} processes: one device is '
          'all that mode uses; use shard_map, or start one process.')
    wanted = 1
  for process, found in sorted(by_process.items()):
    if wanted <= len(found):
      continue
    if not config.num_devices:
      raise ValueError(
          f'{len(found)} devices in process {process} and {wanted} in another: '
          'each process needs as many; give all --parallel.num_devices='
          f'{min(map(len, by_process.values()))}, or hide devices.')
    where = f' of process {process}' if len(by_process) > 1 else ''
    raise ValueError(
        f'parallel.num_devices={wanted}, but there are {len(found)} local '
        f'devices{where}; on a CPU, set XLA_FLAGS='
        f'--xla_force_host_platform_device_count={wanted} to simulate more.')
  mode = config.mode
  if mode == 'auto':
    mode = 'single' if wanted * len(by_process) == 1 else 'shard_map'
  return Placement(mode, tuple(
      device for _, found in sorted(by_process.items())
      for device in found[:wanted]))


def distribute(run: Callable, placement: Placement) -> Any:
  """Wraps a per-device run(server, personal, data, plan, num_rounds, key).

  Args:
    run: From `rounds.make_run_rounds`; sees one device's clients only.
    placement: The devices.

  Returns:
    The compiled function of the whole: leaves of personal, data and plan have
    the leading axis [num_devices]. The server's state and the personal
    parameters are donated: do not use them after the call. In several processes
    all of them call it, and num_rounds is a NumPy number.
  """
  def drop_axis(tree):
    return jax.tree.map(lambda x: x[0], tree)

  def add_axis(tree):
    return jax.tree.map(lambda x: x[None], tree)

  def on_block(server, personal, data, plan, num_rounds, key):
    server, personal, metrics = run(
        server, drop_axis(personal), drop_axis(data), drop_axis(plan),
        num_rounds, key)
    return server, add_axis(personal), metrics

  if placement.mode == 'single':
    return jax.jit(on_block, donate_argnums=(0, 1))
  if placement.mode == 'shard_map':
    everywhere, at_home = PartitionSpec(), PartitionSpec(AXIS)
    return jax.jit(
        jax.shard_map(
            on_block, mesh=_mesh(placement.devices), check_vma=False,
            in_specs=(everywhere, at_home, at_home, at_home, everywhere,
                      everywhere),
            out_specs=(everywhere, at_home, everywhere)),
        donate_argnums=(0, 1))
  return jax.pmap(
      run, axis_name=AXIS, devices=placement.devices,
      in_axes=(None, 0, 0, 0, None, None), out_axes=(None, 0, None),
      donate_argnums=(0, 1))


def put_at_home(tree: PyTree, placement: Placement) -> PyTree:
  """Sends leaves [num_devices, ...], or this process's rows, to their devices.

  Args:
    tree: Leaves with a row for each device, of which the process's own are
      sent, or with a row for each of its own devices.
    placement: The devices.

  Returns:
    Leaves [num_devices, ...]; under pmap in several processes the process's own
    rows, which is what it takes.
  """
  if placement.mode == 'single':
    return jax.device_put(tree, placement.devices[0])
  if placement.num_processes == 1:
    return jax.device_put(tree, _at_home(placement.devices))
  homes, size = placement.homes, placement.num_devices

  def put(x):
    first = homes.start if len(x) == size else 0
    rows = [jax.device_put(x[first + i:first + i + 1], placement.devices[home])
            for i, home in enumerate(homes)]
    return _join_rows(rows, placement, placement.mode == 'pmap')

  return jax.tree.map(put, tree)


def put_everywhere(tree: PyTree, placement: Placement) -> PyTree:
  """Sends the same leaves to every device; every process sends to its own."""
  if placement.mode == 'single':
    return jax.device_put(tree, placement.devices[0])
  if placement.num_processes == 1:
    return jax.device_put(
        tree, NamedSharding(_mesh(placement.devices), PartitionSpec()))
  mine = tuple(placement.devices[home] for home in placement.homes)
  sharding = NamedSharding(
      _mesh(mine if placement.mode == 'pmap' else placement.devices),
      PartitionSpec())
  return jax.tree.map(
      lambda x: jax.make_array_from_single_device_arrays(
          np.shape(x), sharding, [jax.device_put(x, d) for d in mine]), tree)


def spread(tree: PyTree, placement: Placement) -> PyTree:
  """What is at home as leaves [num_devices, ...] of all processes; no copy."""
  if placement.mode != 'pmap' or placement.num_processes == 1:
    return tree
  return jax.tree.map(
      lambda x: _join_rows(_own_rows(x), placement, False), tree)


def gather(tree: PyTree, placement: Placement) -> PyTree:
  """What is at home as NumPy leaves [num_devices, ...], whole in each process.

  In several processes all of them call it. Each needs room for the whole on the
  host, and one of its devices for a moment too.
  """
  if placement.num_processes == 1:
    return jax.tree.map(np.asarray, tree)
  return jax.tree.map(
      lambda x: np.asarray(multihost_utils.process_allgather(
          np.concatenate([np.asarray(row) for row in _own_rows(x)]),
          tiled=True)), tree)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
  return Mesh(np.array(devices), (AXIS,))


def _at_home(devices: Sequence[jax.Device]) -> NamedSharding:
  return NamedSharding(_mesh(devices), PartitionSpec(AXIS))


def _own_rows(x: jax.Array) -> list[jax.Array]:
  """The rows [1, ...] of this process's devices, in order of the devices."""
  return [shard.data for shard in sorted(
      x.addressable_shards, key=lambda shard: shard.index[0].start or 0)]


def _join_rows(
    rows: list[jax.Array], placement: Placement, own_only: bool
) -> jax.Array:
  """One array of rows [1, ...] that lie on this process's devices."""
  devices = [placement.devices[home] for home in placement.homes]
  sharding = _at_home(devices if own_only else placement.devices)
  return jax.make_array_from_single_device_arrays(
      (len(sharding.device_set), *rows[0].shape[1:]), sharding, rows)
