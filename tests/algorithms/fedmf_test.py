"""FedMF against its sums, rating by rating, under three normalisations."""

import numpy as np
import pytest

from fedjaxrec.simulation import make_simulation
from tests import oracles
from tests.small_runs import make_config

NUM_ITEMS, DIM, ROUNDS = 9, 3, 2
POPULATION = oracles.make_population([3, 5, 0, 1], NUM_ITEMS, seed=2)
STEP, RIDGE, MU, RATE = 0.05, 0.3, 0.2, 0.1


@pytest.mark.parametrize('normalization', ['auto', 'mean', 'contributors'])
def test_two_rounds_are_the_papers(normalization):
  config = make_config({
      'algorithm.name': 'fedmf', 'cohort.size': 0, 'model.dim': DIM,
      'model.init_scale': 0.5, 'rounds': ROUNDS, 'fedmf.learning_rate': STEP,
      'fedmf.user_regularization': RIDGE, 'fedmf.item_regularization': MU,
      'server.optimizer': 'sgd', 'server.learning_rate': RATE,
      'server.row_normalization': normalization})
  simulation = make_simulation(
      config, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS)
  state = simulation.init()
  items = np.asarray(state.server.item_table['item'], np.float64)
  users = np.float64(simulation.personal_by_client(state)['user'])
  state, _ = simulation.run(state, 0, ROUNDS)
  start = items
  for _ in range(ROUNDS):
    gradient, raters = np.zeros_like(items), np.zeros(NUM_ITEMS)
    moved = users.copy()
    for c in range(len(users)):
      mine, labels = POPULATION.client(c)
      for item, label in zip(mine, labels):
        miss = label - users[c] @ items[item]
        moved[c] += STEP * 2 * miss * items[item]
        gradient[item] += -2 * miss * users[c] + 2 * MU * items[item]
        raters[item] += 1
      if len(mine):
        moved[c] -= STEP * 2 * RIDGE * users[c]
    divisor = {'auto': 1, 'mean': 3,
               'contributors': np.maximum(raters, 1)[:, None]}[normalization]
    items, users = items - RATE * gradient / divisor, moved
  atol = oracles.tolerance(ROUNDS, 8 * NUM_ITEMS)
  np.testing.assert_allclose(
      state.server.item_table['item'], items, rtol=0, atol=atol)
  np.testing.assert_allclose(
      simulation.personal_by_client(state)['user'], users, rtol=0, atol=atol)
  assert np.abs(items - start).max() > 100 * atol
