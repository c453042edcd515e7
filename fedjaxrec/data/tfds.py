"""A bridge to TensorFlow Datasets, without TensorFlow where that is possible.

Prepared data sets in the array_record format are read without TensorFlow, at
about 0.3 ms a row, so once: the columns are cached. Preparing the official sets
needs TensorFlow and a network; it happens in a process of its own, with a time
limit, and only where everything that it needs is there. The other file formats
are refused: tfrecord cannot be read without TensorFlow, and TFDS 4.9 silently
loses rows when it writes parquet.
"""

import importlib.util
import os
import pathlib
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from fedjaxrec.data import cache
from fedjaxrec.data import interactions as interactions_lib

Interactions = interactions_lib.Interactions

PREPARE_TIMEOUT_S = 300.0
# Names of the fields with user, item, rating and time, the likeliest first.
COLUMNS = (('user_id',), ('movie_id', 'item_id'), ('user_rating', 'rating'),
           ('timestamp',))
_READ_NEEDS = ('tensorflow_datasets', 'array_record')
_PREPARE_NEEDS = (*_READ_NEEDS, 'importlib_resources', 'tensorflow')
# Official builders are not registered before their module is imported.
_PREPARE = """
import sys
import tensorflow_datasets as tfds
name, data_dir = sys.argv[1:]
if name.startswith('movielens/'):
  import tensorflow_datasets.structured.movielens
tfds.builder(
    name, data_dir=data_dir, file_format='array_record').download_and_prepare()
"""


def from_tfds(
    source: Any,
    num_examples: int | None = None,
    columns: Sequence[Sequence[str]] = COLUMNS,
    name: str = 'tfds',
) -> Interactions:
  """Reads rows that are dicts, as TFDS data sources have them, into columns.

  Ids that are decimal numbers written as text become integers, so that the
  result has the fingerprint of the publisher's own file. TFDS shuffles rows
  when it prepares a set: interactions of one second may be in another order
  than in that file.

  Args:
    source: Anything with `__len__` and `__getitem__` whose rows are dicts (the
      result of `as_data_source`, or a list), or a prepared builder.
    num_examples: Rows that there must be; None: as many as there are, or, for a
      builder, as its info says.
    columns: Names of the fields with user, item, rating and timestamp: the
      first that a row has is used. No names for rating: every rating is 1; none
      for timestamp: the order of the rows.
    name: For error messages.

  Raises:
    ValueError: If rows are missing, or a field is.
  """
  if hasattr(source, 'as_data_source'):
    splits = source.info.splits
    if 'train' not in splits:
      raise ValueError(
          f'{name} has no split named train but {", ".join(splits) or "none"}; '
          'is it prepared?')
    if num_examples is None:
      num_examples = splits['train'].num_examples
    source = source.as_data_source('train')
  if num_examples is not None and len(source) != num_examples:
    raise ValueError(
        f'{name} has len(source)={len(source)} rows, but its info says '
        f'num_examples={num_examples}; rows were lost when it was prepared '
        '(TFDS 4.9 loses them in the parquet format): prepare it again with '
        "file_format='array_record'.")
  if not len(source):
    raise ValueError(f'{name}: num_interactions=0; there is no row to use.')
  fields = [_find_field(candidates, source[0], name) for candidates in columns]
  values: list[list] = [[] for _ in fields]
  for index in range(len(source)):
    row = source[index]
    for field, column in zip(fields, values):
      if field:
        column.append(row[field])
  users, items, ratings, timestamps = map(np.array, values)
  return Interactions.from_columns(
      _plain_ids(users), _plain_ids(items),
      ratings if fields[2] else None, timestamps if fields[3] else None,
      source=name)


def load(
    name: str,
    path: str = '',
    cache_dir: str = '',
    columns: Sequence[Sequence[str]] = COLUMNS,
) -> Interactions:
  """Loads `tfds:NAME`: from the columns cached earlier, or through TFDS.

  Args:
    name: For example `movielens/100k-ratings`.
    path: Folder of the prepared data set, or of the data sets; empty: TFDS's
      own folder, where it is prepared if it is not yet.
    cache_dir: The cache's folder; see `cache.cache_folder`.
    columns: See `from_tfds`.

  Raises:
    FileNotFoundError: If it is not prepared and cannot be.
    ValueError: If it cannot be used.
  """
  key = f'tfds-{name}'
  root = None
  if path:
    root = pathlib.Path(path).expanduser()
    if find_prepared(root, name) is None:
      raise FileNotFoundError(
          f'data.path={path!r} holds no prepared data set tfds:{name} (no '
          'dataset_info.json there or in a folder with its name and version); '
          "give the folder that TFDS's builder.data_dir names.")
    key = f'{key}-{find_prepared(root, name)}'
  if columns != COLUMNS:
    key = f'{key}-{columns}'
  folder = cache.cache_folder(cache_dir)
  stored = cache.file_of(folder, cache.short_name(key))
  try:
    return cache.load(stored)
  except OSError as error:
    logging.info('%s: %s', stored, error.strerror)
  except ValueError as error:
    logging.warning('%s It is now named %s.', error, cache.set_aside(stored))
  if root is not None:
    result = read_prepared(find_prepared(root, name), columns)
  else:
    result = load_prepared(name, folder / 'tfds', columns=columns)
  cache.save_or_warn(stored, result)
  return result


def load_prepared(
    name: str,
    data_dir: pathlib.Path,
    probe_url: str = '',
    timeout_s: float = 10.0,
    columns: Sequence[Sequence[str]] = COLUMNS,
) -> Interactions:
  """Reads a set of TFDS's catalogue; prepares it first, if it must and can.

  Args:
    name: For example `movielens/100k-ratings`.
    data_dir: Where to prepare; $TFDS_DATA_DIR and ~/tensorflow_datasets are
      looked into as well.
    probe_url: Preparing is not tried if this address cannot be connected to
      (TFDS itself would try for more than three minutes); empty: no check.
    timeout_s: Time limit of that check.
    columns: See `from_tfds`.

  Raises:
    FileNotFoundError: If it is not prepared and cannot be.
  """
  _require(_READ_NEEDS, 'read')
  roots = [data_dir, pathlib.Path(
      os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()]
  for root in roots:
    found = find_prepared(root, name)
    if found is not None:
      return read_prepared(found, columns)
  _require(_PREPARE_NEEDS, 'prepare')
  if probe_url:
    _probe(probe_url, timeout_s)
  logging.info('Preparing tfds:%s in %s', name, data_dir)
  try:
    finished = subprocess.run(
        [sys.executable, '-c', _PREPARE, name, str(data_dir)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=PREPARE_TIMEOUT_S)
  except subprocess.TimeoutExpired as error:
    raise FileNotFoundError(
        f'tfds:{name} was not prepared in {PREPARE_TIMEOUT_S:.0f} s; prepare '
        'it yourself and give its folder with --data.path.') from error
  found = find_prepared(data_dir, name)
  if finished.returncode or found is None:
    lines = finished.stderr.strip().splitlines() or ['no message']
    raise FileNotFoundError(
        f'tfds:{name} could not be prepared ({lines[-1]}); prepare it yourself '
        "with file_format='array_record' and give its folder with --data.path.")
  return read_prepared(found, columns)


def find_prepared(root: pathlib.Path, name: str) -> pathlib.Path | None:
  """Folder of a prepared data set: `root`, or its newest version below."""
  name, _, version = name.partition(':')
  if (root / 'dataset_info.json').is_file():
    return root
  for folder in (root / name, root):
    found = [info.parent for info in
             folder.glob(f'{version or "*"}/dataset_info.json')
             if re.fullmatch(r'\d+\.\d+\.\d+', info.parent.name)]
    if found:
      return max(found, key=lambda f: tuple(map(int, f.name.split('.'))))
  return None


def read_prepared(
    folder: pathlib.Path | None,
    columns: Sequence[Sequence[str]] = COLUMNS,
) -> Interactions:
  """Reads a prepared data set; needs no TensorFlow and no builder class."""
  _require(_READ_NEEDS, 'read')
  # Takes seconds, and most runs never come here.
  import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top
  builder = tfds.builder_from_directory(str(folder))
  file_format = builder.info.file_format
  if file_format is None or file_format.value != 'array_record':
    raise ValueError(
        f'{folder} is prepared as {getattr(file_format, "value", "nothing")}; '
        "only array_record can be read: prepare it again with "
        "file_format='array_record'.")
  logging.info('Reading %s; this happens once.', folder)
  return from_tfds(builder, columns=columns, name=str(folder))


def _find_field(candidates: Sequence[str], row: dict, name: str) -> str:
  """The first candidate that the row has; '' if there are no candidates."""
  for field in candidates:
    if field in row:
      return field
  if not any(candidates):
    return ''
  raise ValueError(
      f'{name} has no field {" or ".join(candidates)}; it has '
      f'{", ".join(sorted(row))}. Name the right one with --data.user_column, '
      '--data.item_column, --data.rating_column or --data.timestamp_column '
      '(the last two can be empty).')


def _plain_ids(ids: np.ndarray) -> np.ndarray:
  """Text that is decimal numbers without leading zeros as integers."""
  if ids.dtype.kind == 'S':
    ids = np.char.decode(ids, 'utf-8')
  if ids.dtype.kind == 'U' and ids.dtype.itemsize <= 4 * 18 and (
      np.char.isdecimal(ids).all()):
    numbers = ids.astype(np.int64)
    if (numbers.astype(ids.dtype) == ids).all():
      return numbers
  return ids


def _require(modules: Sequence[str], purpose: str) -> None:
  missing = [name for name in modules if importlib.util.find_spec(name) is None]
  if missing:
    raise FileNotFoundError(
        f'to {purpose} a TFDS data set needs {", ".join(missing)}, which '
        'is not installed: pip install "fedjaxrec[tfds]"')


def _probe(url: str, timeout_s: float) -> None:
  """Raises OSError if the host cannot be connected to."""
  if urllib.request.getproxies():
    return  # A direct connection would say nothing.
  parts = urllib.parse.urlsplit(url)
  port = parts.port or (443 if parts.scheme == 'https' else 80)
  try:
    socket.create_connection((parts.hostname, port), timeout_s).close()
  except OSError as error:
    raise OSError(
        f'nothing prepared, and {parts.hostname} cannot be connected to '
        f'({error})') from error
