"""What a client downloads, and uploads that are dense: messages and lengths.

A download is the rows that the client asked for, in that order, and the shared
parameters; indices do not travel again. With `bits` a row is a scale of 32 bits
and whole numbers of so many bits, side by side, each leaf beginning on a byte;
rows that this would not make shorter, and shared parameters, stay as they are.

A dense upload is the same of the deltas of all rows that travel: both sides
know their order, and no row is named.
"""

from typing import Any

import numpy as np

from fedjaxrec.communication import bits as bits_lib
from fedjaxrec.communication.encoding import Layout, Leaf
from fedjaxrec.config.compression import num_levels, rounds_row

_SCALE_BYTES = 4


def download_bytes(num_rows: Any, layout: Layout, bits: int = 0) -> np.ndarray:
  """Returns the length of `encode_download`'s message: int64.

  Args:
    num_rows: int, any shape.
    layout: The model.
    bits: compression.downlink_bits.
  """
  num_rows = np.asarray(num_rows, np.int64)
  total = num_rows * 0
  for leaf in layout.item:
    total = total + _leaf_bytes(leaf, num_rows, bits)
  return total + sum(
      leaf.size * leaf.dtype_down.itemsize for leaf in layout.shared)


def _leaf_bytes(leaf: Leaf, num_rows: Any, bits: int) -> Any:
  if rounds_row(leaf.size, bits):
    return num_rows * _SCALE_BYTES - (-(num_rows * leaf.size * bits) // 8)
  return num_rows * leaf.size * leaf.dtype_down.itemsize


def dense_upload_bytes(num_rows: int, layout: Layout) -> int:
  """Returns the length of an upload of all rows that travel, none named.

  It is the length of `encode_download`'s message of the deltas.

  Args:
    num_rows: Rows that travel.
    layout: The model.
  """
  return num_rows * sum(
      leaf.size * leaf.dtype.itemsize for leaf in layout.item) + sum(
          leaf.size * leaf.dtype.itemsize for leaf in layout.shared)


def encode_download(
    item: list[np.ndarray], shared: list[np.ndarray], bits: int = 0
) -> bytes:
  """Writes what a client downloads: its rows, and the shared parameters.

  Args:
    item: Leaves [num_rows, ...], in the order in which they were asked for;
      with bits as `transforms.quantize.round_rows` puts them out.
    shared: Leaves.
    bits: compression.downlink_bits.

  Raises:
    ValueError: For rows that are not on the grid of their scale.
  """
  message = []
  for x in map(np.asarray, item):
    size = int(np.prod(x.shape[1:], dtype=np.int64))
    if rounds_row(size, bits):
      message += _encode_rows(x.reshape(len(x), size), bits)
    else:
      message.append(x.tobytes())
  return b''.join([*message, *(np.asarray(x).tobytes() for x in shared)])


def _encode_rows(rows: np.ndarray, bits: int) -> list[bytes]:
  levels = num_levels(bits)
  largest = np.abs(rows).max(axis=1).astype(np.float32)
  # The largest of a row is levels * step, rounded once: its step is known up to
  # its last bits.
  guess = (largest / np.float32(levels)).astype(np.float32)
  step = guess.copy()
  found = np.zeros(len(rows), bool)
  level = np.zeros(rows.shape, np.int64)
  for ulps in (0, -1, 1, -2, 2):
    tried = (guess + np.float32(ulps) * np.spacing(guess)).astype(np.float32)
    whole = np.rint(rows / np.where(tried > 0, tried, 1)[:, None].astype(
        np.float64)).astype(np.int64)
    fits = ((whole.astype(np.float32) * tried[:, None]) == rows).all(axis=1)
    new = fits & ~found
    step[new], level[new] = tried[new], whole[new]
    found |= fits
  if not found.all():
    raise ValueError(
        f'{(~found).sum()} of {len(rows)} rows are not on the grid of '
        f'compression.downlink_bits={bits}; give what the rounding put out.')
  return [step.astype('<f4').tobytes(),
          bits_lib.pack(level.reshape(-1) + levels, bits)]


def decode_download(
    layout: Layout, message: bytes, bits: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Reads what `encode_download` wrote: (item leaves, shared leaves).

  Raises:
    ValueError: For a message of a length that no number of rows has.
  """
  lengths = download_bytes(np.arange(layout.num_items + 1), layout, bits)
  num_rows = int(np.searchsorted(lengths, len(message)))
  if num_rows > layout.num_items or lengths[num_rows] != len(message):
    raise ValueError(
        f'a message of {len(message)} bytes has too many or too few for any '
        'number of rows; it was cut, or written for another layout.')
  place = 0

  def take(size):
    nonlocal place
    place += size
    return message[place - size:place]

  def read_rows(leaf):
    shape = (num_rows, *leaf.shape)
    if not rounds_row(leaf.size, bits):
      return np.frombuffer(
          take(_leaf_bytes(leaf, num_rows, bits)), leaf.dtype_down
      ).reshape(shape)
    step = np.frombuffer(take(num_rows * _SCALE_BYTES), '<f4')
    count = num_rows * leaf.size
    level = bits_lib.unpack(take(-(-count * bits // 8)), bits, count)
    level = (level - num_levels(bits)).reshape(num_rows, leaf.size)
    return (level.astype(np.float32) * step[:, None]).reshape(shape)

  item = [read_rows(leaf) for leaf in layout.item]
  return item, [
      np.frombuffer(take(leaf.size * leaf.dtype_down.itemsize),
                    leaf.dtype_down).reshape(leaf.shape)
      for leaf in layout.shared]
