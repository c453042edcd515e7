"""Training arrays in files of their own, opened where they lie.

For `engine.data=host`: a population's items and ratings are written once to the
cache, and read by the operating system as rounds ask for them, so that they
need not be held in memory.
"""

import hashlib
import pathlib

import numpy as np
from absl import logging

from fedjaxrec.data import whole_file
from fedjaxrec.data.interactions import Interactions

_FOLDER = 'mapped'


def map_training_arrays(
    train: Interactions, folder: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the items and ratings of a training part, memory-mapped.

  Args:
    train: The training part.
    folder: The cache's folder. Files are named by what is in them, written
      whole or not at all, and opened read-only; a file that is not of the right
      length and type is written anew. Where none can be written, a warning, and
      the arrays as they are.

  Returns:
    items int32 [num_interactions] and ratings float32, in the order given.
  """
  name = _digest(train)
  try:
    return (
        _mapped(folder / _FOLDER / f'{name}.items.npy', train.items),
        _mapped(folder / _FOLDER / f'{name}.ratings.npy', train.ratings))
  except OSError as error:
    logging.warning(
        'data.cache_dir=%s cannot be written (%s); the training data stay in '
        'memory. Set --data.cache_dir to a folder with room.', folder, error)
    return train.items, train.ratings


def _digest(train: Interactions) -> str:
  # Of the arrays as they lie: equal content in another order is another file.
  digest = hashlib.sha256()
  for array in (train.offsets, train.items, train.ratings):
    digest.update(f'{array.dtype}{array.shape}'.encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()[:32]


def _mapped(path: pathlib.Path, array: np.ndarray) -> np.ndarray:
  if not len(array):
    return array  # Nothing can be mapped of nothing.
  found = _open(path, array)
  if found is None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file.replacing(path) as file:
      np.save(file, array)
    found = _open(path, array)
  if found is None:
    raise OSError(f'{path} cannot be read back')
  return found


def _open(path: pathlib.Path, like: np.ndarray) -> np.ndarray | None:
  try:
    found = np.load(path, mmap_mode='r', allow_pickle=False)
  except (FileNotFoundError, ValueError, EOFError):
    return None
  whole = found.shape == like.shape and found.dtype == like.dtype
  return found if whole else None
