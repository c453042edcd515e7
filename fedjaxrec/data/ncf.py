"""The files of He et al.'s NCF: leave-one-out with 99 published negatives.

Three files a data set: `NAME.train.rating` and `NAME.test.rating`
(tab-separated user, item, rating, timestamp; ids from 0) and
`NAME.test.negative` (`(user,item)`, then 99 item ids). Ids are kept as they
are. Times are kept too, but a rebuilt train file has 0 where the time is not
known, so the order of the rows decides and `has_timestamps` is False. There is
no validation file, and none is made up: the validation part is empty, so that
models train on what the published figures were trained on.

In ML-1M, 156 users have their positive among their own 99 negatives. The
negatives are handed on as published; the evaluator masks those equal to the
positive.

References:
  He et al., 2017, `Neural Collaborative Filtering
  <https://arxiv.org/abs/1708.05031>`_.
"""

import hashlib
import pathlib

import numpy as np

from fedjaxrec.data import columns as columns_lib
from fedjaxrec.data import interactions as interactions_lib
from fedjaxrec.data import licences, movielens, splits

Interactions = interactions_lib.Interactions

_KINDS = ('train.rating', 'test.rating', 'test.negative')
_ENDINGS = ('', '.gz', '.rebuilt', '.rebuilt.gz')
NUM_NEGATIVES = 99


def load(path: str) -> splits.Split:
  """Reads the three files of one data set.

  Args:
    path: Folder with the files (gzipped ones too). With the files of several
      data sets in it, name one: FOLDER/NAME, for example FOLDER/ml-1m.

  Returns:
    A split named `published`; int32 [num_users, 99] negatives.

  Raises:
    FileNotFoundError: If a file is missing, saying which.
    ValueError: If a file is malformed, or the files do not fit together.
  """
  if not path:
    raise FileNotFoundError(
        "data.path='' with data.source=ncf: give the folder with the NCF "
        f'files NAME.{", NAME.".join(_KINDS)} (for example '
        'ml-1m.train.rating; gzipped ones too) as --data.path=FOLDER. They are '
        'in the repository hexiangnan/neural_collaborative_filtering, folder '
        'Data.')
  files = _find_files(path)
  train = _read_ratings(files['train.rating'])
  test = _read_ratings(files['test.rating'])
  negative_file = files['test.negative']
  positives, negatives = _read_negatives(negative_file)
  num_users = 1 + max(train.users.max(), test.users.max())
  num_items = 1 + max(
      train.items.max(), test.items.max(), negatives.max(initial=0))
  if not np.array_equal(positives, np.stack([test.users, test.items], axis=1)):
    raise ValueError(
        f'{negative_file} and {files["test.rating"]} do not have the same '
        '(user, item) pairs in the same order; they are of different data '
        'sets.')
  if not np.array_equal(test.users, np.arange(num_users)):
    raise ValueError(
        f'{files["test.rating"]} must have one row for each user, in order, '
        f'0..{num_users - 1}; it has {len(test.users)} rows.')
  if 'ml-1m' in negative_file.name:
    licences.licence_notice('MovieLens-1M, which the NCF files are made from,')
  ids = (np.arange(num_users), np.arange(num_items))
  known, asked = (
      Interactions.from_dense(
          rows.users, rows.items, *ids, rows.ratings, rows.timestamps,
          str(files[kind]), ordered_by_time=False)
      for rows, kind in ((train, 'train.rating'), (test, 'test.rating')))
  empty = known.take(np.zeros(known.num_interactions, np.bool_))
  parts = known.fingerprint() + asked.fingerprint()
  return splits.Split(
      'published', known, empty, asked, empty, negatives,
      hashlib.sha256(parts.encode()).hexdigest())


def _find_files(path: str) -> dict[str, pathlib.Path]:
  folder, name = pathlib.Path(path).expanduser(), ''
  if not folder.is_dir():
    folder, name = folder.parent, folder.name
  there = sorted(p.name for p in folder.glob('*')) if folder.is_dir() else []
  names = {file[:-len(f'.{kind}{ending}')] for file in there
           for kind in _KINDS for ending in _ENDINGS
           if file.endswith(f'.{kind}{ending}')}
  whole = [n for n in sorted(names) if all(_pick(n, k, there) for k in _KINDS)]
  if not name and len(whole) > 1:
    raise ValueError(
        f'data.path={path!r} holds the NCF files of {", ".join(whole)}; name '
        f'one: --data.path={folder / whole[0]}')
  if not name and whole:
    name = whole[0]
  if name not in whole:
    wanted = ', '.join(f'{name or "NAME"}.{kind}' for kind in _KINDS)
    raise FileNotFoundError(
        f'data.path={path!r} does not hold all of the NCF files {wanted} (also '
        f'gzipped); found {", ".join(there) or "nothing"}.')
  return {kind: folder / _pick(name, kind, there) for kind in _KINDS}


def _pick(name: str, kind: str, there: list[str]) -> str:
  """The file of a kind, as published rather than rebuilt; '' if absent."""
  wanted = [f'{name}.{kind}{ending}' for ending in _ENDINGS]
  return next((file for file in wanted if file in there), '')


def _read_ratings(file: pathlib.Path) -> columns_lib.Columns:
  raw = movielens.unpack(file.read_bytes())
  rows = movielens.parse_ratings(raw, '\t', str(file))
  for name, ids in (('user', rows.users), ('item', rows.items)):
    if ids.size and ids.min() < 0:
      raise ValueError(
          f'{file}: {name}={ids.min()} is negative; NCF ids start at 0.')
  if not len(rows.users):
    raise ValueError(f'{file}: num_interactions=0; there is no row to use.')
  return rows


def _read_negatives(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """int64 [num_users, 2] (user, item) and int32 [num_users, 99]."""
  lines = movielens.unpack(file.read_bytes()).split(b'\n')
  while lines and not lines[-1].strip():
    lines.pop()
  table = np.empty((len(lines), 2 + NUM_NEGATIVES), np.int64)
  for number, line in enumerate(lines):
    try:
      pair, *items = line.split(b'\t')
      user, item = pair.strip(b'() ').split(b',')
      table[number] = [int(user), int(item), *map(int, items)]
      if table[number].min() < 0:
        raise ValueError('negative id')
    except ValueError as error:
      raise ValueError(
          f'{file}, line {number + 1}: {line[:60]!r} is not (user,item) and '
          f'{NUM_NEGATIVES} item ids, tab-separated.') from error
  return table[:, :2], table[:, 2:].astype(np.int32)
