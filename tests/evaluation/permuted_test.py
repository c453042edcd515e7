"""Permuted test items: everybody is asked for another user's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjaxrec.evaluation.permuted import permute_test_items
from tests.small_runs import (
  make_interactions,
  random_split,
  with_test_items,
)


def pairs(part):
  return list(zip(part.users.tolist(), part.items.tolist()))


@given(st.integers(2, 30), st.integers(0, 5))
def test_items_are_handed_on_and_none_is_known_to_who_is_asked(users, seed):
  split = random_split(users, 40, 6, seed=seed)
  permuted = permute_test_items(split, seed)
  known = {*pairs(split.train), *pairs(split.validation), *pairs(split.test)}
  asked = pairs(permuted.test)
  assert asked and not known & set(asked)
  assert len({user for user, _ in asked}) == len(asked)
  left = split.test.items.tolist()
  for _, item in asked:
    left.remove(item)  # Each test item is asked for once at most.
  assert permuted.train is split.train
  assert permuted.validation is split.validation


def test_a_population_that_is_not_tiny_loses_next_to_nobody():
  split = random_split(300, 60, 20)
  assert len(permute_test_items(split, 0).test.items) >= 297


def test_seeds_differ_and_one_seed_repeats():
  split = random_split(30, 60, 5)
  first, again, other = (
      permute_test_items(split, seed).test.items.tolist()
      for seed in (0, 0, 1))
  assert first == again != other


def test_who_has_no_test_item_is_asked_nothing():
  split = with_test_items(random_split(8, 60, 5), [3, -1, 7, 9, -1, 11, 2, 5])
  counts = permute_test_items(split, 0).test.counts
  assert counts[1] == counts[4] == 0 and counts.sum() >= 4


def test_lists_of_several_items_stay_together():
  split = random_split(40, 90, 4)
  several = np.arange(40) % 3 + 1
  rng = np.random.default_rng(0)
  rows = [rng.permutation(90)[:n].tolist() for n in several]
  split = split.__class__(
      split.name, make_interactions([[89]] * 40, 90),
      split.validation, make_interactions(rows, 90), split.fold_in)
  permuted = permute_test_items(split, 1).test
  for user in range(40):
    mine = permuted.items[permuted.offsets[user]:permuted.offsets[user + 1]]
    assert not len(mine) or mine.tolist() in rows


def test_a_single_user_is_refused():
  with pytest.raises(ValueError, match='num_users=1'):
    permute_test_items(random_split(1, 20, 3), 0)
