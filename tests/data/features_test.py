"""Features by hand: kinds, vectors, alignment, and what is refused."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec.data import features


def make(**columns):
  return features.from_columns(columns)


def test_kinds_follow_from_the_values():
  made = make(
      age=np.array([30, 40, 35]), score=[1, None, 2.5], job=['b', '', 'a'],
      genres=['x|y', None, 'y'], tags=[['p'], [], None],
      old=[True, False, True])
  assert made.kinds == (
      'number', 'number', 'category', 'tags', 'tags', 'number')
  np.testing.assert_array_equal(made.column('score'), [1, np.nan, 2.5])
  np.testing.assert_array_equal(made.column('job'), [1, -1, 0])
  np.testing.assert_array_equal(
      made.column('genres'), [[True, True], [False, False], [False, True]])
  np.testing.assert_array_equal(
      made.column('tags'), [[True], [False], [False]])
  assert made.vocabularies[2:5] == (('a', 'b'), ('x', 'y'), ('p',))


def test_a_vector_by_hand():
  made = make(age=[10, 30, 20, 20], job=['b', '', 'a', 'a'],
              year=[1.0, np.nan, 3.0, 2.0], constant=[7, 7, 7, 7])
  assert made.entry_names == (
      'age', 'job=a', 'job=b', 'year', 'year=missing', 'constant')
  assert made.width == 6 and made.num_rows == 4
  root, third = np.sqrt(2), np.sqrt(1.5)
  np.testing.assert_allclose(made.matrix(), [
      [-root, 0, 1, -third, 0, 0], [root, 0, 0, 0, 1, 0],
      [0, 1, 0, third, 0, 0], [0, 1, 0, 0, 0, 0]], rtol=0, atol=1e-6)
  assert made.matrix().dtype == np.float32


def test_rows_can_be_taken_and_not_be_changed():
  made = make(age=[1, 2, 3], job=['a', 'b', 'a'])
  taken = made.take(np.array([2, 0]))
  np.testing.assert_array_equal(taken.column('age'), [3, 1])
  assert taken.vocabularies == made.vocabularies
  with pytest.raises(ValueError, match='read-only'):
    made.column('age')[0] = 5
  with pytest.raises(ValueError, match="feature='agee'.*age, job"):
    made.column('agee')


@pytest.mark.parametrize('columns, message', [
    ({}, 'no feature column'),
    ({'a': ['x', 1]}, "'a' mixes types, among them int"),
    ({'a': [[1], 'x']}, "'a' mixes types, among them list"),
    ({'a': [1, 2], 'b': [1]}, "'b' has 1 rows, but 'a' has 2"),
    ({'a': [1.0, np.inf]}, "'a' holds an infinite"),
    ({'a': [f't{i}' for i in range(5001)]}, "'a' has 5,001 distinct texts"),
])
def test_columns_that_are_no_features_are_refused(columns, message):
  with pytest.raises(ValueError, match=message):
    features.from_columns(columns)


NUMBER = np.zeros(2, np.float32)


@pytest.mark.parametrize('parts, message', [
    (((), (), (), ()), 'at least one'),
    ((('a', 'a'), ('number',) * 2, (NUMBER,) * 2, ((),) * 2), 'a name twice'),
    ((('a',), ('colour',), (NUMBER,), ((),)), "kind='colour'"),
    ((('a',), ('number',), (NUMBER.astype(float),), ((),)), 'is float64'),
    ((('a',), ('category',), (np.array([0, 2], np.int32),), (('x', 'y'),)),
     'category 2, outside -1..1'),
    ((('a',), ('tags',), (np.ones((2, 3), bool),), (('x', 'y'),)),
     '3 tags and a vocabulary of 2'),
])
def test_arrays_that_do_not_fit_are_refused(parts, message):
  with pytest.raises(ValueError, match=message):
    features.Features(*parts)


@hypothesis.given(st.permutations(range(12)), st.integers(1, 12))
def test_every_id_finds_its_row_whatever_their_order(found, num_ids):
  ids = np.arange(num_ids)
  rows = features.align(ids, found, 'user', 'x.csv')
  assert [found[row] for row in rows] == ids.tolist()
  as_text = features.align(
      ids.astype(str), [str(i) for i in found], 'user', 'x.csv')
  np.testing.assert_array_equal(rows, as_text)


def test_ids_without_a_row_or_with_two_are_refused():
  with pytest.raises(ValueError, match='x.csv lacks 2 of 4 items.*item=7'):
    features.align(np.array([1, 7, 9, 2]), [2, 1, 8], 'item', 'x.csv')
  with pytest.raises(ValueError, match='x.csv lacks 1 of 1 items'):
    features.align(np.array(['z']), ['a'], 'item', 'x.csv')
  with pytest.raises(ValueError, match='x.csv: user=3 has several rows'):
    features.align(np.array([3]), [3, '3'], 'user', 'x.csv')
