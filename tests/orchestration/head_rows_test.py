"""The most popular rows, chosen by one rule and refused by one rule."""

import numpy as np
import pytest

from fedjaxrec.orchestration import local_runs, private_runs, secure
from fedjaxrec.orchestration.head_rows import top_rows
from tests.small_runs import make_config, make_interactions

NUM_ITEMS = 12
TRAIN = make_interactions(
    [[(5 * u + j) % NUM_ITEMS for j in range(1 + u % 5)] for u in range(20)],
    NUM_ITEMS)


def private(head_items):
  return private_runs.prepare(make_config({
      'privacy.noise_multiplier': 1.0, 'privacy.l2_clip_norm': 1.0,
      'privacy.delta': 1e-3,
      'cohort.sampler': 'poisson', 'privacy.head_items': head_items}), TRAIN,
      verify=False).open_rows


def local(head_items):
  return local_runs.choose_head(make_config({
      'local_privacy.mechanism': 'gaussian', 'local_privacy.epsilon': 1.0,
      'local_privacy.head_items': head_items}), TRAIN)


def summed(head_items):
  return secure.prepare(make_config({
      'secure.level': 'ideal', 'secure.rows': 'chosen',
      'secure.noise': 'skellam', 'privacy.noise_multiplier': 1.0,
      'privacy.l2_clip_norm': 1.0, 'privacy.delta': 1e-3,
      'privacy.head_items': head_items}), TRAIN, NUM_ITEMS).open_rows


CALLERS = {'privacy': private, 'local_privacy': local, 'secure': summed}


def test_rows_are_the_most_popular_and_of_equal_ones_the_first():
  counts = np.array([3, 9, 3, 0, 9, 3])
  for wanted in range(1, 6):
    # By hand: one after another, the first of the largest that are left.
    left, expected = counts.astype(float), np.zeros(6, bool)
    for _ in range(wanted):
      best = next(i for i in range(6) if left[i] == left.max())
      expected[best], left[best] = True, -1
    np.testing.assert_array_equal(
        top_rows('x', wanted, 6, lambda: counts), expected)
  assert top_rows('x', 0, 6, lambda: pytest.fail('counted')) is None


@pytest.mark.parametrize('choose', CALLERS.values(), ids=CALLERS)
def test_every_caller_chooses_the_same_rows(choose):
  counts = np.zeros(NUM_ITEMS)
  np.add.at(counts, TRAIN.items, 1)
  rows = choose(4)
  assert rows.dtype == bool and rows.sum() == 4
  assert counts[rows].min() >= counts[~rows].max()


@pytest.mark.parametrize('name', CALLERS)
@pytest.mark.parametrize('wanted', [NUM_ITEMS, NUM_ITEMS + 7])
def test_as_many_rows_as_items_are_refused_by_every_caller(name, wanted):
  field = name if name != 'secure' else 'privacy'
  with pytest.raises(ValueError) as error:
    CALLERS[name](wanted)
  assert str(error.value) == (
      f'{field}.head_items={wanted} of {NUM_ITEMS} items: there is nothing to '
      'choose; use fewer, or 0 for all rows.')


def test_nothing_is_counted_for_a_choice_that_is_refused(monkeypatch):
  # A private count compiles.
  monkeypatch.setattr(
      local_runs, 'estimate_popularity', lambda *_: pytest.fail('counted'))
  config = make_config({
      'local_privacy.mechanism': 'gaussian', 'local_privacy.epsilon': 1.0,
      'local_privacy.head_items': NUM_ITEMS,
      'local_privacy.head_choice': 'hadamard'})
  with pytest.raises(ValueError, match='nothing to choose'):
    local_runs.choose_head(config, TRAIN)
