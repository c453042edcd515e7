"""Whole federated runs: against the oracle, and however they are executed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.simulation import State, call_interval, make_simulation
from tests import draws, oracles, plain

# Long-tailed; client 6 has too few absent items for its negatives; on four
# devices the fourth has nobody to train.
COUNTS = [4, 1, 9, 0, 6, 3, 18, 0, 2, 5, 1, 0, 7, 4]
DIM, NUM_NEGATIVES, ROUNDS = 3, 2, 3
SMALL = oracles.make_population(COUNTS, 40, seed=2)
# A catalogue so large that one device visits the touched rows alone.
LARGE = oracles.make_population(COUNTS, 240, seed=2)

# Counts what JAX traces and compiles.
work = {'traces': 0, 'compilations': 0}


def _count(event, duration, **kwargs):
  del duration, kwargs
  work['traces'] += event == '/jax/core/compile/jaxpr_trace_duration'
  work['compilations'] += event == '/jax/core/compile/backend_compile_duration'


jax.monitoring.register_event_duration_secs_listener(_count)


def make_config(engine=None, parallel=None, objective=None, client=None,
                server=None, cohort=None):
  """A config from dicts; each stage has small values where none is given."""
  return config.Config(
      rounds=9, seed=4,
      model=config.ModelConfig(dim=DIM, init_scale=0.5),
      objective=plain.objective(**(objective or {})),
      client=plain.client(**{
          'learning_rate': 0.3, 'item_learning_rate': 0.7, **(client or {})}),
      server=plain.server(**(server or {})),
      cohort=plain.cohort(**(cohort or {})),
      engine=config.EngineConfig(**{
          'block_size': 4, 'num_size_classes': 2, 'rounds_per_call': ROUNDS,
          **(engine or {})}),
      parallel=config.ParallelConfig(**{'mode': 'single', **(parallel or {})}))


def simulate(settings, population=SMALL, **kwargs):
  return make_simulation(
      settings, population.offsets, population.items, population.labels,
      population.num_items, **kwargs)


def run(simulation, state, first_round, num_rounds):
  """Runs rounds in calls of at most rounds_per_call; metrics of each round."""
  collected = []
  while num_rounds:
    now = min(num_rounds, simulation.rounds_per_call)
    state, metrics = simulation.run(state, first_round, now)
    collected.append(jax.tree.map(lambda x, n=now: np.asarray(x)[:n], metrics))
    first_round, num_rounds = first_round + now, num_rounds - now
  return state, jax.tree.map(lambda *x: np.concatenate(x), *collected)


def on_host(simulation, state):
  return State(jax.tree.map(np.asarray, state.server),
               simulation.personal_by_client(state))


# --- Against the oracle ------------------------------------------------------

# Every optimizer, objective, normalisation, weighting, sampler and mode occurs,
# and many pairs of them. The last number is what an error in a gradient comes
# out as: 1, or the client's learning rate over its eps of 1e-3.
CASES = {
    'large catalogue': (LARGE, make_config(
        server={'optimizer': 'momentum', 'momentum': 0.5,
                'row_normalization': 'contributors'}), 1),
    'bce': (SMALL, make_config(
        engine={'num_size_classes': 1}, objective={'l2': 0.02},
        client={'epochs': 2, 'schedule': 'cosine'}, cohort={'size': 0}), 1),
    'bpr': (SMALL, make_config(
        objective={'name': 'bpr'},
        client={'optimizer': 'adam', 'learning_rate': 0.02,
                'item_learning_rate': 0.02, 'steps': 3, 'proximal_mu': 0.5},
        server={'optimizer': 'adam', 'learning_rate': 0.05, 'eps': 0.05,
                'row_normalization': 'contributors'},
        cohort={'sampler': 'poisson', 'size': 5, 'weighting': 'examples'},
        parallel={'mode': 'shard_map', 'num_devices': 2}), 20),
    'squared_error': (SMALL, make_config(
        engine={'num_size_classes': 1},
        objective={'name': 'squared_error', 'l2': 0.02},
        client={'optimizer': 'momentum', 'learning_rate': 0.1,
                'item_learning_rate': 0.2},
        server={'optimizer': 'yogi', 'learning_rate': 0.05, 'eps': 0.05,
                'row_normalization': 'sum', 'lazy_rows': False,
                'schedule': 'exponential'},
        cohort={'sampler': 'shuffled', 'size': 4}), 1),
    'adagrad': (SMALL, make_config(
        engine={'num_size_classes': 1},
        client={'optimizer': 'adagrad', 'learning_rate': 0.02,
                'item_learning_rate': 0.02, 'proximal_mu': 0.2},
        server={'optimizer': 'adagrad', 'learning_rate': 0.05, 'eps': 0.05},
        cohort={'weighting': 'examples'},
        parallel={'mode': 'pmap', 'num_devices': 4}), 20),
}


@pytest.fixture(scope='module')
def simulations():
  """name -> (simulation, start); tests of one case share what it compiles."""
  made = {}

  def make(name):
    if name not in made:
      population, settings, _ = CASES[name]
      simulation = simulate(settings, population)
      made[name] = simulation, State(
          *draws.make_start(simulation.algorithm, len(COUNTS)))
    return made[name]

  return make


@pytest.mark.parametrize('case', CASES)
def test_rounds_are_those_of_the_oracle(simulations, case):
  population, settings, gain = CASES[case]
  simulation, start = simulations(case)
  state, metrics = run(simulation, simulation.restore(*start), 0, ROUNDS)
  sampler, _ = build_sampler(settings.cohort, population.counts, settings.seed)
  cohorts = [sampler(r) for r in range(ROUNDS)]
  negatives = 0 if case == 'squared_error' else NUM_NEGATIVES
  draw = draws.make_draw(population, simulation.key, negatives)
  expected = oracles.run(
      settings, *(jax.tree.map(np.float64, tree) for tree in (
          start.server.item_table, start.server.shared)),
      [{name: leaf[c].astype(float) for name, leaf in start.personal.items()}
       for c in range(len(COUNTS))], cohorts, draw)
  # In a round at most five local steps and the server's. What is summed over a
  # batch or a cohort is a mean: more terms, each of them smaller.
  atol = oracles.tolerance(ROUNDS * 6, DIM + 12, gain)
  # The control of the tolerance: what a round moves is far above it.
  moved = max(np.abs(expected.table[name] - leaf).max()
              for name, leaf in start.server.item_table.items())
  assert atol < 0.02 * moved
  state = on_host(simulation, state)
  for tree, wanted in ((state.server.item_table, expected.table),
                       (state.server.shared, expected.shared)):
    for name in wanted:
      np.testing.assert_allclose(tree[name], wanted[name], rtol=0, atol=atol)
  for c, wanted in enumerate(expected.personal):
    for name in wanted:
      np.testing.assert_allclose(
          state.personal[name][c], wanted[name], rtol=0, atol=atol)
  assert state.server.round_index == ROUNDS
  np.testing.assert_allclose(metrics.loss, expected.losses, atol=atol)
  np.testing.assert_array_equal(metrics.reported, [len(c) for c in cohorts])


# --- However it is executed --------------------------------------------------

VARIANTS = {
    'blocks of one client in one class': make_config(
        engine={'block_size': 1, 'num_size_classes': 1, 'rounds_per_call': 1},
        server=dataclasses.asdict(CASES['large catalogue'][1].server)),
    'one block on each of four devices': make_config(
        engine={'block_size': 16, 'num_size_classes': 3, 'rounds_per_call': 2},
        parallel={'mode': 'shard_map', 'num_devices': 4},
        server=dataclasses.asdict(CASES['large catalogue'][1].server)),
    'pmap over two devices': make_config(
        engine={'block_size': 3, 'num_size_classes': 1},
        parallel={'mode': 'pmap', 'num_devices': 2},
        server=dataclasses.asdict(CASES['large catalogue'][1].server)),
}
SUM_TOLERANCE = oracles.tolerance(ROUNDS, 2 * 6 + DIM)


@pytest.fixture(scope='module')
def baseline(simulations):
  """States on the host after 0, 1 and all rounds, and the metrics."""
  simulation, start = simulations('large catalogue')
  state, first = run(simulation, simulation.restore(*start), 0, 1)
  after_one = on_host(simulation, state)
  state, rest = run(simulation, state, 1, ROUNDS - 1)
  metrics = jax.tree.map(lambda *x: np.concatenate(x), first, rest)
  return start, after_one, on_host(simulation, state), metrics


@pytest.fixture(scope='module')
def variants():
  made = {}

  def make(name):
    if name not in made:
      made[name] = simulate(VARIANTS[name], LARGE)
    return made[name]

  return make


def equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def close(left, right, atol=SUM_TOLERANCE):
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
      left, right)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_result_does_not_depend_on_how_it_is_executed(
    baseline, variants, variant):
  """Sums of at most six clients a round may be added in another order; a
  client's own parameters after one round depend on no sum."""
  start, after_one, after_all, metrics = baseline
  simulation = variants(variant)
  state, _ = run(simulation, simulation.restore(*start), 0, 1)
  state_host = on_host(simulation, state)
  equal(state_host.personal, after_one.personal)
  close(state_host, after_one, oracles.tolerance(1, 2 * 6))
  state, _ = run(simulation, state, 1, ROUNDS - 1)
  close(on_host(simulation, state), after_all)
  # In calls of other lengths: the same, bit for bit.
  again, all_metrics = run(simulation, simulation.restore(*start), 0, ROUNDS)
  equal(on_host(simulation, again), on_host(simulation, state))
  np.testing.assert_allclose(all_metrics.loss, metrics.loss, rtol=1e-5)
  equal(all_metrics[1:], metrics[1:])


def test_runs_differ_where_they_should(baseline):
  """The control: a round moves the model by far more than the tolerance."""
  start, after_one, after_all, metrics = baseline
  trained = set()
  for before, after in ((start, after_one), (after_one, after_all)):
    distance = np.abs(before.server.item_table['item']
                      - after.server.item_table['item']).max()
    assert distance > 1000 * SUM_TOLERANCE
    trained |= set(np.flatnonzero(
        (before.personal['user'] != after.personal['user']).all(1)))
  assert trained <= set(np.flatnonzero(COUNTS)) and len(trained) > 6
  np.testing.assert_array_equal(metrics.reported, [6] * ROUNDS)
  assert len(set(metrics.num_examples)) > 1


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_state_goes_to_the_host_and_to_other_devices_unchanged(
    baseline, simulations, variants, variant):
  _, _, after_all, _ = baseline
  simulation = variants(variant)
  moved = simulation.restore(*after_all)
  equal(on_host(simulation, moved), after_all)
  # And trains on from there as it would have at home.
  home, _ = simulations('large catalogue')
  expected, _ = run(home, home.restore(*after_all), ROUNDS, 1)
  state, _ = run(simulation, moved, ROUNDS, 1)
  equal(simulation.personal_by_client(state), home.personal_by_client(expected))
  close(on_host(simulation, state), on_host(home, expected))


@pytest.mark.parametrize('case', ['large catalogue', 'bpr', 'adagrad'])
def test_the_second_chunk_does_not_retrace(simulations, case):
  """On one device, under shard_map and under pmap; with cohorts of any size."""
  simulation, start = simulations(case)
  state, first = simulation.run(simulation.restore(*start), 0, ROUNDS)
  jax.block_until_ready(state)
  before = dict(work)
  state, second = simulation.run(state, ROUNDS, ROUNDS)
  state, third = simulation.run(state, 2 * ROUNDS, 1)  # A shorter last chunk.
  state, _ = simulation.run(
      simulation.restore(*on_host(simulation, state)), 0, ROUNDS)  # A resume.
  jax.block_until_ready(state)
  assert work == before
  sizes = set(np.concatenate([first.reported, second.reported]))
  assert len(sizes) > 1 or case != 'bpr'
  assert third.reported[0] > 0 and not np.any(third.reported[1:])
  # The control: something new is seen.
  jax.jit(lambda x: x * 3)(jnp.ones(3))
  assert work['traces'] > before['traces']
  assert work['compilations'] > before['compilations']


# --- What it is made of ------------------------------------------------------


def test_a_run_starts_with_a_client_of_its_own_for_everyone():
  simulation = simulate(make_config())
  state = simulation.init()
  assert state.personal['user'].shape == (1, len(COUNTS), DIM)
  state = on_host(simulation, state)
  assert state.server.round_index == 0
  assert state.server.item_table['item'].shape == (SMALL.num_items, DIM)
  assert len(np.unique(state.personal['user'])) == len(COUNTS) * DIM


def test_the_key_of_the_draws_is_the_seeds():
  keys = [
      jax.random.key_data(simulate(
          dataclasses.replace(make_config(), seed=seed)).key).tolist()
      for seed in (4, 4, 5)]
  assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(('rounds', 'evaluate', 'checkpoint', 'asked', 'is_'), [
    (200, 10, 50, 0, 10),
    (200, 0, 25, 0, 25),
    (200, 0, 0, 0, 50),  # Not more than 50 at once.
    (7, 10, 50, 0, 7),
    (200, 10, 50, 30, 30),
    (20, 10, 50, 30, 20),
])
def test_rounds_of_a_call_lie_between_two_stops(
    rounds, evaluate, checkpoint, asked, is_):
  settings = config.Config(
      rounds=rounds, evaluation=config.EvaluationConfig(every=evaluate),
      checkpoint=config.CheckpointConfig(every=checkpoint),
      engine=config.EngineConfig(rounds_per_call=asked))
  assert call_interval(settings, 150) == is_
  # A call's plan has room for 2^24 clients in all.
  assert call_interval(settings, 2**24) == (is_ if asked else 1)


def test_the_parts_are_those_asked_for():
  transformed = []

  def transform(algorithm):
    transformed.append(algorithm._replace(weight_by_examples=True))
    return transformed[-1]

  simulation = simulate(
      make_config(engine={'block_size': 99, 'num_size_classes': 3}),
      transform_algorithm=transform, devices=jax.local_devices()[1:])
  assert simulation.algorithm is transformed[0]
  assert simulation.placement.devices == (jax.local_devices()[1],)
  assert simulation.max_cohort == simulation.block_size == 6
  assert simulation.rounds_per_call == ROUNDS
  assert len(simulation.capacities) == 3 and simulation.capacities[-1] == 20
  chosen = simulate(make_config(
      engine={'block_size': 0, 'num_size_classes': 0, 'rounds_per_call': 0},
      cohort={'size': 0}))
  assert chosen.block_size > 1 and len(chosen.capacities) > 1
  assert chosen.max_cohort == np.count_nonzero(COUNTS)


@pytest.mark.parametrize(('settings', 'message'), [
    (make_config(cohort={'size': 12}), 'cohort.size=12'),
    (make_config(parallel={'mode': 'auto', 'num_devices': 9}),
     'parallel.num_devices=9'),
])
def test_what_cannot_be_had_is_refused_before_anything_compiles(
    settings, message):
  before = dict(work)
  with pytest.raises(ValueError, match=message):
    simulate(settings)
  assert work == before
