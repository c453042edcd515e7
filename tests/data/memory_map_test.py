"""Training arrays in files: what was written, and nothing that was not."""

import dataclasses
import os

import numpy as np
import pytest

from fedjaxrec.data.memory_map import map_training_arrays
from tests.small_runs import make_interactions

TRAIN = make_interactions([[3, 1], [2], [], [0, 4, 1]], 5)


def check(mapped, train=TRAIN):
  for found, expected in zip(mapped, (train.items, train.ratings), strict=True):
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, expected, strict=True)


def files(folder):
  return sorted((folder / 'mapped').iterdir())


def times(folder):
  return [(path, path.stat().st_mtime_ns) for path in files(folder)]


def test_arrays_come_back_from_files_that_are_written_once(tmp_path):
  check(map_training_arrays(TRAIN, tmp_path))
  written = times(tmp_path)
  assert len(written) == 2
  check(map_training_arrays(TRAIN, tmp_path))
  assert written == times(tmp_path)


def test_they_cannot_be_written_to(tmp_path):
  items, _ = map_training_arrays(TRAIN, tmp_path)
  with pytest.raises(ValueError, match='read-only'):
    items[0] = 1


@pytest.mark.parametrize('field', ['items', 'ratings', 'offsets'])
def test_other_data_have_other_files(field, tmp_path):
  map_training_arrays(TRAIN, tmp_path)
  other = {
      'items': make_interactions([[3, 0], [2], [], [0, 4, 1]], 5),
      'ratings': dataclasses.replace(TRAIN, ratings=TRAIN.ratings + 1),
      'offsets': make_interactions([[3, 1, 2], [], [], [0, 4, 1]], 5)}[field]
  check(map_training_arrays(other, tmp_path), other)
  assert len(files(tmp_path)) == 4
  check(map_training_arrays(TRAIN, tmp_path))


@pytest.mark.parametrize('damage', [
    lambda path: path.write_bytes(path.read_bytes()[:-4]),
    lambda path: path.write_bytes(b''),
    lambda path: np.save(path, np.zeros(2, np.int32)),
    lambda path: path.write_bytes(b'not an array'),
])
def test_a_file_that_is_not_whole_is_written_anew(damage, tmp_path):
  map_training_arrays(TRAIN, tmp_path)
  for path in files(tmp_path):
    damage(path)
  check(map_training_arrays(TRAIN, tmp_path))


def test_a_folder_that_cannot_be_written_leaves_the_arrays(tmp_path, caplog):
  (tmp_path / 'file').write_text('')
  mapped = map_training_arrays(TRAIN, tmp_path / 'file')
  assert mapped[0] is TRAIN.items and mapped[1] is TRAIN.ratings
  assert 'data.cache_dir' in caplog.text


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError('no room')
  monkeypatch.setattr(os, 'fsync', fail)
  assert map_training_arrays(TRAIN, tmp_path)[0] is TRAIN.items
  assert files(tmp_path) == []
