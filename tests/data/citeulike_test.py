"""citeulike-a: three files, disjoint items, candidates of the cold ones."""

import gzip

import numpy as np
import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.data import citeulike, sources

FILES = {'train': 'uid,iid\n7,0\n7,30\n8,30\n', 'vali': 'uid,iid\n8,10\n',
         'test': 'uid,iid\n7,20\n9,21'}


def write(folder, **changes):
  for name, text in (FILES | changes).items():
    (folder / f'{name}.csv').write_text(text)


def test_items_of_each_file_are_its_candidates(tmp_path):
  write(tmp_path)
  (tmp_path / 'vali.csv').unlink()
  (tmp_path / 'vali.csv.gz').write_bytes(
      gzip.compress(FILES['vali'].replace('\n', '\r\n').encode()))
  split = citeulike.load(str(tmp_path))
  np.testing.assert_array_equal(split.user_ids, [7, 8, 9])
  np.testing.assert_array_equal(split.item_ids, [0, 10, 20, 21, 30])
  np.testing.assert_array_equal(split.train.counts, [2, 1, 0])
  np.testing.assert_array_equal(split.validation.counts, [0, 1, 0])
  np.testing.assert_array_equal(split.test.items, [2, 3])
  np.testing.assert_array_equal(
      split.validation_candidates, [False, True, False, False, False])
  np.testing.assert_array_equal(
      split.test_candidates, [False, False, True, True, False])
  assert not split.train.has_timestamps and not split.fold_in.num_interactions


@pytest.mark.parametrize('files, message', [
    ({'test': 'uid,iid\n7,30\n'}, 'test.csv: item=30 is in train.csv too'),
    ({'test': 'uid,iid\n7,x\n'}, 'test.csv is not user,item'),
    ({'train': '7,0\n'}, 'header uid,iid'),
    ({'vali': 'uid,iid\n'}, 'header uid,iid'),
])
def test_files_that_do_not_fit_are_refused(files, message, tmp_path):
  write(tmp_path, **files)
  with pytest.raises(ValueError, match=message):
    citeulike.load(str(tmp_path))


def test_what_is_missing_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="data.path=''.*train.csv"):
    citeulike.load('')
  write(tmp_path)
  (tmp_path / 'test.csv').unlink()
  with pytest.raises(FileNotFoundError, match='holds no test.csv'):
    citeulike.load(str(tmp_path))


def test_the_published_files(shared_data):
  split = sources.load_split(config_lib.Config(
      data=config_lib.DataConfig(
          source='citeulike-a', path=str(shared_data / 'citeulike-a')),
      split=config_lib.SplitConfig(name='published')))
  assert (split.num_users, split.num_items) == (5551, 16_980)
  assert [part.num_interactions for part in (
      split.train, split.validation, split.test)] == [164_210, 13_037, 27_739]
  assert len(np.unique(split.train.items)) == 13_584
  assert split.validation_candidates.sum() == 1018
  assert split.test_candidates.sum() == 2378
  assert not split.test_candidates[split.train.items].any()
