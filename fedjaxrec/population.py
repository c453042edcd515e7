"""Every client's data and personal parameters, at the client's home device.

Client c lives on device c % num_devices, at the local index c // num_devices,
and never moves. On each device the interactions are one flat array with offsets
(CSR), so a long-tailed population costs no padding at rest. A client's items
are sorted, which is what drawing negatives from the complement needs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Array = Any  # NumPy on the host, JAX on the device.


class ClientData(NamedTuple):
  """Interactions of all clients of one device (leading axis dropped there).

  Attributes:
    offsets: int32 [num_devices, clients_per_device + 1].
    items: int32 [num_devices, interactions_per_device], sorted in a client.
    labels: float32, same shape: the ratings.
    home: None where every client of the device is in the arrays, at its local
      index; otherwise int32 [num_devices, places]: the local index of the
      client in each place (see `hosted_clients`).
  """
  offsets: Array
  items: Array
  labels: Array
  home: Array | None = None


class Client(NamedTuple):
  """One client's training data, padded to its size class.

  Attributes:
    client_id: int32 []; num_clients for a padding client.
    num_examples: int32 []; interactions, 0 for a padding client.
    items: int32 [capacity], sorted; num_items after the client's own.
    labels: float32 [capacity]; 0 after the client's own.
  """
  client_id: Array
  num_examples: Array
  items: Array
  labels: Array


class ByItem(NamedTuple):
  """What a client keeps for each item, in its personal parameters.

  Attributes:
    rows: Leaves [num_items, ...] of one client. In a round only the touched
      rows are read and written: [*rows.shape, ...].
  """
  rows: PyTree


class Known(NamedTuple):
  """What a client knows of itself beside its interactions: its features.

  It lives among the personal parameters, at the client's home device; it is
  none, so no loss weighs it and no gradient moves it.

  Attributes:
    values: float32 [width] of one client.
  """
  values: Array


class Moment(NamedTuple):
  """When a client asks for recommendations; as little a parameter as `Known`.

  Attributes:
    code: float32 [] of one client; see `data.context.encode_moments`.
  """
  code: Array


class Numbered(NamedTuple):
  """Rows of an item table that say which items they are of.

  Attributes:
    rows: Leaves [num_rows, ...].
    numbers: int32 [num_rows]; num_items for an unused slot.
    moments: float32 [num_rows]: when each is asked for, in training the label
      of its interaction; None: at the client's `Moment`.
  """
  rows: PyTree
  numbers: Array
  moments: Array | None = None


def places_of(offsets: np.ndarray) -> np.ndarray:
  """The place of each interaction within its client.

  Args:
    offsets: int64 [num_clients + 1].

  Returns:
    int64 [num_interactions]: 0, 1, ... within a client.
  """
  counts = np.diff(offsets)
  return np.arange(counts.sum()) - np.repeat(offsets[:-1], counts)


def place_clients(
    offsets: np.ndarray, items: np.ndarray, labels: np.ndarray,
    num_devices: int = 1, homes: range | None = None
) -> ClientData:
  """Lays the clients out by home device; arrays stay in host memory.

  Args:
    offsets: int64 [num_clients + 1].
    items: int32 [num_interactions], distinct within a client, in any order.
    labels: float32 [num_interactions].
    num_devices: Devices that share the population.
    homes: The devices to lay out; None: all.

  Returns:
    ClientData of NumPy arrays with the leading axis [num_devices], or [homes].

  Raises:
    ValueError: If one device would hold 2^31 interactions or more.
  """
  num_clients = len(offsets) - 1
  counts = np.diff(offsets)
  per_device = -(-num_clients // num_devices)
  local_counts = np.zeros((per_device, num_devices), np.int64)
  local_counts.reshape(-1)[:num_clients] = counts
  starts = np.zeros((num_devices, per_device + 1), np.int64)
  np.cumsum(local_counts.T, axis=1, out=starts[:, 1:])
  width = max(1, int(starts[:, -1].max()))
  if width >= 2**31:
    raise ValueError(
        f'num_devices={num_devices}: a device would hold {width:,} '
        'interactions, and offsets are 32 bits wide; use more devices.')
  is_sorted = _is_sorted(offsets, items)
  if num_devices == 1 and is_sorted and len(items):
    # No copy, so that the largest populations fit.
    return ClientData(starts.astype(np.int32), items[None], labels[None])
  homes = range(num_devices) if homes is None else homes
  clients = np.repeat(np.arange(num_clients, dtype=np.int32), counts)
  # Sorting keeps a client's rows together, so a row's place within its client
  # is its place in the sorted order.
  order = None if is_sorted else np.lexsort((items, clients))
  within = places_of(offsets)
  placed = ClientData(
      starts[homes.start:homes.stop].astype(np.int32),
      np.zeros((len(homes), width), np.int32),
      np.zeros((len(homes), width), np.float32))
  for row, home in enumerate(homes):
    mine = np.flatnonzero(clients % num_devices == home)
    slot = starts[home, clients[mine] // num_devices] + within[mine]
    source = mine if order is None else order[mine]
    placed.items[row, slot] = items[source]
    placed.labels[row, slot] = labels[source]
  return placed


def _is_sorted(offsets: np.ndarray, items: np.ndarray) -> bool:
  """Whether every client's items rise."""
  rises = np.diff(items) > 0
  borders = offsets[1:-1]
  rises[borders[(borders > 0) & (borders < len(items))] - 1] = True
  return bool(rises.all())


def gather_clients(
    data: ClientData, local_index: jax.Array, client_id: jax.Array,
    capacity: int, num_items: int
) -> Client:
  """Reads a block of clients from one device's data.

  Args:
    data: This device's data, without the leading device axis.
    local_index: int32 [B]; an index past the end is a padding client.
    client_id: int32 [B].
    capacity: Interactions that the block's size class has room for.
    num_items: The id that fills unused places.

  Returns:
    Clients with the leading axis [B].
  """
  start = data.offsets.at[local_index].get(mode='clip')
  stop = data.offsets.at[local_index + 1].get(mode='clip')
  count = stop - start  # A padding client starts and stops at the end.
  column = jnp.arange(capacity, dtype=jnp.int32)[None, :]
  mine = column < count[:, None]
  read = [data.items, data.labels]
  last = len(data.items) - capacity

  def by_place(start):
    return [x.at[start[:, None] + column].get(mode='clip') for x in read]

  def by_slice(start):
    return [jax.vmap(lambda s, x=x: jax.lax.dynamic_slice_in_dim(
        x, s, capacity))(start) for x in read]

  if jax.default_backend() == 'cpu' and last >= 0:
    # A client's interactions are one cold place of memory if they are read as
    # one slice, for which there is no room near the end. The conditional also
    # keeps XLA's CPU compiler from reading them one by one, where they are
    # shuffled; see `touched_rows.read_rows`.
    start = jnp.where(count > 0, start, 0)
    items, labels = jax.lax.cond(
        (start <= last).all(), by_slice, by_place, start)
  else:
    items, labels = by_place(start)
  return Client(client_id, count, jnp.where(mine, items, num_items),
                jnp.where(mine, labels, 0.0))


def is_by_item(x: Any) -> bool:
  """Whether a part of the personal parameters has one row an item."""
  return isinstance(x, ByItem)


def is_known(x: Any) -> bool:
  """Whether a part of the personal parameters is known and not trained."""
  return isinstance(x, (Known, Moment))


def parameters(tree: PyTree) -> list:
  """The leaves of a pytree that are parameters: all that are not known."""
  return [x for x in jax.tree.leaves(tree, is_leaf=is_known)
          if not is_known(x)]


def fill_known(personal: PyTree, features: np.ndarray | None) -> PyTree:
  """Puts clients' features where their parameters have room for them.

  Args:
    personal: Leaves [..., ...], with the leading axes of `features`.
    features: float32 [..., width]; None: nothing is changed.
  """
  if features is None:
    return personal
  return jax.tree.map(
      lambda x: Known(features) if isinstance(x, Known) else x, personal,
      is_leaf=is_known)


def at_moment(personal: PyTree, codes: np.ndarray | None) -> PyTree:
  """Says when clients ask: float32 codes with the leading axes of personal."""
  if codes is None:
    return personal
  return jax.tree.map(
      lambda x: Moment(codes) if isinstance(x, Moment) else x, personal,
      is_leaf=is_known)


def gather_personal(
    personal: PyTree, members: jax.Array, rows: jax.Array
) -> PyTree:
  """Reads a block's own parameters, and of a `ByItem` the touched rows.

  Args:
    personal: Leaves [clients, ...]; in a ByItem [clients, num_items, ...].
    members: int32 [B]; one past the end is a padding client.
    rows: int32 [B, ...]; num_items where a slot is unused.

  Returns:
    Leaves [B, ...]; in a ByItem [*rows.shape, ...], zeros in unused slots.
  """
  def gather(x):
    if is_by_item(x):
      who = members.reshape(-1, *[1] * (rows.ndim - 1))
      return jax.tree.map(
          lambda leaf: leaf.at[who, rows].get(mode='fill', fill_value=0), x)
    return x.at[members].get(mode='clip')

  return jax.tree.map(gather, personal, is_leaf=is_by_item)


def scatter_personal(
    personal: PyTree, members: jax.Array, rows: jax.Array, new: PyTree
) -> PyTree:
  """Undoes `gather_personal`; what is padding or unused goes nowhere."""
  def scatter(x, part):
    if is_by_item(x):
      who = members.reshape(-1, *[1] * (rows.ndim - 1))
      return jax.tree.map(
          lambda leaf, mine: leaf.at[who, rows].set(mine, mode='drop'), x, part)
    return x.at[members].set(part, mode='drop')

  return jax.tree.map(scatter, personal, new, is_leaf=is_by_item)


def make_init_personal(
    init: Callable[[jax.Array], PyTree], num_clients: int, num_devices: int,
    homes: range | None = None
) -> Callable[[jax.Array], PyTree]:
  """Builds init_all(key): every client's personal parameters, compiled.

  Args:
    init: key -> one client's personal parameters.
    num_clients: Clients.
    num_devices: Devices that share them.
    homes: The devices whose clients are meant; None: all.

  Returns:
    init_all: typed key -> leaves [num_devices, clients_per_device, ...], or
    [homes, clients_per_device, ...]; client c uses fold_in(key, c).
  """
  per_device = -(-num_clients // num_devices)
  homes = range(num_devices) if homes is None else homes

  @jax.jit
  def init_all(key):
    ids = (jnp.arange(per_device)[None, :] * num_devices
           + jnp.arange(homes.start, homes.stop)[:, None])
    return jax.vmap(jax.vmap(lambda i: init(jax.random.fold_in(key, i))))(ids)

  return init_all


def by_client(leaf: np.ndarray | jax.Array, num_clients: int) -> Any:
  """Turns [num_devices, per_device, ...] into [num_clients, ...]."""
  return leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])[:num_clients]


def by_home(leaf: np.ndarray, num_devices: int) -> np.ndarray:
  """Undoes `by_client`; places without a client are zeros."""
  per_device = -(-len(leaf) // num_devices)
  missing = per_device * num_devices - len(leaf)
  padded = np.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))
  return padded.reshape(per_device, num_devices, *leaf.shape[1:]).swapaxes(0, 1)
