"""iALS against the objective and against the formula, row by row."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec.config.references import IALSConfig
from fedjaxrec.references import ials
from tests.references import slow

CONFIG = IALSConfig(
    dim=3, sweeps=2, regularization=0.07, unobserved_weight=0.3,
    frequency_exponent=0.8, init_scale=0.5)
# Systems of 3 equations, condition number below 1e4.
RTOL = 1e4 * 2**-50


@hypothesis.given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0]),
                  st.sampled_from([0.0, 0.1, 1.0]))
def test_two_sweeps_are_the_formula(seed, exponent, a0):
  data = slow.make_interactions(seed)
  config = IALSConfig(
      dim=3, sweeps=2, regularization=0.07, unobserved_weight=a0,
      frequency_exponent=exponent, init_scale=0.5)
  sets = slow.histories(data)
  items = ials.initial_items(data.num_items, config, seed)
  for _ in range(2):
    users = slow.ials_half(sets, items, config)
    items = slow.ials_half(
        slow.transposed(sets, data.num_items), users, config)
  users = slow.ials_half(sets, items, config)
  fitted = ials.fit(data, config, seed=seed)
  np.testing.assert_allclose(fitted.personal, users, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(fitted.item_table, items, rtol=1e-6, atol=1e-6)
  assert not fitted.item_table[-1].any()  # Nobody has the last item.


def test_a_side_is_solved_in_double_precision():
  data = slow.make_interactions(1, num_users=40, num_items=30, most=25)
  items = ials.initial_items(data.num_items, CONFIG, 0)
  solved = ials.solve_side(data.offsets, data.items, items, CONFIG)
  expected = slow.ials_half(slow.histories(data), items, CONFIG)
  np.testing.assert_allclose(solved, expected, rtol=RTOL, atol=RTOL)


def test_single_precision_is_the_same_up_to_rounding():
  data = slow.make_interactions(1, num_users=40, num_items=30, most=25)
  exact = ials.fit(data, CONFIG)
  config = dataclasses.replace(CONFIG, precision='float32')
  items = ials.initial_items(data.num_items, config, 0)
  assert ials.solve_side(
      data.offsets, data.items, items, config).dtype == np.float32
  fitted = ials.fit(data, config)
  scale = np.abs(exact.item_table).max()
  np.testing.assert_allclose(
      fitted.item_table, exact.item_table, rtol=0, atol=scale * 1e4 * 2**-24)


def test_blocks_change_nothing(monkeypatch):
  data = slow.make_interactions(1, num_users=40, num_items=30, most=25)
  items = ials.initial_items(data.num_items, CONFIG, 0)
  whole = ials.solve_side(data.offsets, data.items, items, CONFIG)
  for entries in (1, 100, 700):
    monkeypatch.setattr(ials, '_BLOCK_ENTRIES', entries)
    np.testing.assert_allclose(
        ials.solve_side(data.offsets, data.items, items, CONFIG), whole,
        rtol=RTOL, atol=RTOL)


def test_each_half_is_at_the_minimum_of_the_objective():
  """No step away from a solved side lowers the loss; a step before does."""
  data = slow.make_interactions(2)
  generator = np.random.default_rng(0)
  items = ials.initial_items(data.num_items, CONFIG, 0)
  users = ials.solve_side(data.offsets, data.items, items, CONFIG)
  least = slow.ials_loss(data, users, items, CONFIG)
  for _ in range(20):
    step = 1e-3 * generator.standard_normal(users.shape)
    assert slow.ials_loss(data, users + step, items, CONFIG) > least
  items = ials.solve_side(*ials.by_item(data), users, CONFIG)
  lower = slow.ials_loss(data, users, items, CONFIG)
  assert lower < least
  for _ in range(20):
    step = 1e-3 * generator.standard_normal(items.shape)
    assert slow.ials_loss(data, users, items + step, CONFIG) > lower


def test_a_user_who_shows_what_another_trained_on_gets_the_same_vector():
  data = slow.make_interactions(4)
  train = data.take(data.users != 2)
  fold_in = data.take(data.users == 2)
  fitted = ials.fit(train, CONFIG, fold_in)
  alone = ials.fit(train, CONFIG)
  np.testing.assert_array_equal(fitted.item_table, alone.item_table)
  others = np.arange(data.num_users) != 2
  np.testing.assert_allclose(
      fitted.personal[others], alone.personal[others], rtol=1e-6, atol=1e-7)
  expected = slow.ials_half(
      slow.histories(fold_in), fitted.item_table.astype(float), CONFIG)[2]
  np.testing.assert_allclose(fitted.personal[2], expected, rtol=1e-5)
  assert not alone.personal[2].any()


def test_sweeps_can_be_watched():
  data = slow.make_interactions(4)
  seen = {}
  last = ials.fit(data, CONFIG, after_sweep=seen.__setitem__)
  assert list(seen) == [1, 2]
  np.testing.assert_array_equal(seen[2].item_table, last.item_table)
  assert not np.array_equal(seen[1].item_table, last.item_table)


@pytest.mark.parametrize('changes', [
    {'dim': 0}, {'sweeps': 0}, {'regularization': 0.0},
    {'unobserved_weight': -0.1}, {'frequency_exponent': float('nan')},
    {'init_scale': 0.0}, {'precision': 'half'}])
def test_a_config_that_cannot_be_fitted_is_refused(changes):
  with pytest.raises(ValueError, match=f'ials.{next(iter(changes))}='):
    IALSConfig(**changes)
