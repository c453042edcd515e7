"""The publisher's raw MovieLens rating files, and what is known about them.

Formats: tab-separated `u.data` (100k), `::`-separated `ratings.dat` (1m, 10m)
and `ratings.csv` with a header (latest-small, 20m, 25m); each also gzipped, or
inside the publisher's zip. Rows keep the file's order, which breaks ties in
time (half of the 100k set's rows tie with a neighbour).
"""

import dataclasses
import gzip
import pathlib
import zipfile

import numpy as np
from absl import logging

from fedjaxrec.data import columns as columns_lib
from fedjaxrec.data import interactions as interactions_lib

Columns = columns_lib.Columns
Interactions = interactions_lib.Interactions


@dataclasses.dataclass(frozen=True)
class Edition:
  """One published MovieLens data set.

  Attributes:
    folder: Name of the publisher's zip, and of the folder in it.
    ratings_file: Name of the rating file in the folder.
    delimiter: Between the columns: tab, `::` or comma (with a header line).
    num_users: Users with a rating.
    num_items: Items with a rating.
    num_interactions: Ratings.
    tfds_name: Name of the prepared data set.
    zip_bytes: Size of the publisher's zip; 0: not known.
    zip_sha256: First hex digits of the zip's SHA-256; empty: not known.
    fingerprint: `Interactions.fingerprint()` of the ratings; empty: not known.
  """
  folder: str
  ratings_file: str
  delimiter: str
  num_users: int
  num_items: int
  num_interactions: int
  tfds_name: str
  zip_bytes: int = 0
  zip_sha256: str = ''
  fingerprint: str = ''


EDITIONS = {
    'movielens-100k': Edition(
        'ml-100k', 'u.data', '\t', 943, 1_682, 100_000,
        'movielens/100k-ratings', 4_924_029, '50d254a4',
        '2598c89ecff0294a0e5af685fe47c097598587027b00f3fa4f7049cdcb2fa04d'),
    'movielens-latest-small': Edition(
        'ml-latest-small', 'ratings.csv', ',', 610, 9_724, 100_836,
        'movielens/latest-small-ratings', 978_202, '696d65a3',
        '2bf87d952e1c23b6e68ff390541f2f69870cc338e5cb46ad68c97a43a5c9a03b'),
    'movielens-1m': Edition(
        'ml-1m', 'ratings.dat', '::', 6_040, 3_706, 1_000_209,
        'movielens/1m-ratings', 5_917_549, 'a6898adb'),
    'movielens-10m': Edition(
        'ml-10M100K', 'ratings.dat', '::', 69_878, 10_677, 10_000_054, ''),
    'movielens-20m': Edition(
        'ml-20m', 'ratings.csv', ',', 138_493, 26_744, 20_000_263,
        'movielens/20m-ratings'),
    'movielens-25m': Edition(
        'ml-25m', 'ratings.csv', ',', 162_541, 59_047, 25_000_095,
        'movielens/25m-ratings'),
}

# In the order of the flags of `u.item`.
GENRES_100K = (
    'unknown', 'Action', 'Adventure', 'Animation', "Children's", 'Comedy',
    'Crime', 'Documentary', 'Drama', 'Fantasy', 'Film-Noir', 'Horror',
    'Musical', 'Mystery', 'Romance', 'Sci-Fi', 'Thriller', 'War', 'Western')


def load_path(source: str, path: str) -> Interactions:
  """Reads the publisher's rating file where the user keeps it.

  Counts that differ from the published ones are warned about, not refused: a
  part of a data set is a data set.

  Args:
    source: A key of `EDITIONS`.
    path: The rating file (also gzipped), the publisher's zip, or the folder
      with either. `~` and relative paths are possible.

  Raises:
    FileNotFoundError: If there is no such file, naming what was looked for.
    ValueError: For a malformed line, with file and line number.
  """
  edition = EDITIONS[source]
  name, raw = read_member(path, edition.folder, edition.ratings_file)
  result = Interactions.from_columns(
      *parse_ratings(raw, edition.delimiter, name), source=name)
  difference = describe_difference(source, result)
  if difference:
    logging.warning('%s is not the published %s: %s.', name, source, difference)
  return result


def describe_difference(
    source: str, found: Interactions
) -> str:
  """Says how interactions differ from the published; '' if they do not."""
  edition = EDITIONS[source]
  wanted = (edition.num_users, edition.num_items, edition.num_interactions)
  counts = (found.num_users, found.num_items, found.num_interactions)
  if counts != wanted:
    return ('(users, items, interactions) are '
            f'{counts}, the published ones {wanted}')
  if edition.fingerprint and found.fingerprint() != edition.fingerprint:
    return (f'content fingerprint {found.fingerprint()[:16]}..., the published '
            f'one {edition.fingerprint[:16]}...')
  return ''


def read_member(path: str, folder: str, file: str) -> tuple[str, bytes]:
  """Finds and reads one of the publisher's files, unpacked.

  Args:
    path: The file itself, a zip that holds it, or a folder that holds it, it
      gzipped, or the zip; possibly in a folder named `folder`.
    folder: The publisher's folder, for example `ml-100k`.
    file: The publisher's file name, for example `u.data`.

  Returns:
    A name for messages, and the bytes.
  """
  root = pathlib.Path(path).expanduser()
  if root.is_dir():
    names = [file, f'{file}.gz', f'{folder}/{file}', f'{folder}/{file}.gz',
             f'{folder}.zip']
    found = [root / name for name in names if (root / name).is_file()]
    if not found:
      raise FileNotFoundError(
          f'data.path={path!r} holds none of {", ".join(names)}; give the '
          f"folder (or the file) with the publisher's {folder} files.")
    root = found[0]
  elif not root.is_file():
    raise FileNotFoundError(
        f'data.path={path!r} does not exist (looked at {root.absolute()}); '
        f"give the folder, zip or file with the publisher's {file}.")
  if zipfile.is_zipfile(root):
    return f'{root}:{file}', read_zip_member(root, file)
  return str(root), unpack(root.read_bytes())


def read_zip_member(zip_path, file: str) -> bytes:
  """Reads `file`, in whichever folder of the zip it lies."""
  with zipfile.ZipFile(zip_path) as archive:
    for name in archive.namelist():
      if name.rsplit('/', 1)[-1] == file:
        return archive.read(name)
  raise FileNotFoundError(
      f"{zip_path} holds no {file}; it is not the publisher's zip.")


def unpack(raw: bytes) -> bytes:
  """Returns the bytes, unzipped where they are gzipped (by content)."""
  return gzip.decompress(raw) if raw[:2] == b'\x1f\x8b' else raw


def parse_ratings(raw: bytes, delimiter: str, name: str) -> Columns:
  """Parses user, item, rating, timestamp lines.

  Args:
    raw: The file's bytes; LF or CRLF, with or without a final newline.
    delimiter: Tab, `::`, or comma; with a comma the first line is a header.
    name: For error messages.

  Returns:
    int64 users, items and timestamps, float32 ratings, in the file's order.

  Raises:
    ValueError: For a malformed line, with its number (counted from 1).
  """
  # pyarrow takes a tenth of a second to import and a cached run needs none.
  from fedjaxrec.data import tabular  # pylint: disable=g-import-not-at-top
  text = raw.replace(b'::', b'\t') if delimiter == '::' else raw
  try:
    users, items, ratings, timestamps = tabular.parse_numbers(
        text, ',' if delimiter == ',' else '\t',
        ('int64', 'int64', 'float32', 'int64'), skip_rows=int(delimiter == ','))
  except ValueError as error:
    raise ValueError(_first_bad_line(raw, delimiter, name, error)) from error
  bad = ~np.isfinite(ratings) | (timestamps < 0)
  if bad.any():
    raise ValueError(_first_bad_line(raw, delimiter, name, 'a bad value'))
  return Columns(users, items, ratings, timestamps)


def users_from_atomic(raw: bytes) -> bytes:
  """Rewrites a tab-separated table of users as the publisher's `u.user`."""
  _, _, lines = raw.partition(b'\n')
  return lines.replace(b'\t', b'|')


def items_from_atomic(raw: bytes) -> bytes:
  """Rewrites id, title, year, genres (tab-separated) as the `u.item`.

  Release days and addresses are not in that table, and stay empty; the year
  stands behind the title.
  """
  lines = []
  for line in raw.decode('utf-8', 'replace').split('\n')[1:]:
    if line.strip():
      item, title, year, names = line.rstrip('\r').split('\t')
      flags = [str(int(genre in names.split(' '))) for genre in GENRES_100K]
      lines.append('|'.join([item, f'{title} ({year})', '', '', '', *flags]))
  return '\n'.join(lines).encode('latin-1', 'replace')


def _first_bad_line(raw: bytes, delimiter: str, name: str, error) -> str:
  """Message with the first line that does not parse; slow, for errors only."""
  for number, line in enumerate(raw.splitlines(), start=1):
    if not line or (number == 1 and delimiter == ','):
      continue
    fields = line.decode('latin-1').split(delimiter)
    try:
      user, item, rating, timestamp = fields
      int(user), int(item)
      good = np.isfinite(float(rating)) and int(timestamp) >= 0
    except ValueError:
      good = False
    if not good:
      return (
          f'{name}, line {number}: {line[:100].decode("latin-1")!r} is not '
          f'user, item, rating, timestamp separated by {delimiter!r}; repair '
          'or remove the line, or fetch the file again.')
  return f'{name} cannot be read: {error}'
