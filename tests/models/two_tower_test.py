"""Two towers: against the oracle, what stays at home, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.config import Config, TwoTowerConfig
from fedjaxrec.data.context import NUM_MOMENTS, decode_moments
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.models.two_tower import SideInputs
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.population import Numbered, at_moment, is_known
from fedjaxrec.simulation import make_simulation
from tests import draws, oracles, plain
from tests.models import two_tower_oracle as slow

# Client 3 has nothing; client 2 has more than a batch.
COUNTS = [4, 1, 7, 0, 5]
NUM_ITEMS, DIM, ROUNDS, NUM_NEGATIVES = 24, 3, 2, 2
RNG = np.random.default_rng(8)
USERS = RNG.normal(0, 1, (len(COUNTS), 4)).astype(np.float32)
ITEMS = RNG.normal(0, 1, (NUM_ITEMS, 3)).astype(np.float32)
NEW = np.arange(NUM_ITEMS) >= NUM_ITEMS - 3
# Nobody has an item that is not there yet.
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS - 3, seed=3)._replace(
    num_items=NUM_ITEMS)
MOMENTS = RNG.integers(0, NUM_MOMENTS, sum(COUNTS)).astype(np.float32)
SIDE = SideInputs(USERS, ITEMS, NEW)
DATA = config.DataConfig(user_features='published', item_features='published')


def make_config(**changes):
  return Config(**{**dict(
      rounds=ROUNDS, seed=4, data=DATA,
      model=config.ModelConfig(name='two_tower', dim=DIM, init_scale=0.5),
      two_tower=TwoTowerConfig(
          user_hidden=(5,), item_hidden=(), spreadout=0.3),
      objective=plain.objective(l2=0.02, num_negatives=NUM_NEGATIVES),
      client=plain.client(learning_rate=0.2, item_learning_rate=0.4,
                          batch_size=4),
      server=plain.server(), cohort=plain.cohort(size=3),
      engine=config.EngineConfig(block_size=4, num_size_classes=1),
      parallel=config.ParallelConfig(mode='single')), **changes})


def simulate(settings, side=SIDE, **kwargs):
  return make_simulation(
      settings, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS, side=side, **kwargs)


def run(simulation):
  state, metrics = simulation.run(simulation.init(), 0, ROUNDS)
  return (jax.tree.map(np.asarray, state.server),
          simulation.personal_by_client(state), metrics)


@pytest.fixture(scope='module')
def reference():
  """The run that most tests compare with."""
  return run(simulate(make_config()))


def own_of(personal, c):
  return {name: np.float64(leaf[c]) for name, leaf in personal.items()
          if not is_known(leaf)}


def check_against_oracle(settings, side):
  simulation = simulate(settings, side)
  start = simulation.init()
  table, shared = map(slow.copy, (start.server.item_table, start.server.shared))
  own = simulation.personal_by_client(start)
  own = [own_of(own, c) for c in range(len(COUNTS))]
  is_new = np.zeros(NUM_ITEMS, bool) if side.new_items is None else (
      side.new_items)
  clients = [slow.Client(
      None if side.users is None else np.float64(side.users[c]),
      None if side.items is None else np.float64(side.items), is_new)
      for c in range(len(COUNTS))]
  codes = side.train_moments
  draw = draws.make_draw(
      POPULATION if codes is None else POPULATION._replace(labels=codes),
      simulation.key, NUM_NEGATIVES)
  sampler, _ = build_sampler(settings.cohort, POPULATION.counts, settings.seed)
  for r in range(ROUNDS):
    cohort = [c for c in sampler(r) if COUNTS[c]]
    total = [slow.zeros(table), slow.zeros(shared)]
    for c in cohort:
      rows, labels = draw(r, c)
      moments = [None] * len(rows) if codes is None else np.float64(
          decode_moments()[labels.astype(int)])
      rows = np.where(np.append(is_new, True)[rows], NUM_ITEMS, rows)
      new_table, new_shared, own[c] = clients[c].train(
          table, shared, own[c], rows, moments, settings,
          settings.two_tower.spreadout)
      total[0] = slow.add(total[0], slow.add(new_table, table, -1))
      total[1] = slow.add(total[1], slow.add(new_shared, shared, -1))
    table = slow.add(table, total[0], 1 / len(cohort))
    shared = slow.add(shared, total[1], 1 / len(cohort))
  server, personal, _ = run(simulation)
  # Errors of a step pass on at most by rate times curvature, some 1.5 a step;
  # 8 steps of about 60 roundings each of numbers up to 4.
  close = lambda got, wanted: np.testing.assert_allclose(
      got, wanted, atol=oracles.tolerance(8, 60, gain=16.0))
  jax.tree.map(close, slow.copy(server.item_table), table)
  jax.tree.map(close, slow.copy(server.shared), shared)
  for c, mine in enumerate(own):
    jax.tree.map(close, own_of(personal, c), mine)
  now = [None] * len(COUNTS) if codes is None else np.float64(
      decode_moments()[side.test_moments.astype(int)])
  scores = np.array([[clients[c].score(table, shared, own[c], i, now[c])
                      for i in range(NUM_ITEMS)] for c in range(len(COUNTS))])
  got = jax.vmap(simulation.algorithm.score, (0, None, None))(
      at_moment(personal, side.test_moments), server.item_table, server.shared)
  np.testing.assert_allclose(
      got, scores, atol=10 * oracles.tolerance(8, 60, gain=16.0))


@pytest.mark.parametrize(('side', 'towers'), [
    (SIDE, {}),
    (SideInputs(None, ITEMS), {'item_hidden': (4,), 'spreadout': 0.0}),
    (SideInputs(USERS, None), {'user_hidden': (), 'spreadout': 0.0}),
    (SideInputs(USERS, ITEMS), {'personal_vector': False}),
    (SideInputs(None, ITEMS, train_moments=MOMENTS, test_moments=MOMENTS[:5]),
     {'context': True}),
], ids=['both', 'items alone', 'users alone', 'no vector', 'context'])
def test_two_rounds_are_the_oracles(side, towers):
  settings = make_config(client=plain.client(
      learning_rate=0.2, item_learning_rate=0.4, batch_size=4, epochs=2))
  check_against_oracle(dataclasses.replace(
      settings, two_tower=dataclasses.replace(settings.two_tower, **towers)),
                       side)


def test_features_stay_as_they_are_and_at_home(reference):
  """Though the loss has an L2 term, and every gradient reads them."""
  server, personal, _ = reference
  np.testing.assert_array_equal(personal['user_features'].values, USERS)
  algorithm = simulate(make_config()).algorithm
  sent = jax.eval_shape(algorithm.empty_contribution, server)
  assert set(sent[0]) == {'item', 'item_bias'}
  assert set(sent[1]) == {'bias', 'user_tower', 'item_tower'}
  assert set(server.item_table) == {'item', 'item_bias'}


def test_a_plain_upload_shows_which_features_are_on():
  """What the model's docstring warns of: the tower's columns move alone."""
  one_hot = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
  settings = make_config(
      rounds=1, cohort=plain.cohort(size=1),
      objective=plain.objective(num_negatives=NUM_NEGATIVES, l2=0.0))
  simulation = simulate(settings, SideInputs(one_hot, ITEMS))
  client = next(c for c in simulation.sampler(0))
  start = jax.tree.map(np.asarray, simulation.init().server)
  state, _ = simulation.run(simulation.init(), 0, 1)
  moved = np.asarray(
      state.server.shared['user_tower']['hidden'][0]['kernel']
  ) - start.shared['user_tower']['hidden'][0]['kernel']
  assert COUNTS[client]
  np.testing.assert_array_equal(
      np.abs(moved).sum(1) > 0, one_hot[client] > 0)


def test_new_items_are_not_drawn_and_their_rows_do_not_count(reference):
  server, personal, _ = reference
  simulation = simulate(make_config())
  start = jax.tree.map(np.asarray, simulation.init().server)
  np.testing.assert_array_equal(
      server.item_table['item'][NEW], start.item_table['item'][NEW])
  score = jax.vmap(simulation.algorithm.score, (0, None, None))
  before = score(personal, server.item_table, server.shared)
  changed = {name: np.where(NEW.reshape(-1, *[1] * (x.ndim - 1)), 7.0, x)
             for name, x in server.item_table.items()}
  np.testing.assert_array_equal(
      before, score(personal, changed, server.shared))
  # Without the mark they are drawn, and their rows count: the check can fail.
  old = simulate(make_config(), SIDE._replace(new_items=None))
  drawn, own, _ = run(old)
  assert (drawn.item_table['item'][NEW] != start.item_table['item'][NEW]).any()
  assert (np.asarray(jax.vmap(old.algorithm.score, (0, None, None))(
      own, changed, drawn.shared)) != before).any()


def test_a_row_is_scored_by_itself(reference):
  server, personal, _ = reference
  score = simulate(make_config()).algorithm.score
  own = jax.tree.map(lambda x: x[2], personal)
  whole = np.asarray(score(own, server.item_table, server.shared))
  for numbers in ([5], [7, 3, 23, 0], np.arange(NUM_ITEMS)[::-1]):
    rows = jax.tree.map(lambda x, n=numbers: x[n], server.item_table)
    some = score(own, Numbered(rows, np.array(numbers, np.int32)),
                 server.shared)
    # Sums of ten terms of order 1, in another order.
    np.testing.assert_allclose(some, whole[numbers], atol=30 * 2**-23)
  with pytest.raises(ValueError, match='without their numbers'):
    score(own, rows | {'item_bias': rows['item_bias'][:4]}, server.shared)


@pytest.mark.parametrize('changes', [
    {'parallel': config.ParallelConfig(mode='shard_map', num_devices=4)},
    {'engine': config.EngineConfig(data='host', block_size=2)},
], ids=['four devices', 'data on the host'])
def test_devices_and_hosted_data_do_not_matter(reference, changes):
  server, personal, _ = run(simulate(make_config(**changes)))
  # The same numbers, summed in another order.
  jax.tree.map(
      lambda got, wanted: np.testing.assert_allclose(
          got, wanted, atol=oracles.tolerance(8, 60, gain=16.0)),
      (server.item_table, server.shared, personal),
      (reference[0].item_table, reference[0].shared, reference[1]))
  np.testing.assert_array_equal(personal['user_features'].values, USERS)


@pytest.mark.parametrize('changes', [
    {'privacy': config.PrivacyConfig(l2_clip_norm=0.5, noise_multiplier=0.1),
     'compression': config.CompressionConfig(quantize='qsgd', bits=8)},
    {'secure': config.SecureConfig(level='ideal'),
     'privacy': config.PrivacyConfig(l2_clip_norm=0.5)},
], ids=['noisy and quantized', 'secure'])
def test_the_ways_of_an_upload_leave_features_alone(changes):
  server, personal, metrics = run(simulate(make_config(**changes)))
  assert np.isfinite(np.asarray(metrics.loss)[:ROUNDS]).all()
  np.testing.assert_array_equal(personal['user_features'].values, USERS)
  assert set(server.item_table) == {'item', 'item_bias'}


@pytest.mark.parametrize(('changes', 'message'), [
    ({'model': config.ModelConfig(), 'two_tower': TwoTowerConfig()},
     'reads no features'),
    ({'model': config.ModelConfig(), 'data': config.DataConfig(),
      'two_tower': TwoTowerConfig(spreadout=0.3)},
     'two_tower.spreadout=0.3 with model.name=mf'),
    ({'model': config.ModelConfig(), 'data': config.DataConfig(),
      'two_tower': TwoTowerConfig(context=True)},
     'two_tower.context=True with model.name=mf'),
    ({'data': config.DataConfig()}, 'without a table of features'),
    ({'data': config.DataConfig(item_features='published')},
     'user_hidden=.* without data.user_features'),
    ({'data': config.DataConfig(user_features='published'),
      'two_tower': TwoTowerConfig(item_hidden=(4,))},
     'item_hidden=.* without data.item_features'),
    ({'data': config.DataConfig(item_features='published'),
      'two_tower': TwoTowerConfig(personal_vector=False)}, 'would be alike'),
    ({'algorithm': config.AlgorithmConfig(name='ditto')},
     'algorithm.name=ditto with model.name=two_tower'),
    ({'personalization': config.PersonalizationConfig(finetune_steps=2)},
     'finetune_steps=2 with model.name=two_tower'),
    ({'objective': config.ObjectiveConfig(name='squared_error')},
     'two_tower.spreadout=0.3 with objective.name=squared_error'),
    ({'objective': config.ObjectiveConfig(name='squared_error'),
      'two_tower': TwoTowerConfig(context=True)},
     'two_tower.context=True with objective.name=squared_error'),
    ({'secure': config.SecureConfig(level='protocol')},
     'use secure.level=ideal'),
])
def test_what_does_not_go_together_is_refused(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    make_config(**changes)
  assert str(error.value).endswith('.')


def test_features_of_another_population_are_refused():
  with pytest.raises(ValueError, match='side.users has 4 rows'):
    simulate(make_config(), SIDE._replace(users=USERS[:4]))
  with pytest.raises(ValueError, match='side.train_moments has 2 entries'):
    simulate(make_config(), SIDE._replace(train_moments=MOMENTS[:2]))
  with pytest.raises(ValueError, match='side.items has 3 rows'):
    simulate(make_config(), SIDE._replace(items=ITEMS[:3]))
  with pytest.raises(ValueError, match='make_simulation'):
    build_recommender(make_config().model, NUM_ITEMS)
