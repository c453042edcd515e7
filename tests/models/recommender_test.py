"""What every recommender must do, and what the markers mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjaxrec.config import MODELS as NAMES
from fedjaxrec.config import ModelConfig
from fedjaxrec.models.recommender import ItemTable, Personal, make_recommender
from fedjaxrec.models.registry import MODELS, build_recommender

NUM_ITEMS, NUM_CLIENTS = 9, 3


def config(name):
  return ModelConfig(name=name, dim=4, init_scale=0.5, hidden=(5, 3), memory=3,
                     generator_width=8, generator_rank=2)


def sizes(tree):
  return jax.tree.map(lambda leaf: leaf.shape, tree)


def test_every_configurable_model_exists():
  assert set(MODELS) == set(NAMES)


# Towers are made of side features: `two_tower_test` holds them to the same.
@pytest.fixture(scope='module', params=[x for x in MODELS if x != 'two_tower'])
def model(request):
  """(name, recommender, (personal of a population, item table, shared))."""
  recommender = build_recommender(config(request.param), NUM_ITEMS)
  keys = jax.random.split(jax.random.key(1), NUM_CLIENTS)
  personal = jax.jit(jax.vmap(recommender.init_personal))(keys)
  if recommender.encode is not None:
    # Nobody's state before a sequence is read: these stand for read ones.
    personal = {'state': jax.random.normal(keys[0], (NUM_CLIENTS, 4))}
  table, shared = jax.jit(recommender.init_server)(jax.random.key(0))
  return request.param, recommender, (personal, table, shared)


def one(tree, c=0):
  return jax.tree.map(lambda leaf: leaf[c], tree)


class TestEveryModel:

  def test_the_item_table_alone_grows_with_the_catalogue(self, model):
    name, _, (personal, table, shared) = model
    larger = build_recommender(config(name), NUM_ITEMS + 4)
    other_table, other_shared = jax.eval_shape(
        larger.init_server, jax.random.key(0))
    other_personal = jax.eval_shape(larger.init_personal, jax.random.key(0))
    assert jax.tree.leaves(table)
    for leaf, other in zip(
        jax.tree.leaves(table), jax.tree.leaves(other_table)):
      assert leaf.shape == (NUM_ITEMS, *other.shape[1:])
      assert other.shape[0] == NUM_ITEMS + 4
    assert sizes(shared) == sizes(other_shared)
    assert sizes(one(personal)) == sizes(other_personal)

  def test_each_parameter_lives_where_its_marker_says(self, model):
    name, _, trees = model
    module = MODELS[name](config(name), NUM_ITEMS, jax.random.key(0))
    places = [(one(trees[0]), Personal), (trees[1], ItemTable),
              (trees[2], None)]
    total = 0
    for path, variable in nnx.to_flat_state(nnx.state(module)):
      assert isinstance(variable, nnx.Param), path
      for tree, marker in places:
        leaf = tree
        for part in path:
          leaf = leaf.get(part) if isinstance(leaf, dict) else None
        is_plain = not isinstance(variable, (Personal, ItemTable))
        belongs = is_plain if marker is None else isinstance(variable, marker)
        assert (leaf is not None) == belongs, path
        if belongs:
          assert leaf.shape == variable[...].shape
          total += leaf.size
    assert total == sum(
        leaf.size for tree, _ in places for leaf in jax.tree.leaves(tree))

  @pytest.mark.parametrize('rows', [[4], [8, 0, 3] * 7])
  def test_rows_are_scored_as_in_the_whole_table(self, model, rows):
    _, recommender, (personal, table, shared) = model
    whole = recommender.score(one(personal), table, shared)
    assert whole.shape == (NUM_ITEMS,) and whole.dtype == jnp.float32
    gathered = jax.tree.map(lambda leaf: leaf[jnp.array(rows)], table)
    scores = recommender.score(one(personal), gathered, shared)
    # Sums of at most dim + width = 9 products, in another order.
    np.testing.assert_allclose(scores, whole[jnp.array(rows)], atol=9 * 2**-23)

  def test_clients_side_by_side_score_as_each_alone(self, model):
    _, recommender, (personal, table, shared) = model
    together = jax.vmap(recommender.score, (0, None, None))(
        personal, table, shared)
    assert together.shape == (NUM_CLIENTS, NUM_ITEMS)
    for c in range(NUM_CLIENTS):
      np.testing.assert_allclose(
          together[c], recommender.score(one(personal, c), table, shared),
          atol=9 * 2**-23)
    # The control: clients do differ.
    assert np.abs(together[0] - together[1]).max() > 1e-3

  def test_every_parameter_takes_part_in_the_score(self, model):
    _, recommender, (personal, table, shared) = model

    def loss(p, t, s):
      if recommender.encode is not None:
        states = recommender.encode(t, jnp.arange(NUM_ITEMS) > 1, s)
        p = {'state': p['state'] + states[-1]}
      return jnp.square(recommender.score(p, t, s) - 1).sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))(one(personal), table, shared)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
      assert np.isfinite(gradient).all() and np.any(gradient), path

  def test_a_score_depends_on_its_own_row_alone(self, model):
    _, recommender, (personal, table, shared) = model
    slopes = jax.jacobian(recommender.score, argnums=1)(
        one(personal), table, shared)
    for leaf in jax.tree.leaves(slopes):
      size = np.abs(np.asarray(leaf)).reshape(NUM_ITEMS, NUM_ITEMS, -1).max(-1)
      assert not size[~np.eye(NUM_ITEMS, dtype=bool)].any()

  def test_a_key_is_a_start(self, model):
    _, recommender, (_, table, _) = model
    again, _ = recommender.init_server(jax.random.key(0))
    other, _ = recommender.init_server(jax.random.key(1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, table)
    assert not np.allclose(other['item'], table['item'])


class Toy(nnx.Module):
  """Score = 2 x personal scalar x row + shared: numbers known by hand."""

  def __init__(self, num_items, key):
    del key
    self.taste = Personal(jnp.float32(3.0))
    self.item = ItemTable(jnp.arange(num_items, dtype=jnp.float32))
    self.offset = nnx.Param(jnp.float32(0.5))

  def __call__(self):
    return 2 * self.taste[...] * self.item[...] + self.offset[...]


def test_a_new_model_needs_its_markers_and_nothing_else():
  recommender = make_recommender(lambda key: Toy(4, key))
  table, shared = recommender.init_server(jax.random.key(0))
  personal = recommender.init_personal(jax.random.key(0))
  assert set(personal) == {'taste'} and set(shared) == {'offset'}
  np.testing.assert_array_equal(table['item'], [0, 1, 2, 3])
  scores = jax.jit(recommender.score)(
      {'taste': jnp.float32(1.0)}, {'item': jnp.array([5.0, 7.0])},
      {'offset': jnp.float32(-1.0)})
  np.testing.assert_array_equal(scores, [9, 13])
  # The templates were not written to: the start is still the start.
  np.testing.assert_array_equal(
      recommender.score(personal, table, shared), [0.5, 6.5, 12.5, 18.5])
