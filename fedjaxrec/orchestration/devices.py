"""What the devices of this machine have room for."""

import os

import jax


def available_bytes(device: jax.Device) -> int:
  """Bytes that a device has room for; of a CPU, what the machine has free."""
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if stats and 'bytes_limit' in stats:
    return int(stats['bytes_limit'])
  return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
