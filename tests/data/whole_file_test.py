"""A file is whole or absent, whoever is killed and whoever else writes."""

import concurrent.futures
import os
import pathlib
import signal
import stat
import subprocess
import sys
import threading

import pytest

from fedjaxrec.data import cache, whole_file
from fedjaxrec.reports import run_directory
from tests.data.cache_test import example

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = 300_000  # More than any buffer on the way.


def mode(path):
  return stat.S_IMODE(path.stat().st_mode)


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_process_killed_in_the_middle_leaves_the_old_file_whole(tmp_path):
  path = tmp_path / 'x'
  path.write_bytes(b'old')
  code = ('import os, signal, sys\n'
          'from fedjaxrec.data.whole_file import replacing\n'
          'with replacing(sys.argv[1]) as file:\n'
          f'  file.write(b"n" * {SIZE})\n'
          '  os.kill(os.getpid(), signal.SIGKILL)\n')
  killed = subprocess.run([sys.executable, '-c', code, str(path)], cwd=ROOT)
  assert killed.returncode == -signal.SIGKILL
  assert path.read_bytes() == b'old'
  # What it left is known by its name, and is in nobody's way.
  left, = set(names(tmp_path)) - {'x'}
  assert left.startswith(whole_file.TEMPORARY_PREFIX)
  assert (tmp_path / left).stat().st_size > 0
  whole_file.write_text(path, 'new')
  assert path.read_text() == 'new'


@pytest.mark.parametrize('error', [OSError('no room'), KeyboardInterrupt()])
def test_whoever_stops_in_the_middle_leaves_nothing_behind(tmp_path, error):
  path = tmp_path / 'x'
  path.write_bytes(b'old')
  with pytest.raises(type(error)), whole_file.replacing(path) as file:
    file.write(b'n' * SIZE)
    raise error
  assert path.read_bytes() == b'old' and names(tmp_path) == ['x']


def test_of_writers_at_once_one_wins_and_readers_see_whole_files(tmp_path):
  path = tmp_path / 'x'
  path.write_bytes(b'a' * SIZE)
  seen, over = set(), threading.Event()

  def read():
    while not over.is_set():
      content = path.read_bytes()
      seen.add((content[:1], content == content[:1] * SIZE))

  def write(letter):
    with whole_file.replacing(path) as file:
      for _ in range(SIZE // 1000):
        file.write(letter * 1000)

  reader = threading.Thread(target=read)
  reader.start()
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    list(pool.map(write, [bytes([97 + i % 26]) for i in range(40)]))
  over.set()
  reader.join()
  assert all(whole for _, whole in seen) and len(seen) > 1
  assert names(tmp_path) == ['x']


def test_it_is_on_the_disk_before_it_takes_the_place(tmp_path, monkeypatch):
  done = []
  for name in ('fsync', 'replace'):
    original = getattr(os, name)
    monkeypatch.setattr(os, name, lambda *args, name=name, do=original: (
        done.append(name), do(*args)))
  whole_file.write_text(tmp_path / 'x', 'new')
  assert done == ['fsync', 'replace']


# Each as its callers write it.
WRITERS = {
    'json': lambda path: run_directory.write_json(path, {'a': 1}),
    'interactions': lambda path: cache.save(path, example()),
    'bytes': lambda path: cache.save_bytes_or_warn(path, b'x')}


@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_who_may_read_it_is_as_after_any_write_and_the_umask_stands(
    write, tmp_path, monkeypatch):
  before = os.umask(0o027)
  try:
    with monkeypatch.context() as patch:
      # It belongs to all threads: whoever sets it changes their files.
      patch.setattr(os, 'umask', lambda _: pytest.fail('it was changed'))
      write(tmp_path / 'new')
      (tmp_path / 'any').write_text('')
      (tmp_path / 'private').write_text('')
      (tmp_path / 'private').chmod(0o600)
      write(tmp_path / 'private')
  finally:
    os.umask(before)
  assert mode(tmp_path / 'new') == mode(tmp_path / 'any') == 0o640
  assert mode(tmp_path / 'private') == 0o600
  assert (tmp_path / 'private').stat().st_size > 0
