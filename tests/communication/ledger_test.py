"""Bytes between a client and the server, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.communication import (
    bytes_by_client,
    bytes_by_round,
    communication_summary,
    make_layout,
    touched_rows,
)
from fedjaxrec.communication.downloads import (
    decode_download,
    download_bytes,
    encode_download,
)
from fedjaxrec.config import CompressionConfig


def test_touched_rows_by_hand():
  # 4 negatives each; the third client has 10 of 12 items, so 2 are left.
  np.testing.assert_array_equal(
      touched_rows(np.array([0, 1, 10, 12]), 4, 12), [0, 5, 12, 12])
  np.testing.assert_array_equal(
      touched_rows(np.array([3, 5]), 0, 12), [3, 5])
  np.testing.assert_array_equal(
      touched_rows(np.array([[1], [2]]), 1, 12), [[2], [4]])


def test_millions_of_rows_do_not_overflow():
  assert touched_rows(np.array([10**9], np.int32), 4, 2**40)[0] == 5 * 10**9


def test_bytes_by_hand():
  table = {'item': np.zeros((100, 3), np.float32),
           'item_bias': np.zeros(100, np.float16)}
  shared = {'bias': np.zeros((), np.float32), 'w': np.zeros((2, 5), np.int8)}
  summary = communication_summary(
      table, shared, np.array([10, 30, 5]), np.array([1, 2, 0]), 100)
  # A row weighs 3 * 4 + 2 = 14 bytes, the shared parameters 4 + 10.
  assert summary == pytest.approx({
      'uplink_bytes_per_client': 70 / 3 * (14 + 4) + 14,
      'downlink_bytes_per_client': 70 / 3 * 14 + 14,
      'dense_uplink_bytes_per_client': 100 * 14 + 14,
      'total_bytes': 70 * (14 + 4 + 14) + 3 * 2 * 14})


def test_a_run_in_which_nobody_took_part_sends_nothing():
  table = {'item': np.zeros((100, 3), np.float32)}
  with np.errstate(all='raise'):
    summary = communication_summary(
        table, {'bias': np.zeros(())}, np.array([7]), np.zeros(1, int), 100)
  assert summary['total_bytes'] == 0
  assert np.isfinite(list(summary.values())).all()


@pytest.mark.parametrize('num_items', [50, 5000])
def test_touched_rows_are_what_makes_the_upload_small(num_items):
  table = {'item': np.zeros((num_items, 8), np.float32)}
  rows = touched_rows(np.array([10]), 4, num_items)
  summary = communication_summary(
      table, {}, rows, np.array([1]), num_items)
  dense = num_items * 8 * 4
  assert summary['dense_uplink_bytes_per_client'] == dense
  # With every row touched the indices come on top; with 1 in 100 not.
  assert (summary['uplink_bytes_per_client'] > dense) == (num_items == 50)


def test_compression_by_hand():
  table = {'item': np.zeros((100, 4), np.float32)}
  compression = CompressionConfig(
      sparsify='top_k', fraction=0.1, quantize='qsgd')
  rows, participations = np.array([10, 30, 5]), np.array([1, 2, 0])
  summary = communication_summary(
      table, {'b': np.zeros((), np.float32)}, rows, participations, 100,
      compression)
  # The count; 10 of 100 rows in 10 * 4 + 12 bits; 1 of 10 rows in 1 * 4 + 1;
  # a scale and 4 values; a scale and one.
  small = 4 + 7 + 1 + 4 + 4 + 4 + 1
  # 30 of 100 in 30 * 2 + 49 bits is longer than a bitmap; 3 of 30 rows in
  # 3 * 4 + 3 bits.
  large = 4 + 13 + 2 + 4 + 12 + 4 + 1
  assert summary == pytest.approx({
      'uplink_bytes_per_client': (small + 2 * large) / 3,
      'downlink_bytes_per_client': 70 / 3 * 16 + 4,
      'dense_uplink_bytes_per_client': 1604,
      'total_bytes': small + 2 * large + 70 * 16 + 3 * 4,
      'uncompressed_uplink_bytes_per_client': 70 / 3 * 20 + 4})


def test_rounds_add_up_what_their_clients_send():
  layout = make_layout({'item': np.zeros((100, 2), np.float32)}, {}, 100)
  traffic = bytes_by_client(layout, np.array([10, 30, 5]))
  np.testing.assert_array_equal(traffic.up, [120, 360, 60])
  np.testing.assert_array_equal(traffic.down, [80, 240, 40])
  np.testing.assert_array_equal(
      bytes_by_round(traffic, [np.array([0, 2]), np.array([], int)]),
      [[180, 120], [0, 0]])
  assert bytes_by_round(traffic, []).shape == (0, 2)


def test_a_table_of_16_bits_is_downloaded_as_such_and_its_deltas_are_not():
  """17 numbers a row: 2 bytes each down, 4 up with 4 more for the index."""
  shared = {'bias': np.zeros((), np.float32)}
  tables = [{'item': jnp.zeros((100, 16), dtype), 'item_bias': jnp.zeros(
      100, dtype)} for dtype in (jnp.bfloat16, jnp.float32)]
  half, whole = (communication_summary(
      table, shared, np.array([10]), np.array([2]), 100) for table in tables)
  assert half == {
      'uplink_bytes_per_client': 10 * (17 * 4 + 4) + 4,
      'downlink_bytes_per_client': 10 * 17 * 2 + 4,
      'dense_uplink_bytes_per_client': 100 * 17 * 4 + 4,
      'total_bytes': 2 * (10 * (17 * 6 + 4) + 8)}
  assert whole['downlink_bytes_per_client'] == 10 * 17 * 4 + 4
  assert {name for name in half if half[name] != whole[name]} == {
      'downlink_bytes_per_client', 'total_bytes'}


def test_a_download_of_16_bits_is_written_and_read_at_its_length():
  table = {'item': jnp.arange(24, dtype=jnp.bfloat16).reshape(8, 3)}
  layout = make_layout(table, {}, 8)
  rows = np.asarray(table['item'])[[5, 1]]
  message = encode_download([rows], [])
  assert len(message) == download_bytes(2, layout) == 2 * 3 * 2
  np.testing.assert_array_equal(decode_download(layout, message)[0][0], rows)
