"""Controls: popularity by hand, and local training against the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.algorithms.registry import build_algorithm
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.evaluation import controls
from fedjaxrec.models.registry import build_recommender
from tests import draws, oracles, plain

COUNTS = [3, 0, 6, 3, 5]
NUM_ITEMS, DIM, ROUNDS = 30, 3, 3
KEY = jax.random.key(5)
CONFIG = config.Config(
    rounds=9,
    model=config.ModelConfig(dim=DIM, init_scale=0.5),
    objective=plain.objective(),
    client=plain.client(learning_rate=0.3, item_learning_rate=0.7),
    server=plain.server(), cohort=plain.cohort())
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS)
TRAIN = Interactions(
    POPULATION.offsets, POPULATION.items, POPULATION.labels,
    np.zeros(sum(COUNTS), np.int64), np.arange(len(COUNTS)),
    np.arange(NUM_ITEMS), has_timestamps=False)


@pytest.fixture(scope='module')
def start():
  """The algorithm, and everybody's initial parameters."""
  algorithm = build_algorithm(
      CONFIG, build_recommender(CONFIG.model, NUM_ITEMS), NUM_ITEMS)
  return algorithm, *draws.make_start(algorithm, len(COUNTS))


def train(start, clients, rounds=ROUNDS):
  algorithm, server, personal = start
  clients = np.array(clients, np.int64)
  return controls.train_local_only(
      algorithm, server, jax.tree.map(lambda leaf: leaf[clients], personal),
      TRAIN, clients, rounds, CONFIG.client.batch_size, KEY)


def test_a_client_alone_is_a_federation_of_one(start):
  """In any order and among others: each as if there were nobody else."""
  _, server, personal = start
  clients = [4, 1, 2, 0]
  scores = train(start, clients)
  assert scores.shape == (4, NUM_ITEMS) and scores.dtype == np.float32
  draw = draws.make_draw(POPULATION, KEY, 2)
  personal = [
      {name: np.asarray(leaf[c], float) for name, leaf in personal.items()}
      for c in range(len(COUNTS))]
  # Two steps a round; then one score.
  atol = oracles.tolerance(2 * ROUNDS + 1, DIM + 12 + 4 * 3)
  for place, c in enumerate(clients):
    result = oracles.run(
        CONFIG, *(jax.tree.map(lambda x: np.asarray(x, float), tree)
                  for tree in (server.item_table, server.shared)),
        personal, [[c]] * ROUNDS, draw)
    expected = [
        oracles.score(result.table, result.shared, result.personal[c], i)
        for i in range(NUM_ITEMS)]
    np.testing.assert_allclose(scores[place], expected, rtol=0, atol=atol)


def test_a_client_without_interactions_keeps_its_start(start):
  algorithm, server, personal = start
  expected = algorithm.score(
      jax.tree.map(lambda leaf: leaf[1], personal), server.item_table,
      server.shared)
  np.testing.assert_allclose(
      train(start, [1])[0], expected, rtol=0, atol=8 * 2**-24)
  assert train(start, []).shape == (0, NUM_ITEMS)


def test_popularity_counts_training_interactions():
  expected = [int((POPULATION.items == i).sum()) for i in range(NUM_ITEMS)]
  assert max(expected) > 1
  counts = controls.popularity(TRAIN)
  np.testing.assert_array_equal(counts, expected)
  assert counts.dtype == np.float32
  rows = jnp.asarray(counts)[jnp.array([4, 0, 4])]
  np.testing.assert_array_equal(
      controls.score_popularity({}, rows, {}), counts[[4, 0, 4]])


def test_scores_are_looked_up_by_item():
  np.testing.assert_array_equal(
      controls.score_from_matrix(
          jnp.array([0.5, -1.0, 3.0]), jnp.array([2, 2, 0]), {}),
      [3.0, 3.0, 0.5])
