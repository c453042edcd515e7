"""The bridge to TFDS, on lists and on a tiny set prepared here."""

import importlib.util
import sys

import numpy as np
import pytest

from fedjaxrec.data import tfds as bridge

ROWS = [
    {'user_id': b'7', 'movie_id': b'30', 'user_rating': 4.0, 'timestamp': 200},
    {'user_id': b'2', 'movie_id': b'10', 'user_rating': 1.0, 'timestamp': 100},
    {'user_id': b'7', 'movie_id': b'10', 'user_rating': 5.0, 'timestamp': 100},
]


def check(data):
  np.testing.assert_array_equal(data.user_ids, [2, 7])
  np.testing.assert_array_equal(data.item_ids, [10, 30])
  np.testing.assert_array_equal(data.items, [0, 0, 1])
  np.testing.assert_array_equal(data.ratings, [1, 5, 4])
  np.testing.assert_array_equal(data.timestamps, [100, 100, 200])


def test_rows_become_columns_and_ids_numbers():
  check(bridge.from_tfds(ROWS))
  check(bridge.from_tfds(ROWS, num_examples=3))


def test_ids_that_are_not_plain_numbers_stay_text():
  rows = [dict(row, user_id=b'0' + row['user_id']) for row in ROWS]
  assert bridge.from_tfds(rows).user_ids.tolist() == ['02', '07']


def test_lost_rows_are_refused():
  with pytest.raises(ValueError, match='=3 rows.*num_examples=4'):
    bridge.from_tfds(ROWS, num_examples=4)
  with pytest.raises(ValueError, match='num_interactions=0'):
    bridge.from_tfds([])


def test_fields_are_named_and_a_missing_one_is_refused():
  rows = [{'a': 1, 'b': 2}]
  columns = (('a',), ('b',), (), ())
  data = bridge.from_tfds(rows, columns=columns)
  assert data.ratings.tolist() == [1] and not data.has_timestamps
  with pytest.raises(ValueError, match='no field user_id; it has a, b'):
    bridge.from_tfds(rows)
  with pytest.raises(ValueError, match='no field movie_id or item_id'):
    bridge.from_tfds(rows, columns=(('a',), *bridge.COLUMNS[1:]))


def test_preparing_is_not_tried_without_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setattr(bridge, '_PREPARE_NEEDS', ('no_such_module',))
  monkeypatch.setattr(bridge, '_READ_NEEDS', ())
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(FileNotFoundError, match='needs no_such_module'):
    bridge.load_prepared('movielens/100k-ratings', tmp_path)


def test_preparing_is_not_tried_when_the_publisher_is_out_of_reach(
    tmp_path, monkeypatch):
  monkeypatch.setattr(bridge, '_PREPARE_NEEDS', ())
  monkeypatch.setattr(bridge, '_READ_NEEDS', ())
  monkeypatch.setattr(bridge.urllib.request, 'getproxies', dict)
  monkeypatch.setattr(bridge, '_PREPARE', 'raise SystemExit("tried")')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(OSError, match='127.0.0.1 cannot be connected to'):
    bridge.load_prepared('x', tmp_path, 'http://127.0.0.1:9/')
  with pytest.raises(FileNotFoundError, match='tried'):
    bridge.load_prepared('x', tmp_path)  # The positive control.


def test_preparing_has_a_time_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(bridge, '_PREPARE_NEEDS', ())
  monkeypatch.setattr(bridge, '_READ_NEEDS', ())
  monkeypatch.setattr(bridge, '_PREPARE', 'import time; time.sleep(60)')
  monkeypatch.setattr(bridge, 'PREPARE_TIMEOUT_S', 0.2)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(FileNotFoundError, match='not prepared in'):
    bridge.load_prepared('x', tmp_path)


def test_the_newest_version_is_found(tmp_path):
  for version in ('1.9.0', '1.10.0', '1.10.0.incomplete'):
    folder = tmp_path / 'a' / 'b' / version
    folder.mkdir(parents=True)
    (folder / 'dataset_info.json').write_text('{}')
  newest = tmp_path / 'a' / 'b' / '1.10.0'
  for root in (tmp_path, tmp_path / 'a' / 'b', newest):
    assert bridge.find_prepared(root, 'a/b') == newest
  assert bridge.find_prepared(tmp_path, 'a/b:1.9.0').name == '1.9.0'
  assert bridge.find_prepared(tmp_path, 'a/c') is None


def test_a_folder_without_the_set_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no prepared.*tfds:x'):
    bridge.load('x', str(tmp_path), str(tmp_path))


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Folder with a set of the three rows, prepared by a builder of our own."""
  for name in ('tensorflow_datasets', 'array_record', 'importlib_resources'):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f'{name} is not installed (the tfds extra)')
  import tensorflow_datasets as tfds

  class MadeUpRatings(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return self.dataset_info_from_configs(
          features=tfds.features.FeaturesDict({
              'user_id': np.str_, 'movie_id': np.str_,
              'user_rating': np.float32, 'timestamp': np.int64}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(ROWS)

  root = tmp_path_factory.mktemp('tfds')
  for file_format in ('array_record', 'parquet'):
    MadeUpRatings(
        data_dir=root / file_format,
        file_format=file_format).download_and_prepare()
  return root


def test_a_prepared_set_is_read_once_and_cached(
    prepared, tmp_path, monkeypatch):
  folder = str(prepared / 'array_record')
  check(bridge.load('made_up_ratings', folder, str(tmp_path)))
  [stored] = tmp_path.iterdir()
  monkeypatch.setattr(bridge, 'read_prepared', None)
  check(bridge.load('made_up_ratings', folder, str(tmp_path)))
  stored.write_bytes(b'damaged')
  monkeypatch.undo()
  check(bridge.load('made_up_ratings', folder, str(tmp_path)))
  assert len(list(tmp_path.iterdir())) == 2


def test_a_set_in_tfds_own_folder_is_found(prepared, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared / 'array_record'))
  check(bridge.load('made_up_ratings', '', str(tmp_path)))


def test_a_builder_brings_its_own_count(prepared):
  import tensorflow_datasets as tfds
  folder = bridge.find_prepared(prepared / 'array_record', 'made_up_ratings')
  check(bridge.from_tfds(tfds.builder_from_directory(str(folder))))


def test_parquet_which_loses_rows_is_refused(prepared, tmp_path):
  with pytest.raises(ValueError, match='prepared as parquet'):
    bridge.load('made_up_ratings', str(prepared / 'parquet'), str(tmp_path))


def test_the_module_costs_no_import_of_tfds():
  code = ('import sys, fedjaxrec.data.sources as s; '
          'sys.exit(any(m in sys.modules for m in '
          '("tensorflow_datasets", "tensorflow", "pyarrow", "jax")))')
  assert bridge.subprocess.run([sys.executable, '-c', code]).returncode == 0
