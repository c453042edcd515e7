"""Federated iALS against a slow one, from the formula, of all data at once."""

import jax
import numpy as np
import pytest

from fedjaxrec.algorithms import least_squares
from fedjaxrec.evaluation import metrics
from fedjaxrec.evaluation.ranking import make_ranker
from fedjaxrec.personalization.fold_in import make_fold_in
from fedjaxrec.simulation import make_simulation
from tests import oracles
from tests.small_runs import make_config, make_interactions, random_split

NUM_ITEMS, DIM, SWEEPS = 40, 4, 3
COUNTS = [3, 9, 1, 0, 14, 6, 2, 5]
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=4)
SETTINGS = {'ials.unobserved_weight': 0.3, 'ials.regularization': 0.05,
            'ials.frequency_exponent': 0.8}


def config_of(**changes):
  return make_config({
      'algorithm.name': 'ials', 'cohort.size': 0, 'model.dim': DIM,
      'model.init_scale': 0.5, 'rounds': SWEEPS, 'evaluation.every': 0,
      'checkpoint.every': 0, **SETTINGS, **changes})


def simulate(config, population=POPULATION):
  simulation = make_simulation(
      config, population.offsets, population.items, population.labels,
      population.num_items)
  state = simulation.init()
  start = np.asarray(state.server.item_table['item'], np.float64)
  while int(state.server.round_index) < config.rounds:
    first = int(state.server.round_index)
    state, _ = simulation.run(
        state, first, min(simulation.rounds_per_call, config.rounds - first))
  fitted = simulation.refit(
      state.server, simulation.personal_by_client(state))
  return start, np.asarray(state.server.item_table['item']), fitted['user']


class Solved:
  """One side of iALS, row by row; remembers the worst condition number."""

  def __init__(self):
    self.condition = 1.0

  def __call__(self, histories, others, num_others):
    a0, ridge, nu = SETTINGS.values()
    result = np.zeros((len(histories), others.shape[1]))
    for row, history in enumerate(histories):
      matrix = np.zeros((DIM, DIM))
      right = np.zeros(DIM)
      for vector in others:
        matrix += a0 * np.outer(vector, vector)
      for other in history:
        matrix += np.outer(others[other], others[other])
        right += others[other]
      matrix += ridge * (len(history) + a0 * num_others) ** nu * np.eye(DIM)
      if len(history):
        self.condition = max(self.condition, np.linalg.cond(matrix))
        result[row] = np.linalg.solve(matrix, right)
    return result


def centralised(start, sweeps, population=POPULATION):
  """(items, users, tolerance) of sweeps over all data, in float64."""
  owned = [population.client(c)[0] for c in range(len(population.counts))]
  owners = [[c for c, mine in enumerate(owned) if item in mine]
            for item in range(population.num_items)]
  trained = sum(len(mine) > 0 for mine in owned)
  solve, items = Solved(), start
  for _ in range(sweeps):
    users = solve(owned, items, population.num_items)
    items = solve(owners, users, trained)
  users = solve(owned, items, population.num_items)
  # A solution is off by the condition number times the rounding of its sums,
  # of as many terms as there are items; 2 sides a sweep pass it on.
  roundings = (2 * sweeps + 1) * (population.num_items + DIM**2)
  scale = max(np.abs(items).max(), np.abs(users).max())
  return items, users, 2.0**-24 * solve.condition * roundings * scale


@pytest.fixture(scope='module')
def run():
  return simulate(config_of())


class TestFullParticipation:

  def test_is_the_centralised_algorithm(self, run):
    start, items, users = run
    expected, expected_users, atol = centralised(start, SWEEPS)
    assert atol < 1e-3
    np.testing.assert_allclose(items, expected, rtol=0, atol=atol)
    mine = POPULATION.counts > 0
    np.testing.assert_allclose(
        users[mine], expected_users[mine], rtol=0, atol=atol)
    # Positive control: one sweep less is another table.
    fewer, _, _ = centralised(start, SWEEPS - 1)
    assert np.abs(fewer - expected).max() > 10 * atol

  def test_an_item_that_nobody_has_gets_the_vector_zero(self, run):
    nobody = np.setdiff1d(np.arange(NUM_ITEMS), POPULATION.items)
    assert len(nobody)
    assert not run[1][nobody].any()

  def test_blocks_classes_and_devices_change_nothing(self, run):
    _, items, users = simulate(config_of(**{
        'engine.block_size': 2, 'engine.num_size_classes': 3,
        'parallel.mode': 'shard_map', 'parallel.num_devices': 2}))
    atol = centralised(run[0], SWEEPS)[2]
    np.testing.assert_allclose(items, run[1], rtol=0, atol=atol)
    np.testing.assert_allclose(users, run[2], rtol=0, atol=atol)

  def test_every_metric_is_that_of_the_centralised_solution(self):
    split = random_split(60, NUM_ITEMS, 8, num_blocks=2, seed=3)
    train = split.train
    population = oracles.Population(
        train.offsets, train.items, train.ratings, NUM_ITEMS)
    start, items, users = simulate(config_of(), population)
    expected, expected_users, _ = centralised(start, SWEEPS, population)
    rank = make_ranker(
        least_squares.score, split.test, [train, split.validation],
        NUM_ITEMS, protocol='full', batch_size=60, seed=0, top_k=10)
    worth = [metrics.summarise_ranks(
        rank({'user': np.float32(p)}, {'item': np.float32(v)}, ()), (5, 10),
        NUM_ITEMS, bootstrap_samples=100, seed=0)
             for p, v in ((users, items), (expected_users, expected))]
    assert worth[0]['ndcg@10'] > 0.1
    for name, value in worth[1].items():
      if isinstance(value, float):
        assert worth[0][name] == pytest.approx(value, abs=1e-4), name


def test_a_part_of_the_clients_is_another_algorithm(run):
  _, items, _ = simulate(config_of(**{'cohort.size': 4}))
  assert np.abs(items - run[1]).max() > 0.1


def test_users_who_did_not_train_are_solved_for(run):
  start, items, users = run
  shown = POPULATION.client(4)[0]
  fold_in = make_interactions([shown, [], [0]], NUM_ITEMS)
  before = {'user': np.full((3, DIM), 7, np.float32)}
  fitted = make_fold_in(config_of(), fold_in)(before, {'item': items}, {})
  np.testing.assert_allclose(fitted['user'][0], users[4], rtol=0, atol=1e-6)
  np.testing.assert_array_equal(fitted['user'][1], before['user'][1])


def test_a_packed_matrix_keeps_its_norm_and_comes_back():
  vectors = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
  packed = least_squares.pack_outer(vectors)
  np.testing.assert_allclose(
      np.linalg.norm(packed, axis=1), (vectors**2).sum(1), rtol=1e-6)
  back = least_squares.unpack(packed, 7)
  outer = vectors[:, :, None] * vectors[:, None, :]
  np.testing.assert_allclose(back, outer, rtol=1e-6)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'model.name': 'neumf'}, 'model.name=mf'),
    ({'cohort.weighting': 'examples'}, 'cohort.weighting=equal'),
    ({'model.table_dtype': 'bfloat16'}, 'use float32'),
    ({'compression.sparsify': 'top_k'}, 'fedavg'),
    ({'privacy.l2_clip_norm': 1.0}, 'dpals'),
    ({'ials.regularization': 0.0}, 'ials.regularization'),
])
def test_what_it_cannot_do_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    config_of(**changes)


def test_shapes_of_an_upload_are_those_that_are_counted():
  simulation = make_simulation(
      config_of(), POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS)
  server = simulation.shapes()[0]
  rows, whole = jax.eval_shape(simulation.algorithm.empty_contribution, server)
  entries = DIM * (DIM + 1) // 2
  assert rows['gramian'].shape == (NUM_ITEMS, entries)
  assert rows['vector'].shape == (NUM_ITEMS, DIM)
  assert whole['gramian'].shape == (entries,)
