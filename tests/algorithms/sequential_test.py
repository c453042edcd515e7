"""Sequence models: forward, rounds and refit against oracles; what they see."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.algorithms import sequential
from fedjaxrec.communication import touched_rows as plain_rows
from fedjaxrec.config.learning import SEQUENCE_MODELS
from fedjaxrec.data.sources import require_times
from fedjaxrec.examples import Examples
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.population import Client
from fedjaxrec.simulation import make_simulation
from tests import oracles, plain, small_runs
from tests.algorithms import sequential_oracles as slow

# Client 3 has nothing, client 1 nothing to predict, client 2 more than is read.
COUNTS = [4, 1, 9, 0, 5]
NUM_ITEMS, DIM, LENGTH, NUM_NEGATIVES, ROUNDS = 16, 4, 5, 2, 2
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=3)
NAMES = SEQUENCE_MODELS


def make_model(name, **changes):
  return config.ModelConfig(**{
      'name': name, 'dim': DIM, 'init_scale': 0.5, 'max_length': LENGTH,
      'num_blocks': 1, 'num_heads': 2, **changes})


def make_config(name, **changes):
  return plain.whole(**{
      'rounds': ROUNDS, 'seed': 4, 'model': make_model(name),
      'algorithm': config.AlgorithmConfig(name='sequential'),
      'objective': plain.objective(num_negatives=NUM_NEGATIVES),
      'client': plain.client(learning_rate=0.4, item_learning_rate=0.9),
      'server': plain.server(), 'cohort': plain.cohort(size=3),
      'engine': config.EngineConfig(block_size=4, num_size_classes=1),
      'parallel': config.ParallelConfig(mode='single'), **changes})


@functools.cache
def run(name, block_size=4, num_size_classes=1):
  """(simulation, server before, state after, personal after refit)."""
  settings = make_config(name, engine=config.EngineConfig(
      block_size=block_size, num_size_classes=num_size_classes))
  simulation = make_simulation(
      settings, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS)
  start = simulation.init()
  before = jax.tree.map(np.array, start.server)
  state, _ = simulation.run(start, 0, ROUNDS)
  return simulation, before, state, simulation.refit(
      state.server, simulation.personal_by_client(state))


def exact(tree):
  return jax.tree.map(np.float64, tree)


def encode_slowly(name, num_heads=2):
  return slow.encode_gru4rec if name == 'gru4rec' else functools.partial(
      slow.encode_sasrec, num_heads=num_heads)


def client_of(items, places, capacity):
  """One client whose item i stands at places[i] of its sequence."""
  order = np.argsort(items)
  padding = capacity - len(items)
  return Client(
      jnp.int32(0), jnp.int32(len(items)),
      jnp.pad(jnp.asarray(items, jnp.int32)[order], (0, padding),
              constant_values=NUM_ITEMS),
      jnp.pad(jnp.asarray(places, jnp.float32)[order], (0, padding)))


@jax.jit
def draw_one(client, key):
  return sequential.draw_sequence(
      client, key, NUM_ITEMS, NUM_NEGATIVES, LENGTH)


def draw(c, capacity, key=None):
  items, _ = POPULATION.client(c)
  return draw_one(client_of(items, np.arange(len(items)), capacity),
                  jax.random.key(7) if key is None else key)


class TestForward:

  @pytest.mark.parametrize('name', NAMES)
  def test_the_states_are_the_papers(self, name):
    model = make_model(name, num_blocks=2)
    recommender = build_recommender(model, NUM_ITEMS)
    rng = np.random.default_rng(0)
    table, shared = jax.tree.map(
        lambda x: rng.normal(0, 0.6, x.shape).astype(np.float32),
        jax.eval_shape(recommender.init_server, jax.random.key(0)))
    items = np.array([3, 9, 0, 7])
    # A padding place holds something, and it must not matter what.
    window = np.array([5, *items])
    states = jax.jit(recommender.encode)(
        jax.tree.map(lambda x: x[window], table), np.arange(5) > 0, shared)
    expected = encode_slowly(name)(exact(table), exact(shared), items)
    # Sums of at most eight products one after the other, in ten layers; a norm
    # divides by a deviation of 0.1 at least.
    np.testing.assert_allclose(
        states[1:], expected, atol=oracles.tolerance(10, 8, gain=10))

  @pytest.mark.parametrize('name', NAMES)
  def test_a_state_does_not_depend_on_later_items(self, name):
    recommender = build_recommender(make_model(name), NUM_ITEMS)
    table, shared = jax.jit(recommender.init_server)(jax.random.key(0))
    rows = jax.tree.map(lambda x: x[:4], table)
    slopes = jax.jit(jax.jacobian(lambda item: recommender.encode(
        {**rows, 'item': item}, jnp.ones(4, bool), shared)))(rows['item'])
    size = np.abs(np.asarray(slopes)).max((1, 3))  # [state, item]
    assert not np.triu(size, 1).any()
    assert (size[np.tril_indices(4)] > 0).all()  # The control: the past counts.

  def test_a_target_is_scored_by_what_came_before_it(self):
    recommender = build_recommender(make_model('sasrec'), NUM_ITEMS)
    table, shared = jax.jit(recommender.init_server)(jax.random.key(0))
    rows = jax.tree.map(
        lambda x: x[:12].reshape(4, 3, *x.shape[1:]), table)['item']
    slopes = jax.jit(jax.jacobian(lambda x: sequential.score_sequence(
        recommender, {'item': x}, jnp.arange(12).reshape(4, 3) > 2,
        shared)[:, 0]))(rows)
    size = np.abs(np.asarray(slopes)).max(-1)  # [target, place, slot]
    # Itself in its own place, and all before it as inputs.
    for target in range(1, 4):
      assert (size[target, :target + 1, 0] > 0).all()
      assert not size[target, target + 1:].any()
      assert not size[target, :, 1:].any()


class TestDraws:

  @pytest.mark.parametrize('c', range(len(COUNTS)))
  def test_items_come_in_order_of_time_with_negatives_of_the_rest(self, c):
    items, _ = POPULATION.client(c)
    found = jax.tree.map(np.asarray, draw(c, 16))
    latest = items[-(LENGTH + 1):]
    np.testing.assert_array_equal(found.rows[LENGTH + 1 - len(latest):, 0],
                                  latest)
    used = found.rows[found.used]
    assert len(set(used)) == len(used)
    negatives = found.rows[:, 1:][found.used[:, 1:]]
    assert not set(negatives) & set(items)
    count = len(items)
    targets = max(len(latest) - 1, 0)
    assert found.used[:, 1:].sum() == min(
        targets * NUM_NEGATIVES, NUM_ITEMS - count)
    assert not found.used[:max(LENGTH + 2 - len(latest), 0), 1:].any()
    np.testing.assert_array_equal(found.used, found.rows < NUM_ITEMS)
    # What the ledger charges for.
    assert found.used.sum() == sequential.touched_rows(
        np.array(count), NUM_NEGATIVES, NUM_ITEMS, LENGTH)
    assert found.used.sum() <= plain_rows(
        np.array(count), NUM_NEGATIVES, NUM_ITEMS)

  def test_a_draw_does_not_depend_on_the_padding(self):
    short, long = draw(0, 4), draw(0, 16)
    np.testing.assert_array_equal(short.rows, long.rows[-len(short.rows):])
    assert not long.used[:-len(short.rows)].any()

  def test_every_other_item_is_a_negative_sooner_or_later(self):
    """Those held out, too: sparing them would leak them."""
    items, _ = POPULATION.client(0)
    keys = jax.random.split(jax.random.key(1), 60)
    found = jax.jit(jax.vmap(lambda key: draw(0, 4, key).rows))(keys)
    drawn = set(np.asarray(found)[:, :, 1:].reshape(-1)) - {NUM_ITEMS}
    assert drawn == set(range(NUM_ITEMS)) - set(items)

  def test_places_are_those_of_the_rows_and_other_algorithms_read_ratings(self):
    offsets, labels = np.array([0, 2, 2, 5]), np.full(5, 4, np.float32)
    settings = make_config('sasrec')
    np.testing.assert_array_equal(
        sequential.label_interactions(settings, offsets, labels),
        [0, 1, 0, 1, 2])
    assert sequential.label_interactions(
        config.Config(), offsets, labels) is labels
    items = np.arange(5)
    one, other = sequential.label_members(
        settings, [(offsets, items, labels)] * 2)
    assert one[2] is other[2] and one[1] is items
    training = [(offsets, items, labels)]
    assert sequential.label_members(config.Config(), training) is training


class TestRounds:

  @pytest.mark.parametrize('name', NAMES)
  def test_two_rounds_are_those_of_the_slow_reference(self, name):
    simulation, before, state, personal = run(name)
    settings = make_config(name)
    sampler, _ = build_sampler(
        settings.cohort, POPULATION.counts, settings.seed)
    encode = encode_slowly(name)
    model = exact(before.item_table), exact(before.shared)
    for r in range(ROUNDS):
      moved = []
      for c in sampler(r):
        key = jax.random.fold_in(jax.random.fold_in(simulation.key, r), c)
        rows = np.asarray(draw(c, 16, key).rows)
        rows = rows[rows[:, 0] < NUM_ITEMS]
        moved.append(slow.descend(
            lambda table, shared, rows=rows: slow.client_loss(
                encode, table, shared, rows[:, 0],
                [line[line < NUM_ITEMS] for line in rows[:, 1:]]),
            *model, 0.9, 0.4) if len(rows) > 1 else model)
      model = slow.mean_of(moved)
    # Two steps of some 60 roundings, doubled backwards; differences of the
    # oracle are off by 1e-10. A norm has a gain of up to 10.
    atol = oracles.tolerance(2, 120, gain=10)
    for side, found in zip(model, state.server[1:3]):
      jax.tree.map(lambda want, got: np.testing.assert_allclose(
          got, want, atol=atol), side, jax.tree.map(np.asarray, found))
    moved = np.abs(np.asarray(state.server.item_table['item'])
                   - before.item_table['item']).max()
    assert moved > 100 * atol
    for c, count in enumerate(COUNTS):
      items, _ = POPULATION.client(c)
      want = encode(*model, items[-LENGTH:])[-1] if count else np.zeros(DIM)
      np.testing.assert_allclose(
          personal['state'][c], want, atol=20 * atol)

  def test_the_result_does_not_depend_on_blocks_and_classes(self):
    (_, _, one, mine), (_, _, other, theirs) = (
        run('sasrec'), run('sasrec', block_size=1, num_size_classes=2))
    atol = oracles.tolerance(2, 120, gain=10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=atol),
        (one.server.item_table, one.server.shared, mine),
        (other.server.item_table, other.server.shared, theirs))

  def test_rounds_leave_what_is_encoded_alone(self):
    simulation, _, state, personal = run('sasrec')
    assert not np.any(simulation.personal_by_client(state)['state'])
    assert np.any(personal['state'][0]) and not np.any(personal['state'][3])


class TestRefusals:

  def test_sequences_without_times(self):
    split = small_runs.random_split(4, 30, 3)
    settings = make_config('sasrec')
    require_times(settings, split)
    blind = dataclasses.replace(split, train=dataclasses.replace(
        split.train, has_timestamps=False))
    with pytest.raises(
        ValueError, match='has_timestamps=False.*MovieLens.*model.name=mf'):
      require_times(settings, blind)
    require_times(config.Config(), blind)

  def test_a_model_that_reads_no_sequence(self):
    recommender = build_recommender(config.ModelConfig(dim=2), NUM_ITEMS)
    with pytest.raises(ValueError, match='encode=None.*sasrec or gru4rec'):
      sequential.encoder(recommender)


def test_a_first_place_has_no_past():
  used = np.array([[False], [True], [True]])
  np.testing.assert_array_equal(
      sequential.has_past(jnp.asarray(used)), [[False], [False], [True]])
  assert isinstance(draw(0, 4), Examples)
