"""The server's step against an oracle, and what must not move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec.config import OPTIMIZERS, ROW_NORMALIZATIONS
from fedjaxrec.optimizers import build_optimizer
from fedjaxrec.server import Sum, make_server
from tests import oracles, plain

NUM_ITEMS, DIM, ROUNDS = 6, 2, 3
# Row 0 is touched in every round, row 5 never, the others now and then.
TOUCHED = np.array(
    [[1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0]], bool)


def make_problem(seed=0):
  """Parameters, and a round's (table, shared, weight, row_weight) sums."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 0.5, shape).astype(np.float32)
  params = ({'item': normal(NUM_ITEMS, DIM), 'item_bias': normal(NUM_ITEMS)},
            {'bias': normal()})
  sums = []
  for touched in TOUCHED:
    row_weight = np.where(touched, rng.integers(1, 5, NUM_ITEMS), 0)
    sums.append((
        {'item': normal(NUM_ITEMS, DIM) * touched[:, None],
         'item_bias': normal(NUM_ITEMS) * touched},
        {'bias': normal()}, np.float32(7), row_weight.astype(np.float32)))
  return params, sums


def make(config, factor=lambda r: 1 - 0.25 * r, transform=None):
  build = lambda: build_optimizer(config, config.learning_rate)
  return make_server(
      build(), build(), factor, row_normalization=config.row_normalization,
      lazy_rows=config.lazy_rows, transform=transform)


def run(config, sums, params):
  server = make(config)
  states = [server.init(*jax.tree.map(jnp.asarray, params))]
  for table, shared, weight, row_weight in sums:
    if not server.needs_row_weight:
      row_weight = np.zeros(0, np.float32)  # As the round hands it over.
    total = jax.tree.map(jnp.asarray, Sum(table, shared, row_weight, weight))
    states.append(server.update(states[-1], total))
  return jax.tree.map(np.asarray, states)


@pytest.mark.parametrize('lazy_rows', [True, False])
@pytest.mark.parametrize('row_normalization', ROW_NORMALIZATIONS)
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_steps_are_those_of_the_oracle(
    optimizer, row_normalization, lazy_rows):
  config = plain.server(
      optimizer=optimizer, learning_rate=0.3, momentum=0.7, b1=0.8, b2=0.95,
      eps=0.01, row_normalization=row_normalization, lazy_rows=lazy_rows)
  params, sums = make_problem()
  states = run(config, sums, params)
  params = jax.tree.map(np.float64, params)
  moments = tuple(oracles.init_optimizer(tree) for tree in params)
  for r, (table, shared, weight, row_weight) in enumerate(sums):
    params, moments = oracles.server_step(
        params, moments, (table, shared), weight, row_weight,
        learning_rate_scale=1 - 0.25 * r,
        **oracles.fields(config, 'schedule', 'final_fraction'))
    # Some ten roundings a step; an error in a gradient of order 1 comes out
    # at most 0.3 / 0.01 times as large.
    atol = oracles.tolerance(r + 1, 10, 30)
    for tree, expected in zip(
        (states[r + 1].item_table, states[r + 1].shared), params):
      for name in expected:
        np.testing.assert_allclose(
            tree[name], expected[name], rtol=0, atol=atol)
    assert states[r + 1].round_index == r + 1


def test_plain_averaging_by_hand():
  """sgd at learning rate 1: the model moves by the weighted mean delta."""
  params = ({'item': np.float32([[1.0], [2.0], [3.0]])},
            {'bias': np.float32(10.0)})
  sums = [({'item': np.float32([[6.0], [0.0], [-3.0]])},
           {'bias': np.float32(1.5)}, np.float32(3),
           np.float32([2, 0, 1]))]
  for row_normalization, expected in (
      ('mean', [3, 2, 2]), ('sum', [7, 2, 0]), ('contributors', [4, 2, 0])):
    state = run(
        plain.server(row_normalization=row_normalization), sums, params)[-1]
    server = make(plain.server(row_normalization=row_normalization))
    assert server.needs_row_weight == (row_normalization == 'contributors')
    np.testing.assert_allclose(
        state.item_table['item'][:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(state.shared['bias'], 10.5, rtol=1e-6)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_nothing_moves_where_nobody_reported(optimizer):
  """Not even by momentum: neither values nor moments, bit for bit."""
  params, sums = make_problem()
  nobody = jax.tree.map(np.zeros_like, sums[0])
  states = run(plain.server(optimizer=optimizer, lazy_rows=False),
               [sums[0], nobody, sums[1]], params)
  jax.tree.map(
      np.testing.assert_array_equal,
      states[2]._replace(round_index=0), states[1]._replace(round_index=0))
  assert [int(state.round_index) for state in states] == [0, 1, 2, 3]
  assert np.isfinite(states[2].item_table['item']).all()
  # The control: a cohort that reported nothing but zeros does move momentum.
  if optimizer in ('momentum', 'adam', 'yogi'):
    zeros = (*nobody[:2], np.float32(1), nobody[3])
    moved = run(plain.server(optimizer=optimizer, lazy_rows=False),
                [sums[0], zeros], params)[2]
    assert (moved.shared['bias'] != states[1].shared['bias']).all()


def moments_of_rows(state):
  return [leaf for leaf in jax.tree.leaves(state.item_opt_state)
          if leaf.shape[:1] == (NUM_ITEMS,)]


@pytest.mark.parametrize(
    'optimizer', [name for name in OPTIMIZERS if name != 'sgd'])
@pytest.mark.parametrize('row_normalization', ['mean', 'contributors'])
def test_lazy_rows_keep_untouched_values_and_moments(
    optimizer, row_normalization):
  params, sums = make_problem()
  states = run(plain.server(
      optimizer=optimizer, row_normalization=row_normalization), sums, params)
  for r in range(1, ROUNDS):
    before, after = states[r], states[r + 1]
    assert moments_of_rows(after)
    for old, new in zip(
        [*jax.tree.leaves(before.item_table), *moments_of_rows(before)],
        [*jax.tree.leaves(after.item_table), *moments_of_rows(after)]):
      np.testing.assert_array_equal(new[~TOUCHED[r]], old[~TOUCHED[r]])
      assert (new[TOUCHED[r]] != old[TOUCHED[r]]).all()
  assert make(plain.server(optimizer=optimizer)).needs_row_weight


@pytest.mark.parametrize('optimizer', ['momentum', 'adam', 'yogi'])
def test_without_lazy_rows_a_row_moves_by_its_momentum(optimizer):
  """The control: row 1 is touched in the first round and not in the second."""
  params, sums = make_problem()
  states = run(plain.server(optimizer=optimizer, lazy_rows=False), sums, params)
  assert not TOUCHED[1, 1]
  assert (states[2].item_table['item'][1]
          != states[1].item_table['item'][1]).all()
  # A row that was never touched has no momentum to move by.
  np.testing.assert_array_equal(
      states[-1].item_table['item'][5], params[0]['item'][5])


@pytest.mark.parametrize('row_normalization', ROW_NORMALIZATIONS)
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_row_by_row_is_the_whole_step(optimizer, row_normalization):
  """Touched rows in two parts, each with num_items, which is no row."""
  config = plain.server(
      optimizer=optimizer, learning_rate=0.3, eps=0.01,
      row_normalization=row_normalization)
  server = make(config)
  params, sums = make_problem()
  nobody = jax.tree.map(np.zeros_like, sums[0])
  whole = parts = server.init(*jax.tree.map(jnp.asarray, params))
  for (table, shared, weight, row_weight), touched in zip(
      [*sums, nobody], [*TOUCHED, TOUCHED[0]]):
    if not server.needs_row_weight:
      row_weight = ()
    total = jax.tree.map(jnp.asarray, Sum(table, shared, row_weight, weight))
    row_weight = total.row_weight
    whole = server.update(whole, total)
    rows = np.flatnonzero(touched)
    for part in (rows[:1], rows[1:]):
      part = jnp.append(jnp.asarray(part, jnp.int32), NUM_ITEMS)
      take = lambda x, part=part: x[part]
      some = total._replace(
          item_table=jax.tree.map(take, total.item_table),
          row_weight=take(row_weight) if server.needs_row_weight else ())
      parts = server.update_rows(
          parts, some, part, jax.tree.map(take, parts.item_table))
    parts = server.update_rest(parts, total)
    # Op by op, so there is nothing to round differently.
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
  assert whole.round_index == ROUNDS + 1
  assert server.rows_stand_still


def test_a_transform_gets_the_raw_sum_and_keeps_its_state():
  seen = []

  def update(updates, state, params=None):
    seen.append((updates, params))
    return jax.tree.map(lambda x: 2 * x, updates), state + 1

  config = plain.server()
  params, sums = make_problem()
  table, shared, weight, _ = sums[0]
  transformed = make(config, transform=optax.GradientTransformation(
      lambda params: jnp.int32(0), update))
  total = jax.tree.map(
      jnp.asarray, Sum(table, shared, np.zeros(0, np.float32), weight))
  doubled = total._replace(
      item_table=jax.tree.map(lambda x: 2 * x, total.item_table),
      shared=jax.tree.map(lambda x: 2 * x, total.shared))
  start = jax.tree.map(jnp.asarray, params)
  state = transformed.update(transformed.init(*start), total)
  without = make(config)
  expected = without.update(without.init(*start), doubled)
  assert state.transform_state == 1
  for field in ('item_table', 'shared'):
    jax.tree.map(np.testing.assert_array_equal, getattr(state, field),
                 getattr(expected, field))
  (updates, given), = seen
  jax.tree.map(
      np.testing.assert_array_equal, updates, (total.item_table, total.shared))
  jax.tree.map(np.testing.assert_array_equal, given, start)


def test_rows_stand_still_only_where_nothing_can_move_them():
  for config, still in (
      (plain.server(), True), (plain.server(lazy_rows=False), True),
      (plain.server(optimizer='adam'), True),
      (plain.server(optimizer='adam', lazy_rows=False), False)):
    assert make(config).rows_stand_still == still
    if not make(config).needs_row_weight:
      assert not make(config, transform=optax.identity()).rows_stand_still


def test_a_stateless_optimizer_asks_for_no_row_weights():
  assert not make(plain.server(lazy_rows=True)).needs_row_weight
  assert not make(
      plain.server(optimizer='adam', lazy_rows=False)).needs_row_weight


@pytest.mark.parametrize('settings', [
    {'optimizer': 'adam', 'lazy_rows': True, 'row_normalization': 'mean'},
    {'optimizer': 'sgd', 'row_normalization': 'contributors'},
])
def test_what_would_show_the_touched_rows_through_the_noise_is_refused(
    settings):
  with pytest.raises(ValueError, match='transform of the sum'):
    make(plain.server(**settings), transform=optax.identity())
