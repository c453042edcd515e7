"""CSV and Parquet tables: every type of column, everything that is refused."""

import datetime
import gzip

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from fedjaxrec.data import tabular

USERS = ['b', 'a', 'b', 'a']
ITEMS = [3, 3, 1, 9]
RATINGS = [1.5, 2, 3, 4]
TIMES = [40, 30, 20, 10]


def table(**columns):
  return pa.table({'user_id': USERS, 'item_id': ITEMS, 'rating': RATINGS,
                   'timestamp': TIMES} | columns)


def write(kind, data, folder):
  file = folder / f'table.{kind}'
  (csv.write_csv if kind == 'csv' else parquet.write_table)(data, file)
  return str(file)


def check(data):
  assert data.user_ids.tolist() == ['a', 'b']
  assert data.item_ids.tolist() == [1, 3, 9]
  assert data.items.tolist() == [2, 1, 0, 1]
  assert data.ratings.tolist() == [4, 2, 3, 1.5]
  assert data.timestamps.tolist() == [10, 30, 20, 40]
  assert data.has_timestamps


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_named_columns_are_read_and_others_are_not(kind, tmp_path):
  data = table().rename_columns(['who', 'what', 'stars', 'when'])
  data = data.append_column('note', pa.array(['x, "y"', 'z', 'ä', '']))
  check(tabular.load(kind, write(kind, data, tmp_path), 'who', 'what', 'stars',
                     'when'))


@pytest.mark.parametrize('times', [
    [40.9, 30.0, 20.5, 10.1],
    pa.array([40_000, 30_000, 20_000, 10_999], pa.timestamp('ms')),
    pa.array([40, 30, 20, 10], pa.timestamp('s', 'UTC')),
    ['1970-01-01 00:00:40', '1970-01-01 00:00:30', '1970-01-01 00:00:20',
     '1970-01-01 00:00:10'],
    ['1970-01-01T00:00:40Z', '1970-01-01T00:00:30Z', '1970-01-01T00:00:20Z',
     '1970-01-01T00:00:10Z']])
@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_times_are_seconds_however_they_are_written(kind, times, tmp_path):
  check(tabular.load(kind, write(kind, table(timestamp=times), tmp_path)))


def test_dates_are_times(tmp_path):
  dates = [datetime.date(1970, 1, day) for day in (5, 4, 3, 2)]
  data = tabular.load('parquet', write(
      'parquet', table(timestamp=dates), tmp_path))
  assert data.timestamps.tolist() == [
      86400 * day for day in (1, 3, 2, 4)]


@pytest.mark.parametrize('ids', [
    pa.array(USERS).dictionary_encode(), pa.array(USERS, pa.large_string())])
def test_text_ids_of_every_arrow_type_are_read(ids, tmp_path):
  check(tabular.load('parquet', write(
      'parquet', table(user_id=ids), tmp_path)))


def test_text_ids_in_several_pieces_are_one_id_space(tmp_path):
  data = pa.concat_tables([table().slice(0, 2), table().slice(2)])
  parquet.write_table(data, tmp_path / 't', row_group_size=1)
  check(tabular.load('parquet', str(tmp_path / 't')))


def test_ratings_can_be_decimal(tmp_path):
  decimals = pa.array(RATINGS).cast(pa.decimal128(4, 1))
  check(tabular.load('parquet', write(
      'parquet', table(rating=decimals), tmp_path)))


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_an_empty_column_name_means_one_and_the_order_of_the_rows(
    kind, tmp_path):
  data = tabular.load(kind, write(kind, table(), tmp_path), rating_column='',
                      timestamp_column='')
  assert data.ratings.tolist() == [1] * 4
  assert not data.has_timestamps
  assert data.item_ids[data.items].tolist() == [3, 9, 3, 1]


@pytest.mark.parametrize('role', ['user', 'item', 'rating', 'timestamp'])
@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_a_missing_column_is_refused_with_the_columns_there_are(
    kind, role, tmp_path):
  name = 'timestamp' if role == 'timestamp' else (
      'rating' if role == 'rating' else f'{role}_id')
  file = write(kind, table().drop_columns([name]), tmp_path)
  there = ', '.join(n for n in table().column_names if n != name)
  with pytest.raises(ValueError, match=(
      f"data.{role}_column='{name}' is not a column .*it has {there}.*"
      f'--data.{role}_column')):
    tabular.load(kind, file)


@pytest.mark.parametrize('columns, message', [
    ({'rating': [1, None, 3, 4]}, 'rating is missing in row 1 '),
    ({'rating': [1, np.nan, 3, 4]}, 'rating.* row 1 '),
    ({'rating': [1, np.inf, 3, 4]}, 'rating=inf in row 1 '),
    ({'rating': ['1', 'good', '3', '4']}, "rating='good' in row 1 "),
    ({'user_id': ['b', None, 'b', 'a']}, 'user: id is missing in row 1 '),
    ({'item_id': [3, None, 1, 9]}, 'item: id is missing in row 1 '),
    ({'timestamp': [1, None, 3, 4]}, 'timestamp is missing in row 1 '),
    ({'timestamp': [1, -5, 3, 4]}, 'timestamp=-5 in row 1 '),
    ({'timestamp': ['a', 'b', 'c', 'd']}, 'not all times'),
    ({'rating': [True, True, True, False]}, 'ratings are numbers'),
    ({'timestamp': [True, True, True, False]}, 'seconds since 1970')])
@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_a_bad_value_is_refused_with_its_row(kind, columns, message, tmp_path):
  with pytest.raises(ValueError, match=f'{kind}:.*{message}'):
    tabular.load(kind, write(kind, table(**columns), tmp_path))


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_a_missing_file_is_named(kind, tmp_path):
  with pytest.raises(FileNotFoundError, match=f'{kind}:nowhere does not exist'):
    tabular.load(kind, 'nowhere')


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
@pytest.mark.parametrize('raw', [b'', b'a,b\n1\n2,3,4\n', b'PAR1PAR1'])
def test_a_file_that_does_not_parse_is_named(kind, raw, tmp_path):
  (tmp_path / 'x').write_bytes(raw)
  with pytest.raises(ValueError, match=f'{tmp_path}/x'):
    tabular.load(kind, str(tmp_path / 'x'), 'a', 'b', '', '')


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_no_rows_are_refused(kind, tmp_path):
  with pytest.raises(ValueError, match='num_interactions=0'):
    tabular.load(kind, write(kind, table().slice(0, 0), tmp_path))


def test_relative_paths_home_and_gzip(tmp_path, monkeypatch):
  raw = open(write('csv', table(), tmp_path), 'rb').read()
  (tmp_path / 'x.csv.gz').write_bytes(gzip.compress(
      raw.replace(b'\n', b'\r\n').rstrip()))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  check(tabular.load('csv', 'x.csv.gz'))
  check(tabular.load('csv', '~/x.csv.gz'))


def test_real_tables_with_quoted_commas_are_read(shared_data):
  data = tabular.load(
      'csv', str(shared_data / 'ml-latest-small' / 'ratings.csv'), 'userId',
      'movieId')
  assert (data.num_users, data.num_items, data.num_interactions) == (
      610, 9724, 100_836)
  data = tabular.load(
      'csv', str(shared_data / 'ml-latest-small' / 'movies.csv'), 'title',
      'movieId', '', '')
  assert data.num_items == 9742
  assert 'American President, The (1995)' in data.user_ids
