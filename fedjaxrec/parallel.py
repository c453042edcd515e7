"""One device or many: the same per-device function under jit, shard_map, pmap.

Every client has a home device; its data and its personal parameters stay there.
The server's state is replicated, and one `psum` a round is all that crosses.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjaxrec.config import ParallelConfig

PyTree = Any
AXIS = 'clients'


class Placement(NamedTuple):
  """The devices in use and how they are driven.

  Attributes:
    mode: single, shard_map or pmap.
    devices: The devices, in order of their clients' ids modulo their number.
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


def choose_placement(
    config: ParallelConfig, devices: Sequence[jax.Device] | None = None
) -> Placement:
  """Chooses the devices and the mode.

  Args:
    config: The parallel config.
    devices: Devices to choose from; None: all local ones.

  Raises:
    ValueError: If more devices are asked for than there are.
  """
  devices = tuple(jax.local_devices() if devices is None else devices)
  wanted = config.num_devices or len(devices)
  if config.mode == 'single':
    if config.num_devices > 1:
      raise ValueError(
          f'parallel.num_devices={config.num_devices} with parallel.mode='
          'single: one device is all that mode uses; drop one of the two.')
    wanted = 1
  if wanted > len(devices):
    raise ValueError(
        f'parallel.num_devices={wanted}, but there are {len(devices)} local '
        'devices; on a CPU, set XLA_FLAGS='
        f'--xla_force_host_platform_device_count={wanted} to simulate more.')
  mode = config.mode
  if mode == 'auto':
    mode = 'single' if wanted == 1 else 'shard_map'
  return Placement(mode, devices[:wanted])


def distribute(run: Callable, placement: Placement) -> Any:
  """Wraps a per-device run(server, personal, data, plan, num_rounds, key).

  Args:
    run: From `rounds.make_run_rounds`; sees one device's clients only.
    placement: The devices.

  Returns:
    The compiled function of the whole: leaves of personal, data and plan have
    the leading axis [num_devices]. The personal parameters and, but under
    pmap, the server's state are donated: do not use them after the call.
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
    mesh = Mesh(np.array(placement.devices), (AXIS,))
    everywhere, at_home = PartitionSpec(), PartitionSpec(AXIS)
    return jax.jit(
        jax.shard_map(
            on_block, mesh=mesh, check_vma=False,
            in_specs=(everywhere, at_home, at_home, at_home, everywhere,
                      everywhere),
            out_specs=(everywhere, at_home, everywhere)),
        donate_argnums=(0, 1))
  return jax.pmap(
      run, axis_name=AXIS, devices=placement.devices,
      in_axes=(None, 0, 0, 0, None, None), out_axes=(None, 0, None),
      donate_argnums=(1,))


def put_at_home(tree: PyTree, placement: Placement) -> PyTree:
  """Sends leaves [num_devices, ...] to their devices."""
  if placement.mode == 'single':
    return jax.device_put(tree, placement.devices[0])
  mesh = Mesh(np.array(placement.devices), (AXIS,))
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def put_everywhere(tree: PyTree, placement: Placement) -> PyTree:
  """Sends the same leaves to every device."""
  if placement.mode == 'single':
    return jax.device_put(tree, placement.devices[0])
  mesh = Mesh(np.array(placement.devices), (AXIS,))
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
