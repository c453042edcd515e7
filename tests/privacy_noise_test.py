"""Invariant 8: the noise on the sum is what the accountant was told.

The engine is looked at from outside: what the server's table moved by, times
what it was divided by, is what was released; the true clipped sum is computed
here, client by client. Their difference is the noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.data.interactions import Interactions
from fedjaxrec.local_training import Contribution
from fedjaxrec.orchestration import private_runs
from fedjaxrec.privacy.audit import audit
from fedjaxrec.privacy.noise_matrices import coefficients_of_buffers
from fedjaxrec.simulation import make_simulation
from tests.small_runs import make_config, make_interactions

NUM_CLIENTS, NUM_ITEMS, DIM, SHARED, ROUNDS = 24, 512, 128, 65_536, 8
DRAWS = ROUNDS * (NUM_ITEMS * DIM + SHARED)
assert DRAWS >= 10**6
COHORT = 8
# Client c uploads SIZES[c] in every entry of its rows and of the shared leaf:
# some are clipped, some are not.
ROWS = [[(37 * c + 11 * j) % NUM_ITEMS for j in range(1 + c % 3)]
        for c in range(NUM_CLIENTS)]
SIZES = np.float32(2.0 ** (np.arange(NUM_CLIENTS) % 6 - 10))
BASE = {
    'rounds': ROUNDS, 'cohort.size': COHORT, 'cohort.sampler': 'poisson',
    'objective.name': 'squared_error', 'objective.num_negatives': 0,
    'server.optimizer': 'sgd', 'server.learning_rate': 1.0,
    'client.batch_size': 4, 'engine.rounds_per_call': 1,
    'privacy.noise_multiplier': 3.0, 'privacy.delta': 1e-3}
CLIP = {'privacy.l2_clip_norm': 0.5}
BLT = {'cohort.sampler': 'cyclic', 'privacy.mechanism': 'blt',
       'privacy.buffers': 2}
MECHANISMS = {
    'gaussian': CLIP,
    'adaptive': CLIP | {'privacy.clipping': 'adaptive',
                        'privacy.clip_learning_rate': 1.0},
    'groups': {'privacy.item_clip_norm': 0.5, 'privacy.shared_clip_norm': 2.0},
    'deployment': CLIP | {'privacy.deployment_cohort': 100 * COHORT},
    'head': CLIP | {'privacy.head_items': 300},
    'banded': CLIP | {'privacy.mechanism': 'banded', 'privacy.bands': 3,
                      'cohort.sampler': 'cyclic'},
    'amplified': CLIP | {'privacy.mechanism': 'banded', 'privacy.bands': 2,
                         'cohort.sampler': 'cyclic_poisson',
                         'cohort.groups': 2},
    'blt': CLIP | BLT,
    'blt, groups': BLT | {'privacy.item_clip_norm': 0.5,
                          'privacy.shared_clip_norm': 2.0},
}
# Two numbers of devices and two block sizes; the ways to make noise that differ
# in code are tried on both, their variants on one of them.
ENGINES = ((1, 5), (4, 1))
ON_BOTH = ('gaussian', 'adaptive', 'head', 'blt')
CASES = [(name, engine) for place, name in enumerate(MECHANISMS)
         for engine in (ENGINES if name in ON_BOTH else [ENGINES[place % 2]])]


def known_uploads(sizes):
  """An algorithm whose clients upload what is known, and learn nothing."""
  sizes = jnp.asarray(sizes)

  def transform(algorithm):
    def init_server(key):
      del key
      return algorithm.server.init(
          jnp.zeros((NUM_ITEMS, DIM)), jnp.zeros(SHARED))

    def client_update(view, examples, num_examples):
      # The ratings are the clients' numbers.
      size = sizes[examples.labels[:, 0].astype(jnp.int32)]
      spread = lambda x: jnp.broadcast_to(
          size.reshape(-1, *[1] * (x.ndim - 1)), x.shape)
      # An unused slot is no row: zeros there, as training leaves them.
      items = jnp.where(examples.used[..., None], spread(view.item_rows), 0)
      ones = jnp.ones(len(size))
      return Contribution(
          items, spread(view.shared), ones, ones, num_examples), view.personal

    return algorithm._replace(
        init_server=init_server, init_personal=lambda key: (),
        client_update=client_update)

  return transform


def make(changes, engine=ENGINES[0], sizes=SIZES):
  """(simulation, PrivateRun) of clients whose uploads are known."""
  num_devices, block_size = engine
  config = make_config(BASE | changes | {
      'engine.block_size': block_size, 'parallel.num_devices': num_devices,
      'parallel.mode': 'single' if num_devices == 1 else 'shard_map'})
  train = make_interactions(ROWS, NUM_ITEMS)
  train = Interactions(
      train.offsets, train.items, np.repeat(
          np.arange(NUM_CLIENTS), train.counts).astype(np.float32),
      train.timestamps, train.user_ids, train.item_ids)
  private = private_runs.prepare(config, train)
  return make_simulation(
      private.config, train.offsets, train.items, train.ratings, NUM_ITEMS,
      open_rows=private.open_rows, strategy=private.strategy,
      transform_algorithm=known_uploads(sizes)), private


def clipped_sum(members, sizes, clip_norms, groups, open_rows=None):
  """The sum of the cohort's clipped deltas: (items, shared), in float64."""
  items, shared = np.zeros((NUM_ITEMS, DIM)), np.zeros(SHARED)
  for c in members:
    if not np.isfinite(sizes[c]):
      continue
    rows = np.zeros((NUM_ITEMS, DIM))
    rows[ROWS[c]] = sizes[c]
    if open_rows is not None:
      rows[~open_rows] = 0
    whole = np.full(SHARED, sizes[c], np.float64)
    norms = [np.linalg.norm(rows), np.linalg.norm(whole)]
    if not groups:
      norms = [np.hypot(*norms)] * 2
    items += rows * min(1, clip_norms[0] / max(norms[0], 1e-30))
    shared += whole * min(1, clip_norms[1] / max(norms[1], 1e-30))
  return items, shared


def run_noise(simulation, private, sizes=SIZES):
  """The noise of every round (items, shared), and the clip norms it had."""
  config, plan = private.plan.config, private.plan
  groups = config.clips_groups
  state = simulation.init()
  noise, norms, rejected = [], [], 0
  for r in range(ROUNDS):
    clip_norms = ((config.item_clip_norm, config.shared_clip_norm) if groups
                  else (config.l2_clip_norm,) * 2)
    if config.clipping == 'adaptive':
      clip_norms = (float(state.server.transform_state.clip_norm),) * 2
    before = jax.tree.map(np.array, state.server[1:3])
    state, metrics = simulation.run(state, r, 1)
    copies = [np.asarray(shard.data)
              for shard in state.server.item_table.addressable_shards]
    for copy in copies[1:]:  # One server, wherever it is.
      np.testing.assert_array_equal(copy, copies[0])
    released = [
        (np.asarray(new, np.float64) - old) * plan.divisor
        for new, old in zip(state.server[1:3], before)]
    true = clipped_sum(
        simulation.sampler(r), sizes, clip_norms, groups, private.open_rows)
    noise.append([x - y for x, y in zip(released, true)])
    norms.append(clip_norms)
    rejected += int(metrics.rejected[0])
  return noise, norms, rejected


def in_units_of_the_accountant(noise, norms, private):
  """What should be independent draws of stddev 1, if the figures are right."""
  plan, strategy = private.plan, private.strategy
  items = np.stack([x[0].ravel() for x in noise])
  shared = np.stack([x[1] for x in noise])
  if private.open_rows is not None:
    rows = np.repeat(private.open_rows, DIM)
    # Nobody sends the other rows, and they get no noise.
    np.testing.assert_array_equal(items[:, ~rows], 0)
    items = items[:, rows]
  growth = np.array(norms)[:, :1] / norms[0][0]  # 1 but for adaptive clipping.
  parts = [items / (plan.noise_stddev_items * growth),
           shared / (plan.noise_stddev_shared * growth)]
  if strategy is not None:
    column = strategy.coefficients
    if len(strategy.decay):
      column = coefficients_of_buffers(strategy.decay, strategy.scale, ROUNDS)
    matrix = np.array([[column[i - j] if i >= j else 0 for j in range(ROUNDS)]
                       for i in range(ROUNDS)])
    # C times the noise is z, whose stddev the accountant was told.
    parts = [matrix @ part / strategy.sensitivity for part in parts]
  return parts


@pytest.mark.parametrize(('mechanism', 'engine'), CASES, ids=str)
def test_the_noise_has_the_stddev_that_the_accountant_was_told(
    mechanism, engine):
  simulation, private = make(MECHANISMS[mechanism], engine)
  assert private.plan.calibration.noise_multiplier == 3
  noise, norms, rejected = run_noise(simulation, private)
  assert rejected == 0
  parts = in_units_of_the_accountant(noise, norms, private)
  # 10^6 draws: 1 % is 14 standard deviations of the estimate. (Of half of
  # them, for one of the parts, 10.)
  draws = np.concatenate([part.ravel() for part in parts])
  assert len(draws) >= (10**6 if private.open_rows is None else 8 * 10**5)
  for part in (*parts, draws):
    assert abs(part.std() - 1) < 0.01
    assert abs(part.mean()) < 5 / np.sqrt(part.size)
  # No draw comes twice, in another round or in the other part.
  rounds = np.concatenate(parts, axis=1)
  correlation = np.corrcoef(rounds) - np.eye(ROUNDS)
  assert np.abs(correlation).max() < 6 / np.sqrt(rounds.shape[1])
  size = min(part.shape[1] for part in parts)
  assert abs(np.mean(parts[0][:, :size] * parts[1][:, :size])) < (
      6 / np.sqrt(ROUNDS * size))
  if mechanism == 'adaptive':
    assert len({norm for norm, _ in norms}) == ROUNDS
  if private.strategy is not None:
    # The control: before C, the rounds' noise is correlated.
    raw = np.corrcoef(np.stack([x[0].ravel() for x in noise]))
    assert (raw - np.eye(ROUNDS)).min() < -0.1


def test_the_noise_of_a_deployment_is_that_of_its_mean():
  """z C / M on the mean of M deltas is z C m / M on the sum of m."""
  plans = {name: make(MECHANISMS[name])[1].plan
           for name in ('gaussian', 'deployment')}
  assert plans['deployment'].noise_stddev_items == pytest.approx(
      plans['gaussian'].noise_stddev_items / 100)
  assert plans['deployment'].divisor == plans['gaussian'].divisor == COHORT


def test_deltas_that_are_not_finite_are_counted_and_never_averaged_in():
  sizes = SIZES.copy()
  sizes[[3, 10, 17]] = np.nan, np.inf, -np.inf
  simulation, private = make(CLIP | {
      'cohort.sampler': 'uniform', 'cohort.size': 0}, sizes=sizes)
  noise, norms, rejected = run_noise(simulation, private, sizes)
  assert rejected == 3 * ROUNDS
  parts = in_units_of_the_accountant(noise, norms, private)
  for part in parts:
    assert abs(part.std() - 1) < 0.01
  touched = np.concatenate([ROWS[c] for c in (3, 10, 17)])
  rows = parts[0].reshape(ROUNDS, NUM_ITEMS, DIM)[:, touched]
  assert abs(rows.std() - 1) < 6 / np.sqrt(2 * rows.size)


def test_an_audit_through_the_engine_needs_the_noise():
  """Canaries: a client each, with a row of its own, of twice the clip norm."""
  claimed = None
  bounds = {}
  num_canaries = 2000
  offsets = np.arange(num_canaries + 1)
  items = np.arange(num_canaries, dtype=np.int32)
  for multiplier in (1.0, 1e-3):
    config = make_config(BASE | CLIP | {
        'rounds': 1, 'cohort.sampler': 'uniform', 'cohort.size': 0,
        'privacy.noise_multiplier': 1.0, 'engine.block_size': 16})
    train = make_interactions(items[:, None], num_canaries)
    private = private_runs.prepare(config, train)
    claimed = private.plan.calibration.epsilon
    # What the accountant is told stays; the engine is given less.
    config = make_config(BASE | CLIP | {
        'rounds': 1, 'cohort.sampler': 'uniform', 'cohort.size': 0,
        'privacy.noise_multiplier': multiplier, 'engine.block_size': 16})

    def transform(algorithm):
      def client_update(view, examples, num_examples):
        delta = jnp.where(
            examples.used[..., None], examples.labels[:, :, None, None], 0)
        ones = jnp.ones(len(num_examples))
        return Contribution(
            delta, jnp.zeros_like(view.shared), ones, ones, num_examples
        ), view.personal
      return algorithm._replace(
          init_server=lambda key: algorithm.server.init(
              jnp.zeros((num_canaries, 1)), jnp.zeros(1)),
          init_personal=lambda key: (), client_update=client_update)

    def release(deltas, seed, config=config, transform=transform):
      simulation = make_simulation(
          config, offsets, items, deltas[:, 0], num_canaries,
          transform_algorithm=transform)
      state = simulation.init()
      noise_state = state.server.transform_state._replace(
          key_data=jax.random.key_data(jax.random.key(seed)))
      state, _ = simulation.run(state._replace(
          server=state.server._replace(transform_state=noise_state)), 0, 1)
      return np.asarray(state.server.item_table) * num_canaries

    found = audit(release, num_canaries, 1, claimed, 1e-3, 0, canary_norm=1.0)
    bounds[multiplier] = found
  assert not bounds[1.0].refuted and 0 < bounds[1.0].lower_bound <= claimed
  assert bounds[1e-3].refuted


@pytest.mark.parametrize('mechanism', ['banded', 'blt', 'amplified'])
def test_no_client_comes_more_often_than_the_strategy_allows_for(mechanism):
  """The sensitivity, from who really came: |C x| of each client's rounds x.

  Where rounds are sampled within groups, each turn is a release of its own, and
  a client's turns must not meet in C.
  """
  simulation, private = make(MECHANISMS[mechanism])
  strategy = private.strategy
  column = strategy.coefficients
  if len(strategy.decay):
    column = coefficients_of_buffers(strategy.decay, strategy.scale, ROUNDS)
  matrix = np.array([[column[i - j] if i >= j else 0 for j in range(ROUNDS)]
                     for i in range(ROUNDS)])
  came = np.zeros((NUM_CLIENTS, ROUNDS))
  for r in range(ROUNDS):
    came[simulation.sampler(r), r] = 1
  if mechanism == 'amplified':
    for rounds in came:
      meets = matrix[:, rounds > 0] != 0
      assert (meets.sum(1) <= 1).all()
    worst = np.linalg.norm(matrix, axis=0).max()
  else:
    worst = np.linalg.norm(came @ matrix.T, axis=1).max()
  assert worst == pytest.approx(strategy.sensitivity, rel=1e-6)
  # The control: a client who came in every round would pass it.
  assert np.linalg.norm(matrix.sum(1)) > 1.2 * strategy.sensitivity
