"""Where MovieLens comes from, in which order, without any network.

The publisher is a server on this machine, pip is a script that copies a wheel,
and the data sets are made up: their fingerprints replace the published ones.
"""

import dataclasses
import functools
import http.server
import io
import pathlib
import sys
import threading
import zipfile

import numpy as np
import pytest

from fedjaxrec.data import cache, fetch, licences, movielens
from fedjaxrec.data import interactions as interactions_lib

RAW = b'7\t30\t4\t200\n2\t10\t1\t100\n7\t10\t5\t100\n'
SOURCE = 'movielens-100k'


def zipped(name, raw):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr(name, raw)
  return buffer.getvalue()


@pytest.fixture
def publisher(tmp_path, monkeypatch):
  """Serves ml-100k.zip; returns the folder and the paths that were asked."""
  folder, asked = tmp_path / 'published', []
  folder.mkdir()
  (folder / 'ml-100k.zip').write_bytes(zipped('ml-100k/u.data', RAW))

  class Handler(http.server.SimpleHTTPRequestHandler):

    def log_message(self, *args):
      asked.append(self.path)

  server = http.server.ThreadingHTTPServer(
      ('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
  thread = threading.Thread(
      target=server.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  monkeypatch.setattr(
      fetch, 'PUBLISHER', f'http://127.0.0.1:{server.server_address[1]}/')
  yield folder, asked
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture(autouse=True)
def made_up(tmp_path, monkeypatch):
  """A made-up edition, and no way at all to reach a real place."""
  data = interactions_lib.Interactions.from_columns(
      *movielens.parse_ratings(RAW, '\t', 'made up'))
  body = zipped('ml-100k/u.data', RAW)
  edition = dataclasses.replace(
      movielens.EDITIONS[SOURCE], num_users=2, num_items=2, num_interactions=3,
      fingerprint=data.fingerprint(), zip_bytes=len(body), zip_sha256='')
  monkeypatch.setitem(movielens.EDITIONS, SOURCE, edition)
  for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  # Port 9 (discard) of this machine: nobody answers.
  monkeypatch.setattr(fetch, 'PUBLISHER', 'http://127.0.0.1:9/')
  monkeypatch.setattr(fetch, 'TRIES', 1)
  monkeypatch.setattr(fetch, 'pip_commands', lambda: [
      [sys.executable, '-c', 'raise SystemExit("no index")']])
  licences.licence_notice.cache_clear()
  return data


def use_fake_pip(tmp_path, monkeypatch, raw=None, exits=0):
  """Makes pip a script that copies a wheel and notes its arguments."""
  header = b'user_id:token\titem_id:token\trating:float\ttimestamp:float\n'
  wheel = tmp_path / 'recbole-1.2.1-py3-none-any.whl'
  wheel.write_bytes(zipped(
      'recbole/dataset_example/ml-100k/ml-100k.inter', header + (raw or RAW)))
  script, said = tmp_path / 'pip.py', tmp_path / 'said'
  script.write_text(
      'import pathlib, shutil, sys\n'
      f'pathlib.Path({str(said)!r}).write_text(" ".join(sys.argv[1:]))\n'
      'dest = [a for a in sys.argv if a.startswith("--dest=")][0][7:]\n'
      f'shutil.copy({str(wheel)!r}, dest)\n'
      f'sys.exit({exits})\n')
  monkeypatch.setattr(
      fetch, 'pip_commands', lambda: [[sys.executable, str(script)]])
  digest = fetch.hashlib.sha256(wheel.read_bytes()).hexdigest()
  monkeypatch.setattr(fetch, 'WHEEL_SHA256', digest)
  return said


def test_the_publishers_zip_is_used_cached_and_not_asked_for_again(
    publisher, tmp_path, made_up, capsys):
  _, asked = publisher
  found = fetch.load_published(SOURCE, str(tmp_path / 'cache'))
  assert found.fingerprint() == made_up.fingerprint()
  assert len(asked) == 1
  printed = capsys.readouterr().err
  assert 'Harper' in printed and 'not redistribute' in printed
  again = fetch.load_published(SOURCE, str(tmp_path / 'cache'))
  assert again.fingerprint() == made_up.fingerprint()
  assert len(asked) == 1
  assert capsys.readouterr().err == ''


def test_the_wheel_is_used_where_only_pip_reaches_something(
    tmp_path, made_up, monkeypatch):
  said = use_fake_pip(tmp_path, monkeypatch)
  found = fetch.load_published(SOURCE, str(tmp_path / 'cache'))
  assert found.fingerprint() == made_up.fingerprint()
  np.testing.assert_array_equal(found.timestamps, made_up.timestamps)
  arguments = said.read_text()
  for wanted in ('download', '--no-deps', '--only-binary=:all:',
                 'recbole==1.2.1'):
    assert wanted in arguments


def test_tfds_comes_before_the_publisher_and_pip_after(
    publisher, tmp_path, made_up, monkeypatch):
  _, asked = publisher
  said = use_fake_pip(tmp_path, monkeypatch)
  monkeypatch.setattr(
      fetch.tfds_lib, 'load_prepared', lambda *args, **options: made_up)
  fetch.load_published(SOURCE, str(tmp_path / 'a'))
  assert not asked and not said.exists()


def test_the_publisher_comes_before_pip(
    publisher, tmp_path, monkeypatch):
  _, asked = publisher
  said = use_fake_pip(tmp_path, monkeypatch)
  fetch.load_published(SOURCE, str(tmp_path / 'a'))
  assert asked and not said.exists()


def test_when_nothing_is_reached_one_error_says_what_was_tried(tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    fetch.load_published(SOURCE, str(tmp_path / 'cache'))
  message = str(caught.value)
  for wanted in ('local cache:', 'TFDS:', 'publisher (http://127.0.0.1:9/ml-',
                 'package index (recbole==1.2.1): pip download failed: no in',
                 '--data.source=synthetic', '--data.path='):
    assert wanted in message
  places = ['cache', 'TFDS', 'publisher', 'package index']
  assert [message.index(p) for p in places] == sorted(
      message.index(p) for p in places)
  assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('raw, message', [
    (RAW.replace(b'\t5\t', b'\t4\t'), 'content fingerprint'),
    (RAW + b'9\t9\t1\t1\n', 'bytes, the published one')])
def test_a_zip_with_other_content_is_refused(
    publisher, raw, message, tmp_path):
  folder, _ = publisher
  (folder / 'ml-100k.zip').write_bytes(zipped('ml-100k/u.data', raw))
  with pytest.raises(FileNotFoundError, match=f'publisher.*{message}'):
    fetch.load_published(SOURCE, str(tmp_path / 'cache'))


def test_a_zip_with_another_checksum_is_refused(
    publisher, tmp_path, monkeypatch):
  edition = dataclasses.replace(
      movielens.EDITIONS[SOURCE], zip_sha256='not this')
  monkeypatch.setitem(movielens.EDITIONS, SOURCE, edition)
  with pytest.raises(FileNotFoundError, match='the zip has the SHA-256'):
    fetch.load_published(SOURCE, str(tmp_path / 'cache'))


def test_a_wheel_with_another_checksum_is_refused(tmp_path, monkeypatch):
  use_fake_pip(tmp_path, monkeypatch)
  monkeypatch.setattr(fetch, 'WHEEL_SHA256', '0' * 64)
  with pytest.raises(FileNotFoundError, match='the wheel has the SHA-256'):
    fetch.load_published(SOURCE, str(tmp_path / 'cache'))


def test_a_wheel_with_other_content_is_refused(tmp_path, monkeypatch):
  use_fake_pip(tmp_path, monkeypatch, RAW.replace(b'\t5\t', b'\t4\t'))
  with pytest.raises(FileNotFoundError, match='index.*content fingerprint'):
    fetch.load_published(SOURCE, str(tmp_path / 'cache'))


def test_a_python_without_pip_uses_the_one_on_the_path(
    tmp_path, made_up, monkeypatch):
  use_fake_pip(tmp_path, monkeypatch)
  [works] = fetch.pip_commands()
  monkeypatch.setattr(fetch, 'pip_commands', lambda: [
      [sys.executable, '-c', 'raise SystemExit("No module named pip")'], works])
  found = fetch.load_published(SOURCE, str(tmp_path / 'cache'))
  assert found.fingerprint() == made_up.fingerprint()


def test_a_damaged_cache_is_named_kept_and_replaced(
    publisher, tmp_path, made_up, caplog):
  folder = tmp_path / 'cache'
  fetch.load_published(SOURCE, str(folder))
  file = folder / f'{SOURCE}.npz'
  file.write_bytes(file.read_bytes()[:-30])
  found = fetch.load_published(SOURCE, str(folder))
  assert found.fingerprint() == made_up.fingerprint()
  assert (folder / f'{SOURCE}.npz.damaged-1').exists()
  assert cache.load(file).fingerprint() == made_up.fingerprint()


def test_a_sound_cache_file_of_another_data_set_is_not_believed(
    publisher, tmp_path, made_up):
  other = interactions_lib.Interactions.from_columns([1], [1])
  file = tmp_path / f'{SOURCE}.npz'
  cache.save(file, other)
  found = fetch.load_published(SOURCE, str(tmp_path))
  assert found.fingerprint() == made_up.fingerprint()


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(
    publisher, tmp_path, made_up):
  (tmp_path / 'file').write_text('in the way')
  found = fetch.load_published(SOURCE, str(tmp_path / 'file' / 'cache'))
  assert found.fingerprint() == made_up.fingerprint()


def test_the_larger_sets_ask_the_publisher_first():
  places = [name for name, _ in fetch._places('movielens-20m', pathlib.Path())]
  assert places[0].startswith('publisher') and places[0].endswith('ml-20m.zip)')


def test_the_published_copies_agree(shared_data):
  inter = (shared_data / 'recbole-ml-100k' / 'ml-100k.inter').read_bytes()
  assert inter.partition(b'\n')[2] == (
      shared_data / 'ml-100k' / 'u.data').read_bytes()
