"""Fold-in: held-out users against an oracle, and that it helps them."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjaxrec.config import ALGORITHMS
from fedjaxrec.data.splits import Split
from fedjaxrec.evaluation.ranking import make_ranker
from fedjaxrec.personalization.fold_in import make_fold_in
from fedjaxrec.simulation import make_simulation
from tests import draws, oracles
from tests.small_runs import chance_bound, make_config, random_split

NUM_ITEMS, DIM, EPOCHS = 40, 4, 3
# User 2 trains and shows nothing; the others have been held out.
SHOWN = [3, 5, 0, 9, 1]
POPULATION = oracles.make_population(SHOWN, NUM_ITEMS, seed=6)
# Batches shorter than the longest client, each seen twice; a server with a
# memory, a schedule, weights: fold-in must use the clients' settings, hold the
# item rows still and use nothing of the server's.
CONFIG = make_config({
    'seed': 3, 'client.batch_size': 4, 'client.epochs': 2,
    'client.schedule': 'cosine',
    'objective.l2': 0.01, 'split.name': 'user_holdout',
    'evaluation.fold_in_rounds': EPOCHS,
    'model.init_scale': 0.5, 'cohort.size': 0,
    'cohort.weighting': 'examples'})


def interactions_of(population):
  split = random_split(len(population.counts), population.num_items, 1)
  return dataclasses.replace(
      split.train, offsets=population.offsets, items=population.items,
      ratings=population.labels,
      timestamps=np.zeros(len(population.items), np.int64))


def copy(tree):
  return jax.tree.map(lambda leaf: np.array(leaf), tree)


def assert_equal(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope='module')
def simulation():
  """A federation of these users: its initial values and its key."""
  return make_simulation(
      CONFIG, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS)


@pytest.fixture(scope='module')
def trained():
  """Parameters as a federation might have left them."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(0, 0.4, shape).astype(np.float32)
  personal = {'user': normal(len(SHOWN), DIM), 'user_bias': normal(len(SHOWN))}
  table = {'item': normal(NUM_ITEMS, DIM), 'item_bias': normal(NUM_ITEMS)}
  return personal, table, {'bias': np.float32(0.3)}


@pytest.fixture(scope='module')
def fit():
  return make_fold_in(CONFIG, interactions_of(POPULATION))


@pytest.fixture(scope='module')
def fitted(fit, trained):
  return fit(*trained)


class TestAgainstTheOracle:

  def test_held_out_users_train_alone_on_a_table_that_stands_still(
      self, fitted, simulation, trained):
    """As in a round, each from the server's parameters as they are."""
    _, table, shared = jax.tree.map(np.float64, trained)
    fresh = simulation.personal_by_client(simulation.init())
    draw = draws.make_draw(POPULATION, simulation.key, 2)
    # The longest client takes twice three steps in a round.
    atol = oracles.tolerance(6 * EPOCHS, DIM + 12 + 4 * 3)
    settings = oracles.fields(
        CONFIG.client, 'schedule', 'final_fraction', 'item_learning_rate')
    for c in (0, 1, 3, 4):
      own = {name: np.float64(leaf[c]) for name, leaf in fresh.items()}
      start = dict(own)
      for r in range(EPOCHS):
        _, own = oracles.train_client(
            table, shared, own, *draw(r, c), l2=0.01, item_learning_rate=0.0,
            **settings)
      for name, leaf in own.items():
        np.testing.assert_allclose(
            fitted[name][c], leaf, rtol=0, atol=atol)
        # Positive control: to stand still would be noticed.
        assert np.abs(leaf - start[name]).max() > 100 * atol

  def test_others_keep_theirs_to_the_bit(self, fitted, trained):
    personal, _, _ = trained
    for name, leaf in personal.items():
      np.testing.assert_array_equal(fitted[name][2], leaf[2])
      assert fitted[name].dtype == leaf.dtype
      assert fitted[name].shape == leaf.shape

  def test_nothing_that_is_handed_in_changes(self, fit, trained):
    before = copy(trained)
    first = fit(*trained)
    assert_equal(trained, before)
    assert_equal(fit(*trained), first)  # And nothing is remembered.

  def test_what_held_out_users_had_before_does_not_matter(
      self, fit, fitted, trained):
    """They start afresh: a stale cache cannot help or hurt them."""
    personal, table, shared = trained
    other = jax.tree.map(lambda leaf: leaf + 1, personal)
    again = fit(other, table, shared)
    for name, leaf in fitted.items():
      np.testing.assert_array_equal(again[name][[0, 1, 3, 4]],
                                    leaf[[0, 1, 3, 4]])
      np.testing.assert_array_equal(again[name][2], other[name][2])

  def test_the_server_s_settings_do_not_matter(self, fitted, trained):
    config = dataclasses.replace(
        CONFIG, rounds=77, server=dataclasses.replace(
            CONFIG.server, optimizer='adagrad', learning_rate=9.0,
            row_normalization='contributors'))
    assert_equal(
        make_fold_in(config, interactions_of(POPULATION))(*trained), fitted)


def test_without_fold_in_everything_is_returned_as_it_is(trained):
  nobody = interactions_of(POPULATION).take(np.zeros(sum(SHOWN), bool))
  personal, table, shared = trained
  assert make_fold_in(CONFIG, nobody)(personal, table, shared) is personal


NEEDS = {
    'fedease': {'rounds': 1, 'cohort.size': 0,
                'evaluation.fold_in_rounds': 2},
    'dpals': {'privacy.l2_clip_norm': 1.0, 'cohort.size': 0},
    'sequential': {'model.name': 'sasrec'},
    'metamf': {'model.name': 'metamf'},
}
SECTIONS = {
    'plain': {}, 'privacy': {'privacy.noise_multiplier': 1.0,
                             'privacy.l2_clip_norm': 1.0},
    'local gaussian': {'local_privacy.mechanism': 'gaussian',
                       'local_privacy.epsilon': 1.0},
    'local laplace': {'local_privacy.mechanism': 'laplace',
                      'local_privacy.epsilon': 1.0},
    'secure': {'secure.level': 'masked'},
    'download': {'compression.downlink_bits': 8},
    'upload': {'compression.quantize': 'qsgd'},
}


@pytest.mark.parametrize('name', ALGORITHMS)
def test_whoever_can_train_can_be_folded_in(name):
  """Whatever section is on for what leaves the device, which nothing does."""
  accepted = []
  for label, section in SECTIONS.items():
    try:
      config = make_config({
          'algorithm.name': name, 'split.name': 'user_holdout',
          'evaluation.fold_in_rounds': 1, **NEEDS.get(name, {}), **section})
    except ValueError:
      continue
    try:
      fit = make_fold_in(config, interactions_of(POPULATION))
    except ValueError as refusal:
      # As in training: by name, or it is a defect of the fold-in.
      raise AssertionError((label, str(refusal))) from refusal
    assert callable(fit)
    accepted.append(label)
  assert 'plain' in accepted


def test_a_second_fit_compiles_nothing(fit, fitted, trained):
  """It is called at every look at the validation set."""
  events = []

  def listen(event, duration, **kwargs):
    if event == '/jax/core/compile/backend_compile_duration':
      events.append(kwargs)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    fit(*trained)
    assert not events
    jax.jit(lambda x: x + 1)(0.0)
    assert events  # Positive control.
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_users_who_are_fitted_find_more():
  """200 users in four tastes train; 100 others show ten items, and are asked.

  Unfitted, a held-out user knows nothing of its own taste: at most chance.
  """
  split = random_split(300, 100, 10, num_blocks=4)
  held_out = np.arange(300) >= 200
  of_held_out = held_out[split.train.users]
  split = Split(
      'user_holdout', split.train.take(~of_held_out), split.validation,
      split.test.take(held_out[split.test.users]),
      split.train.take(of_held_out))
  config = make_config({
      'rounds': 40, 'cohort.size': 0, 'server.optimizer': 'sgd',
      'server.learning_rate': 1.0, 'server.row_normalization': 'contributors',
      'client.learning_rate': 2.0, 'client.item_learning_rate': 20.0,
      'engine.rounds_per_call': 40, 'evaluation.fold_in_rounds': 20})
  simulation = make_simulation(
      config, split.train.offsets, split.train.items, split.train.ratings, 100)
  state, _ = simulation.run(simulation.init(), 0, 40)
  server = jax.tree.map(np.asarray, state.server)
  rank = make_ranker(
      simulation.algorithm.score, split.test, [split.fold_in], 100,
      protocol='full', batch_size=100, seed=0)
  unfitted = simulation.personal_by_client(state)
  fitted = make_fold_in(config, split.fold_in)(
      unfitted, server.item_table, server.shared)
  hits = []
  for personal in (unfitted, fitted):
    ranks = rank(personal, server.item_table, server.shared)
    assert (ranks.num_candidates == 89).all()
    hits.append(int((ranks.rank < 10).sum()))
  bound = chance_bound(100 * 10 / 90)
  assert hits[0] < bound < hits[1], (hits, bound)
