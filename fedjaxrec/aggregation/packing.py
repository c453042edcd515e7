"""Vectors of ring elements as bytes: b bits an element, and no more."""

import numpy as np


def check_bits(bits: int) -> None:
  """Refuses a ring that masks and packing do not know."""
  if not 2 <= bits <= 32:
    raise ValueError(
        f'bits={bits}: the ring is modulo 2^bits with 2 to 32 bits; scale the '
        'values to fit.')


def narrow_dtype(bits: int) -> np.dtype:
  """The narrowest unsigned type that holds an element."""
  check_bits(bits)
  return np.dtype('<u1' if bits <= 8 else '<u2' if bits <= 16 else '<u4')


def packed_bytes(length: int, bits: int) -> int:
  """Bytes of `length` packed elements."""
  return -(-length * bits // 8)


def pack(values: np.ndarray, bits: int) -> bytes:
  """Packs elements, lowest bit first; the last byte is filled with zeros.

  Args:
    values: Unsigned [d], each below 2^bits.
    bits: Bits an element, 2 to 32.
  """
  check_bits(bits)
  if bits in (8, 16, 32):
    return values.astype(narrow_dtype(bits), copy=False).tobytes()
  # Thirty-two elements fill `bits` words: one pass over each of the 32 lanes.
  groups = np.zeros((-(-len(values) // 32), 32), np.uint64)
  groups.reshape(-1)[:len(values)] = values
  lanes = np.ascontiguousarray(groups.T)
  words = np.zeros((bits + 1, lanes.shape[1]), np.uint64)
  for lane in range(32):
    word, shift = divmod(lane * bits, 32)
    shifted = lanes[lane] << np.uint64(shift)
    words[word] |= shifted & np.uint64(0xffffffff)
    words[word + 1] |= shifted >> np.uint64(32)
  data = np.ascontiguousarray(words[:bits].T.astype('<u4')).tobytes()
  return data[:packed_bytes(len(values), bits)]


def unpack(data: bytes, length: int, bits: int) -> np.ndarray | None:
  """Returns the elements [length] in the narrowest type.

  None if the bits that fill the last byte are not zero: `pack` writes no such
  thing. The length of `data` is for the caller to check.
  """
  dtype = narrow_dtype(bits)
  if bits in (8, 16, 32):
    return np.frombuffer(data, dtype, length)
  groups = -(-length // 32)
  padded = np.zeros(groups * bits, '<u4')
  padded.view(np.uint8)[:len(data)] = np.frombuffer(data, np.uint8)
  words = np.zeros((bits + 1, groups), np.uint64)
  words[:bits] = padded.reshape(groups, bits).T
  lanes = np.empty((32, groups), dtype)
  mask = np.uint64((1 << bits) - 1)
  for lane in range(32):
    word, shift = divmod(lane * bits, 32)
    both = words[word] | words[word + 1] << np.uint64(32)
    lanes[lane] = both >> np.uint64(shift) & mask
  values = np.ascontiguousarray(lanes.T).reshape(-1)
  # Bits beyond the last element stand where the next one would begin.
  return None if values[length:].any() else values[:length]
