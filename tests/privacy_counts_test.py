"""Contributors of the item rows, counted only under noise that is paid for.

A round releases one vector: the summed deltas, and the summed 0/1 vectors of
the rows that clients touched, each scaled down to a norm of its own.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec.orchestration import experiment, private_runs
from fedjaxrec.privacy import explain
from fedjaxrec.protection import build_protection, count_floor
from fedjaxrec.server import Sum, make_server
from fedjaxrec.simulation import make_simulation
from fedjaxrec.transforms.released_counts import count_noise_stddev
from tests.small_runs import make_config, make_interactions

NUM_CLIENTS, NUM_ITEMS, COHORT, BOUND = 12, 30, 6, 2.0
# Client c has 1 to 8 items; the norm of 8 ones is beyond the bound, of 4 on it.
ROWS = [[(7 * c + 3 * j) % NUM_ITEMS for j in range(1 + (3 * c) % 8)]
        for c in range(NUM_CLIENTS)]
CHANGES = {
    'rounds': 4, 'cohort.size': COHORT, 'cohort.sampler': 'poisson',
    'objective.name': 'squared_error', 'objective.num_negatives': 0,
    'client.batch_size': 3,
    'engine.rounds_per_call': 1, 'server.optimizer': 'sgd',
    'server.row_normalization': 'contributors', 'privacy.delta': 1e-3,
    'privacy.noise_multiplier': 2.0, 'privacy.l2_clip_norm': 0.5,
    'privacy.release_counts': True, 'privacy.count_share': 0.2,
    'privacy.count_clip_norm': BOUND}


def prepare(changes=None):
  config = make_config(CHANGES | (changes or {}))
  train = make_interactions(ROWS, NUM_ITEMS)
  return config, train, private_runs.prepare(config, train, verify=False)


def scaled_counts(members, bound=BOUND):
  """The sum of the members' bounded 0/1 vectors, one by one, and their norms.
  """
  total, norms = np.zeros(NUM_ITEMS), []
  for c in members:
    touched = np.zeros(NUM_ITEMS)
    touched[ROWS[c]] = 1
    touched *= min(1, bound / np.linalg.norm(touched))
    norms.append(np.linalg.norm(touched))
    total += touched
  return total, norms


@pytest.mark.parametrize('engine', [(1, 5), (4, 1)], ids=str)
def test_what_is_counted_is_each_clients_rows_scaled_to_the_bound(engine):
  """The sum before noise, of the real rounds, against a loop over clients."""
  devices, block_size = engine
  _, train, private = prepare()
  config = dataclasses.replace(
      private.config,
      engine=dataclasses.replace(private.config.engine, block_size=block_size),
      parallel=dataclasses.replace(
          private.config.parallel, num_devices=devices,
          mode='single' if devices == 1 else 'shard_map'))

  def spy(algorithm):
    """The server keeps the row weights that reach it, in place of a step."""
    def update(state, total):
      return state._replace(
          round_index=state.round_index + 1,
          shared={'counts': total.row_weight})
    return algorithm._replace(
        init_server=lambda key: algorithm.init_server(key)._replace(
            shared={'counts': jnp.zeros(NUM_ITEMS)}),
        broadcast=lambda state: algorithm.init_server(jax.random.key(0)).shared,
        empty_contribution=lambda state: (
            jax.tree.map(jnp.zeros_like, state.item_table),
            jax.tree.map(jnp.zeros_like, algorithm.init_server(
                jax.random.key(0)).shared)),
        server=algorithm.server._replace(update=update))

  simulation = make_simulation(
      config, train.offsets, train.items, train.ratings, NUM_ITEMS,
      transform_algorithm=spy)
  state, longest = simulation.init(), 0.0
  for r in range(4):
    state, _ = simulation.run(state, r, 1)
    wanted, norms = scaled_counts(simulation.sampler(r))
    # Sums of at most twelve float32 numbers of at most 1.
    np.testing.assert_allclose(
        state.server.shared['counts'], wanted, atol=12 * 2**-23)
    longest = max(longest, *norms) if norms else longest
  assert longest <= BOUND * (1 + 1e-12)
  # The control: without the bound a client would pass it.
  _, free = scaled_counts(range(NUM_CLIENTS), bound=math.inf)
  assert max(free) > 1.4 * BOUND


@pytest.mark.parametrize('changes', [
    {}, {'privacy.clipping': 'adaptive'}, {'privacy.deployment_cohort': 60},
    {'privacy.l2_clip_norm': 0.0, 'privacy.item_clip_norm': 0.5,
     'privacy.shared_clip_norm': 2.0}, {'privacy.head_items': 20}], ids=str)
def test_counts_and_deltas_have_the_noise_that_the_accountant_was_told(
    changes):
  config, _, private = prepare(changes)
  plan = private.plan
  transform = build_protection(
      private.config, COHORT, NUM_CLIENTS,
      open_rows=None if private.open_rows is None else jnp.asarray(
          private.open_rows)).server_transform
  size = 250_000
  nothing = ({'item': jnp.zeros((NUM_ITEMS, 4))}, {'w': jnp.zeros(size)},
             jnp.zeros(size))
  reports = jnp.float32(0) if config.privacy.clipping == 'adaptive' else ()
  update = jax.jit(lambda state: transform.update(
      nothing, state, None, reports=reports))
  state = transform.init(nothing)
  counts, shared = [], []
  for _ in range(4):
    (_, whole, noisy), state = update(state)
    counts.append(np.asarray(noisy))
    shared.append(np.asarray(whole['w']))
    if config.privacy.clipping == 'adaptive':  # The later norms are others.
      shared = shared[:1]
  # A million draws: 1 % is 14 standard deviations of the estimate.
  assert np.std(counts) == pytest.approx(plan.count_noise_stddev, rel=0.01)
  assert np.std(shared) == pytest.approx(plan.noise_stddev_shared, rel=0.01)
  assert count_noise_stddev(
      private.config.privacy, plan.noise_scale) == pytest.approx(
      plan.count_noise_stddev)
  # Fresh in every round, and another one than the deltas'.
  draws = np.corrcoef([*counts, shared[0]]) - np.eye(5)
  assert np.abs(draws).max() < 6 / math.sqrt(size)


def test_the_worst_client_moves_the_joint_release_by_what_is_accounted_for():
  """In units of the noise: a delta on its bound, and a vector on its own."""
  config, _, private = prepare()
  plan, z = private.plan, config.privacy.noise_multiplier
  assert plan.calibration.noise_multiplier == z

  def moved(delta_norm, touched):
    counted = min(math.sqrt(touched), BOUND)
    return math.hypot(
        delta_norm / plan.noise_stddev_items,
        counted / plan.count_noise_stddev)

  worst = max(moved(d, n) for d in (0, 0.25, 0.5) for n in range(NUM_ITEMS))
  assert worst == pytest.approx(1 / z)
  # The control: an exact count beside the same noise has no bound at all, and
  # one that is not scaled down has a larger one.
  assert math.hypot(0.5 / plan.noise_stddev_items, math.sqrt(
      NUM_ITEMS) / plan.count_noise_stddev) > 1.3 / z


def test_a_row_is_divided_by_its_noisy_count_and_never_by_less_than_the_floor():
  def shift(updates, state, params=None, **extra):
    table, shared, counts = updates
    return (table, shared, counts + jnp.array([0.5, -9.0, 2.0])), state

  server = make_server(
      optax.sgd(1.0), optax.sgd(1.0), lambda r: 1.0,
      row_normalization='contributors', expected_cohort=10.0, count_floor=4.0,
      transform=optax.GradientTransformation(lambda params: (), shift))
  state = server.init(jnp.zeros((3, 2)), jnp.zeros(1))
  total = Sum(jnp.full((3, 2), 12.0), jnp.full(1, 5.0),
              jnp.array([7.5, 30.0, 0.0]), jnp.float32(6))
  after = server.update(state, total)
  np.testing.assert_allclose(
      after.item_table, np.array([[12 / 8.0], [12 / 21.0], [12 / 4.0]])
      * np.ones(2), rtol=1e-6)
  np.testing.assert_allclose(after.shared, 0.5, rtol=1e-6)  # By the expected.


def test_the_floor_is_a_public_number():
  config, _, private = prepare()
  assert count_floor(private.config, COHORT) == pytest.approx(
      2 * private.plan.count_noise_stddev)
  quiet = dataclasses.replace(private.config, privacy=dataclasses.replace(
      private.config.privacy, noise_multiplier=1e-3))
  assert count_floor(quiet, COHORT) == 1
  assert count_floor(make_config(), COHORT) is None


def test_counts_that_nothing_makes_noisy_are_refused():
  with pytest.raises(ValueError, match='count_floor=1'):
    make_server(optax.sgd(1.0), optax.sgd(1.0), lambda r: 1.0,
                row_normalization='contributors', count_floor=1.0)
  for changes, words in (
      ({'privacy.release_counts': False}, 'release_counts=true'),
      ({'server.row_normalization': 'mean'}, 'reads no counts'),
      ({'privacy.mechanism': 'blt', 'cohort.sampler': 'cyclic'},
       'correlated noise'),
      ({'algorithm.name': 'dpals', 'cohort.size': 0}, 'release_counts')):
    with pytest.raises(ValueError, match=words):
      prepare(changes)


def test_a_whole_run_says_and_charges_its_counts(tmp_path):
  changes = {
      'privacy.noise_multiplier': 0.0, 'privacy.epsilon': 8.0, 'rounds': 2,
      'cohort.size': 10, 'evaluation.every': 0, 'checkpoint.every': 0}
  config = make_config(CHANGES | changes)
  said = experiment.train(
      config, tmp_path / 'run', progress=False).summary['privacy']
  assert said['count_noise_stddev'] > 0
  assert 0 < said['epsilon'] <= 8
  assert explain.explain(tmp_path / 'run')['epsilon'] == pytest.approx(
      said['epsilon'], rel=1e-3)
  assert said['count_clip_norm'] == BOUND
