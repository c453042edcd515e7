"""Each personalised algorithm against its oracle; what it refuses."""

import jax
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.algorithms import fedrap, fedrecon
from fedjaxrec.algorithms.gpfedrec import link_clients
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.simulation import make_simulation
from tests import draws, oracles, plain
from tests.algorithms import personalised_oracles as slow

# Client 3 has nothing; client 2 has more than a batch.
COUNTS = [4, 1, 7, 0, 5]
NUM_ITEMS, DIM, ROUNDS, NUM_NEGATIVES = 24, 3, 2, 2
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=3)
ORACLES = {
    'pfedrec': slow.PFedRec, 'gpfedrec': slow.GPFedRec, 'fedrap': slow.FedRAP,
    'ditto': slow.Ditto, 'apfl': slow.APFL, 'fedrep': slow.FedRep,
    'fedrecon': slow.FedRecon}


def make_config(name, **changes):
  settings = dict(
      rounds=ROUNDS, seed=4, model=config.ModelConfig(dim=DIM, init_scale=0.5),
      algorithm=config.AlgorithmConfig(name=name),
      objective=plain.objective(l2=0.02, num_negatives=NUM_NEGATIVES),
      client=plain.client(learning_rate=0.4, item_learning_rate=0.9,
                          batch_size=4, epochs=2),
      server=plain.server(), cohort=plain.cohort(size=3),
      pfedrec=config.PFedRecConfig(lr_eta=0.0),
      gpfedrec=config.GPFedRecConfig(lr_eta=0.0, pull=8.0),
      fedrap=config.FedRAPConfig(sparsity=0.05, independence=0.5),
      ditto=config.DittoConfig(pull=0.7),
      apfl=config.APFLConfig(alpha=0.4, alpha_rate=0.6),
      fedrep=config.FedRepConfig(head_epochs=2),
      fedrecon=config.FedReconConfig(learning_rate=0.7, epochs=2,
                                     final_epochs=3),
      engine=config.EngineConfig(block_size=4, num_size_classes=1),
      parallel=config.ParallelConfig(mode='single'))
  if name == 'gpfedrec':
    settings['cohort'] = plain.cohort(size=0)
  return plain.whole(**{**settings, **changes})


def simulate(settings, population=POPULATION, **kwargs):
  return make_simulation(
      settings, population.offsets, population.items, population.labels,
      population.num_items, **kwargs)


def first_layers(settings, simulation):
  """Everybody's first personal part, as the algorithm's state begins."""
  own = simulation.personal_by_client(simulation.init())
  layer = own if isinstance(own, dict) else own.layer
  return [{name: np.float64(leaf[c]) for name, leaf in layer.items()}
          for c in range(len(COUNTS))]


def fresh_layers(settings, simulation):
  """(round, client) -> what FedRecon starts a reconstruction from."""
  init = jax.jit(build_recommender(settings.model, NUM_ITEMS).init_personal)

  def start(r, c):
    key = jax.random.fold_in(jax.random.fold_in(simulation.key, r), c)
    return slow.copy(init(jax.random.fold_in(key, fedrecon._STREAM)))

  return start


def run_oracle(oracle, settings, simulation, table, shared):
  """Runs the rounds; returns (table, shared, scores of everybody)."""
  draw = draws.make_draw(POPULATION, simulation.key, NUM_NEGATIVES)
  sampler, _ = build_sampler(
      settings.cohort, POPULATION.counts, settings.seed)
  owns = [None] * len(COUNTS)
  for r in range(ROUNDS):
    cohort = sampler(r)
    moved, moved_shared = [], []
    for c in cohort:
      owns[c], new_table, new_shared = oracle.update(
          c, owns[c], table, shared, *draw(r, c), r)
      moved.append(new_table)
      moved_shared.append(new_shared)
    table, shared = (
        {n: leaf + sum(m[n] - leaf for m in sent) / len(cohort)
         for n, leaf in start.items()}
        for start, sent in ((table, moved), (shared, moved_shared)))
    if hasattr(oracle, 'mix'):
      if isinstance(oracle, slow.GPFedRec):
        owns, table = oracle.mix(owns, table)
  return table, shared, np.stack([
      oracle.score(c, own, table, shared) for c, own in enumerate(owns)])


def check(name, **changes):
  settings = make_config(name, **changes)
  simulation = simulate(settings)
  start = simulation.init()
  oracle = ORACLES[name](settings, first_layers(settings, simulation))
  if name == 'fedrecon':
    oracle.starts = fresh_layers(settings, simulation)
  if name == 'fedrap':
    init = build_recommender(settings.model, NUM_ITEMS).init_server
    oracle.additions = slow.copy(jax.jit(init)(jax.random.fold_in(
        jax.random.key(settings.seed), fedrap._STREAM))[0])
  table, shared, scores = run_oracle(
      oracle, settings, simulation, slow.copy(start.server.item_table),
      slow.copy(start.server.shared))
  state, _ = simulation.run(start, 0, ROUNDS)
  # Errors of a step pass on at most by rate times curvature: 1 + 0.9 / 4 a
  # step; some 8 steps of about 40 roundings each.
  atol = oracles.tolerance(8, 40, gain=8.0)
  for n, leaf in table.items():
    np.testing.assert_allclose(
        state.server.item_table[n], leaf, rtol=0, atol=atol)
  np.testing.assert_allclose(
      state.server.shared['bias'], shared['bias'], rtol=0, atol=atol)
  own = simulation.personal_by_client(state)
  score = simulation.algorithm.score
  found = jax.vmap(lambda mine: score(
      mine, state.server.item_table, state.server.shared))(own)
  np.testing.assert_allclose(found, scores, rtol=0, atol=8 * atol)
  return simulation, state, own


@pytest.mark.parametrize('name', ['fedrap', 'ditto', 'apfl', 'fedrep'])
def test_two_rounds_are_those_of_the_oracle(name):
  check(name)


def test_a_pull_past_the_global_model_ends_there():
  check('ditto', ditto=config.DittoConfig(pull=40.0))


def test_pfedrec_is_its_oracle_and_keeps_tables_of_its_last_round():
  simulation, state, own = check('pfedrec')
  trained = own.trained > 0
  assert 0 < trained.sum() < len(COUNTS)
  # The one model for all knows nothing of the clients' tables.
  algorithm = simulation.algorithm
  everybody = jax.vmap(lambda mine: algorithm.aggregated_score(
      mine, state.server.item_table, state.server.shared))
  changed = own._replace(table=jax.tree.map(np.zeros_like, own.table))
  np.testing.assert_array_equal(everybody(own), everybody(changed))


def test_gpfedrec_is_its_oracle():
  check('gpfedrec')


def test_fedrecon_is_its_oracle_and_reads_nothing_that_it_kept():
  simulation, state, own = check('fedrecon')
  # Whatever clients held before, a round makes the same of them.
  again = simulation.init()
  again = again._replace(personal=jax.tree.map(
      lambda x: x + 7.0, again.personal))
  other, _ = simulation.run(again, 0, ROUNDS)
  for leaf, same in zip(jax.tree.leaves(state.server),
                        jax.tree.leaves(other.server), strict=True):
    np.testing.assert_array_equal(leaf, same)
  # And the final reconstruction needs no history, only data.
  server = jax.tree.map(np.asarray, state.server)
  fitted = simulation.refit(server, own)
  fresh = simulation.refit(server, jax.tree.map(np.zeros_like, own))
  for name, leaf in fitted.items():
    np.testing.assert_array_equal(leaf[[0, 1, 2, 4]], fresh[name][[0, 1, 2, 4]])
    np.testing.assert_array_equal(leaf[3], own[name][3])


def test_clients_with_equal_angles_are_linked_and_the_least_alike_as_released():
  tables = np.array([[1, 0, 0], [2, 0.2, 0], [0, 0, 3], [5, 5, 5]], np.float32)
  there = np.array([True, True, True, False])
  alike = link_clients(tables, there, 'similarity', 1.0)
  apart = link_clients(tables, there, 'as_released', 1.0)
  np.testing.assert_array_equal(
      np.asarray(alike) > 0,
      [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
  np.testing.assert_array_equal(
      np.asarray(apart) > 0,
      [[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
  for graph in (alike, apart):
    np.testing.assert_allclose(np.sum(graph, 1), 1, rtol=1e-6)


class TestRefusals:

  def test_a_table_a_client_above_the_limit(self):
    limit = config.PersonalizationConfig(table_limit_gib=1e-6)
    with pytest.raises(ValueError, match='table_limit_gib=1e-06; raise that'):
      simulate(make_config('pfedrec', personalization=limit))
    # FedRecon keeps no table, whatever the limit.
    simulate(make_config('fedrecon', personalization=limit))

  @pytest.mark.parametrize('name', [n for n in ORACLES])
  def test_a_client_optimizer_with_state(self, name):
    with pytest.raises(ValueError, match='use client.optimizer=sgd'):
      simulate(make_config(name, client=plain.client(optimizer='adam')))

  def test_a_graph_of_some_of_the_clients(self):
    with pytest.raises(ValueError, match='use cohort.size=0'):
      simulate(make_config('gpfedrec', cohort=plain.cohort(size=3)))

  def test_a_graph_under_a_secure_sum(self):
    with pytest.raises(ValueError, match='without privacy, compression'):
      simulate(make_config('gpfedrec', secure=config.SecureConfig(
          level='ideal', l2_clip_norm=1.0)))
