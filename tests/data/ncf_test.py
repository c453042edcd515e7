"""The NCF files: made up, damaged, and the published ones."""

import gzip

import numpy as np
import pytest

from fedjaxrec.data import ncf

TRAIN = '0\t2\t5\t0\n0\t1\t4\t9\n1\t0\t3\t0\n1\t2\t3\t0\n'
TEST = '0\t0\t5\t10\n1\t1\t3\t11\n'


def negative_lines(first=(0, 0), second=(1, 1), count=99):
  return ''.join(
      f'({u},{i})\t' + '\t'.join(str(n + 3) for n in range(count)) + '\n'
      for u, i in (first, second))


def write(folder, name='x', train=TRAIN, test=TEST, negative=None, gz=''):
  for kind, text in (('train.rating', train), ('test.rating', test),
                     ('test.negative', negative or negative_lines())):
    raw = text.encode()
    (folder / f'{name}.{kind}{gz}').write_bytes(
        gzip.compress(raw) if gz.endswith('.gz') else raw)


@pytest.mark.parametrize('ending', ['', '.gz', '.rebuilt.gz'])
def test_the_split_is_the_published_one(ending, tmp_path):
  write(tmp_path, gz=ending)
  split = ncf.load(str(tmp_path))
  assert split.name == 'published'
  assert (split.num_users, split.num_items) == (2, 102)
  # By row, not by time: the times are not all known.
  assert split.train.items.tolist() == [2, 1, 0, 2]
  assert split.train.timestamps.tolist() == [0, 9, 0, 0]
  assert not split.train.has_timestamps
  assert split.test.items.tolist() == [0, 1]
  assert split.validation.counts.tolist() == [0, 0]
  assert split.fold_in.counts.tolist() == [0, 0]
  assert split.negatives.dtype == np.int32
  np.testing.assert_array_equal(split.negatives, [np.arange(3, 102)] * 2)
  assert split.item_ids.tolist() == list(range(102))


def test_one_of_several_data_sets_is_named(tmp_path):
  write(tmp_path, 'x')
  write(tmp_path, 'y', train=TRAIN + '1\t5\t5\t5\n')
  (tmp_path / 'z.test.rating').write_text(TEST)
  with pytest.raises(ValueError, match='files of x, y; name one'):
    ncf.load(str(tmp_path))
  assert ncf.load(str(tmp_path / 'y')).train.num_interactions == 5
  with pytest.raises(FileNotFoundError, match='z.train.rating'):
    ncf.load(str(tmp_path / 'z'))


def test_what_is_missing_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='NAME.train.rating, NAME.test.r'):
    ncf.load('')
  with pytest.raises(FileNotFoundError, match='does not hold all'):
    ncf.load(str(tmp_path / 'nowhere'))
  write(tmp_path)
  (tmp_path / 'x.test.negative').unlink()
  with pytest.raises(FileNotFoundError, match='found x.test.rating, x.train'):
    ncf.load(str(tmp_path))


@pytest.mark.parametrize('files, message', [
    ({'negative': negative_lines(count=98)}, 'test.negative, line 1'),
    ({'negative': negative_lines().replace('(1,1)', '1 1')}, 'line 2'),
    ({'negative': negative_lines().replace('\t5\t', '\t-5\t')}, 'line 1'),
    ({'negative': negative_lines(second=(1, 2))}, 'same .*pairs'),
    ({'train': TRAIN + '1\tx\t1\t1\n'}, 'train.rating, line 5'),
    ({'train': TRAIN + '1\t-1\t1\t1\n'}, 'item=-1 is negative'),
    ({'train': ''}, 'train.rating'),
    ({'train': TRAIN + '2\t1\t1\t1\n'}, 'one row for each user')])
def test_damaged_files_are_refused_with_the_place(files, message, tmp_path):
  write(tmp_path, **files)
  with pytest.raises(ValueError, match=message):
    ncf.load(str(tmp_path))


def test_the_published_ml_1m_files(shared_data):
  split = ncf.load(str(shared_data / 'ncf'))
  assert (split.num_users, split.num_items) == (6040, 3706)
  assert split.train.num_interactions == 994_169
  assert len(np.unique(split.train.items)) == 3704
  assert split.test.counts.tolist() == [1] * 6040
  assert split.negatives.shape == (6040, 99)
  own = (split.negatives == split.test.items[:, None]).any(axis=1)
  assert own.sum() == 156
  # No other interacted item is among a user's negatives.
  seen = np.zeros((6040, 3706), np.bool_)
  seen[split.train.users, split.train.items] = True
  assert not seen[np.arange(6040)[:, None], split.negatives].any()


def test_popularity_has_its_known_worth_on_the_published_files(shared_data):
  split = ncf.load(str(shared_data / 'ncf'))
  popularity = np.bincount(split.train.items, minlength=3706)
  own = popularity[split.test.items][:, None]
  others = popularity[split.negatives]

  def worth(rank):
    gain = np.where(rank < 10, 1 / np.log2(rank + 2), 0)
    return np.mean(rank < 10), np.mean(gain)

  # Ties for the positive; then against it, its own copy among the negatives of
  # 156 users counted as a tie. Masking the copies lies between.
  np.testing.assert_allclose(
      worth((others > own).sum(axis=1)), (0.4538, 0.2545), atol=5e-5)
  np.testing.assert_allclose(
      worth((others >= own).sum(axis=1)), (0.4520, 0.2526), atol=5e-5)
