"""Federated EASE is the centralised one; its weights by order; its refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.algorithms.fedease import invert
from fedjaxrec.algorithms.registry import build_algorithm
from fedjaxrec.communication.ledger import communication_summary
from fedjaxrec.data.sources import require_times
from fedjaxrec.evaluation.ranking import make_ranker
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.orchestration.summary import describe_communication
from fedjaxrec.references import ease
from fedjaxrec.simulation import make_simulation
from tests import oracles, plain
from tests.small_runs import random_split

# Client 3 has nothing.
COUNTS = [4, 1, 7, 0, 5, 9]
NUM_ITEMS = 21
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=3)
PLAIN = config.FedEASEConfig(l2=2.0)
ORDERED = config.FedEASEConfig(
    l2=2.0, window=3.0, recency=2.0, floor=0.2, damping=0.5)


def make_config(settings=PLAIN, **changes):
  return plain.whole(**{**dict(
      rounds=1, seed=4, algorithm=config.AlgorithmConfig(name='fedease'),
      fedease=settings, cohort=plain.cohort(size=0),
      objective=plain.objective(),
      engine=config.EngineConfig(block_size=4, num_size_classes=1),
      parallel=config.ParallelConfig(mode='single')), **changes})


@functools.cache
def run(settings, block_size=4):
  """(the matrix B, what clients weigh their items by, scores)."""
  simulation = make_simulation(
      make_config(settings, engine=config.EngineConfig(
          block_size=block_size, num_size_classes=1)),
      POPULATION.offsets, POPULATION.items, POPULATION.labels, NUM_ITEMS)
  state, _ = simulation.run(simulation.init(), 0, 1)
  server = jax.tree.map(np.asarray, state.server)
  own = simulation.refit(server, simulation.personal_by_client(state))
  scores = jax.vmap(lambda mine: simulation.algorithm.score(
      mine, server.item_table, {}))(own)
  return (server.item_table['weights'].T, own['weight'],
          np.asarray(scores))


def slow_ease(settings):
  """The same in float64, one client and one pair of items after the other."""
  gram = np.zeros((NUM_ITEMS, NUM_ITEMS))
  history = np.zeros((len(COUNTS), NUM_ITEMS))
  for c in range(len(COUNTS)):
    items, _ = POPULATION.client(c)  # In order of time.
    for a, i in enumerate(items):
      for b, j in enumerate(items):
        gram[i, j] += np.exp(-abs(a - b) / settings.window) if (
            settings.window) else 1
      age = len(items) - 1 - a
      history[c, i] = settings.floor + (1 - settings.floor) * np.exp(
          -age / settings.recency) if settings.recency else 1
  count = np.array([
      max(1, sum(i in POPULATION.client(c)[0] for c in range(len(COUNTS))))
      for i in range(NUM_ITEMS)])
  damped = count**-settings.damping
  gram *= np.outer(damped, damped)
  weights = np.zeros_like(gram)
  for j in range(NUM_ITEMS):
    # Ridge regression of item j on the others.
    others = [i for i in range(NUM_ITEMS) if i != j]
    weights[others, j] = np.linalg.solve(
        gram[np.ix_(others, others)] + settings.l2 * np.eye(len(others)),
        gram[others, j]) * damped[others]
  return weights, history, history @ weights


# Numbers of order 1 and a system of condition 15 (l2 = 2, at most 26 pairs an
# item): some 4 roundings an elimination and column.
ATOL = oracles.tolerance(NUM_ITEMS, 4, gain=15.0)


@pytest.mark.parametrize('settings', [PLAIN, ORDERED], ids=['plain', 'ordered'])
def test_one_round_is_the_oracle(settings):
  for found, expected in zip(run(settings), slow_ease(settings), strict=True):
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=ATOL * max(1, np.abs(expected).max()))


def test_without_order_it_is_the_centralised_reference():
  x = np.zeros((len(COUNTS), NUM_ITEMS))
  for c in range(len(COUNTS)):
    x[c, POPULATION.client(c)[0]] = 1
  np.testing.assert_allclose(
      run(PLAIN)[0], ease.weights(x.T @ x, PLAIN.l2), rtol=0, atol=ATOL)


def test_order_changes_the_model_and_the_scores():
  for found, other in zip(run(PLAIN), run(ORDERED), strict=True):
    assert np.abs(found - other).max() > 100 * ATOL


def test_blocks_do_not_matter():
  for found, other in zip(run(ORDERED), run(ORDERED, 1), strict=True):
    np.testing.assert_allclose(found, other, rtol=0, atol=ATOL)


def test_a_few_candidates_have_the_scores_that_they_have_among_all():
  split = random_split(6, 30, 5)
  rng = np.random.default_rng(0)
  table = {'weights': rng.normal(size=(30, 30)).astype(np.float32)}
  own = {'weight': rng.random((6, 30)).astype(np.float32)}
  scores = own['weight'] @ table['weights'].T
  settings = make_config()
  algorithm = build_algorithm(
      settings, build_recommender(settings.model, 30), 30)
  negatives = np.stack([rng.permutation(np.setdiff1d(
      np.arange(30), [*split.train.items[5 * u:5 * u + 5],
                      split.test.items[u]]))[:4] for u in range(6)])
  rank = make_ranker(
      algorithm.score, split.test, [split.train], 30, protocol='sampled-99',
      batch_size=6, seed=0, negatives=negatives.astype(np.int32))
  users = np.arange(6)
  np.testing.assert_array_equal(
      rank(own, table, {}).rank,
      (scores[users[:, None], negatives]
       >= scores[users, split.test.items][:, None]).sum(1))


@pytest.mark.parametrize('n', [1, 7, 64, 65, 150])
def test_a_matrix_times_its_inverse_is_one(n):
  half = np.random.default_rng(n).normal(size=(n, n + 5)) / n**0.5
  matrix = np.float32(half @ half.T + np.eye(n))
  # Entries of order 1; n products, and a condition of at most 6.
  np.testing.assert_allclose(
      np.float64(invert(jnp.asarray(matrix))) @ matrix, np.eye(n), rtol=0,
      atol=oracles.tolerance(n, 4, gain=6.0))


def test_a_client_sends_a_row_for_each_of_its_items():
  split = random_split(5, 30, 6)
  settings = make_config()
  algorithm = build_algorithm(
      settings, build_recommender(settings.model, 30), 30)
  server = jax.eval_shape(algorithm.init_server, jax.random.key(0))
  found = describe_communication(
      settings, split, server.item_table, server.shared, algorithm)
  table = {'weights': np.zeros((30, 30), np.float32)}
  expected = communication_summary(
      table, {}, np.full(5, 6), np.ones(5, int), 30)
  assert found == expected
  assert found['uplink_bytes_per_client'] >= 4 * 6 * 30


class TestRefusals:

  @pytest.mark.parametrize(('changes', 'message'), [
      ({'rounds': 2}, 'rounds=2 .* use --rounds=1'),
      ({'cohort': plain.cohort(size=3)}, 'cohort.size=3'),
      ({'cohort': plain.cohort(size=0, weighting='examples')},
       'use cohort.weighting=equal'),
      ({'model': config.ModelConfig(name='neumf')}, 'leave model.name=mf'),
      ({'model': config.ModelConfig(table_dtype='bfloat16')}, 'use float32'),
      ({'objective': plain.objective(name='squared_error')},
       'algorithm.name=fedmf'),
      ({'privacy': config.PrivacyConfig(l2_clip_norm=1.0)},
       'algorithm.name=dpals for privacy'),
      ({'compression': config.CompressionConfig(quantize='sign')},
       'section compression'),
      ({'secure': config.SecureConfig(level='ideal', l2_clip_norm=1.0)},
       'section secure'),
  ])
  def test_what_it_cannot_be_combined_with(self, changes, message):
    with pytest.raises(ValueError, match='algorithm.name=fedease.*' + message):
      make_config(**changes)

  def test_a_catalogue_whose_square_is_too_large(self):
    settings = make_config()
    with pytest.raises(ValueError, match='num_items=30000 .*name=ials'):
      build_algorithm(
          settings, build_recommender(settings.model, 30_000), 30_000)

  def test_an_order_that_nobody_knows(self):
    split = random_split(5, 30, 6)
    split = dataclasses.replace(split, train=dataclasses.replace(
        split.train, has_timestamps=False))
    require_times(make_config(), split)
    with pytest.raises(ValueError, match='fedease.window=3.0 .* or 0 for both'):
      require_times(make_config(ORDERED), split)
