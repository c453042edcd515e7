"""DPALS: without noise it is iALS; the noise is what the accountant is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.algorithms import dpals, least_squares
from fedjaxrec.algorithms.dpals import choose_weights
from fedjaxrec.local_training import View
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.privacy import accounting
from fedjaxrec.server import Sum
from tests.algorithms import ials_test

NUM_ITEMS, DIM = ials_test.NUM_ITEMS, ials_test.DIM


def config_of(**changes):
  return ials_test.config_of(**{
      'algorithm.name': 'dpals', 'rounds': ials_test.SWEEPS + 1,
      'privacy.l2_clip_norm': 1e6, 'dpals.items_per_client': 30, **changes})


def make(config):
  return dpals.make_dpals(
      config, build_recommender(config.model, NUM_ITEMS), NUM_ITEMS)


def test_without_noise_and_bounds_it_is_ials():
  start, items, users = ials_test.simulate(config_of())
  expected, expected_users, atol = ials_test.centralised(
      start, ials_test.SWEEPS)
  np.testing.assert_allclose(items, expected, rtol=0, atol=atol)
  mine = ials_test.POPULATION.counts > 0
  np.testing.assert_allclose(
      users[mine], expected_users[mine], rtol=0, atol=atol)


class TestWhatAClientSends:
  BOUND, BUDGET = 0.01, 3

  def upload(self, round_index, sampling, head=None):
    """One block of two clients: what each adds to the sums."""
    config = config_of(**{
        'privacy.l2_clip_norm': self.BOUND, 'dpals.sampling': sampling,
        'dpals.items_per_client': self.BUDGET})
    algorithm = make(config)
    rng = np.random.default_rng(1)
    table = jnp.asarray(rng.normal(0, 2, (NUM_ITEMS, DIM)), jnp.float32)
    rows = jnp.asarray([[1, 4, 6, 9, 20], [2, 40, 40, 40, 40]])
    used = rows < NUM_ITEMS
    examples = least_squares.Slots(
        rows, used, used * 1.0, jnp.asarray([[2, 0, 4, 1, 3], [0, 1, 2, 3, 4]]))
    copy = lambda x: jnp.broadcast_to(x, (2, *x.shape))
    shared = {'gramian': copy(least_squares.gramian(table)),
              'counts': copy(jnp.arange(NUM_ITEMS, 0, -1, dtype=jnp.float32)),
              'head': copy(jnp.ones(NUM_ITEMS) if head is None else head),
              'round': jnp.full(2, round_index)}
    view = View({'item': table.at[rows].get(mode='fill', fill_value=0)},
                shared, {'user': jnp.zeros((2, DIM))}, jnp.float32(1))
    sent, own = algorithm.client_update(view, examples, jnp.asarray([5, 1]))
    return jax.tree.map(np.asarray, (sent, own['user']))

  @pytest.mark.parametrize('sampling', ['uniform', 'tail', 'adaptive'])
  def test_no_client_moves_a_sum_by_more_than_is_accounted(self, sampling):
    most = dpals.sensitivities(config_of(**{
        'privacy.l2_clip_norm': self.BOUND,
        'dpals.items_per_client': self.BUDGET}))
    for round_index in (0, 1):
      sent, users = self.upload(round_index, sampling)
      assert np.linalg.norm(users, axis=1).max() > 2 * self.BOUND
      for client in range(2):
        norms = [np.linalg.norm(x[client]) for x in (
            sent.shared['gramian'], sent.item_rows['vector'],
            sent.item_rows['gramian'], sent.item_rows['count'])]
        for norm, bound in zip(norms, most):
          assert norm <= bound * (1 + 1e-5)
        # Counts and statistics never go together.
        assert (max(norms[:3]) == 0) == (round_index == 0)
        assert (norms[3] > 0) == (round_index == 0)
      # The bounds are met: a client with enough items uses all of its budget.
      if round_index:
        assert np.linalg.norm(sent.item_rows['gramian'][0]) == pytest.approx(
            most.item_gramians, rel=1e-5)

  def test_only_the_head_is_sent(self):
    head = jnp.zeros(NUM_ITEMS).at[jnp.asarray([4, 2])].set(1)
    sent, _ = self.upload(1, 'uniform', head)
    there = sent.item_rows['vector'].any(-1)
    np.testing.assert_array_equal(
        there, [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]])

  def test_the_tail_is_what_few_have(self):
    counts = jnp.asarray([5.0, 1, 3, 1, 9])
    weights = choose_weights(
        counts, jnp.asarray([1, 1, 1, 1, 0], bool), jnp.arange(5), 3, 'tail', 0)
    np.testing.assert_array_equal(weights, [0, 1, 1, 1, 0])

  def test_rare_items_weigh_more(self):
    counts, k = np.array([4.0, 16, 1]), 2
    weights = choose_weights(
        jnp.asarray(counts), jnp.ones(3, bool), jnp.arange(3), k, 'adaptive',
        -0.5)
    expected = np.sqrt(k) * counts**-0.5 / np.sqrt((counts**-1.0).sum())
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


class TestNoise:
  CONFIG = config_of(**{
      'privacy.l2_clip_norm': 0.7, 'privacy.noise_multiplier': 1.3,
      'privacy.delta': 1e-5, 'dpals.items_per_client': 6})

  def test_what_is_released_has_the_stddev_that_is_accounted(self):
    """Measured on 10^6 draws and more; five standard errors are 0.35 %."""
    noise, dim, num_items = dpals.make_noise(self.CONFIG), 16, 8000
    entries = dim * (dim + 1) // 2
    zeros = ({'gramian': jnp.zeros((num_items, entries)),
              'vector': jnp.zeros((num_items * 8, dim)),
              'count': jnp.zeros(10**6)},
             {'gramian': jnp.zeros(10**6)})
    (rows, whole), _ = noise.update(zeros, noise.init(None))
    found = dpals.Sensitivities(*(
        float(x.std()) for x in (whole['gramian'], rows['vector'],
                                 rows['gramian'], rows['count'])))
    most = dpals.sensitivities(self.CONFIG)
    z = self.CONFIG.privacy.noise_multiplier
    # A round of statistics, and one of counts, is a Gaussian mechanism of z.
    together = sum((s / n) ** 2 for s, n in zip(most[:3], found[:3])) ** -0.5
    assert together == pytest.approx(z, rel=0.01)
    assert found.counts / most.counts == pytest.approx(z, rel=0.01)

  def test_the_accountant_of_the_three_releases_agrees(self):
    z, steps, k = 1.3, 4, 6
    stddev = dpals.noise_stddevs(self.CONFIG)
    bound = self.CONFIG.privacy.l2_clip_norm
    three = accounting.dpals(
        steps, stddev.gramian / bound**2, stddev.vectors / bound,
        stddev.item_gramians / bound**2, k)
    one = [accounting.Release(accounting.gaussian(z), steps)]
    spent = [accounting.epsilon(
        x, 1e-5, accountant='rdp', neighboring='replace_special')
             for x in (three, one)]
    assert spent[0] == pytest.approx(spent[1], rel=1e-6)

  def test_the_server_solves_with_the_noisy_sums(self):
    """From the same key: symmetric, projected, head and counts as they are."""
    algorithm = make(self.CONFIG)
    state = algorithm.init_server(jax.random.key(0))._replace(
        round_index=jnp.int32(1))
    state = state._replace(shared={
        'counts': jnp.arange(1.0, NUM_ITEMS + 1),
        'head': state.shared['head'].at[3].set(0)})
    zeros = algorithm.empty_contribution(state)
    total = Sum(*zeros, jnp.zeros(0), jnp.float32(7))
    new = algorithm.server.update(state, total)
    (rows, whole), _ = dpals.make_noise(self.CONFIG).update(
        zeros, state.transform_state)
    a0, ridge, nu = ials_test.SETTINGS.values()
    lowest = []

    def psd(packed):
      matrix = np.float64(least_squares.unpack(packed, DIM))
      np.testing.assert_array_equal(matrix, matrix.T)
      values, basis = np.linalg.eigh(matrix)
      lowest.append(values.min())
      return basis @ np.diag(np.maximum(values, 0)) @ basis.T

    for item in range(NUM_ITEMS):
      matrix = psd(rows['gramian'][item]) + a0 * psd(whole['gramian'])
      matrix += ridge * (item + 1 + a0 * 7) ** nu * np.eye(DIM)
      expected = np.linalg.solve(matrix, np.float64(rows['vector'][item]))
      np.testing.assert_allclose(
          new.item_table['item'][item], 0 if item == 3 else expected,
          rtol=0, atol=1e-4 * np.abs(expected).max())
    assert min(lowest) < 0  # Positive control: there was work to do.
    again = algorithm.server.update(new, total)
    assert np.abs(again.item_table['item'] - new.item_table['item']).max() > 0

  def test_counts_choose_the_head_once(self):
    config = config_of(**{
        'privacy.l2_clip_norm': 1.0, 'dpals.item_fraction': 0.1})
    algorithm = make(config)
    state = algorithm.init_server(jax.random.key(0))
    rows, whole = algorithm.empty_contribution(state)
    counted = jnp.arange(NUM_ITEMS, dtype=jnp.float32)
    total = Sum({**rows, 'count': counted}, whole, jnp.zeros(0), jnp.float32(7))
    first = algorithm.server.update(state, total)
    np.testing.assert_array_equal(
        first.shared['head'], counted >= NUM_ITEMS - 4)
    np.testing.assert_array_equal(
        first.item_table['item'], state.item_table['item'])
    again = algorithm.server.update(first, total._replace(
        item_table={**rows, 'count': counted[::-1]}))
    np.testing.assert_array_equal(again.shared['head'], first.shared['head'])
    np.testing.assert_array_equal(
        again.shared['counts'], jnp.maximum(counted[::-1], 1))


@pytest.mark.parametrize(('changes', 'message'), [
    ({'cohort.size': 5}, 'cohort.size=0'),
    ({'cohort.sampler': 'poisson'}, 'cohort.sampler=poisson'),
    ({'cohort.sampler': 'cyclic_poisson', 'cohort.groups': 2},
     'cohort.sampler=cyclic_poisson'),
    ({'privacy.l2_clip_norm': 0.0}, 'privacy.l2_clip_norm'),
    ({'rounds': 1}, 'rounds=1'),
    ({'dpals.vector_share': 0.95}, 'less than 1'),
    ({'dpals.sampling': 'random'}, 'uniform, tail, adaptive'),
    ({'privacy.clipping': 'adaptive', 'privacy.noise_multiplier': 1.0},
     "use 'fixed'"),
])
def test_what_it_cannot_do_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    config_of(**changes)
