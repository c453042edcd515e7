"""What a run needs of a device's memory, estimated before anything compiles."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjaxrec.blocks import Algorithm, WithMemory
from fedjaxrec.config import Config
from fedjaxrec.population import is_by_item
from fedjaxrec.uplink import Uplink

PyTree = Any
_GIB = 2**30
# Copies of a block's slots that are alive at once, as compiled rounds have
# them: rows and deltas; with a chain, what goes into it and comes out.
_BLOCK_COPIES = 2
_CHAIN_COPIES = 2
# Beside the sum, what the server's step makes of it.
_TABLE_COPIES = 1
# Where slots take the sum's place: deltas, the rows as they were, their sums.
_SLOT_COPIES = 3


class Memory(NamedTuple):
  """Bytes on each device.

  Attributes:
    data: The clients' interactions.
    personal: What the clients keep.
    server: Item table, shared parameters and optimizer state.
    step: The running sum, and the server's step.
    block: The clients that train at once.
    plan: Who trains where, of one compiled call.
  """
  data: int
  personal: int
  server: int
  step: int
  block: int
  plan: int

  @property
  def total(self) -> int:
    """All of it."""
    return sum(self)


def size_of(tree: PyTree) -> int:
  """Bytes of a pytree of arrays or their shapes."""
  def bytes_of(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return x.size * 8
    return x.size * np.dtype(x.dtype).itemsize
  return sum(bytes_of(x) for x in jax.tree.leaves(tree))


def estimate_memory(
    config: Config,
    algorithm: Algorithm,
    uplink: Uplink,
    *,
    num_clients: int,
    num_items: int,
    num_interactions: int,
    num_devices: int,
    capacity: int,
    block_size: int,
    max_cohort: int,
    rounds_per_call: int,
    num_slots: int = 0,
) -> Memory:
  """Estimates a run's memory from shapes alone; compiles nothing.

  Args:
    config: The whole config.
    algorithm: What clients and server do.
    uplink: What happens to a delta on its way to the sum.
    num_clients: Clients in the population.
    num_items: Items in the catalogue.
    num_interactions: Training interactions of all clients.
    num_devices: Devices that share the population.
    capacity: Of the largest size class.
    block_size: Clients trained at once.
    max_cohort: The largest cohort.
    rounds_per_call: Rounds of one compiled call.
    num_slots: Slots that take the place of a sum of the table; 0 for none.

  Returns:
    Bytes on each device, within a factor of two of what the compiler reports
    for the largest part.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  server = jax.eval_shape(algorithm.init_server, key)
  own = size_of(jax.eval_shape(algorithm.init_personal, key))
  table, shared = jax.eval_shape(algorithm.empty_contribution, server)
  slots = num_items if uplink.is_dense else capacity * (
      1 + config.objective.drawn_negatives)
  if algorithm.touched_rows is not None and not uplink.is_dense:
    slots = int(algorithm.touched_rows(np.array([capacity]))[0])
  per_client = slots * size_of(table) // num_items + size_of(shared)
  summed = (1 + _TABLE_COPIES) * size_of(table)
  if num_slots:
    summed = (_SLOT_COPIES * num_slots * (size_of(table) // num_items + 4)
              + 4 * num_items)
  clients = -(-num_clients // num_devices)
  copies = _BLOCK_COPIES + (0 if uplink.is_plain else _CHAIN_COPIES)
  return Memory(
      data=8 * -(-num_interactions // num_devices) + 4 * clients,
      personal=own * clients,
      server=size_of(server),
      step=summed + (1 + _TABLE_COPIES) * size_of(shared),
      block=copies * block_size * (per_client + slots * 9 + own),
      plan=4 * rounds_per_call * (max_cohort + block_size))


def check_personal_tables(
    algorithm: Algorithm, num_clients: int, limit_gib: float
) -> None:
  """Refuses item tables of all clients that would not fit.

  Args:
    algorithm: What clients keep; a memory of error feedback has its own limit.
    num_clients: Clients in the population.
    limit_gib: personalization.table_limit_gib.

  Raises:
    ValueError: If they are larger.
  """
  own = jax.eval_shape(
      algorithm.init_personal, jax.eval_shape(lambda: jax.random.key(0)))
  if isinstance(own, WithMemory):
    own = own.personal
  size = num_clients * sum(
      size_of(x) for x in jax.tree.leaves(own, is_leaf=is_by_item)
      if is_by_item(x)) / _GIB
  if size > limit_gib:
    raise ValueError(
        f'num_clients={num_clients} with an item table each need {size:.2f} '
        f'GiB, above personalization.table_limit_gib={limit_gib}; raise that '
        'where the memory is there, lower model.dim, use fewer clients, or an '
        'algorithm without tables of the clients (fedavg, fedper, fedrep, '
        'fedrecon).')


def check_memory(memory: Memory, available: int, what: str) -> None:
  """Refuses what does not fit.

  Args:
    memory: From `estimate_memory`.
    available: Bytes of the device.
    what: Its name, for the message.

  Raises:
    ValueError: With the largest part, and what makes it smaller.
  """
  if memory.total <= available:
    return
  part = max(memory._fields, key=lambda name: getattr(memory, name))
  way_out = {
      'data': 'use more devices, or --engine.data=host',
      'personal': 'use more devices, or a smaller model',
      'server': 'lower --model.dim, or use --model.table_dtype=bfloat16',
      'step': 'lower --model.dim',
      'block': 'lower --engine.block_size',
      'plan': 'lower --engine.rounds_per_call',
  }[part]
  raise ValueError(
      f'This configuration needs about {memory.total / _GIB:.1f} GiB on each '
      f'device ({what} has {available / _GIB:.1f}): {way_out}; the largest '
      f'part is {part} with {getattr(memory, part) / _GIB:.1f} GiB.')
