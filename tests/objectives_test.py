"""Every objective: by hand, and what any of them must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.config import OBJECTIVES as NAMES
from fedjaxrec.objectives import OBJECTIVES
from tests import oracles

SCORES = np.array(
    [[1.5, -0.5, 2.0], [-1.0, 0.3, 0.0], [0.2, 0.7, -2.0], [9.0, 9.0, 9.0],
     [-3.0, 0.4, 0.6]], np.float32)
LABELS = np.array([4.0, 1.0, 3.0, 5.0, 2.0], np.float32)
# A short negative list, a place without anything, negatives of nothing.
USED = np.array(
    [[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]], bool)


def mean_loss(name, scores, used=USED):
  loss_sum, count = OBJECTIVES[name](
      scores, jnp.asarray(LABELS), jnp.asarray(used))
  return loss_sum / jnp.maximum(count, 1)


def test_every_configurable_objective_exists():
  assert set(OBJECTIVES) == set(NAMES)


@pytest.mark.parametrize('name', OBJECTIVES)
class TestEveryObjective:

  def test_sum_count_and_slopes_are_those_derived_by_hand(self, name):
    loss_sum, count = OBJECTIVES[name](
        jnp.asarray(SCORES), jnp.asarray(LABELS), jnp.asarray(USED))
    slopes = jax.grad(lambda s: mean_loss(name, s))(jnp.asarray(SCORES))
    expected = oracles.loss_and_slopes(name, SCORES.astype(float), LABELS, USED)
    # A dozen terms of up to 16, each a few roundings off.
    np.testing.assert_allclose(loss_sum, expected[0], rtol=1e-6)
    assert count == expected[1]
    np.testing.assert_allclose(slopes, expected[2], atol=1e-6)

  def test_an_unused_slot_has_no_influence(self, name):
    garbage = np.where(USED, SCORES, np.float32(77.0))
    assert mean_loss(name, jnp.asarray(garbage)) == mean_loss(
        name, jnp.asarray(SCORES))
    slopes = jax.grad(lambda s: mean_loss(name, s))(jnp.asarray(garbage))
    np.testing.assert_array_equal(np.asarray(slopes)[~USED], 0)
    assert np.abs(np.asarray(slopes)[0, 0]) > 0

  @pytest.mark.parametrize('scale', [0.0, 1e4])
  def test_loss_and_slopes_are_finite_for_extreme_scores(self, name, scale):
    scores = jnp.asarray(scale * (SCORES - 1))
    value, slopes = jax.value_and_grad(lambda s: mean_loss(name, s))(scores)
    assert np.isfinite(value) and np.isfinite(slopes).all()

  def test_an_empty_batch_has_no_loss_and_no_slope(self, name):
    value, slopes = jax.value_and_grad(
        lambda s: mean_loss(name, s, np.zeros_like(USED)))(jnp.asarray(SCORES))
    assert value == 0
    np.testing.assert_array_equal(slopes, 0)

  def test_a_step_against_the_slopes_lowers_the_loss(self, name):
    scores = jnp.asarray(SCORES)
    slopes = jax.grad(lambda s: mean_loss(name, s))(scores)
    before, after = mean_loss(name, scores), mean_loss(
        name, scores - 0.1 * slopes)
    # To first order by 0.1 |slopes|^2; half of that for the curvature.
    assert after < before - 0.05 * jnp.square(slopes).sum()


def test_losses_of_one_pair_by_hand():
  scores = jnp.array([[2.0, -1.0]])
  used, labels = jnp.ones((1, 2), bool), jnp.array([5.0])
  softplus = lambda x: np.log1p(np.exp(x))
  for name, expected in (
      ('bce', (softplus(-2) + softplus(-1), 2)),
      ('bpr', (softplus(-3), 1)),
      ('squared_error', (9.0, 1))):
    loss_sum, count = OBJECTIVES[name](scores, labels, used)
    np.testing.assert_allclose((loss_sum, count), expected, rtol=1e-6)


def test_slopes_of_the_oracle_are_the_slopes_of_its_loss():
  """By central differences, through the whole batch and with l2."""
  rng = np.random.default_rng(0)
  num_items, dim, l2 = 7, 2, 0.3
  trees = (
      {'item': rng.normal(size=(num_items, dim)),
       'item_bias': rng.normal(size=num_items)},
      {'bias': rng.normal(size=())},
      {'user': rng.normal(size=dim), 'user_bias': rng.normal(size=())})
  rows = np.array([[0, 3, 6], [2, 5, num_items]])
  labels = np.array([4.0, 2.0])

  def loss(objective, trees):
    table, shared, personal = trees
    used = rows < num_items
    scores = np.zeros(rows.shape)
    for place in zip(*np.nonzero(used)):
      scores[place] = oracles.score(*trees, rows[place])
    total, count, _ = oracles.loss_and_slopes(objective, scores, labels, used)
    penalty = sum((leaf**2).sum() for tree in (shared, personal)
                  for leaf in tree.values())
    rows_squared = sum((leaf[rows[used]]**2).sum() for leaf in table.values())
    return total / count + l2 * (penalty + rows_squared / used.sum())

  for objective in OBJECTIVES:
    gradients = oracles.batch_gradients(objective, *trees, rows, labels, l2)[2:]
    for tree, gradient in zip(trees, gradients):
      for name, leaf in tree.items():
        for place in np.ndindex(leaf.shape):
          kept, values = leaf[place], []
          for step in (1e-5, -1e-5):
            leaf[place] = kept + step
            values.append(loss(objective, trees))
          leaf[place] = kept
          slope = (values[0] - values[1]) / 2e-5
          np.testing.assert_allclose(gradient[name][place], slope, atol=1e-7)
