"""The messages themselves: what a client would put on the wire, and how long.

Host side, NumPy alone. `encode_upload` writes a message and `decode_upload`
reads it back; `wire_bytes` is the formula of its length, which the ledger uses.

An upload without compression is the rows' indices, 4 bytes each, their deltas
in the same order and the shared deltas, every number at its own width. Under
compression it is a count of rows (4 bytes), the coded set of the rows, and for
every leaf the coded positions of what was kept, a scale, and the values side by
side, each leaf beginning on a byte. The kept positions lie inside the touched
rows, not inside the table. Headers below that, and encryption, are not counted.

What travels is what the quantizer put out: of a rotated chain the coefficients
[chunks, 256], of a low-rank sketch the coordinates [rows, rank], of a count
sketch its one table [depth, width] of float32, as the only shared leaf. Both
sides know the round's seed, and rotate, lift or read back what the message
holds. The rows stand in all of them: they ask for the download.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fedjaxrec.communication import bits
from fedjaxrec.config.compression import (
    ROTATION_CHUNK,
    CompressionConfig,
    num_kept,
    num_levels,
)

INDEX_BYTES = 4
_COUNT_BYTES = 4
_SCALE_BYTES = 4


class Leaf(NamedTuple):
  """One leaf of the model.

  Attributes:
    shape: Of a row of the item table, or of the whole shared leaf.
    dtype: NumPy dtype, of what is sent up: deltas.
    down: NumPy dtype of what is sent down, where it is another: tables may be
      of 16 bits, and deltas are of 32.
  """
  shape: tuple[int, ...]
  dtype: np.dtype
  down: np.dtype | None = None

  @property
  def size(self) -> int:
    """Numbers in it."""
    return math.prod(self.shape)

  @property
  def dtype_down(self) -> np.dtype:
    """NumPy dtype of what is sent down."""
    return self.dtype if self.down is None else self.down


class Layout(NamedTuple):
  """What both sides know about the model.

  Attributes:
    num_items: Items in the catalogue.
    item: One row of each leaf of the item table.
    shared: The leaves of the shared parameters.
  """
  num_items: int
  item: tuple[Leaf, ...]
  shared: tuple[Leaf, ...]


class Upload(NamedTuple):
  """What a message says.

  Attributes:
    rows: int64 [num_rows]: item ids; increasing, under compression.
    item: Leaves [num_rows, ...], or coefficients; zeros where nothing was sent.
    shared: Leaves, likewise.
  """
  rows: np.ndarray
  item: list[np.ndarray]
  shared: list[np.ndarray]


class _Part(NamedTuple):
  """How a leaf travels: `units` of `width` numbers; `kept` units are sent."""
  units: Any
  width: int
  kept: Any


def _part(config: CompressionConfig, leaf: Leaf, num_rows: Any) -> _Part:
  """num_rows is None for a shared leaf."""
  by_row = num_rows is not None
  count = num_rows if by_row else 1
  if config.rotate:
    chunks = -(-count * leaf.size // ROTATION_CHUNK)
    return _Part(chunks, ROTATION_CHUNK, chunks)
  if config.sketch == 'low_rank':
    width = min(leaf.size, config.rank) if by_row else leaf.size
    return _Part(count, width, count)
  if config.sparsify in ('top_k', 'random_k'):
    if by_row and config.granularity == 'rows':
      return _Part(count, leaf.size, num_kept(count, config.fraction))
    size = count * leaf.size
    return _Part(size, 1, num_kept(size, config.fraction))
  return _Part(count * leaf.size, 1, count * leaf.size)


def _leaves(
    config: CompressionConfig, layout: Layout
) -> tuple[tuple[Leaf, ...], tuple[Leaf, ...]]:
  """The leaves of a message: (of item rows, whole ones)."""
  if config.sketch == 'count':
    return (), (Leaf(
        (config.sketch_depth, config.sketch_width), np.dtype(np.float32)),)
  return layout.item, layout.shared


def _values_bytes(config: CompressionConfig, leaf: Leaf, count: Any) -> Any:
  if config.quantize == 'none':
    return count * leaf.dtype.itemsize
  if config.quantize == 'sign':
    length = _SCALE_BYTES + _COUNT_BYTES - (-count // 8)
  elif config.quantize == 'ternary':
    length = _SCALE_BYTES - (-count // 5)
  else:
    length = _SCALE_BYTES - (-count * config.bits // 8)
  return np.where(count > 0, length, 0)


def wire_bytes(
    config: CompressionConfig, num_rows: Any, layout: Layout
) -> np.ndarray:
  """Returns the length of a client's upload.

  It is the length of `encode_upload`'s message, exactly, with two exceptions
  that depend on the data: with sparsify=threshold it is an upper bound, as if
  every entry reached the threshold; and with quantize=sign the positions of
  entries that are exactly zero come on top (usually there are none). There the
  round counts the messages' bytes itself (`transforms.message_length`), and the
  figures of a run are that count; but for signs of rotated coefficients, or of
  a sketch's, whose exact zeros nobody sees.

  Args:
    config: The chain.
    num_rows: int, any shape: item rows that the client touched.
    layout: The model.

  Returns:
    int64, num_rows's shape.
  """
  num_rows = np.asarray(num_rows, np.int64)
  if not config.is_on:
    row = sum(leaf.size * leaf.dtype.itemsize for leaf in layout.item)
    return num_rows * (INDEX_BYTES + row) + sum(
        leaf.size * leaf.dtype.itemsize for leaf in layout.shared)
  total = _COUNT_BYTES + bits.positions_bytes(layout.num_items, num_rows)
  item, shared = _leaves(config, layout)
  for leaf, count in [*((leaf, num_rows) for leaf in item),
                      *((leaf, None) for leaf in shared)]:
    part = _part(config, leaf, count)
    total = total + _values_bytes(
        config, leaf, np.asarray(part.kept * part.width))
    if config.sparsify == 'threshold':
      size = part.units * part.width
      total = total + np.where(size > 0, _COUNT_BYTES - (-size // 8), 0)
    else:
      total = total + bits.positions_bytes(part.units, part.kept)
  return total


def encode_upload(
    config: CompressionConfig, layout: Layout, rows: np.ndarray,
    item: list[np.ndarray], shared: list[np.ndarray]
) -> bytes:
  """Writes a client's upload.

  Args:
    config: The chain.
    layout: The model.
    rows: int [num_rows]: distinct item ids that the client touched. Under
      rotation they must increase: the coefficients follow their order.
    item: Leaves [num_rows, ...], as the chain put them out (see the top of the
      file for rotation and sketches).
    shared: Leaves, likewise.

  Raises:
    ValueError: For ids that are no distinct rows, shapes that do not fit, or
      numbers that this chain cannot have put out.
  """
  rows = np.asarray(rows, np.int64).reshape(-1)
  order = np.argsort(rows, kind='stable')
  ordered = rows[order]
  if len(rows) and (ordered[0] < 0 or ordered[-1] >= layout.num_items
                    or (np.diff(ordered) == 0).any()):
    raise ValueError(
        f'rows={rows} must be distinct and in [0, num_items='
        f'{layout.num_items}); leave out the slots that are not in use.')
  if config.rotate and (order != np.arange(len(rows))).any():
    raise ValueError(
        f'rows={rows} must increase under compression.rotate=True, because the '
        'rotated coefficients follow their order; sort the rows first.')
  parts = _parts(config, layout, len(rows))
  leaves = [np.asarray(x) for x in (*item, *shared)]
  if len(leaves) != len(parts):
    raise ValueError(
        f'{len(leaves)} leaves do not fit a layout of {len(parts)}; give the '
        'leaves of item rows and of shared parameters.')
  for (leaf, part), x in zip(parts, leaves):
    if x.size != part.units * part.width or x.dtype != leaf.dtype:
      raise ValueError(
          f'x.shape={x.shape} with x.dtype={x.dtype} does not fit a leaf of '
          f'{part.units} times {part.width} numbers of {leaf.dtype}; give what '
          'the chain put out for the rows in use.')
  if not config.is_on:
    return rows.astype('<u4').tobytes() + b''.join(
        x.tobytes() for x in leaves)
  message = [np.uint32(len(rows)).astype('<u4').tobytes(),
             bits.encode_positions(ordered, layout.num_items)]
  num_item = len(_leaves(config, layout)[0])
  for index, ((leaf, part), x) in enumerate(zip(parts, leaves)):
    if index < num_item and len(rows) and not config.rotate:
      x = x.reshape(len(rows), -1)[order]
    message.append(_encode_leaf(config, leaf, part, x))
  return b''.join(message)


def _parts(config, layout, num_rows) -> list[tuple[Leaf, _Part]]:
  item, shared = _leaves(config, layout)
  return [(leaf, _part(config, leaf, num_rows)) for leaf in item] + [
      (leaf, _part(config, leaf, None)) for leaf in shared]


def _encode_leaf(config, leaf, part: _Part, x: np.ndarray) -> bytes:
  units = x.reshape(part.units, part.width)
  if not units.size:
    return b''
  there = np.flatnonzero((units != 0).any(1))
  message = b''
  if config.sparsify == 'threshold':
    kept = there
    message += np.uint32(len(kept)).astype('<u4').tobytes()
  else:
    if len(there) > part.kept:
      raise ValueError(
          f'{len(there)} of {part.units} are not zero where compression.'
          f'sparsify={config.sparsify} keeps {part.kept}; give what this '
          'chain put out.')
    # Kept zeros, and those that were rounded to zero, travel like the others.
    rest = np.setdiff1d(np.arange(part.units), there, assume_unique=True)
    kept = np.sort(np.concatenate([there, rest[:part.kept - len(there)]]))
  message += bits.encode_positions(kept, part.units)
  return message + _encode_values(config, leaf, units[kept].reshape(-1))


def _encode_values(config, leaf, x: np.ndarray) -> bytes:
  if config.quantize == 'none' or not len(x):
    return x.tobytes()
  levels = _levels(config)
  step, level = _steps_of(leaf, x, levels)
  message = step.astype('<f4').tobytes()
  if config.quantize == 'ternary':
    return message + bits.pack_trits(level + 1)
  if config.quantize == 'qsgd':
    return message + bits.pack(level + levels, config.bits)
  zeros = np.flatnonzero(level == 0)
  return (message + np.uint32(len(zeros)).astype('<u4').tobytes()
          + bits.encode_positions(zeros, len(x)) + bits.pack(level > 0, 1))


def _levels(config: CompressionConfig) -> int:
  return num_levels(config.bits) if config.quantize == 'qsgd' else 1


def _from_levels(leaf, level, step) -> np.ndarray:
  """The device's arithmetic, to the bit; see `transforms.quantize`."""
  return (level.astype(np.float32) * step).astype(leaf.dtype)


def _steps_of(
    leaf: Leaf, x: np.ndarray, levels: int
) -> tuple[np.float32, np.ndarray]:
  """Finds float32 step and int64 levels with x = level * step, to the bit."""
  if leaf.dtype != np.float32:
    raise ValueError(
        f'x.dtype={x.dtype} cannot be coded by its levels: a step would not be '
        'known to the bit; quantize float32 leaves.')
  # The largest magnitude is levels * step, rounded once: so the step is known
  # up to two of its last bits.
  largest = np.abs(x).max().astype(np.float32)
  guess = np.float32(largest / np.float32(levels))
  level = np.rint(
      x.astype(np.float64) / (float(guess) or 1)).astype(np.int64)
  for ulps in (0, -1, 1, -2, 2):
    step = np.float32(guess + ulps * np.spacing(guess))
    if (_from_levels(leaf, level, step) == x).all():
      return step, level
  raise ValueError(
      f'the largest of {len(x)} numbers, {largest}, is not {levels} times a '
      'step that all of them are multiples of: this chain cannot have put them '
      'out; give what it did.')


class _Reader:
  """A message, and how far it was read."""

  def __init__(self, message: bytes):
    self.left = memoryview(message)

  def take(self, size: int) -> bytes:
    if size > len(self.left):
      raise ValueError(
          f'a message ends {size - len(self.left)} bytes too early; it was cut '
          'off, or written under another config or layout.')
    taken, self.left = self.left[:size], self.left[size:]
    return bytes(taken)

  def count(self, bound: int) -> int:
    number = int(np.frombuffer(self.take(_COUNT_BYTES), '<u4')[0])
    if number > bound:
      raise ValueError(
          f'a message counts {number} of {bound}: it is damaged, or written '
          'under another config or layout.')
    return number

  def positions(self, num_places: int, num_set: int) -> np.ndarray:
    data = self.take(int(bits.positions_bytes(num_places, num_set)))
    places = bits.decode_positions(data, num_places, num_set)
    if len(places) != num_set:
      raise ValueError(
          f'a message holds {len(places)} positions where it says {num_set}: '
          'it is damaged.')
    return places


def decode_upload(
    config: CompressionConfig, layout: Layout, message: bytes
) -> Upload:
  """Reads what `encode_upload` wrote; to the bit, rows in increasing order.

  Raises:
    ValueError: For a message of another length than its content says.
  """
  reader = _Reader(message)
  if config.is_on:
    num_rows = reader.count(layout.num_items)
    rows = reader.positions(layout.num_items, num_rows)
  else:
    row = int(wire_bytes(config, 1, layout) - wire_bytes(config, 0, layout))
    num_rows = (len(message) - int(wire_bytes(config, 0, layout))) // row
    rows = np.frombuffer(
        reader.take(max(num_rows, 0) * INDEX_BYTES), '<u4').astype(np.int64)
  leaves = []
  num_item = len(_leaves(config, layout)[0])
  for index, (leaf, part) in enumerate(_parts(config, layout, len(rows))):
    x = _decode_leaf(config, leaf, part, reader)
    if config.rotate or (index < num_item and part.width < leaf.size
                         and config.sketch != 'none'):
      leaves.append(x.reshape(part.units, part.width))
    else:
      leading = (len(rows),) if index < num_item else ()
      leaves.append(x.reshape((*leading, *leaf.shape)))
  if len(reader.left):
    raise ValueError(
        f'a message has {len(reader.left)} bytes too many; it was written '
        'under another config or layout.')
  return Upload(rows, leaves[:num_item], leaves[num_item:])


def _decode_leaf(config, leaf, part: _Part, reader: _Reader) -> np.ndarray:
  units = np.zeros((part.units, part.width), leaf.dtype)
  if not units.size:
    return units
  num = part.kept
  if config.sparsify == 'threshold':
    num = reader.count(part.units)
  kept = reader.positions(part.units, num)
  units[kept] = _decode_values(
      config, leaf, len(kept) * part.width, reader).reshape(-1, part.width)
  return units


def _decode_values(config, leaf, count: int, reader: _Reader) -> np.ndarray:
  if config.quantize == 'none' or not count:
    return np.frombuffer(reader.take(count * leaf.dtype.itemsize), leaf.dtype)
  step = np.frombuffer(reader.take(_SCALE_BYTES), '<f4')[0]
  if config.quantize == 'ternary':
    level = bits.unpack_trits(reader.take(-(-count // 5)), count) - 1
  elif config.quantize == 'qsgd':
    data = reader.take(-(-count * config.bits // 8))
    level = bits.unpack(data, config.bits, count) - _levels(config)
  else:
    zeros = reader.positions(count, reader.count(count))
    level = bits.unpack(reader.take(-(-count // 8)), 1, count) * 2 - 1
    level[zeros] = 0
  return _from_levels(leaf, level, step)
