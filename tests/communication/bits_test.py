"""Codes read back, with the length that was foretold, near the least."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fedjaxrec.communication import bits


@hypothesis.given(st.integers(0, 3000), st.data())
@hypothesis.settings(max_examples=200)
def test_positions_read_back_and_have_the_stated_length(n, data):
  k = data.draw(st.integers(0, n))
  seed = data.draw(st.integers(0, 2**32 - 1))
  # At the beginning, at the end, or anywhere.
  where = data.draw(st.sampled_from(['first', 'last', 'any']))
  places = {
      'first': np.arange(k), 'last': np.arange(n - k, n),
      'any': np.sort(np.random.default_rng(seed).choice(n, k, False)),
  }[where]
  code = bits.encode_positions(places, n)
  assert len(code) == bits.positions_bytes(n, k)
  np.testing.assert_array_equal(bits.decode_positions(code, n, k), places)


def test_positions_by_hand():
  assert bits.positions_bytes(10, 0) == bits.positions_bytes(10, 10) == 0
  assert bits.positions_bytes(3706, 1467) == 464  # A bitmap.
  # 5 of 160: 32 = 2^5 places each: 5 low bits and 1, and 159 >> 5 steps.
  assert bits.positions_bytes(160, 5) == math.ceil((5 * 6 + 4) / 8)
  # One of 128 is a number of seven bits, and one bit; of 256, one more.
  np.testing.assert_array_equal(
      bits.positions_bytes([160, 10, 128, 256], [5, 0, 1, 1]), [5, 0, 1, 2])
  # 4 places of 8 are a bitmap: 1, 1, 0, 0, 1, 0, 0, 1.
  assert bits.encode_positions(np.array([0, 1, 4, 7]), 8) == bytes([0b11001001])


@pytest.mark.parametrize(('n', 'k'), [
    (48_411, 2_421), (3_706, 74), (10**7, 815), (10**12, 10**5), (64, 1)])
def test_positions_are_within_a_bit_of_the_least_possible(n, k):
  log2 = (math.lgamma(n + 1) - math.lgamma(k + 1)
          - math.lgamma(n - k + 1)) / math.log(2)
  length = 8 * int(bits.positions_bytes(n, k))
  assert log2 <= length <= min(n, k * (2 + math.log2(n / k))) + 8
  assert length <= log2 + k + 8


@hypothesis.given(st.integers(1, 20), st.data())
def test_packed_numbers_read_back(width, data):
  numbers = np.array(data.draw(
      st.lists(st.integers(0, 2**width - 1), max_size=40)), np.int64)
  code = bits.pack(numbers, width)
  assert len(code) == -(-len(numbers) * width // 8)
  np.testing.assert_array_equal(
      bits.unpack(code, width, len(numbers)), numbers)


@hypothesis.given(st.lists(st.integers(0, 2), max_size=40))
def test_packed_trits_read_back(trits):
  code = bits.pack_trits(np.array(trits, np.int64))
  assert len(code) == -(-len(trits) // 5)
  np.testing.assert_array_equal(bits.unpack_trits(code, len(trits)), trits)
