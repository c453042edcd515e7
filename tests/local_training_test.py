"""A client's training equals training on a copy of the whole item table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec.config import ModelConfig
from fedjaxrec.examples import Examples
from fedjaxrec.local_training import View, make_local_training, num_steps
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.objectives import OBJECTIVES
from fedjaxrec.optimizers import (
    build_item_optimizer,
    build_optimizer,
    stands_still,
)
from tests import oracles, plain

NUM_ITEMS, DIM, BATCH_SIZE, NUM_NEGATIVES = 40, 3, 4, 2
# In one block: nobody, less than a batch, a batch, and more, not whole.
COUNTS = [0, 1, 4, 7, 12]
CAPACITY = 12
SCORE = build_recommender(ModelConfig(dim=DIM), NUM_ITEMS).score


@pytest.fixture(scope='module')
def problem():
  """Rows [B, capacity, 1 + k], labels, and everybody's parameters."""
  rng = np.random.default_rng(7)
  block = len(COUNTS)
  rows = np.full((block, CAPACITY, 1 + NUM_NEGATIVES), NUM_ITEMS, np.int32)
  for c, count in enumerate(COUNTS):
    drawn = rng.permutation(NUM_ITEMS)[:count * (1 + NUM_NEGATIVES)]
    rows[c, :count] = drawn.reshape(count, 1 + NUM_NEGATIVES)
  rows[3, 4:6, 2] = rows[4, 11, 1:] = NUM_ITEMS  # Negatives ran short.
  labels = np.where(
      np.arange(CAPACITY) < np.array(COUNTS)[:, None],
      rng.uniform(0.5, 1.5, (block, CAPACITY)), 0).astype(np.float32)
  normal = lambda *shape: rng.normal(0, 0.5, shape).astype(np.float32)
  table = {'item': normal(NUM_ITEMS, DIM), 'item_bias': normal(NUM_ITEMS)}
  personal = {'user': normal(block, DIM), 'user_bias': normal(block)}
  return rows, labels, table, {'bias': normal()}, personal


@pytest.fixture(scope='module')
def train(problem):
  """Trains the block; tests that ask for the same settings share the run."""
  done = {}

  def run(**settings):
    key = tuple(sorted(settings.items()))
    if key not in done:
      done[key] = train_block(problem, **settings)
    return done[key]

  return run


def train_block(problem, objective='bce', l2=0.0, scale=1.0, tile=0,
                lazy=True, **client):
  config = plain.client(batch_size=BATCH_SIZE, **client)
  run = make_local_training(
      SCORE, OBJECTIVES[objective],
      build_optimizer(config, config.learning_rate),
      build_item_optimizer(config),
      batch_size=BATCH_SIZE, epochs=config.epochs, steps=config.steps, l2=l2,
      proximal_mu=config.proximal_mu, lazy_items=lazy and stands_still(config),
      tile_size=tile)
  return train_with(run, problem, scale)


def train_with(run, problem, scale=1.0):
  rows, labels, table, shared, personal = problem
  gathered = {name: np.take(np.pad(leaf, [(0, 1)] + [(0, 0)] * (leaf.ndim - 1)),
                            rows, axis=0) for name, leaf in table.items()}
  view = View(
      gathered, {'bias': np.full(len(rows), shared['bias'])}, personal,
      jnp.float32(scale))
  return jax.tree.map(np.asarray, jax.jit(run)(
      view, Examples(rows, labels, rows < NUM_ITEMS), np.array(COUNTS)))


def check(problem, result, objective='bce', l2=0.0, scale=1.0, **client):
  config = plain.client(batch_size=BATCH_SIZE, **client)
  rows, labels, table, shared, personal = problem
  contribution, new_personal = result
  # The longest chain: a score (dim + 3 and the loss's slope), then the sum over
  # the slots of a batch. An optimizer's own arithmetic makes a few more.
  steps = config.steps or 3 * config.epochs
  roundings = DIM + 12 + BATCH_SIZE * (1 + NUM_NEGATIVES)
  gain = 1.0
  if {config.optimizer, config.item_optimizer} & {
      'adagrad', 'adam', 'yogi', 'rowwise_adagrad'}:
    gain = max(config.learning_rate, config.item_learning_rate) / 1e-3
  atol = oracles.tolerance(steps, roundings, gain)
  for c, count in enumerate(COUNTS):
    sent, own = oracles.train_client(
        *(jax.tree.map(np.float64, tree) for tree in (table, shared)),
        {name: leaf[c].astype(float) for name, leaf in personal.items()},
        rows[c, :count], labels[c, :count], objective=objective, l2=l2,
        learning_rate_scale=scale,
        **oracles.fields(config, 'schedule', 'final_fraction'))
    for name, leaf in table.items():
      whole = np.zeros((NUM_ITEMS + 1, *leaf.shape[1:]))
      np.add.at(whole, rows[c], contribution.item_rows[name][c])
      np.testing.assert_allclose(
          whole[:NUM_ITEMS], sent.table[name], rtol=0, atol=atol)
    for tree, expected in (
        (contribution.shared, sent.shared), (new_personal, own)):
      for name in expected:
        np.testing.assert_allclose(
            tree[name][c], expected[name], rtol=0, atol=atol)
    np.testing.assert_allclose(
        contribution.loss_sum[c], sent.loss_sum, rtol=1e-5)
    assert contribution.loss_count[c] == sent.loss_count
    assert contribution.num_examples[c] == sent.num_examples


@pytest.mark.parametrize('case', [
    {'epochs': 2},
    {'steps': 4},
    {'objective': 'bpr', 'l2': 0.05, 'scale': 0.5, 'learning_rate': 0.3},
    {'objective': 'squared_error', 'proximal_mu': 0.5, 'epochs': 2},
    {'optimizer': 'momentum', 'l2': 0.05, 'proximal_mu': 0.5, 'epochs': 2,
     'momentum': 0.5},
    {'optimizer': 'adagrad', 'l2': 0.05, 'steps': 5, 'scale': 0.5,
     'learning_rate': 0.05, 'item_learning_rate': 0.02},
    {'optimizer': 'adam', 'objective': 'bpr', 'proximal_mu': 0.5, 'steps': 4,
     'learning_rate': 0.02, 'item_learning_rate': 0.02},
    {'optimizer': 'adam', 'objective': 'squared_error', 'l2': 0.05,
     'learning_rate': 0.02, 'item_learning_rate': 0.05},
    {'optimizer': 'yogi', 'objective': 'bpr', 'epochs': 2, 'l2': 0.05,
     'learning_rate': 0.02, 'item_learning_rate': 0.02},
    {'item_optimizer': 'rowwise_adagrad', 'item_learning_rate': 0.02,
     'l2': 0.05},
    {'item_optimizer': 'rowwise_adagrad', 'item_learning_rate': 0.02,
     'l2': 0.05, 'steps': 5, 'scale': 0.5},
    {'optimizer': 'adam', 'item_optimizer': 'adagrad', 'epochs': 2,
     'learning_rate': 0.02, 'item_learning_rate': 0.02, 'l2': 0.05},
    {'item_optimizer': 'momentum', 'item_learning_rate': 0.2, 'epochs': 2,
     'momentum': 0.5},
], ids=lambda case: ' '.join(f'{k}={v}' for k, v in case.items()))
def test_touched_rows_give_the_numbers_of_the_whole_table(
    problem, train, case):
  settings = {'item_learning_rate': 0.7, **case}
  result = train(**settings)
  check(problem, result, **settings)


def test_the_oracle_is_sharp_enough_to_see_a_forgotten_term(problem, train):
  """The control: half a percent of a step is beyond the tolerance."""
  result = train(epochs=2, item_learning_rate=0.7)
  check(problem, result, epochs=2, item_learning_rate=0.7)
  for wrong in ({'l2': 1e-3}, {'proximal_mu': 1e-2}, {'scale': 0.995}):
    with pytest.raises(AssertionError):
      check(problem, result, **{
          'epochs': 2, 'item_learning_rate': 0.7, **wrong})


def test_a_client_without_examples_does_not_move_at_all(problem, train):
  contribution, personal = train(
      optimizer='momentum', l2=0.05, proximal_mu=0.5, epochs=2, momentum=0.5,
      item_learning_rate=0.7)
  for name, leaf in problem[-1].items():
    np.testing.assert_array_equal(personal[name][0], leaf[0])
    assert (personal[name][1] != leaf[1]).all()
  for leaf in jax.tree.leaves(contribution):
    np.testing.assert_array_equal(leaf[0], 0)


@pytest.mark.parametrize('case', [
    {}, {'epochs': 2}, {'objective': 'bpr', 'l2': 0.05, 'steps': 4},
    {'objective': 'squared_error', 'proximal_mu': 0.5},
    {'item_optimizer': 'rowwise_adagrad', 'item_learning_rate': 0.02,
     'epochs': 2, 'l2': 0.05},
], ids=str)
@pytest.mark.parametrize('tile', [1, 2, 3])
def test_tiles_sum_up_to_their_batch(problem, train, case, tile):
  """A tile of 3 cuts no batch of 4, and is the batch."""
  settings = {'item_learning_rate': 0.7, 'l2': 0.05, **case}
  check(problem, train(tile=tile, **settings), **settings)


@pytest.mark.parametrize('item_optimizer', ['adagrad', 'rowwise_adagrad'])
def test_a_lazy_step_is_the_step_of_the_whole_local_table(
    train, item_optimizer):
  settings = {'item_optimizer': item_optimizer, 'item_learning_rate': 0.02,
              'epochs': 2, 'l2': 0.05}
  lazy, whole = (train(lazy=lazy, **settings) for lazy in (True, False))
  # The same operations on each number, and the same compiler's choices about
  # them up to an ulp of a step.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-6), lazy, whole)


def test_momentum_taken_for_lazy_would_be_seen(problem):
  """The control: rows that no batch asks for would cease to move."""
  config = plain.client(
      batch_size=BATCH_SIZE, epochs=2, item_optimizer='momentum',
      item_learning_rate=0.7)
  assert not stands_still(config)
  result = train_with(make_local_training(
      SCORE, OBJECTIVES['bce'], build_optimizer(config, config.learning_rate),
      build_item_optimizer(config), batch_size=BATCH_SIZE, epochs=2,
      lazy_items=True), problem)
  with pytest.raises(AssertionError):
    check(problem, result, epochs=2, item_optimizer='momentum',
          item_learning_rate=0.7)


def test_numbers_of_steps_by_hand():
  counts = jnp.array([0, 1, 4, 5, 12])
  for epochs, steps, expected in (
      (1, 0, [0, 1, 1, 2, 3]), (3, 0, [0, 3, 3, 6, 9]),
      (3, 5, [0, 5, 5, 5, 5])):
    batches, total = num_steps(counts, 4, epochs, steps)
    np.testing.assert_array_equal(batches, [0, 1, 1, 2, 3])
    np.testing.assert_array_equal(total, expected)


def test_a_capacity_that_cuts_a_batch_is_refused(problem):
  rows, *_ = problem
  run = make_local_training(
      SCORE, OBJECTIVES['bce'], optax.sgd(1.0), optax.sgd(1.0),
      batch_size=rows.shape[1] - 1)
  with pytest.raises(ValueError, match='capacity='):
    train_with(run, problem)
