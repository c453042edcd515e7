"""What travels between a client and the server, in bytes.

Up: the index of each touched row, 4 bytes, sent once, to ask for the row; then
the rows' deltas in the same order and the shared delta. Down: the rows and the
shared parameters. Every number is counted at its own width; headers and
encryption are not counted.
"""

from typing import Any

import jax
import numpy as np

INDEX_BYTES = 4


def touched_rows(
    num_examples: np.ndarray, num_negatives: int, num_items: int
) -> np.ndarray:
  """Item rows that a client touches in a round: int64, num_examples's shape.

  Its interactions, and num_negatives distinct negatives for each, or all the
  items without an interaction where those are fewer.
  """
  n = np.asarray(num_examples, np.int64)
  return n + np.minimum(num_negatives * n, num_items - n)


def _bytes(leaf, drop_axis: bool) -> int:
  shape = leaf.shape[1:] if drop_axis else leaf.shape
  return int(np.prod(shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize


def communication_summary(
    item_table: Any,
    shared: Any,
    rows: np.ndarray,
    participations: np.ndarray,
    num_items: int,
) -> dict[str, float]:
  """Returns the byte counts of a run, as summary.json has them.

  Args:
    item_table: Leaves [num_items, ...]: arrays or their shapes.
    shared: The shared parameters.
    rows: int [num_clients]: rows that a client touches in a round.
    participations: int [num_clients]: rounds that it took part in.
    num_items: Items in the catalogue.
  """
  row_bytes = sum(_bytes(leaf, True) for leaf in jax.tree.leaves(item_table))
  shared_bytes = sum(_bytes(leaf, False) for leaf in jax.tree.leaves(shared))
  # Poisson sampling may invite nobody in a short run.
  total = int(participations.sum())
  mean_rows = float(rows @ participations) / total if total else 0.0
  uplink = mean_rows * (row_bytes + INDEX_BYTES) + shared_bytes
  downlink = mean_rows * row_bytes + shared_bytes
  return {
      'uplink_bytes_per_client': float(uplink),
      'downlink_bytes_per_client': float(downlink),
      'dense_uplink_bytes_per_client': float(
          num_items * row_bytes + shared_bytes),
      'total_bytes': float((uplink + downlink) * total),
  }
