"""Gets a published MovieLens set from wherever this machine can reach it.

MovieLens-100K, in this order: the local cache; TFDS, where it can prepare the
set; the publisher's zip; the copy inside a wheel of a package index. The larger
sets: cache, publisher, TFDS (which reads 0.3 ms a row and downloads from the
publisher all the same). Whatever comes is compared with the published counts
and, where it is known, the content fingerprint, before it is used or cached.
"""

import functools
import hashlib
import http.client
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable

from absl import logging

from fedjaxrec.data import cache, licences, movielens
from fedjaxrec.data import interactions as interactions_lib
from fedjaxrec.data import tfds as tfds_lib

Interactions = interactions_lib.Interactions

PUBLISHER = 'https://files.grouplens.org/datasets/movielens/'
TIMEOUT_S = 10.0  # Of one network operation: connecting, or a read.
TRIES = 2
# The copy of MovieLens-100K on a package index: the wheel is opened as a zip;
# nothing of it is installed or run.
WHEEL = 'recbole==1.2.1'
WHEEL_SHA256 = (
    '9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407')
WHEEL_FILE = 'ml-100k.inter'
WHEEL_TIMEOUT_S = 120.0


def load_published(source: str, cache_dir: str = '') -> Interactions:
  """Loads one of `movielens.EDITIONS` from the first place that has it.

  Args:
    source: For example `movielens-100k`.
    cache_dir: The cache's folder; empty: see `cache.cache_folder`.

  Raises:
    FileNotFoundError: If no place has it, with what was tried and why it
      failed.
  """
  folder = cache.cache_folder(cache_dir)
  stored = cache.file_of(folder, source)
  failures = []
  try:
    result = cache.load(stored)
    _verify(source, result)
    return result
  except OSError as error:
    failures.append(f'local cache: {stored}: {error.strerror}')
  except ValueError as error:
    aside = cache.set_aside(stored)
    failures.append(f'local cache: {error} (now named {aside})')
    logging.warning('%s It is now named %s.', error, aside)
  for place, load in _places(source, folder):
    try:
      result = load()
      _verify(source, result)
    except Exception as error:  # pylint: disable=broad-except
      # Whatever a third party's code raises is a reason to go on.
      reason = f'{place}: {str(error) or type(error).__name__}'
      logging.info('%s is not to be had from %s', source, reason)
      failures.append(reason)
      continue
    licences.licence_notice(source)
    logging.info('%s: fetched from %s', source, place)
    cache.save_or_warn(stored, result)
    return result
  tried = ''.join(f'\n  - {failure}' for failure in failures)
  raise FileNotFoundError(
      f'data.source={source} could not be had from any place. Tried:{tried}\n'
      "Either connect this machine, or give the publisher's files with "
      '--data.path=FOLDER_OR_ZIP, or use made-up data with '
      '--data.source=synthetic.')


def _places(
    source: str, folder: pathlib.Path
) -> list[tuple[str, Callable[[], Interactions]]]:
  """(Name, loader) of the places to try after the cache, in order."""
  prepared = ('TFDS', functools.partial(_from_tfds, source, folder))
  publisher = (f'publisher ({archive_url(source)})',
               functools.partial(_from_publisher, source))
  if source != 'movielens-100k':
    return [publisher, prepared]
  return [prepared, publisher,
          (f'package index ({WHEEL})', _from_package_index)]


def load_published_file(
    source: str, file: str, cache_dir: str = '') -> bytes:
  """Loads another file of a published set: its users or its items.

  Looks in the cache, in the publisher's zip and, for MovieLens-100K, in the
  wheel of a package index, whose tables are rewritten as the publisher's.

  Args:
    source: For example `movielens-100k`.
    file: The publisher's name, for example `u.user`.
    cache_dir: See `load_published`.

  Raises:
    FileNotFoundError: If no place has it, with what was tried and why it
      failed.
  """
  edition = movielens.EDITIONS[source]
  stored = cache.cache_folder(cache_dir) / f'{edition.folder}-{file}'
  failures = []
  try:
    return stored.read_bytes()
  except OSError as error:
    failures.append(f'local cache: {stored}: {error.strerror}')
  places = [(f'publisher ({archive_url(source)})',
             functools.partial(_file_from_publisher, source, file))]
  if source == 'movielens-100k':
    places.append((f'package index ({WHEEL})',
                   functools.partial(_file_from_package_index, file)))
  for place, load in places:
    try:
      raw = load()
    except Exception as error:  # pylint: disable=broad-except
      # As above: whatever goes wrong in one place, the next is tried.
      failures.append(f'{place}: {str(error) or type(error).__name__}')
      continue
    licences.licence_notice(source)
    cache.save_bytes_or_warn(stored, raw)
    return raw
  tried = ''.join(f'\n  - {failure}' for failure in failures)
  raise FileNotFoundError(
      f"{file} of data.source={source} could not be had from any place. "
      f"Tried:{tried}\nGive the publisher's files with --data.path=FOLDER_OR_"
      'ZIP, or features of your own as a CSV file.')


def _verify(source: str, found: Interactions) -> None:
  difference = movielens.describe_difference(source, found)
  if difference:
    raise ValueError(f'not the published {source}: {difference}')


def archive_url(source: str) -> str:
  """Address of the publisher's zip."""
  return f'{PUBLISHER}{source.replace("movielens-", "ml-")}.zip'


def _from_tfds(source: str, folder: pathlib.Path) -> Interactions:
  name = movielens.EDITIONS[source].tfds_name
  if not name:
    raise ValueError('has no such set.')
  result = tfds_lib.load_prepared(
      name, folder / 'tfds', probe_url=PUBLISHER, timeout_s=TIMEOUT_S)
  logging.warning(
      '%s from TFDS: its rows are in an order of its own, so interactions of '
      "the same second may split differently than with the publisher's file.",
      source)
  return result


def _from_publisher(source: str) -> Interactions:
  edition = movielens.EDITIONS[source]
  raw = _file_from_publisher(source, edition.ratings_file)
  return Interactions.from_columns(
      *movielens.parse_ratings(raw, edition.delimiter, edition.ratings_file),
      source=source)


def _file_from_publisher(source: str, file: str) -> bytes:
  edition = movielens.EDITIONS[source]
  with tempfile.TemporaryDirectory(prefix='fedjaxrec-') as folder:
    archive = os.path.join(folder, 'publisher.zip')
    size, sha256 = _download(archive_url(source), archive)
    if edition.zip_bytes and size != edition.zip_bytes:
      raise ValueError(
          f'the zip has {size} bytes, the published one {edition.zip_bytes}')
    if not sha256.startswith(edition.zip_sha256):
      raise ValueError(
          f'the zip has the SHA-256 {sha256[:8]}..., the published one '
          f'{edition.zip_sha256}...')
    return movielens.read_zip_member(archive, file)


def _download(url: str, target: str) -> tuple[int, str]:
  """Downloads to a file; returns its size and SHA-256."""
  for attempt in range(1, TRIES + 1):
    try:
      digest, size = hashlib.sha256(), 0
      with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        with open(target, 'wb') as file:
          while chunk := response.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
      return size, digest.hexdigest()
    except (OSError, http.client.HTTPException):
      if attempt == TRIES:
        raise
      time.sleep(1)
  raise AssertionError('unreachable')


def _from_package_index() -> Interactions:
  # The publisher's lines in the publisher's order, under a header.
  _, _, raw = _wheel_member(WHEEL_FILE).partition(b'\n')
  return Interactions.from_columns(
      *movielens.parse_ratings(raw, '\t', WHEEL_FILE), source=WHEEL)


def _file_from_package_index(file: str) -> bytes:
  name, rewrite = {
      'u.user': ('ml-100k.user', movielens.users_from_atomic),
      'u.item': ('ml-100k.item', movielens.items_from_atomic)}[file]
  return rewrite(_wheel_member(name))


def _wheel_member(file: str) -> bytes:
  with tempfile.TemporaryDirectory(prefix='fedjaxrec-') as folder:
    _pip_download(folder)
    wheels = list(pathlib.Path(folder).glob('*.whl'))
    if len(wheels) != 1:
      raise ValueError(f'pip left {len(wheels)} wheels instead of one')
    sha256 = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if sha256 != WHEEL_SHA256:
      raise ValueError(
          f'the wheel has the SHA-256 {sha256[:16]}..., pinned is '
          f'{WHEEL_SHA256[:16]}...')
    return movielens.read_zip_member(wheels[0], file)


def pip_commands() -> list[list[str]]:
  """Ways to call pip: this Python's, then one on the path."""
  commands = [[sys.executable, '-m', 'pip']]
  for name in ('pip3', 'pip'):
    found = shutil.which(name)
    if found:
      commands.append([found])
  return commands


def _pip_download(folder: str) -> None:
  reasons = []
  for command in pip_commands():
    # Only a wheel: a source package would be built, that is, run.
    finished = subprocess.run(
        [*command, 'download', '--no-deps', '--only-binary=:all:', '--no-input',
         '--disable-pip-version-check', '--quiet', '--retries=1',
         f'--timeout={TIMEOUT_S:.0f}', f'--dest={folder}', WHEEL],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=WHEEL_TIMEOUT_S)
    if not finished.returncode:
      return
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    reasons.append(' '.join(lines[-2:]) or f'exit code {finished.returncode}')
    if 'No module named pip' not in finished.stderr:
      break
  raise OSError(f'pip download failed: {"; ".join(reasons)}')
