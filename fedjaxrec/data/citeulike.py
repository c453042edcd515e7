"""citeulike-a as IFedRec publishes it: a split whose items are disjoint.

Three files with the header `uid,iid`: train.csv, vali.csv and test.csv. No item
of one is in another, so validation and test ask for cold items, each ranked
among the items of its own file. No times; the order of the rows decides. The
articles' text is not among the files: give item features of your own.

References:
  Wang, Chen and Li, 2013, Collaborative Topic Regression with Social
  Regularization for Tag Recommendation, IJCAI; the split is of Zhang et al.,
  2024, When Federated Recommendation Meets Cold-Start Problem, WWW.
"""

import dataclasses
import hashlib
import pathlib

import numpy as np

from fedjaxrec.data import columns as columns_lib
from fedjaxrec.data import interactions as interactions_lib
from fedjaxrec.data import movielens, splits

Interactions = interactions_lib.Interactions

_FILES = ('train.csv', 'vali.csv', 'test.csv')


def load(path: str) -> splits.Split:
  """Reads the three files.

  Args:
    path: Their folder; each file may be gzipped (NAME.csv.gz).

  Returns:
    A split named `published`, with the candidates of its cold items.

  Raises:
    FileNotFoundError: If a file is missing, saying which.
    ValueError: If a file is malformed, or two files share an item.
  """
  folder = pathlib.Path(path).expanduser()
  if not path or not folder.is_dir():
    raise FileNotFoundError(
        f'data.path={path!r} with data.source=citeulike-a is no folder; give '
        f'the one with {", ".join(_FILES)} as --data.path=FOLDER. They are in '
        'the repository Zhangcx19/IFedRec, folder data/CiteULike.')
  tables = [_read(folder, file) for file in _FILES]
  ids, index = columns_lib.dense_ids(
      np.concatenate([users for users, _ in tables]), 'user')
  item_ids, item_index = columns_lib.dense_ids(
      np.concatenate([items for _, items in tables]), 'item')
  bounds = np.cumsum([0, *(len(users) for users, _ in tables)])
  parts, masks = [], []
  for file, start, stop in zip(_FILES, bounds, bounds[1:]):
    items = item_index[start:stop]
    parts.append(Interactions.from_dense(
        index[start:stop], items, ids, item_ids, source=file))
    masks.append(np.bincount(items, minlength=len(item_ids)) > 0)
    for other, mask in zip(_FILES, masks[:-1]):
      if (mask & masks[-1]).any():
        item = item_ids[np.argmax(mask & masks[-1])]
        raise ValueError(
            f'{folder / file}: item={item} is in {other} too; the three files '
            'of this split have no item in common.')
  train, validation, test = parts
  digest = hashlib.sha256()
  for part in parts:
    digest.update(part.fingerprint().encode())
  split = splits.Split(
      'published', train, validation, test,
      train.take(np.zeros(train.num_interactions, np.bool_)),
      fingerprint=digest.hexdigest())
  return dataclasses.replace(
      split, validation_candidates=masks[1], test_candidates=masks[2])


def _read(folder: pathlib.Path, file: str) -> tuple[np.ndarray, np.ndarray]:
  """The two columns of a file: int64 [rows] each."""
  from fedjaxrec.data import tabular  # pylint: disable=g-import-not-at-top
  found = next((folder / name for name in (file, f'{file}.gz')
                if (folder / name).is_file()), None)
  if found is None:
    raise FileNotFoundError(
        f'data.path={str(folder)!r} holds no {file}; data.source=citeulike-a '
        f'needs {", ".join(_FILES)}.')
  raw = movielens.unpack(found.read_bytes())
  header, _, rest = raw.partition(b'\n')
  if header.strip() != b'uid,iid' or not rest.strip():
    raise ValueError(
        f'{found} begins with {header[:40]!r}; it must have the header uid,iid '
        'and a row a pair.')
  try:
    users, items = tabular.parse_numbers(rest, ',', ('int64', 'int64'))
  except ValueError as error:
    raise ValueError(f'{found} is not user,item lines: {error}') from error
  return users, items
