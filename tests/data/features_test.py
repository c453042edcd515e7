"""Titles, genres and demographics, made up and real."""

import numpy as np
import pytest

from fedjaxrec.data import features, movielens


def test_100k_items_are_latin_1(tmp_path):
  flags = '|'.join(['0'] * 17 + ['1', '0'])
  (tmp_path / 'u.item').write_bytes(
      f'5|Léon (1994)|01-Jan-1994||http://x|{flags}\r\n'.encode('latin-1'))
  items = features.load_items('movielens-100k', str(tmp_path))
  assert items.titles.tolist() == ['Léon (1994)']
  assert items.ids.tolist() == [5]
  assert [items.genre_names[g] for g in np.flatnonzero(items.genres[0])] == [
      'War']


@pytest.mark.parametrize('source, file, encoding', [
    ('movielens-1m', 'movies.dat', 'latin-1'),
    ('movielens-10m', 'movies.dat', 'utf-8'),
    ('movielens-25m', 'movies.csv', 'utf-8')])
def test_quoted_commas_accents_and_missing_genres(
    source, file, encoding, tmp_path):
  lines = ['5::Léon::Crime|Action', '9::No, "genre"::(no genres listed)']
  if file.endswith('csv'):
    lines = ['movieId,title,genres', '5,Léon,Crime|Action',
             '9,"No, ""genre""",(no genres listed)']
  (tmp_path / file).write_bytes('\n'.join(lines).encode(encoding))
  items = features.load_items(source, str(tmp_path))
  assert items.titles.tolist() == ['Léon', 'No, "genre"']
  assert items.genre_names == ('Action', 'Crime')
  assert items.genres.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize('source, file, line', [
    ('movielens-100k', 'u.user', '7|24|F|writer|55436'),
    ('movielens-1m', 'users.dat', '7::F::24::writer::55436')])
def test_users(source, file, line, tmp_path):
  (tmp_path / file).write_text(line)
  users = features.load_users(source, str(tmp_path))
  assert [column.tolist() for column in users] == [
      [7], ['F'], [24], ['writer'], ['55436']]


def test_bad_lines_and_other_sources_are_refused(tmp_path):
  (tmp_path / 'users.dat').write_text('1::F::1::2::3\n2::F::1::2\n')
  with pytest.raises(ValueError, match='users.dat, line 2: 4 fields'):
    features.load_users('movielens-1m', str(tmp_path))
  (tmp_path / 'users.dat').write_text('x::F::1::2::3\n')
  with pytest.raises(ValueError, match='field 1 is not a whole number'):
    features.load_users('movielens-1m', str(tmp_path))
  with pytest.raises(ValueError, match='tells nothing about its users'):
    features.load_users('movielens-20m', str(tmp_path))
  (tmp_path / 'movies.dat').write_text('')
  with pytest.raises(ValueError, match='holds no rows'):
    features.load_items('movielens-1m', str(tmp_path))


def test_rows_are_found_by_id():
  rows = features.rows_of(np.array([9, 2, 5]), np.array([2, 3, 9, 10]))
  assert rows.tolist() == [1, -1, 0, -1]


@pytest.mark.parametrize('source, folder, count, title', [
    ('movielens-100k', 'ml-100k', 1682, 'Toy Story (1995)'),
    ('movielens-1m', 'ml-1m', 3883, 'Toy Story (1995)'),
    ('movielens-latest-small', 'ml-latest-small', 9742, 'Toy Story (1995)')])
def test_real_catalogues(source, folder, count, title, shared_data):
  items = features.load_items(source, str(shared_data / folder))
  assert len(items.ids) == count and items.titles[0] == title
  assert items.genres.shape == (count, len(items.genre_names))
  if source == 'movielens-100k':
    data = movielens.load_path(source, str(shared_data / folder))
    assert features.rows_of(items.ids, data.item_ids).min() >= 0
    users = features.load_users(source, str(shared_data / folder))
    assert len(users.ids) == 943
  if source == 'movielens-1m':
    users = features.load_users(source, str(shared_data / folder))
    assert len(users.ids) == 6040 and set(users.genders) == {'F', 'M'}
