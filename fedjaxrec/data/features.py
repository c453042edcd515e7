"""What the publisher tells about MovieLens' items and users.

`u.item` and `u.user` (100k), `movies.dat` (1m, 10m) and `users.dat` (1m), and
`movies.csv` (latest-small, 20m, 25m). Rows are in the files' order and under
the publisher's ids: `rows_of` leads from the dense ids of `Interactions`.
"""

import csv
import io
from typing import NamedTuple

import numpy as np

from fedjaxrec.data import movielens

_GENRES_100K = (
    'unknown', 'Action', 'Adventure', 'Animation', "Children's", 'Comedy',
    'Crime', 'Documentary', 'Drama', 'Fantasy', 'Film-Noir', 'Horror',
    'Musical', 'Mystery', 'Romance', 'Sci-Fi', 'Thriller', 'War', 'Western')
_NO_GENRE = '(no genres listed)'


class Items(NamedTuple):
  """The catalogue, which can list items that nobody rated."""
  ids: np.ndarray  # int64 [num_rows], the publisher's.
  titles: np.ndarray  # str [num_rows]
  genres: np.ndarray  # bool [num_rows, num_genres]
  genre_names: tuple[str, ...]


class Users(NamedTuple):
  """What users told about themselves."""
  ids: np.ndarray  # int64 [num_rows], the publisher's.
  genders: np.ndarray  # str [num_rows], M or F.
  ages: np.ndarray  # int32 [num_rows], years; 1m: lower end of an age group.
  occupations: np.ndarray  # str [num_rows]; 1m: a number, see its README.
  zip_codes: np.ndarray  # str [num_rows]


def load_items(source: str, path: str) -> Items:
  """Reads titles and genres.

  Args:
    source: A key of `movielens.EDITIONS`.
    path: See `movielens.read_member`.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: For a malformed line, with file and line number.
  """
  edition = movielens.EDITIONS[source]
  if source == 'movielens-100k':
    name, rows = _read_rows(path, edition.folder, 'u.item', '|', 'latin-1', 24)
    flags = [[flag == '1' for flag in row[5:]] for row in rows]
    return Items(_ids(rows, name), _text(rows, 1), np.array(flags),
                 _GENRES_100K)
  if edition.delimiter == '::':
    encoding = 'latin-1' if source == 'movielens-1m' else 'utf-8'
    name, rows = _read_rows(
        path, edition.folder, 'movies.dat', '::', encoding, 3)
  else:
    name, rows = _read_rows(
        path, edition.folder, 'movies.csv', ',', 'utf-8', 3)
  listed = [set(row[2].split('|')) - {_NO_GENRE, ''} for row in rows]
  genre_names = tuple(sorted(set().union(*listed)))
  flags = [[genre in genres for genre in genre_names] for genres in listed]
  return Items(_ids(rows, name), _text(rows, 1), np.array(flags, np.bool_),
               genre_names)


def load_users(source: str, path: str) -> Users:
  """Reads demographics; only the 100k and 1m sets have them.

  Args:
    source: movielens-100k or movielens-1m.
    path: See `movielens.read_member`.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: For another source, or a malformed line.
  """
  if source == 'movielens-100k':
    name, rows = _read_rows(path, 'ml-100k', 'u.user', '|', 'latin-1', 5)
    age, gender = 1, 2
  elif source == 'movielens-1m':
    name, rows = _read_rows(path, 'ml-1m', 'users.dat', '::', 'latin-1', 5)
    gender, age = 1, 2
  else:
    raise ValueError(
        f'data.source={source!r} tells nothing about its users; use '
        'movielens-100k or movielens-1m.')
  return Users(_ids(rows, name), _text(rows, gender),
               _whole_numbers(rows, age, name).astype(np.int32),
               _text(rows, 3), _text(rows, 4))


def rows_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Row of each wanted id in `ids`, -1 where it is not listed: int64.

  Args:
    ids: int [num_rows], distinct.
    wanted: int [n], for example `Interactions.item_ids`.
  """
  order = np.argsort(ids)
  place = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
  rows = order[place]
  return np.where(ids[rows] == wanted, rows, -1)


def _read_rows(
    path: str, folder: str, file: str, delimiter: str, encoding: str,
    num_fields: int) -> tuple[str, list[list[str]]]:
  """A name for messages, and the fields of each line."""
  name, raw = movielens.read_member(path, folder, file)
  text = raw.decode(encoding)
  if delimiter == ',':
    rows = list(csv.reader(io.StringIO(text, newline='')))[1:]
  else:
    # Not splitlines: titles may hold characters that it takes for line ends.
    rows = [line.rstrip('\r').split(delimiter) for line in text.split('\n')
            if line.strip()]
  for number, row in enumerate(rows, start=1 + (delimiter == ',')):
    if len(row) != num_fields:
      raise ValueError(
          f'{name}, line {number}: {len(row)} fields instead of {num_fields} '
          f'separated by {delimiter!r}; repair the line, or fetch the file '
          'again.')
  if not rows:
    raise ValueError(f'{name} holds no rows; fetch the file again.')
  return name, rows


def _ids(rows: list[list[str]], name: str) -> np.ndarray:
  return _whole_numbers(rows, 0, name)


def _whole_numbers(rows, column: int, name: str) -> np.ndarray:
  try:
    return np.array([int(row[column]) for row in rows], np.int64)
  except ValueError as error:
    raise ValueError(
        f'{name}: field {column + 1} is not a whole number everywhere '
        f'({error}); repair the line, or fetch the file again.') from error


def _text(rows: list[list[str]], column: int) -> np.ndarray:
  return np.array([row[column] for row in rows], np.str_)
