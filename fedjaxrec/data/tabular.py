"""CSV and Parquet files with named columns."""

import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from fedjaxrec.data import columns as columns_lib
from fedjaxrec.data import interactions as interactions_lib

Interactions = interactions_lib.Interactions

_WAY_OUT = {
    'user': 'Name the right one with --data.user_column.',
    'item': 'Name the right one with --data.item_column.',
    'rating': 'Name the right one with --data.rating_column, or pass '
              '--data.rating_column= (empty) if every rating is to be 1.',
    'timestamp': 'Name the right one with --data.timestamp_column, or pass '
                 '--data.timestamp_column= (empty) to use the order of the '
                 'rows.',
}


def load(
    kind: str,
    path: str,
    user_column: str = 'user_id',
    item_column: str = 'item_id',
    rating_column: str = 'rating',
    timestamp_column: str = 'timestamp',
) -> Interactions:
  """Reads a table, one interaction a row.

  Ids are integers or text. Ratings are numbers. Timestamps are seconds since
  1970 (fractions are cut off), dates and times of Arrow, or ISO 8601 text.

  Args:
    kind: csv (gzipped if its name ends in .gz) or parquet (a file, or a folder
      of files).
    path: The file; relative to the working directory; `~` is possible.
    user_column: Column with the user's id.
    item_column: Column with the item's id.
    rating_column: Column with the rating; empty: every rating is 1.
    timestamp_column: Column with the time; empty: the order of the rows.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: For a file that does not parse, a column that is not there, or a
      missing or unusable value, with its row.
  """
  columns = {'user': user_column, 'item': item_column}
  if rating_column:
    columns['rating'] = rating_column
  if timestamp_column:
    columns['timestamp'] = timestamp_column
  file = pathlib.Path(path).expanduser()
  if not file.exists():
    raise FileNotFoundError(
        f'data.source={kind}:{path} does not exist (looked at '
        f'{file.absolute()}).')
  source = f'{kind}:{path}'
  try:
    there = _column_names(kind, file)
    for role, column in columns.items():
      if column not in there:
        raise ValueError(
            f'data.{role}_column={column!r} is not a column of {source}; it '
            f'has {", ".join(there)}. {_WAY_OUT[role]}')
    table = _read(kind, file, list(dict.fromkeys(columns.values())))
  except (pa.ArrowException, OSError) as error:
    raise ValueError(
        f'data.source={source} cannot be read as {kind}: {error}') from error
  if not table.num_rows:
    raise ValueError(f'{source}: num_interactions=0; there is no row to use.')
  user_ids, users = _ids(table.column(user_column), f'{source}: user')
  item_ids, items = _ids(table.column(item_column), f'{source}: item')
  ratings = timestamps = None
  if rating_column:
    ratings = _numbers(table.column(rating_column), source, rating_column)
  if timestamp_column:
    timestamps = _times(table.column(timestamp_column), source,
                        timestamp_column)
  return Interactions.from_dense(
      users, items, user_ids, item_ids, ratings, timestamps, source)


def parse_numbers(
    raw: bytes, delimiter: str, types: tuple[str, ...], skip_rows: int = 0
) -> list[np.ndarray]:
  """Parses lines of numbers, without a header, into columns.

  Args:
    raw: The lines.
    delimiter: One character.
    types: Arrow's name of each column's type, such as int64.
    skip_rows: Lines to leave out at the beginning.

  Raises:
    ValueError: For a line that does not have these columns.
  """
  names = [str(i) for i in range(len(types))]
  table = csv.read_csv(
      pa.BufferReader(raw),
      csv.ReadOptions(column_names=names, skip_rows=skip_rows),
      csv.ParseOptions(delimiter=delimiter),
      csv.ConvertOptions(
          column_types=dict(zip(names, map(pa.type_for_alias, types))),
          null_values=[]))
  return [table.column(name).to_numpy() for name in names]


def parse_texts(raw: bytes, num_columns: int) -> list[list[str]]:
  """Parses CSV with a header and quoted commas into columns of text (UTF-8).

  Raises:
    ValueError: For a line that does not have these columns.
  """
  names = [str(i) for i in range(num_columns)]
  table = csv.read_csv(
      pa.BufferReader(raw), csv.ReadOptions(column_names=names, skip_rows=1),
      convert_options=csv.ConvertOptions(
          column_types=dict.fromkeys(names, pa.string())))
  return [table.column(name).to_pylist() for name in names]


def load_columns(path: str, source: str) -> dict[str, Any]:
  """Reads all columns of a table of features.

  Args:
    path: A .csv, .csv.gz or .parquet file.
    source: Name for error messages.

  Returns:
    Name -> float64 array for numbers (NaN where missing) but int64 for whole
    numbers without a missing one; a list of texts, or of lists, otherwise, with
    None where missing.

  Raises:
    ValueError: For a file that does not parse, no row, or a type that is no
      feature.
  """
  kind = 'parquet' if path.endswith('.parquet') else 'csv'
  try:
    if kind == 'parquet':
      table = parquet.read_table(path)
    else:
      table = csv.read_csv(path, convert_options=csv.ConvertOptions(
          strings_can_be_null=True))
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f'{source} cannot be read as {kind}: {error}') from error
  if not table.num_rows:
    raise ValueError(f'{source}: num_rows=0; there is no row to use.')
  if len(set(table.column_names)) < table.num_columns:
    raise ValueError(
        f'{source} has a column twice: {", ".join(table.column_names)}.')
  return {name: _feature_column(table.column(name), source, name)
          for name in table.column_names}


def _feature_column(column: pa.ChunkedArray, source: str, name: str) -> Any:
  kind = column.type
  if pa.types.is_dictionary(kind):
    return _feature_column(column.cast(kind.value_type), source, name)
  if pa.types.is_integer(kind) and not column.null_count:
    return column.to_numpy()
  if (pa.types.is_integer(kind) or pa.types.is_floating(kind)
      or pa.types.is_decimal(kind)):
    return column.cast(pa.float64()).to_numpy()
  if pa.types.is_boolean(kind):
    return column.cast(pa.uint8()).cast(pa.float64()).to_numpy()
  if pa.types.is_null(kind):
    raise ValueError(
        f'{source}: column {name!r} is empty; drop it, or fill it in.')
  if _is_text(kind) or (
      pa.types.is_list(kind) and _is_text(kind.value_type)):
    return column.to_pylist()
  raise ValueError(
      f'{source}: column {name!r} is of type {kind}; a feature is a number, a '
      'text, or a list of texts. Drop the column or turn it into one.')


def _column_names(kind: str, file: pathlib.Path) -> list[str]:
  if kind == 'parquet':
    first = next(iter(sorted(file.rglob('*.parquet'))), file)
    return parquet.read_schema(first).names
  with csv.open_csv(file) as reader:
    return reader.schema.names


def _read(kind: str, file: pathlib.Path, columns: list[str]) -> pa.Table:
  if kind == 'parquet':
    return parquet.read_table(file, columns=columns)
  return csv.read_csv(file, convert_options=csv.ConvertOptions(
      include_columns=columns, strings_can_be_null=True,
      timestamp_parsers=[csv.ISO8601, '%Y-%m-%d %H:%M:%S%z']))


def _ids(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Dense ids and indices; text is renumbered by Arrow's hash table first."""
  _refuse_nulls(column, name, 'id')
  if pa.types.is_dictionary(column.type):
    column = column.cast(column.type.value_type)
  if _is_text(column.type):
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
      encoded = encoded.unify_dictionaries().combine_chunks()
    distinct = np.array(encoded.dictionary.to_pylist(), np.str_)
    ids, index = columns_lib.dense_ids(distinct, name)
    return ids, index[encoded.indices.to_numpy()]
  return columns_lib.dense_ids(column.to_numpy(), name)


def _numbers(column: pa.ChunkedArray, source: str, name: str) -> np.ndarray:
  _refuse_nulls(column, source, name)
  kind = column.type
  if pa.types.is_integer(kind) or pa.types.is_floating(kind):
    return column.to_numpy()
  if pa.types.is_decimal(kind):
    return column.cast(pa.float64()).to_numpy()
  if _is_text(kind):
    for row, value in enumerate(column.to_pylist()):
      try:
        float(value)
      except ValueError:
        raise ValueError(
            f'{source}: {name}={value!r} in row {row} (counted from 0) is not '
            'a number; repair or drop the row.') from None
    return column.cast(pa.float64()).to_numpy()
  raise ValueError(
      f'{source}: column {name!r} is of type {kind}; ratings are numbers.')


def _times(column: pa.ChunkedArray, source: str, name: str) -> np.ndarray:
  _refuse_nulls(column, source, name)
  kind = column.type
  if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
    column = column.cast(pa.timestamp('s', getattr(kind, 'tz', None)),
                         safe=False)
    return pc.cast(column, pa.int64()).to_numpy()
  if _is_text(kind):
    for zone in (None, 'UTC'):
      try:
        return _times(column.cast(pa.timestamp('us', zone)), source, name)
      except pa.ArrowInvalid:
        continue
    # Digits, or something to refuse: `Interactions` tells.
    return np.array(column.to_pylist(), np.str_)
  if pa.types.is_integer(kind) or pa.types.is_floating(kind):
    return column.to_numpy()
  raise ValueError(
      f'{source}: column {name!r} is of type {kind}; timestamps are seconds '
      'since 1970, or dates and times.')


def _refuse_nulls(column: pa.ChunkedArray, source: str, name: str) -> None:
  if column.null_count:
    row = pc.index(pc.is_null(column), pa.scalar(True)).as_py()
    raise ValueError(
        f'{source}: {name} is missing in row {row} (counted from 0); drop the '
        'row or fill it in.')


def _is_text(kind: Any) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)
