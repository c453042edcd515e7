"""The local cache of prepared data sets: one `.npz` file each.

A file is written whole or not at all (see `whole_file`), so several processes
may fill one cache. When read, everything is checked: zip
checksums, format version, the rules of `Interactions`, and the fingerprint
that was stored. A file that fails is never used in part: `load` names it and
says why, and `set_aside` renames it, so that it can be looked at and the data
set is prepared anew. Nothing is deleted.
"""

import contextlib
import hashlib
import os
import pathlib

import numpy as np
from absl import logging

from fedjaxrec.data import interactions as interactions_lib
from fedjaxrec.data import whole_file

FORMAT = 'fedjaxrec interactions, version 1'
ENVIRONMENT_VARIABLE = 'FEDJAXREC_CACHE'
_ARRAYS = ('offsets', 'items', 'ratings', 'timestamps', 'user_ids', 'item_ids')


class DamagedCacheError(ValueError):
  """A cache file that cannot be believed."""


def cache_folder(configured: str = '') -> pathlib.Path:
  """The cache's folder: as configured, $FEDJAXREC_CACHE, ~/.cache/fedjaxrec."""
  folder = (configured or os.environ.get(ENVIRONMENT_VARIABLE)
            or '~/.cache/fedjaxrec')
  return pathlib.Path(folder).expanduser()


def file_of(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The cache file of a data set; characters unfit for a file become `-`."""
  fit = ''.join(c if c.isalnum() or c in '._' else '-' for c in name)
  return folder / f'{fit}.npz'


def short_name(key: str) -> str:
  """A readable name of limited length for a long key, one to one."""
  if len(key) <= 40:
    return key
  return f'{key[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}'


def save(path: pathlib.Path, interactions: interactions_lib.Interactions):
  """Writes a cache file atomically, over an older one of the same name."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file.replacing(path) as file:
    np.savez(
        file, format=np.array(FORMAT),
        fingerprint=np.array(interactions.fingerprint()),
        has_timestamps=np.array(interactions.has_timestamps),
        **{name: getattr(interactions, name) for name in _ARRAYS})


def save_or_warn(
    path: pathlib.Path, interactions: interactions_lib.Interactions):
  """As `save`; a folder that cannot be written is warned about, no more."""
  try:
    save(path, interactions)
  except OSError as error:
    logging.warning(
        'data.cache_dir=%s cannot be written (%s); the data set will be '
        'prepared again next time. Set --data.cache_dir or $%s.',
        path.parent, error, ENVIRONMENT_VARIABLE)


def save_bytes_or_warn(path: pathlib.Path, raw: bytes):
  """Writes a file whole or not at all; warns where it cannot."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file.replacing(path) as file:
      file.write(raw)
  except OSError as error:
    logging.warning(
        'data.cache_dir=%s cannot be written (%s); %s will be fetched again '
        'next time. Set --data.cache_dir or $%s.', path.parent, error,
        path.name, ENVIRONMENT_VARIABLE)


def load(path: pathlib.Path) -> interactions_lib.Interactions:
  """Reads and checks a cache file.

  Raises:
    FileNotFoundError: If there is none.
    DamagedCacheError: If it is not whole, not ours, or not what was stored.
  """
  with open(path, 'rb') as file:
    try:
      with np.load(file, allow_pickle=False) as stored:
        result = _read(stored)
    except Exception as error:
      # Damage shows in many ways: zip, zlib, header, keys, values, memory.
      raise DamagedCacheError(
          f'The cache file {path} is damaged or not from fedjaxrec: {error}. '
          'Remove or rename it, and the data set is prepared anew.') from error
  return result


def _read(stored) -> interactions_lib.Interactions:
  if 'format' not in stored.files or str(stored['format']) != FORMAT:
    raise ValueError(f'it is not of the format {FORMAT!r}')
  fingerprint = str(stored['fingerprint'])
  result = interactions_lib.Interactions(
      **{name: stored[name] for name in _ARRAYS},
      has_timestamps=bool(stored['has_timestamps']))
  if result.fingerprint() != fingerprint:
    raise ValueError(
        f'its content has the fingerprint {result.fingerprint()[:16]}..., and '
        f'{fingerprint[:16]}... was stored')
  return result


def set_aside(path: pathlib.Path) -> pathlib.Path:
  """Renames a damaged file to the first free `NAME.damaged-N`."""
  number = 1
  while (aside := path.with_name(f'{path.name}.damaged-{number}')).exists():
    number += 1
  with contextlib.suppress(FileNotFoundError):  # Another process was first.
    os.rename(path, aside)
  return aside
