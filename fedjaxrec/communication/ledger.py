"""What travels between a client and the server, in bytes, by client and run.

Up: the set of touched rows, sent once, to ask for the rows; then what the
client's chain makes of their deltas and of the shared delta. Down: the rows and
the shared parameters. The lengths are those of the messages of
`communication.encoding`; headers below them and encryption are not counted.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjaxrec.communication.downloads import (
    dense_upload_bytes,
    download_bytes,
)
from fedjaxrec.communication.encoding import (
    INDEX_BYTES,
    Layout,
    Leaf,
    wire_bytes,
)
from fedjaxrec.config.compression import CompressionConfig

__all__ = [
    'INDEX_BYTES', 'ClientBytes', 'bytes_by_client', 'bytes_by_round',
    'communication_summary', 'make_layout', 'touched_rows',
]
_PLAIN = CompressionConfig()


class ClientBytes(NamedTuple):
  """What each client sends and gets in a round that it takes part in.

  Attributes:
    up: int64 [num_clients].
    down: int64 [num_clients].
  """
  up: np.ndarray
  down: np.ndarray


def touched_rows(
    num_examples: np.ndarray, num_negatives: int, num_items: int
) -> np.ndarray:
  """Item rows that a client touches in a round: int64, num_examples's shape.

  Its interactions, and num_negatives distinct negatives for each, or all the
  items without an interaction where those are fewer.
  """
  n = np.asarray(num_examples, np.int64)
  return n + np.minimum(num_negatives * n, num_items - n)


def make_layout(item_table: Any, shared: Any, num_items: int) -> Layout:
  """Returns the layout of a model's messages.

  Args:
    item_table: Leaves [num_items, ...]: arrays or their shapes.
    shared: The shared parameters, likewise.
    num_items: Items in the catalogue.
  """
  def leaves(tree, first):
    return tuple(
        Leaf(tuple(x.shape[first:]), _delta_dtype(x.dtype), np.dtype(x.dtype))
        for x in jax.tree.leaves(tree))
  return Layout(num_items, leaves(item_table, 1), leaves(shared, 0))


def _delta_dtype(dtype: Any) -> np.dtype:
  """Of a parameter's deltas: float32 for bfloat16, which is for rest alone."""
  dtype = np.dtype(dtype)
  return np.dtype(np.float32) if dtype.name == 'bfloat16' else dtype


def bytes_by_client(
    layout: Layout, rows: np.ndarray, compression: CompressionConfig = _PLAIN,
    sent: Layout | None = None, dense_rows: int = 0
) -> ClientBytes:
  """Returns what each client sends and gets in one round.

  Args:
    layout: The model.
    rows: int [num_clients]: rows that a client touches in a round.
    compression: The clients' chain. See `wire_bytes` for the two chains whose
      length depends on the data.
    sent: Of an upload, where it is not deltas of the model.
    dense_rows: See `communication_summary`.
  """
  sent = layout if sent is None else sent
  if dense_rows:
    rows = np.full(np.shape(rows), dense_rows)
  return ClientBytes(
      np.full(np.shape(rows), dense_upload_bytes(dense_rows, sent), np.int64)
      if dense_rows else wire_bytes(compression, rows, sent),
      download_bytes(rows, layout, compression.downlink_bits))


def bytes_by_round(
    traffic: ClientBytes, cohorts: Iterable[np.ndarray]
) -> np.ndarray:
  """Returns int64 [rounds, 2]: bytes up and down of each round.

  Args:
    traffic: From `bytes_by_client`.
    cohorts: int [cohort]: the ids of each round's clients.
  """
  return np.array([
      (traffic.up[cohort].sum(), traffic.down[cohort].sum())
      for cohort in cohorts], np.int64).reshape(-1, 2)


def communication_summary(
    item_table: Any,
    shared: Any,
    rows: np.ndarray,
    participations: np.ndarray,
    num_items: int,
    compression: CompressionConfig = _PLAIN,
    upload: tuple[Any, Any] | None = None,
    dense_rows: int = 0,
) -> dict[str, float]:
  """Returns the byte counts of a run, as summary.json has them.

  Args:
    item_table: Leaves [num_items, ...]: arrays or their shapes.
    shared: The shared parameters.
    rows: int [num_clients]: rows that a client touches in a round.
    participations: int [num_clients]: rounds that it took part in.
    num_items: Items in the catalogue.
    compression: The clients' chain.
    upload: (item leaves, whole leaves) of an upload, where it is not deltas of
      the item table and the shared parameters.
    dense_rows: Rows that every client sends and gets, none of them named, as
      local privacy has it; 0: each its own.

  Returns:
    Means over participations, and the run's total. Under compression also
    `uncompressed_uplink_bytes_per_client`, what the same deltas would have
    weighed without, and `uncompressed_downlink_bytes_per_client`.
  """
  layout = make_layout(item_table, shared, num_items)
  sent = make_layout(*upload, num_items) if upload else layout
  participations = np.asarray(participations, np.int64)
  total = int(participations.sum())

  def mean(bytes_of):
    # Poisson sampling may invite nobody in a short run.
    return float(bytes_of(rows) @ participations) / total if total else float(
        bytes_of(0))

  def down_by(bits):
    return mean(lambda rows: download_bytes(
        np.full(np.shape(rows), dense_rows) if dense_rows else rows, layout,
        bits))

  if dense_rows:
    up = float(dense_upload_bytes(dense_rows, sent))
  else:
    up = mean(lambda rows: wire_bytes(compression, rows, sent))
  down = down_by(compression.downlink_bits)
  # A dense upload names no rows.
  row_bytes, shared_bytes = (
      sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
      for leaves in (sent.item, sent.shared))
  summary = {
      'uplink_bytes_per_client': up,
      'downlink_bytes_per_client': down,
      'dense_uplink_bytes_per_client': float(
          shared_bytes + num_items * row_bytes),
      'total_bytes': (up + down) * total,
  }
  if compression.is_on:
    summary['uncompressed_uplink_bytes_per_client'] = mean(
        lambda rows: wire_bytes(_PLAIN, rows, sent))
  if compression.downlink_bits:
    summary['uncompressed_downlink_bytes_per_client'] = down_by(0)
  return summary
