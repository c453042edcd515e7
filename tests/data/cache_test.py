"""The cache: round trip, damage detected and named, concurrent writers."""

import concurrent.futures
import os
import stat

import numpy as np
import pytest

from fedjaxrec.data import cache
from fedjaxrec.data import interactions as interactions_lib

Interactions = interactions_lib.Interactions


def example(ids=('a', 'b'), timestamps=(1, 2, 3)):
  return Interactions.from_columns(
      [ids[0], ids[0], ids[1]], [1, 2, 1], [1, 2.5, 3], timestamps)


@pytest.mark.parametrize('data', [
    example(), example((1, 2)), example((1, 2), None)])
def test_what_is_saved_comes_back(data, tmp_path):
  path = tmp_path / 'new' / 'folder' / 'x.npz'
  cache.save(path, data)
  loaded = cache.load(path)
  assert loaded.fingerprint() == data.fingerprint()
  assert loaded.has_timestamps == data.has_timestamps
  for name in ('offsets', 'items', 'ratings', 'timestamps', 'user_ids'):
    np.testing.assert_array_equal(getattr(loaded, name), getattr(data, name))
  assert os.listdir(path.parent) == ['x.npz']
  assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_no_flipped_byte_goes_unnoticed(tmp_path):
  path = tmp_path / 'x.npz'
  cache.save(path, example())
  raw = path.read_bytes()
  wanted = example().fingerprint()
  refused = 0
  for place in range(0, len(raw), 7):
    path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1:])
    try:
      # Zip headers hold fields that nobody reads, such as a member's date.
      assert cache.load(path).fingerprint() == wanted
    except cache.DamagedCacheError as error:
      assert str(path) in str(error)
      refused += 1
  assert refused > len(raw) // 7 // 3


@pytest.mark.parametrize('keep', [0, 1, 100, -1])
def test_a_cut_off_file_is_refused(keep, tmp_path):
  path = tmp_path / 'x.npz'
  cache.save(path, example())
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(cache.DamagedCacheError, match='x.npz is damaged'):
    cache.load(path)


def test_a_foreign_file_is_refused(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, offsets=np.arange(3))
  with pytest.raises(cache.DamagedCacheError, match='not of the format'):
    cache.load(path)
  np.savez(path, format=np.array('fedjaxrec interactions, version 99'))
  with pytest.raises(cache.DamagedCacheError, match='not of the format'):
    cache.load(path)
  np.savez(path, format=np.array([object()], dtype=object))
  with pytest.raises(cache.DamagedCacheError):
    cache.load(path)


def test_content_that_is_not_what_was_stored_is_refused(tmp_path):
  path = tmp_path / 'x.npz'
  cache.save(path, example())
  with np.load(path) as stored:
    arrays = dict(stored)
  np.savez(path, **(arrays | {'ratings': arrays['ratings'] + 1}))
  with pytest.raises(cache.DamagedCacheError, match='fingerprint'):
    cache.load(path)
  np.savez(path, **(arrays | {'items': arrays['items'] + 5}))
  with pytest.raises(cache.DamagedCacheError, match='outside the catalogue'):
    cache.load(path)


def test_a_damaged_file_is_kept_under_another_name(tmp_path):
  path = tmp_path / 'x.npz'
  for number in (1, 2):
    path.write_bytes(bytes([number]))
    aside = cache.set_aside(path)
    assert aside.name == f'x.npz.damaged-{number}'
    assert aside.read_bytes() == bytes([number])
  assert not path.exists()


def test_writers_at_once_leave_one_whole_file(tmp_path):
  path = tmp_path / 'x.npz'
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: cache.save(path, example()), range(24)))
  cache.load(path)
  assert os.listdir(tmp_path) == ['x.npz']


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
  def fail(*args):
    raise OSError('disk full')
  monkeypatch.setattr(os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    cache.save(tmp_path / 'x.npz', example())
  cache.save_or_warn(tmp_path / 'x.npz', example())
  assert os.listdir(tmp_path) == []


def test_the_folder_is_the_flag_then_the_variable_then_the_home(monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  monkeypatch.setenv('FEDJAXREC_CACHE', '/variable')
  assert str(cache.cache_folder('~/flag')) == '/home/somebody/flag'
  assert str(cache.cache_folder()) == '/variable'
  monkeypatch.setenv('FEDJAXREC_CACHE', '')
  assert str(cache.cache_folder()) == '/home/somebody/.cache/fedjaxrec'


def test_names_are_fit_for_files_and_stay_apart(tmp_path):
  long = 'tfds-movielens/100k-ratings-' + 'x' * 500
  assert cache.short_name('short') == 'short'
  assert len(cache.short_name(long)) < 60
  assert cache.short_name(long) != cache.short_name(long + 'x')
  assert cache.file_of(tmp_path, 'a/b:c').name == 'a-b-c.npz'
