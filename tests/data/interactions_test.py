"""Interactions against a slow dictionary oracle, and everything they refuse."""

import dataclasses

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from fedjaxrec.data import interactions as interactions_lib

Interactions = interactions_lib.Interactions

ROWS = st.lists(
    st.tuples(st.integers(-3, 6), st.integers(10, 16), st.integers(1, 5),
              st.integers(0, 4)),
    min_size=1, max_size=60)


def slow_interactions(rows):
  """Dict of user -> [(timestamp, row number, item, rating)]."""
  users = {}
  for number, (user, item, rating, timestamp) in enumerate(rows):
    users.setdefault(user, []).append((timestamp, number, item, rating))
  result = {}
  for user, history in users.items():
    latest = {}
    for entry in sorted(history):
      latest[entry[2]] = entry
    result[user] = sorted(latest.values())
  return result


def as_dict(data):
  """Dict of source user id -> [(item id, rating, timestamp)]."""
  return {
      data.user_ids[u].item(): [
          (data.item_ids[data.items[row]].item(), data.ratings[row].item(),
           data.timestamps[row].item())
          for row in range(data.offsets[u], data.offsets[u + 1])]
      for u in range(data.num_users)}


def example(**changes):
  fields = dict(
      offsets=[0, 2, 2, 3], items=[1, 0, 1], ratings=[1., 2., 3.],
      timestamps=[5, 6, 1], user_ids=['a', 'b', 'c'], item_ids=[7, 9])
  return Interactions(
      **{name: np.asarray(value) for name, value in (fields | changes).items()})


class FromColumnsTest(parameterized.TestCase):

  @hypothesis.given(ROWS)
  def test_equals_the_dictionary_oracle(self, rows):
    data = Interactions.from_columns(*np.array(rows).T)
    expected = {
        user: [(item, rating, timestamp)
               for timestamp, _, item, rating in history]
        for user, history in slow_interactions(rows).items()}
    self.assertEqual(as_dict(data), expected)
    self.assertEqual(list(data.user_ids), sorted(expected))

  @hypothesis.given(ROWS)
  def test_what_it_makes_passes_the_check_of_hand_made_ones(self, rows):
    data = Interactions.from_columns(*np.array(rows).T)
    Interactions(**{f.name: getattr(data, f.name)
                    for f in dataclasses.fields(data)})
    np.testing.assert_array_equal(
        data.users, np.repeat(np.arange(data.num_users), data.counts))

  @hypothesis.given(ROWS, st.randoms(use_true_random=False))
  def test_fingerprint_ignores_row_order_unless_duplicates_tie(self, rows, rnd):
    unique = list({(u, i): (u, i, r, t) for u, i, r, t in rows}.values())
    shuffled = rnd.sample(unique, len(unique))
    self.assertEqual(
        Interactions.from_columns(*np.array(unique).T).fingerprint(),
        Interactions.from_columns(*np.array(shuffled).T).fingerprint())

  def test_fingerprint_sees_every_part_of_the_content(self):
    base = example()
    changed = [
        example(ratings=[1., 2., 4.]), example(timestamps=[5, 7, 1]),
        example(items=[0, 1, 1]), example(offsets=[0, 2, 3, 3]),
        example(user_ids=['a', 'b', 'd']), example(item_ids=[7, 8]),
        example(has_timestamps=False)]
    prints = [data.fingerprint() for data in [base, *changed]]
    self.assertLen(set(prints), len(prints))
    self.assertEqual(base.fingerprint(), example().fingerprint())

  def test_fingerprint_without_times_covers_the_order_of_rows(self):
    one = Interactions.from_columns([1, 1], [5, 6])
    other = Interactions.from_columns([1, 1], [6, 5])
    self.assertFalse(one.has_timestamps)
    self.assertNotEqual(one.fingerprint(), other.fingerprint())

  def test_untrusted_times_are_kept_and_the_rows_decide(self):
    data = Interactions.from_columns(
        [1, 1, 1], [5, 6, 5], None, [9, 0, 3], ordered_by_time=False)
    np.testing.assert_array_equal(data.item_ids[data.items], [6, 5])
    np.testing.assert_array_equal(data.timestamps, [0, 3])
    self.assertFalse(data.has_timestamps)

  def test_no_rows_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'num_interactions=0'):
      Interactions.from_columns([], [])

  def test_an_item_outside_the_catalogue_is_refused(self):
    with self.assertRaisesRegex(ValueError, r'item=2 in row 1 .*0\.\.1'):
      Interactions.from_dense(
          np.array([0, 0]), np.array([1, 2]), np.arange(1), np.arange(2))

  @parameterized.parameters(70_000, 65_536, 100)
  def test_duplicates_are_found_in_small_and_large_id_spaces(self, num_ids):
    last, ids = num_ids - 1, np.arange(num_ids)
    data = Interactions.from_dense(
        np.array([last, 0, last]), np.array([last, 1, last]), ids, ids,
        [1, 2, 3], [7, 7, 7])
    np.testing.assert_array_equal(data.ratings, [2, 3])

  def test_times_too_far_apart_for_one_key_are_still_in_order(self):
    data = Interactions.from_columns(
        [0, 3, 0, 3], [1, 2, 3, 4], None, [2**62, 7, 0, 5])
    np.testing.assert_array_equal(data.timestamps, [0, 2**62, 5, 7])


class CheckTest(parameterized.TestCase):

  def test_a_sound_one_is_accepted_and_cannot_be_changed(self):
    data = example()
    self.assertEqual((data.num_users, data.num_items, data.num_interactions),
                     (3, 2, 3))
    np.testing.assert_array_equal(data.counts, [2, 0, 1])
    with self.assertRaises(ValueError):
      data.items[0] = 0

  @parameterized.named_parameters(
      ('outside', dict(items=[1, 2, 1]), r'item=2 in row 1 .* 0\.\.1'),
      ('negative item', dict(items=[1, -1, 1]), 'item=-1 in row 1'),
      ('repeated', dict(items=[1, 1, 1]), 'user 0 has item=1 more than once'),
      ('short offsets', dict(offsets=[0, 2, 3]), 'one entry more'),
      ('falling offsets', dict(offsets=[0, 2, 1, 3]), 'never fall'),
      ('offsets end', dict(offsets=[0, 1, 1, 2]), 'from 0 to 2'),
      ('nan', dict(ratings=[1., np.nan, 1.]), 'rating=nan in row 1'),
      ('unsorted', dict(timestamps=[6, 5, 1]), 'timestamp=5 in row 1'),
      ('negative time', dict(timestamps=[-6, 5, 1]), 'timestamp=-6'),
      ('ids', dict(item_ids=[7, 7]), 'item_ids holds an id twice'),
      ('lengths', dict(ratings=[1., 2.]), 'equal length'),
      ('type', dict(items=[0.5, 1, 1]), 'items is of type float64'),
      ('shape', dict(items=[[0]]), 'must be a vector'),
      ('large', dict(items=[2**32, 0, 1]), 'does not fit'))
  def test_a_broken_rule_is_refused(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      example(**changes)

  def test_without_times_the_rows_need_not_be_sorted_by_time(self):
    example(timestamps=[6, 5, 1], has_timestamps=False)


class TakeTest(absltest.TestCase):

  def test_keeps_rows_and_the_id_space(self):
    data = example().take(np.array([False, True, True]))
    np.testing.assert_array_equal(data.offsets, [0, 1, 1, 2])
    np.testing.assert_array_equal(data.items, [0, 1])
    self.assertEqual((data.num_users, data.num_items), (3, 2))

  def test_refuses_another_shape(self):
    with self.assertRaisesRegex(ValueError, r'must be bool\[3\]'):
      example().take(np.array([True]))


def slow_filter(rows, min_rating, min_user, min_item):
  rows = [row for row in rows if row[2] >= min_rating]
  while True:
    users = [row[0] for row in rows]
    kept = [row for row in rows if users.count(row[0]) >= min_user]
    items = [row[1] for row in kept]
    kept = [row for row in kept if items.count(row[1]) >= min_item]
    if kept == rows:
      return rows
    rows = kept


class FilterTest(absltest.TestCase):

  @hypothesis.given(ROWS, st.integers(0, 4), st.integers(1, 4),
                    st.integers(1, 4))
  def test_equals_the_repeated_list_oracle(self, rows, rating, user, item):
    unique = list({(u, i): (u, i, r, t) for u, i, r, t in rows}.values())
    data = Interactions.from_columns(*np.array(unique).T)
    expected = slow_filter(unique, rating, user, item)
    if not expected:
      with self.assertRaisesRegex(
          ValueError, f'data.min_user_interactions={user} .*leave none of the '
          f'{len(unique)} interactions'):
        interactions_lib.filter_interactions(data, rating, user, item)
      return
    found = interactions_lib.filter_interactions(data, rating, user, item)
    wanted = Interactions.from_columns(*np.array(expected).T)
    self.assertEqual(as_dict(found), as_dict(wanted))
    self.assertGreater(found.counts.min(), 0)

  def test_one_pass_would_not_be_enough(self):
    # Item 9 is rare; without it user 3 is rare, and then item 8 is.
    data = Interactions.from_columns(
        [1, 1, 2, 2, 3, 3, 1], [6, 7, 6, 7, 8, 9, 8])
    found = interactions_lib.filter_interactions(
        data, min_user_interactions=2, min_item_interactions=2)
    self.assertEqual(found.user_ids.tolist(), [1, 2])
    self.assertEqual(found.item_ids.tolist(), [6, 7])

  def test_nothing_to_drop_returns_the_same_object(self):
    data = Interactions.from_columns([1, 2], [1, 2])
    self.assertIs(interactions_lib.filter_interactions(data), data)
