"""The publisher's formats, on made-up files and on the real ones."""

import gzip
import zipfile

import numpy as np
import pytest

from fedjaxrec.data import movielens

TAB = b'7\t30\t4\t200\n2\t10\t1\t100\n7\t10\t5\t100\n'
COLONS = b'7::30::4.5::200\n2::10::0.5::100\n7::10::5::100\n'
COMMAS = b'userId,movieId,rating,timestamp\n' + (
    COLONS.replace(b'::', b','))
FORMATS = {
    'movielens-100k': ('u.data', TAB),
    'movielens-1m': ('ratings.dat', COLONS),
    'movielens-10m': ('ratings.dat', COLONS),
    'movielens-latest-small': ('ratings.csv', COMMAS),
    'movielens-20m': ('ratings.csv', COMMAS),
    'movielens-25m': ('ratings.csv', COMMAS),
}


def check(data):
  np.testing.assert_array_equal(data.user_ids, [2, 7])
  np.testing.assert_array_equal(data.item_ids, [10, 30])
  np.testing.assert_array_equal(data.offsets, [0, 1, 3])
  np.testing.assert_array_equal(data.items, [0, 0, 1])
  np.testing.assert_array_equal(data.timestamps, [100, 100, 200])
  assert data.ratings[1] == 5


@pytest.mark.parametrize('source', FORMATS)
@pytest.mark.parametrize('ending', [b'\n', b'\r\n', b''])
def test_every_format_is_read_whatever_ends_the_lines(source, ending, tmp_path):
  file, raw = FORMATS[source]
  if ending:
    raw = raw.replace(b'\n', ending)
  else:
    raw = raw.rstrip(b'\n')
  (tmp_path / file).write_bytes(raw)
  check(movielens.load_path(source, str(tmp_path)))
  check(movielens.load_path(source, str(tmp_path / file)))


@pytest.mark.parametrize('source', FORMATS)
def test_gzipped_files_zips_and_the_publishers_folder_are_found(
    source, tmp_path):
  file, raw = FORMATS[source]
  folder = movielens.EDITIONS[source].folder
  (tmp_path / 'a' / folder).mkdir(parents=True)
  (tmp_path / 'a' / folder / f'{file}.gz').write_bytes(gzip.compress(raw))
  check(movielens.load_path(source, str(tmp_path / 'a')))
  with zipfile.ZipFile(tmp_path / 'b.zip', 'w') as archive:
    archive.writestr(f'{folder}/README', 'Hello')
    archive.writestr(f'{folder}/{file}', raw)
  check(movielens.load_path(source, str(tmp_path / 'b.zip')))


def test_half_stars_are_kept():
  columns = movielens.parse_ratings(COLONS, '::', 'ratings.dat')
  np.testing.assert_array_equal(columns.ratings, [4.5, 0.5, 5])


@pytest.mark.parametrize('line', [
    b'7\t30\t4', b'7\t30\t4\t200\t1', b'x\t30\t4\t200', b'7\t\t4\t200',
    b'7\t30\tnan\t200', b'7\t30\tinf\t200', b'7\t30\t4\t-1', b'7\t30\t4\t1.5',
    b'7::30::4::200', b'7 30 4 200'])
def test_a_malformed_line_is_refused_with_file_and_number(line, tmp_path):
  (tmp_path / 'u.data').write_bytes(TAB + b'\n' + line + b'\n' + TAB)
  with pytest.raises(ValueError, match=r'u\.data, line 5: '):
    movielens.load_path('movielens-100k', str(tmp_path))


def test_a_header_is_counted_as_a_line(tmp_path):
  (tmp_path / 'ratings.csv').write_bytes(COMMAS + b'1,2,x,4')
  with pytest.raises(ValueError, match=r'ratings\.csv, line 5: '):
    movielens.load_path('movielens-20m', str(tmp_path))


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='u.data, u.data.gz'):
    movielens.load_path('movielens-100k', str(tmp_path))
  with pytest.raises(FileNotFoundError, match='nowhere.* does not exist'):
    movielens.load_path('movielens-100k', str(tmp_path / 'nowhere'))
  with zipfile.ZipFile(tmp_path / 'other.zip', 'w') as archive:
    archive.writestr('a', 'b')
  with pytest.raises(FileNotFoundError, match='holds no u.data'):
    movielens.load_path('movielens-100k', str(tmp_path / 'other.zip'))


def test_an_empty_file_is_refused(tmp_path):
  (tmp_path / 'u.data').write_bytes(b'')
  with pytest.raises(ValueError, match='u.data'):
    movielens.load_path('movielens-100k', str(tmp_path))


def test_a_part_of_a_data_set_is_told_from_the_whole(tmp_path):
  (tmp_path / 'u.data').write_bytes(TAB)
  data = movielens.load_path('movielens-100k', str(tmp_path))
  assert '(2, 2, 3)' in movielens.describe_difference('movielens-100k', data)


def test_100k_is_what_was_published(shared_data):
  data = movielens.load_path('movielens-100k', str(shared_data / 'ml-100k'))
  assert movielens.describe_difference('movielens-100k', data) == ''
  assert (data.num_users, data.num_items, data.num_interactions) == (
      943, 1682, 100_000)
  assert data.ratings.sum() == 352_986
  assert (data.timestamps.min(), data.timestamps.max()) == (
      874_724_710, 893_286_638)
  assert (np.median(data.counts), data.counts.min()) == (65, 20)


def test_the_fingerprint_would_see_one_changed_rating(shared_data):
  raw = (shared_data / 'ml-100k' / 'u.data').read_bytes()
  assert raw.startswith(b'196\t242\t3\t')
  changed = raw.replace(b'196\t242\t3\t', b'196\t242\t4\t', 1)
  data = movielens.Interactions.from_columns(
      *movielens.parse_ratings(changed, '\t', 'u.data'))
  assert 'fingerprint' in movielens.describe_difference('movielens-100k', data)


def test_latest_small_is_what_was_published(shared_data):
  data = movielens.load_path(
      'movielens-latest-small', str(shared_data / 'ml-latest-small'))
  assert movielens.describe_difference('movielens-latest-small', data) == ''
  assert data.item_ids[-1] == 193_609
  assert set(np.unique(data.ratings * 2)) == set(range(1, 11))


def test_1m_is_read_where_it_is_there(shared_data):
  file = shared_data / 'ml-1m' / 'ratings.users-1-2999.dat.gz'
  data = movielens.load_path('movielens-1m', str(file))
  assert (data.num_users, data.num_items, data.num_interactions) == (
      2999, 3615, 487_650)
  assert (data.timestamps.min(), data.timestamps.max()) == (
      970_620_734, 1_046_388_675)
