"""Which rows a cohort touched, found without showing who touched which.

Sending only the rows that a client touched would name them. Instead a secure
sum first finds the union: each client sends random multiples that are not zero
at its rows and zeros elsewhere, so that the sum is zero exactly where nobody
was, and random elsewhere. Then all clients send the same rows: the union, and
fake rows up to a size of a few. Host side.
"""

from typing import NamedTuple

import numpy as np

from fedjaxrec.aggregation.primitives import Entropy, system_entropy

# The union's sum is taken modulo 2^32 whatever the ring of the values.
UNION_BITS = 32


class RowLayout(NamedTuple):
  """Where the item rows stand in a client's message.

  Attributes:
    num_items: Items in the catalogue.
    row_sizes: Numbers in a row of each leaf of the item table; the leaves stand
      one after another, rows in the order of the items.
    shared_size: Numbers behind them, which always travel.
  """
  num_items: int
  row_sizes: tuple[int, ...]
  shared_size: int

  @property
  def dimension(self) -> int:
    """Numbers in a message that holds every row."""
    return self.size_of(self.num_items)

  def size_of(self, num_rows: int) -> int:
    """Numbers in a message of so many rows."""
    return num_rows * sum(self.row_sizes) + self.shared_size


def touched(vector: np.ndarray, layout: RowLayout) -> np.ndarray:
  """The rows in which a message is not zero: bool [num_items]."""
  found = np.zeros(layout.num_items, bool)
  for table in _tables(vector, layout):
    found |= table.any(axis=1)
  return found


def random_multiples(
    rows: np.ndarray, entropy: Entropy = system_entropy
) -> np.ndarray:
  """A client's message to the sum that finds the union.

  Formal guarantee: a row that one client touched sums to a uniform number from
  1 to 2^32 - 1, one that several touched to one within 2^-31 of that in total
  variation: the sum tells the union, not the counts.

  Args:
    rows: bool [num_items]: what the client touched.
    entropy: bytes(n) -> random bytes.

  Returns:
    uint32 [num_items]: uniform from 1 to 2^32 - 1 (to 2^-32) at the rows, 0
    elsewhere. Several add up to 0 at a row, so that it is lost, with a
    probability of at most 1 / (2^32 - 1): see `chance_of_a_lost_row`.
  """
  rows = np.asarray(rows, bool)
  count = int(rows.sum())
  words = np.frombuffer(entropy(8 * count), '<u8') % np.uint64(2**32 - 1)
  message = np.zeros(len(rows), np.uint32)
  message[rows] = (words + np.uint64(1)).astype(np.uint32)
  return message


def chance_of_a_lost_row(num_rows: int, bits: int = UNION_BITS) -> float:
  """At most this: that multiples of any of so many touched rows add up to 0.

  Whatever the others sent, the last multiple must be one certain number of the
  2^bits - 1 that it can be; a row that one client touched is never lost.
  """
  return min(1.0, num_rows / (2**bits - 1))


def padded_rows(union: np.ndarray) -> np.ndarray:
  """The rows that travel: the union, and fake rows up to a power of two.

  So a message has one of few lengths, for who only sees lengths. Fake rows are
  the first ones that nobody touched; they hold zeros.

  Args:
    union: bool [num_items].

  Returns:
    int64 [rows], increasing; all rows where the union is more than half.
  """
  size = padded_size(int(union.sum()), len(union))
  fake = np.flatnonzero(~union)[:size - int(union.sum())]
  return np.sort(np.concatenate([np.flatnonzero(union), fake]))


def padded_size(num_rows: int, num_items: int) -> int:
  """Rows that travel where the union has num_rows."""
  return min(num_items, 1 << max(0, num_rows - 1).bit_length())


def restrict(
    vector: np.ndarray, rows: np.ndarray, layout: RowLayout
) -> np.ndarray:
  """What a message says of some rows, and of what always travels."""
  tail = layout.dimension - layout.shared_size
  return np.concatenate([
      *(table[rows].reshape(-1) for table in _tables(vector, layout)),
      vector[tail:]])


def expand(
    short: np.ndarray, rows: np.ndarray, layout: RowLayout
) -> np.ndarray:
  """The other way: zeros in the rows that did not travel."""
  whole = np.zeros(layout.dimension, short.dtype)
  place = 0
  for table, size in zip(_tables(whole, layout), layout.row_sizes):
    table[rows] = short[place:place + len(rows) * size].reshape(-1, size)
    place += len(rows) * size
  whole[layout.dimension - layout.shared_size:] = short[place:]
  return whole


def _tables(vector: np.ndarray, layout: RowLayout) -> list[np.ndarray]:
  """Views of a message: the leaves of its item table, [num_items, size]."""
  if vector.shape != (layout.dimension,):
    raise ValueError(
        f'vector: shape {vector.shape}, and a message of {layout.num_items} '
        f'rows has ({layout.dimension},); give all rows.')
  tables, place = [], 0
  for size in layout.row_sizes:
    end = place + layout.num_items * size
    tables.append(vector[place:end].reshape(layout.num_items, size))
    place = end
  return tables
