"""Codes of whole numbers whose length is known before they are written.

Every code here has a length that depends on how many numbers there are and on
their range, not on the numbers: so that a byte count is a formula, and the
length of a message shows nothing else.
"""

from typing import Any

import numpy as np


def _low_bits(num_places: Any, num_set: Any) -> Any:
  """floor(log2(num_places / num_set)), at least 0."""
  ratio = np.asarray(num_places, np.int64) // np.maximum(num_set, 1)
  return np.maximum(np.frexp(ratio.astype(np.float64))[1] - 1, 0)


def _elias_fano_bits(num_places: Any, num_set: Any) -> Any:
  low = _low_bits(num_places, num_set)
  n = np.asarray(num_places, np.int64)
  return num_set * (low + 1) + (np.maximum(n - 1, 0) >> low)


def positions_bytes(num_places: Any, num_set: Any) -> Any:
  """Bytes of num_set distinct positions below num_places.

  Nothing where none or all are set; otherwise the shorter of a bitmap and the
  Elias-Fano code, at most 2 + log2(num_places / num_set) bits a position: half
  a bit above the least possible.

  Args:
    num_places: int64, any shape; below 2^53.
    num_set: Likewise, at most num_places.

  Returns:
    int64, their shape.

  References:
    Elias, 1974, Efficient Storage and Retrieval by Content and Address of
    Static Files; Fano, 1971, On the Number of Bits Required to Implement an
    Associative Memory.
  """
  n, k = np.asarray(num_places, np.int64), np.asarray(num_set, np.int64)
  shorter = np.minimum(n, _elias_fano_bits(n, k))
  return np.where((k == 0) | (k == n), 0, -(-shorter // 8))


def encode_positions(places: np.ndarray, num_places: int) -> bytes:
  """Writes sorted distinct positions: `positions_bytes` bytes.

  Args:
    places: int64 [num_set], strictly increasing, in [0, num_places).
    num_places: The bound.
  """
  places = np.asarray(places, np.int64)
  k = len(places)
  if k in (0, num_places):
    return b''
  low = int(_low_bits(num_places, k))
  size = int(_elias_fano_bits(num_places, k))
  if num_places <= size:
    bitmap = np.zeros(num_places, np.uint8)
    bitmap[places] = 1
    return np.packbits(bitmap).tobytes()
  high = np.zeros(size - k * low, np.uint8)
  high[(places >> low) + np.arange(k)] = 1
  return np.packbits(
      np.concatenate([high, _to_bits(places, low)])).tobytes()


def decode_positions(data: bytes, num_places: int, num_set: int) -> np.ndarray:
  """Reads what `encode_positions` wrote: int64 [num_set]."""
  if num_set == 0:
    return np.zeros(0, np.int64)
  if num_set == num_places:
    return np.arange(num_places)
  bits = np.unpackbits(np.frombuffer(data, np.uint8))
  low = int(_low_bits(num_places, num_set))
  size = int(_elias_fano_bits(num_places, num_set))
  if num_places <= size:
    return np.flatnonzero(bits[:num_places])
  split = size - num_set * low
  high = np.flatnonzero(bits[:split]) - np.arange(num_set)
  return high << low | _from_bits(bits[split:size], low, num_set)


def _to_bits(numbers: np.ndarray, width: int) -> np.ndarray:
  shifts = np.arange(width - 1, -1, -1)
  return (numbers[:, None] >> shifts & 1).astype(np.uint8).reshape(-1)


def _from_bits(bits: np.ndarray, width: int, count: int) -> np.ndarray:
  weights = np.int64(1) << np.arange(width - 1, -1, -1)
  return bits[:count * width].reshape(count, width).astype(np.int64) @ weights


def pack(numbers: np.ndarray, width: int) -> bytes:
  """Writes numbers of [0, 2^width): ceil(count width / 8) bytes."""
  return np.packbits(_to_bits(np.asarray(numbers, np.int64), width)).tobytes()


def unpack(data: bytes, width: int, count: int) -> np.ndarray:
  """Reads what `pack` wrote: int64 [count]."""
  return _from_bits(
      np.unpackbits(np.frombuffer(data, np.uint8)), width, count)


_TRITS = np.array([1, 3, 9, 27, 81], np.int64)


def pack_trits(trits: np.ndarray) -> bytes:
  """Writes numbers of {0, 1, 2}, five in a byte: ceil(count / 5) bytes."""
  padded = np.pad(np.asarray(trits, np.int64), (0, -len(trits) % 5))
  return (padded.reshape(-1, 5) @ _TRITS).astype(np.uint8).tobytes()


def unpack_trits(data: bytes, count: int) -> np.ndarray:
  """Reads what `pack_trits` wrote: int64 [count]."""
  numbers = np.frombuffer(data, np.uint8).astype(np.int64)
  return (numbers[:, None] // _TRITS % 3).reshape(-1)[:count]
