"""Bytes between a client and the server, by hand."""

import numpy as np
import pytest

from fedjaxrec.communication import communication_summary, touched_rows


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
