"""Tests of fedjaxrec.aggregation.masking and of the primitives under it."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedjaxrec.aggregation import masking, packing, primitives


def one_block_at_a_time(key, size):
  """AES-128-CTR by ECB: the counter is a number of 128 bits, highest first."""
  counter, stream = int.from_bytes(key[16:], 'big'), b''
  encryptor = Cipher(algorithms.AES(key[:16]), modes.ECB()).encryptor()
  while len(stream) < size:
    stream += encryptor.update(counter.to_bytes(16, 'big'))
    counter = (counter + 1) % 2**128
  return stream[:size]


@pytest.mark.parametrize('bits', [8, 16, 32])
@pytest.mark.parametrize('length', [1, 5, 70_001])
def test_a_mask_is_the_stream_of_its_key(bits, length):
  """Across the pieces of 128 KiB too."""
  dtype = packing.narrow_dtype(bits)
  keys = [bytes(range(i, 32 + i)) for i in range(3)]
  streams = [np.frombuffer(one_block_at_a_time(
      key, length * dtype.itemsize), dtype) for key in keys]
  total = np.arange(length).astype(dtype)
  want = total + streams[0] + streams[1] - streams[2]
  masking.add_masks(total, keys[:2], keys[2:])
  np.testing.assert_array_equal(total, want)


def test_a_pair_adds_and_subtracts_the_same_mask():
  keys = {2: b'a' * 32, 7: b'b' * 32}
  assert masking.split_by_sign(5, keys) == ([b'b' * 32], [b'a' * 32])
  total = np.zeros(100, np.uint16)
  masking.add_masks(total, [b'k' * 32])
  assert total.any()
  masking.add_masks(total, subtracted=[b'k' * 32])
  assert not total.any()


def test_a_key_of_another_length_is_refused():
  with pytest.raises(ValueError, match='len\\(key\\)=16'):
    masking.add_masks(np.zeros(4, np.uint8), [b'k' * 16])


@pytest.mark.parametrize(('vector', 'fault'), [
  (np.zeros(3, np.uint32), None), (np.full(3, 15, np.int64), None),
  (np.full(3, 16, np.uint32), 'outside'), (np.full(3, -1), 'outside'),
  (np.zeros(4, np.uint32), 'shape'), (np.zeros(3), 'integers'),
  ([0, 0, 0], 'integers')])
def test_an_input_is_a_vector_of_the_ring(vector, fault):
  found = masking.check_input(vector, 3, 4)
  assert found is None if fault is None else fault in found


def test_keys_that_two_agree_on_are_theirs_and_open_one_direction():
  a, b = (primitives.Agreement(bytes([i]) * 32) for i in (1, 2))
  assert a.agree(b.public_key) == b.agree(a.public_key)
  sealed = primitives.encrypt(b'k' * 16, b'share', b'from 1 to 2')
  assert primitives.decrypt(b'k' * 16, sealed, b'from 1 to 2') == b'share'
  assert primitives.decrypt(b'k' * 16, sealed, b'from 2 to 1') is None
  assert primitives.decrypt(b'x' * 16, sealed, b'from 1 to 2') is None


def test_derived_keys_differ_by_purpose_and_are_hkdf():
  """RFC 5869, test case 3: no salt, no info."""
  assert primitives.derive(b'\x0b' * 22, b'', 42).hex() == (
      '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d'
      '9d201395faa4b61a96c8')
  assert primitives.derive(b's', b'a', 32) != primitives.derive(b's', b'b', 32)
