"""A source's columns, checked and brought to the types that are computed with.

What cannot be used is refused with the row it stands in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Up to this many times the number of rows, integer ids are renumbered through a
# table over their range; beyond, by sorting.
_TABLE_FACTOR = 4


class Columns(NamedTuple):
  """A source's rows in the source's order, before ids are renumbered."""
  users: np.ndarray  # [num_rows], integers or strings.
  items: np.ndarray  # [num_rows], integers or strings.
  ratings: np.ndarray | None = None  # [num_rows]
  timestamps: np.ndarray | None = None  # [num_rows], seconds.


def dense_ids(
    column: np.ndarray | Sequence, name: str = 'id'
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers ids 0, 1, ... in their sorted order.

  Args:
    column: [num_rows] integers, whole floats, strings or bytes (UTF-8).
    name: For error messages.

  Returns:
    The distinct ids, sorted, [num_ids], and int32 [num_rows] indices into them.

  Raises:
    ValueError: For a null (None, NaN, empty string) or fractional id.
  """
  column = _clean_ids(column, name)
  if not len(column):
    return column, np.zeros(0, np.int32)
  if column.dtype.kind in 'iu':
    low, high = int(column.min()), int(column.max())
    if high - low < max(_TABLE_FACTOR * len(column), 2**20):
      shifted = (column - column.dtype.type(low)).astype(np.int64, copy=False)
      present = np.zeros(high - low + 1, np.bool_)
      present[shifted] = True
      ids = np.flatnonzero(present).astype(column.dtype)
      ids += column.dtype.type(low)
      return ids, (np.cumsum(present, dtype=np.int32) - 1)[shifted]
  ids, index = np.unique(column, return_inverse=True)
  return ids, index.astype(np.int32)


def _clean_ids(column, name: str) -> np.ndarray:
  column = np.asarray(column)
  if column.ndim != 1:
    raise ValueError(f'{name} ids have shape {column.shape}; give one column.')
  if column.dtype.kind == 'O':
    null = (column == np.array(None, object)) | (column != column)
    refuse(null.astype(np.bool_), column, name, 'id', 'must not be null')
    if len(column) and isinstance(column[0], bytes):
      column = column.astype(np.bytes_)
    elif len(column) and isinstance(column[0], str):
      column = column.astype(np.str_)
    else:
      column = np.array(column.tolist())
  if column.dtype.kind == 'S':
    column = np.char.decode(column, 'utf-8')
  if column.dtype.kind == 'f':
    refuse(~(column == np.floor(column)), column, name, 'id',
           'must be a whole number or a string, and not null')
    refuse(np.abs(column) > 2**53, column, name, 'id',
           'is a float too large to be exact; give integers or strings')
    column = column.astype(np.int64)
  if column.dtype.kind in 'UT':
    refuse(column == '', column, name, 'id', 'must not be empty')
  elif column.dtype.kind == 'i':
    column = column.astype(np.int64, copy=False)
  elif column.dtype.kind == 'u':
    column = column.astype(
        np.uint64 if column.dtype.itemsize == 8 else np.int64, copy=False)
  else:
    raise ValueError(
        f'{name} ids are of type {column.dtype}; give integers or strings.')
  return column


def clean_ratings(
    ratings: np.ndarray | Sequence | None, num_rows: int, source: str
) -> np.ndarray:
  """Returns finite float32 [num_rows]; ones for None."""
  if ratings is None:
    return np.ones(num_rows, np.float32)
  try:
    values = np.asarray(ratings).astype(np.float32, copy=False)
  except (TypeError, ValueError) as error:
    raise ValueError(
        f'{source}: the ratings are not all numbers ({error}).') from error
  same_length('rating', values, num_rows, source)
  refuse(~np.isfinite(values), values, source, 'rating',
         'must be a finite number; drop the row or fill it in')
  return values


def clean_timestamps(
    timestamps: np.ndarray | Sequence | None, num_rows: int, source: str
) -> np.ndarray:
  """Returns seconds since 1970, int64 [num_rows]; zeros for None."""
  if timestamps is None:
    return np.zeros(num_rows, np.int64)
  times = np.asarray(timestamps)
  same_length('timestamp', times, num_rows, source)
  missing = 'must not be missing; drop the row or fill it in'
  if times.dtype.kind in 'SU':
    times = _parse_times(times, source)
  if times.dtype.kind == 'M':
    refuse(np.isnat(times), times, source, 'timestamp', missing)
    times = times.astype('datetime64[s]').astype(np.int64)
  elif times.dtype.kind == 'f':
    refuse(~np.isfinite(times), times, source, 'timestamp', missing)
    refuse(np.abs(times) >= 2.0**62, times, source, 'timestamp',
           'is no number of seconds')
    times = np.floor(times).astype(np.int64)
  elif times.dtype.kind not in 'iu':
    raise ValueError(
        f'{source}: timestamps are of type {times.dtype}; give seconds '
        'since 1970, datetime64, or text as 2001-02-03 04:05:06.')
  times = times.astype(np.int64, copy=False)
  refuse(times < 0, times, source, 'timestamp',
         'must not be negative (seconds since 1970)')
  return times


def _parse_times(text: np.ndarray, source: str) -> np.ndarray:
  """Reads text that is seconds since 1970, or dates and times (ISO 8601)."""
  if text.dtype.kind == 'S':
    text = np.char.decode(text, 'utf-8')
  try:
    if np.char.isdecimal(text).all():
      return text.astype(np.int64)
    return text.astype('datetime64[s]')
  except ValueError as error:
    raise ValueError(
        f'{source}: the timestamps are not all times ({error}); give seconds '
        'since 1970, or text as 2001-02-03 04:05:06.') from error


def same_length(
    name: str, array: np.ndarray, num_rows: int, source: str) -> None:
  """Raises ValueError if a column has not `num_rows` entries."""
  if array.shape != (num_rows,):
    raise ValueError(
        f'{source}: {name}s have shape {array.shape}, but there are {num_rows} '
        'rows; the columns must be of equal length.')


def refuse(
    bad: np.ndarray, values: np.ndarray, source: str, name: str, rule: str
) -> None:
  """Raises ValueError for the first row where `bad` holds."""
  if not np.any(bad):
    return
  row = int(np.argmax(bad))
  raise ValueError(
      f'{source}: {name}={values[row]!s} in row {row} (counted from 0) {rule}.')
