"""Tests of fedjaxrec.aggregation.packing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjaxrec.aggregation import packing


def pack_by_hand(values, bits):
  number = sum(int(v) << bits * i for i, v in enumerate(values))
  return number.to_bytes(-(-len(values) * bits // 8), 'little')


@given(st.integers(2, 32), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_packing_is_one_long_number_and_comes_back(bits, length, seed):
  values = np.random.default_rng(seed).integers(
      0, 2**bits, length, dtype=np.uint64).astype(packing.narrow_dtype(bits))
  data = packing.pack(values, bits)
  assert data == pack_by_hand(values, bits)
  assert len(data) == packing.packed_bytes(length, bits)
  np.testing.assert_array_equal(packing.unpack(data, length, bits), values)


@pytest.mark.parametrize(('bits', 'length'), [
  (3, 5), (20, 33), (31, 7), (2, 1), (2, 31), (9, 31)])
def test_bits_that_fill_up_must_be_zero(bits, length):
  data = packing.pack(np.zeros(length, np.uint32), bits)
  for bit in range(length * bits, 8 * len(data)):
    changed = bytearray(data)
    changed[bit // 8] |= 1 << bit % 8
    assert packing.unpack(bytes(changed), length, bits) is None


@pytest.mark.parametrize('bits', [1, 33])
def test_a_ring_that_is_not_known_is_refused(bits):
  with pytest.raises(ValueError, match=f'bits={bits}'):
    packing.narrow_dtype(bits)
