"""Vectors over the integers modulo the Mersenne prime 2^61 - 1, in NumPy.

Elements are uint64 below the prime. Products go through 31-bit halves, so
nothing here needs more than 64 bits.
"""

import numpy as np

PRIME = 2**61 - 1
_P = np.uint64(PRIME)
_LOW31 = np.uint64(2**31 - 1)
_LOW30 = np.uint64(2**30 - 1)
_LOW32 = np.uint64(2**32 - 1)
_31, _30, _61, _32 = (np.uint64(k) for k in (31, 30, 61, 32))
_ONE = np.uint64(1)
# What fits into a core's second cache.
_BLOCK = 1 << 13


def from_signed(x: np.ndarray) -> np.ndarray:
  """int64, |x| below the prime -> elements."""
  x = x.astype(np.int64)
  return np.where(x < 0, x + PRIME, x).astype(np.uint64)


def to_signed(x: np.ndarray) -> np.ndarray:
  """Elements -> int64, those above half of the prime as negative numbers."""
  x = x.astype(np.int64)
  return np.where(x > PRIME // 2, x - PRIME, x)


def from_words(words: np.ndarray) -> np.ndarray:
  """Uniform uint64 words -> elements, uniform up to 2^-61."""
  x = words & _P
  return np.minimum(x, x - _P)  # All ones, the prime itself, is zero.


def are_elements(x: np.ndarray) -> bool:
  """Whether every entry is below the prime."""
  return bool((x < _P).all())


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """a + b."""
  x = a + b
  return np.minimum(x, x - _P)  # A difference below zero wraps to the top.


def subtract(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """a - b."""
  x = a - b
  return np.minimum(x, x + _P)


def multiply(a: np.ndarray, b: np.ndarray | np.uint64) -> np.ndarray:
  """a * b, element by element; b may be one element."""
  a1, a0 = a >> _31, a & _LOW31
  b1, b0 = b >> _31, b & _LOW31
  middle = a1 * b0 + a0 * b1  # Below 2^62.
  # 2^61 is one: 2^62 is two, and the middle's upper part moves to the bottom.
  x = (a1 * b1 << _ONE) + (middle >> _30) + (
      (middle & _LOW30) << _31) + a0 * b0
  x = (x & _P) + (x >> _61)
  return np.minimum(x, x - _P)


def total(x: np.ndarray) -> int:
  """The sum of fewer than 2^32 words, modulo the prime; words may be any."""
  return ((int((x >> _32).sum(dtype=np.uint64)) << 32)
          + int((x & _LOW32).sum(dtype=np.uint64))) % PRIME


def dot(a: np.ndarray, b: np.ndarray) -> int:
  """The inner product of two vectors."""
  return sum(
      total(multiply(a[i:i + _BLOCK], b[i:i + _BLOCK]))
      for i in range(0, len(a), _BLOCK)) % PRIME


def add_multiple(a: np.ndarray, t: int, b: np.ndarray) -> np.ndarray:
  """a + t b, for one element t."""
  out = np.empty_like(a)
  factor = np.uint64(t)
  for i in range(0, len(a), _BLOCK):
    part = slice(i, i + _BLOCK)
    out[part] = add(a[part], multiply(b[part], factor))
  return out
