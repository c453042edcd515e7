"""Where side features come from: the publisher's files, or the user's own.

`published` reads what MovieLens publishes beside the ratings: age, gender and
occupation of users (100k, 1m), genres and year of items (all sets). Anything
else is a file: CSV (also gzipped) or Parquet with the id column of the
interactions and a column a feature, or NumPy's .npy with one row of numbers an
id, counted from 0.
"""

import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjaxrec import config as config_lib
from fedjaxrec.data import features as features_lib
from fedjaxrec.data import fetch, movielens
from fedjaxrec.data.features import Features
from fedjaxrec.data.movielens import GENRES_100K

PUBLISHED = 'published'
_NO_GENRE = '(no genres listed)'
_YEAR = re.compile(r'\((\d{4})\)\s*$')


class SideFeatures(NamedTuple):
  """Features of both sides; None where none were asked for."""
  users: Features | None
  items: Features | None


class _Table(NamedTuple):
  """A file's rows, in its order."""
  name: str
  ids: list[Any]
  columns: dict[str, list[Any] | np.ndarray]


def load_features(
    config: config_lib.DataConfig, user_ids: np.ndarray, item_ids: np.ndarray
) -> SideFeatures:
  """Loads the features that a config asks for, aligned with the dense ids.

  Args:
    config: data.user_features and data.item_features, and where the data lies.
    user_ids: [num_users] the source's ids, by dense id; of the split.
    item_ids: [num_items] likewise.

  Raises:
    FileNotFoundError: If a file is not there.
    ValueError: If a source publishes no features, or a file does not parse, has
      not every id, or has one twice.
  """
  result: list[Features | None] = []
  for role, asked, ids, column in (
      ('user', config.user_features, user_ids, config.user_column),
      ('item', config.item_features, item_ids, config.item_column)):
    if not asked:
      result.append(None)
      continue
    if asked == PUBLISHED:
      table = _read_published(config, role)
    elif asked.endswith('.npy'):
      table = _read_npy(asked, role)
    else:
      table = _read_table(asked, role, column)
    rows = features_lib.align(ids, table.ids, role, table.name)
    # Rows first: a vocabulary holds what these users or items have.
    columns = {
        name: values[rows] if isinstance(values, np.ndarray)
        else [values[row] for row in rows]
        for name, values in table.columns.items()}
    result.append(features_lib.from_columns(columns, table.name))
  return SideFeatures(*result)


def _existing(path: str, role: str) -> pathlib.Path:
  file = pathlib.Path(path).expanduser()
  if not file.exists():
    raise FileNotFoundError(
        f'data.{role}_features={path!r} does not exist (looked at '
        f'{file.absolute()}); give a .csv, .csv.gz, .parquet or .npy file, or '
        f'{PUBLISHED!r} for what a MovieLens set publishes.')
  return file


def _read_table(path: str, role: str, id_column: str) -> _Table:
  # pyarrow takes a tenth of a second to import, and most runs need none.
  from fedjaxrec.data import tabular  # pylint: disable=g-import-not-at-top
  file = _existing(path, role)
  columns = tabular.load_columns(str(file), f'data.{role}_features={path}')
  if id_column not in columns:
    raise ValueError(
        f'data.{role}_column={id_column!r} is not a column of {path}; it has '
        f'{", ".join(columns)}. Features and interactions name the {role} '
        'alike.')
  ids = columns.pop(id_column)
  if any(features_lib.is_missing(value) for value in ids):
    raise ValueError(
        f'data.{role}_features={path}: a row has no {id_column}; drop it or '
        'fill it in.')
  if not columns:
    raise ValueError(
        f'data.{role}_features={path} has the column {id_column!r} alone; '
        'there must be a feature.')
  return _Table(path, list(ids), columns)


def _read_npy(path: str, role: str) -> _Table:
  try:
    table = np.load(_existing(path, role), allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise ValueError(
        f'data.{role}_features={path} is no plain NumPy array: '
        f'{error}') from error
  if table.ndim != 2 or table.dtype.kind not in 'iufb':
    raise ValueError(
        f'data.{role}_features={path} is {table.dtype}{list(table.shape)}; it '
        'must be numbers [rows, features], row r for id r.')
  return _Table(path, list(range(len(table))), {
      f'f{i}': table[:, i] for i in range(table.shape[1])})


def _read_published(config: config_lib.DataConfig, role: str) -> _Table:
  edition = movielens.EDITIONS.get(config.source)
  if edition is None:
    raise ValueError(
        f'data.{role}_features={PUBLISHED} with data.source={config.source}: '
        'only the MovieLens sets publish features that are known here; give a '
        f'file of your own as --data.{role}_features=FILE.csv.')
  file, parse = _parser(edition, role, config.source)
  if config.path:
    root = pathlib.Path(config.path).expanduser()
    # The rating file itself: the others lie beside it.
    beside = root.parent if root.is_file() and root.suffix != '.zip' else root
    name, raw = movielens.read_member(str(beside), edition.folder, file)
  else:
    name, raw = file, fetch.load_published_file(
        config.source, file, config.cache_dir)
  try:
    ids, columns = parse(raw)
  except (ValueError, IndexError, KeyError) as error:
    raise ValueError(
        f'{name} is not as the publisher writes it: {error}') from error
  return _Table(name, ids, columns)


def _parser(
    edition: movielens.Edition, role: str, source: str
) -> tuple[str, Callable[[bytes], tuple[list, dict[str, Any]]]]:
  """The file with a role's features, and what reads it."""
  known: dict[tuple[str, str], tuple[str, Callable]] = {
      ('ml-100k', 'user'): ('u.user', _parse_100k_users),
      ('ml-100k', 'item'): ('u.item', _parse_100k_items),
      ('ml-1m', 'user'): ('users.dat', _parse_1m_users),
  }
  if role == 'item' and edition.delimiter == '::':
    known[(edition.folder, role)] = ('movies.dat', _parse_movies_dat)
  elif role == 'item' and edition.delimiter == ',':
    known[(edition.folder, role)] = ('movies.csv', _parse_movies_csv)
  if (edition.folder, role) not in known:
    raise ValueError(
        f'data.{role}_features={PUBLISHED}: {source} publishes no {role} '
        'features; leave the flag empty, or give a file of your own.')
  return known[(edition.folder, role)]


def _lines(raw: bytes, delimiter: str, fields: int) -> list[list[str]]:
  """Rows of a file in the publisher's encoding, ISO-8859-1."""
  rows = []
  for number, line in enumerate(raw.decode('latin-1').split('\n'), start=1):
    if line.strip():
      row = line.rstrip('\r').split(delimiter)
      if len(row) != fields:
        raise ValueError(
            f'line {number} has {len(row)} fields instead of {fields}')
      rows.append(row)
  return rows


def _year(title: str) -> float:
  found = _YEAR.search(title)
  return float(found.group(1)) if found else np.nan


def _parse_100k_users(raw: bytes):
  ids, age, gender, occupation, _ = zip(*_lines(raw, '|', 5))
  return list(ids), {'age': np.array(age, np.float32), 'gender': list(gender),
                     'occupation': list(occupation)}


def _parse_100k_items(raw: bytes):
  rows = _lines(raw, '|', 5 + len(GENRES_100K))
  # The title's year, as in the other sets; else that of the release, a day
  # such as 01-Jan-1995, which can be a later one.
  years = [float(row[2][-4:]) if np.isnan(year) and row[2] else year
           for row, year in ((row, _year(row[1])) for row in rows)]
  genres = [[genre for genre, flag in zip(GENRES_100K, row[5:])
             if int(flag)] for row in rows]
  return [row[0] for row in rows], {
      'year': np.array(years, np.float32), 'genres': genres}


def _parse_1m_users(raw: bytes):
  ids, gender, age, occupation, _ = zip(*_lines(raw, '::', 5))
  return list(ids), {'age_group': list(age), 'gender': list(gender),
                     'occupation': list(occupation)}


def _movies(ids, titles, genres):
  return list(ids), {
      'year': np.array([_year(title) for title in titles], np.float32),
      'genres': [[] if g in ('', _NO_GENRE) else g.split('|') for g in genres]}


def _parse_movies_dat(raw: bytes):
  return _movies(*zip(*_lines(raw, '::', 3)))


def _parse_movies_csv(raw: bytes):
  from fedjaxrec.data import tabular  # pylint: disable=g-import-not-at-top
  return _movies(*tabular.parse_texts(raw, 3))
