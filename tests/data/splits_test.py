"""Splits against slow loops over users, and the laws that all of them keep."""

import math

import hypothesis
import numpy as np
from absl.testing import parameterized
from hypothesis import strategies as st

from fedjaxrec import config as config_lib
from fedjaxrec.data import interactions as interactions_lib
from fedjaxrec.data import splits

Interactions = interactions_lib.Interactions

NAMES = ('leave_one_out', 'user_ratio', 'global_time', 'user_holdout',
         'item_holdout')
ROWS = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 30), st.integers(1, 5),
              st.integers(0, 9)),
    min_size=3, max_size=120)
FRACTIONS = st.floats(0.05, 0.45)


def rows_of(data):
  """List of (user, item, rating, timestamp) in order."""
  return list(zip(data.users.tolist(), data.items.tolist(),
                  data.ratings.tolist(), data.timestamps.tolist()))


def histories(data):
  rows = rows_of(data)
  return [[row for row in rows if row[0] == user]
          for user in range(data.num_users)]


def parts(split):
  return tuple(rows_of(part) for part in (
      split.train, split.validation, split.test, split.fold_in))


def slow_leave_one_out(data):
  train, validation, test = [], [], []
  for history in histories(data):
    if len(history) < 3:
      train += history
    else:
      train += history[:-2]
      validation.append(history[-2])
      test.append(history[-1])
  return train, validation, test, []


def slow_user_ratio(data, validation_fraction, test_fraction):
  train, validation, test = [], [], []
  for history in histories(data):
    n = len(history)
    num_test = math.floor(n * test_fraction + 1e-9)
    num_validation = math.floor(n * validation_fraction + 1e-9)
    train += history[:n - num_test - num_validation]
    validation += history[n - num_test - num_validation:n - num_test]
    test += history[n - num_test:]
  return train, validation, test, []


def slow_global_time(data, validation_fraction, test_fraction):
  times = sorted(data.timestamps.tolist())
  num_test = math.floor(len(times) * test_fraction + 1e-9)
  num_late = num_test + math.floor(len(times) * validation_fraction + 1e-9)
  test_cut = times[-num_test] if num_test else math.inf
  late_cut = times[-num_late] if num_late else math.inf
  rows = rows_of(data)
  return ([r for r in rows if r[3] < late_cut],
          [r for r in rows if late_cut <= r[3] < test_cut],
          [r for r in rows if r[3] >= test_cut], [])


class OracleTest(parameterized.TestCase):

  @hypothesis.given(ROWS)
  def test_leave_one_out_equals_the_loop(self, rows):
    data = Interactions.from_columns(*np.array(rows).T)
    self.assertEqual(parts(splits.leave_one_out(data)),
                     slow_leave_one_out(data))

  @hypothesis.given(ROWS, FRACTIONS, FRACTIONS)
  def test_user_ratio_equals_the_loop(self, rows, validation, test):
    data = Interactions.from_columns(*np.array(rows).T)
    self.assertEqual(parts(splits.user_ratio(data, validation, test)),
                     slow_user_ratio(data, validation, test))

  @hypothesis.given(ROWS, FRACTIONS, FRACTIONS)
  def test_global_time_equals_the_loop(self, rows, validation, test):
    data = Interactions.from_columns(*np.array(rows).T)
    self.assertEqual(parts(splits.global_time(data, validation, test)),
                     slow_global_time(data, validation, test))

  @hypothesis.given(ROWS, FRACTIONS, FRACTIONS, FRACTIONS, st.integers(0, 9))
  def test_user_holdout_asks_whole_users_for_their_latest(
      self, rows, validation, test, shown, seed):
    data = Interactions.from_columns(*np.array(rows).T)
    hypothesis.assume(data.num_users >= 3)
    split = splits.user_holdout(data, validation, test, shown, seed)
    held_out = np.flatnonzero(split.fold_in.counts)
    num_test = max(1, math.floor(data.num_users * test + 1e-9))
    num_validation = max(1, math.floor(data.num_users * validation + 1e-9))
    self.assertLen(held_out, num_test + num_validation)
    asked = split.validation.counts + split.test.counts
    for user, history in enumerate(histories(data)):
      if user not in held_out:
        self.assertEqual(split.train.counts[user], len(history))
        continue
      n = len(history)
      num_shown = max(1, min(n - 1, math.floor(n * shown + 1e-9)))
      self.assertEqual(split.train.counts[user], 0)
      self.assertEqual(asked[user], n - num_shown)
      self.assertEqual(histories(split.fold_in)[user], history[:num_shown])

  @hypothesis.given(ROWS, FRACTIONS, FRACTIONS, st.integers(0, 9))
  def test_item_holdout_takes_whole_items_out_of_training(
      self, rows, validation, test, seed):
    data = Interactions.from_columns(*np.array(rows).T)
    hypothesis.assume(data.num_items >= 3)
    split = splits.item_holdout(data, validation, test, seed)
    sets = [set(part.items.tolist()) for part in (
        split.train, split.validation, split.test)]
    self.assertEqual(sum(map(len, sets)), data.num_items)
    self.assertEqual(set.union(*sets), set(range(data.num_items)))
    self.assertLen(sets[1], max(1, math.floor(
        data.num_items * validation + 1e-9)))
    self.assertLen(sets[2], max(1, math.floor(data.num_items * test + 1e-9)))
    for mask, items in ((split.validation_candidates, sets[1]),
                        (split.test_candidates, sets[2])):
      self.assertEqual(set(np.flatnonzero(mask).tolist()), items)
    self.assertEqual(split.fold_in.num_interactions, 0)

  def test_leave_one_out_by_hand(self):
    data = Interactions.from_columns(
        ['a', 'a', 'a', 'a', 'b', 'b'], [1, 2, 3, 4, 1, 2],
        timestamps=[30, 10, 20, 20, 5, 6])
    split = splits.leave_one_out(data)
    # User a by time: 2, then 3 and 4 in one second and in the source's order.
    np.testing.assert_array_equal(split.test.item_ids[split.test.items], [1])
    np.testing.assert_array_equal(
        split.validation.item_ids[split.validation.items], [4])
    np.testing.assert_array_equal(split.train.counts, [2, 2])
    self.assertEqual(split.fold_in.num_interactions, 0)

  def test_a_share_is_not_lost_to_rounding(self):
    data = Interactions.from_columns(np.zeros(100, int), np.arange(100))
    self.assertEqual(0.29 * 100, 28.999999999999996)
    self.assertEqual(splits.user_ratio(data, 0.1, 0.29).test.counts[0], 29)


class LawTest(parameterized.TestCase):

  @parameterized.parameters(*NAMES)
  @hypothesis.given(rows=ROWS, validation=FRACTIONS, test=FRACTIONS)
  def test_parts_are_disjoint_whole_and_in_order(
      self, name, rows, validation, test):
    data = Interactions.from_columns(*np.array(rows).T)
    config = config_lib.SplitConfig(
        name=name, validation_fraction=validation, test_fraction=test)
    try:
      split = splits.make_split(data, config)
    except ValueError as error:
      self.assertIn('split.name=', str(error))
      return
    together = [row for part in parts(split) for row in part]
    self.assertCountEqual(together, rows_of(data))
    for part in (split.train, split.validation, split.test, split.fold_in):
      self.assertIs(part.user_ids, data.user_ids)
      self.assertIs(part.item_ids, data.item_ids)
      place = {row: number for number, row in enumerate(rows_of(data))}
      order = [place[row] for row in rows_of(part)]
      self.assertEqual(order, sorted(order))

  @hypothesis.given(rows=ROWS)
  def test_global_time_learns_nothing_from_later(self, rows):
    data = Interactions.from_columns(*np.array(rows).T)
    split = splits.global_time(data, 0.2, 0.2)
    times = [part.timestamps for part in (
        split.train, split.validation, split.test) if part.num_interactions]
    for earlier, later in zip(times, times[1:]):
      self.assertLess(earlier.max(), later.min())

  @parameterized.parameters('user_holdout', 'item_holdout')
  def test_holdout_depends_on_the_seed_and_on_nothing_else(self, name):
    data = Interactions.from_columns(
        np.repeat(np.arange(40), 20), np.arange(800) % 31)
    config = config_lib.SplitConfig(name=name)
    one, again, other = (
        splits.make_split(data, config, seed=seed).test.counts
        for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    self.assertFalse(np.array_equal(one, other))


class RefusalTest(parameterized.TestCase):

  def test_global_time_needs_times_and_the_others_do_not(self):
    data = Interactions.from_columns(
        np.repeat(np.arange(20), 20), np.tile(np.arange(20), 20))
    for name in NAMES:
      config = config_lib.SplitConfig(name=name)
      if name == 'global_time':
        with self.assertRaisesRegex(
            ValueError, 'split.name=global_time needs the time'):
          splits.make_split(data, config)
      else:
        splits.make_split(data, config)

  def test_without_times_the_last_row_is_the_last(self):
    data = Interactions.from_columns([1, 1, 1], [9, 8, 7])
    test = splits.leave_one_out(data).test
    np.testing.assert_array_equal(test.item_ids[test.items], [7])

  def test_published_is_not_made_from_interactions(self):
    data = Interactions.from_columns([1], [1])
    with self.assertRaisesRegex(ValueError, '--data.source=ncf'):
      splits.make_split(data, config_lib.SplitConfig(name='published'))

  def test_cold_items_need_three_items(self):
    data = Interactions.from_columns([1, 2, 3], [1, 2, 2])
    with self.assertRaisesRegex(ValueError, 'with 2 items.*at least 3'):
      splits.make_split(data, config_lib.SplitConfig(name='item_holdout'))

  @parameterized.parameters(
      ('leave_one_out', 'no validation interaction of 2'),
      ('user_ratio', 'no validation interaction of 2'),
      ('global_time', 'no validation interaction of 2'),
      ('user_holdout', 'at least 3'))
  def test_too_little_data_is_refused_with_the_numbers(self, name, message):
    data = Interactions.from_columns([1, 2], [1, 1], timestamps=[1, 2])
    with self.assertRaisesRegex(ValueError, f'split.name={name}.*{message}'):
      splits.make_split(data, config_lib.SplitConfig(name=name))
