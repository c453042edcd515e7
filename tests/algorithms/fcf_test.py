"""FCF against the paper's sums, item by item, in float64."""

import numpy as np
import pytest

from fedjaxrec.simulation import make_simulation
from tests import oracles
from tests.small_runs import make_config

NUM_ITEMS, DIM, ROUNDS = 12, 3, 2
POPULATION = oracles.make_population([3, 5, 0, 1], NUM_ITEMS, seed=2)
ALPHA, RIDGE, RATE, EPS = 4.0, 0.7, 0.05, 0.1


def run(normalization):
  config = make_config({
      'algorithm.name': 'fcf', 'cohort.size': 0, 'model.dim': DIM,
      'model.init_scale': 0.5, 'rounds': ROUNDS, 'fcf.alpha': ALPHA,
      'fcf.regularization': RIDGE, 'server.learning_rate': RATE,
      'server.eps': EPS, 'server.row_normalization': normalization})
  simulation = make_simulation(
      config, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS)
  state = simulation.init()
  start = np.asarray(state.server.item_table['item'], np.float64)
  state, metrics = simulation.run(state, 0, ROUNDS)
  fitted = simulation.refit(
      state.server, simulation.personal_by_client(state))
  return (start, np.asarray(state.server.item_table['item']), fitted['user'],
          np.asarray(metrics.loss))


def solve(items, mine):
  weight = np.array([1 + ALPHA if i in mine else 1 for i in range(NUM_ITEMS)])
  label = np.array([1.0 if i in mine else 0.0 for i in range(NUM_ITEMS)])
  matrix = items.T @ np.diag(weight) @ items + RIDGE * np.eye(DIM)
  return np.linalg.solve(matrix, items.T @ (weight * label)), weight, label


def oracle(items, normalization):
  first, second, losses = np.zeros_like(items), np.zeros_like(items), []
  for t in range(1, ROUNDS + 1):
    gradient, loss = 2 * RIDGE * items, 0.0
    for c in (0, 1, 3):
      user, weight, label = solve(items, POPULATION.client(c)[0])
      for i in range(NUM_ITEMS):
        miss = label[i] - user @ items[i]
        gradient[i] -= 2 * weight[i] * miss * user
        loss += weight[i] * miss**2
      loss += RIDGE * user @ user
    losses.append(loss / POPULATION.counts.sum())
    gradient /= 3 if normalization == 'mean' else 1
    first = 0.9 * first + 0.1 * gradient
    second = 0.99 * second + 0.01 * gradient**2
    items = items - RATE * (first / (1 - 0.9**t)) / (
        np.sqrt(second / (1 - 0.99**t)) + EPS)
  return items, np.array(losses)


@pytest.mark.parametrize('normalization', ['auto', 'mean'])
def test_two_rounds_are_the_papers(normalization):
  start, items, users, losses = run(normalization)
  expected, expected_losses = oracle(start, normalization)
  # Two steps of Adam, whose gain is the rate over eps at most.
  atol = oracles.tolerance(ROUNDS, 40 * NUM_ITEMS, max(1, 50 * RATE / EPS))
  np.testing.assert_allclose(items, expected, rtol=0, atol=atol)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
  assert np.abs(expected - start).max() > 50 * atol
  for c in (0, 1, 3):
    user, _, _ = solve(expected, POPULATION.client(c)[0])
    np.testing.assert_allclose(users[c], user, rtol=0, atol=100 * atol)
