"""What methods of whole tables share: rates, scores, starts and means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.algorithms import whole_table
from fedjaxrec.algorithms.pfedrec import Own
from fedjaxrec.algorithms.registry import build_algorithm
from fedjaxrec.models.registry import build_recommender
from tests import plain

NUM_ITEMS = 6
TABLES = {'item': np.arange(24, dtype=np.float32).reshape(3, 4, 2),
          'bias': np.ones((3, 4), np.float32)}


@pytest.fixture(scope='module')
def algorithm():
  settings = config.Config(
      seed=4, algorithm=config.AlgorithmConfig(name='pfedrec'),
      model=config.ModelConfig(dim=2, init_scale=0.5))
  return build_algorithm(
      settings, build_recommender(settings.model, NUM_ITEMS), NUM_ITEMS)


def test_an_item_s_rate_follows_the_catalogue_unless_it_is_given():
  client = plain.client(learning_rate=0.5, item_learning_rate=0.3)
  assert whole_table.choose_item_rate(client, 10, 4.0) == 20.0
  assert whole_table.choose_item_rate(client, 10, 0.0) == 0.3


@pytest.mark.parametrize('there', [[1, 0, 1], [0, 1, 0], [0, 0, 0]])
def test_a_mean_is_of_who_is_there_and_nobody_leaves_the_old_table(there):
  old = {'item': np.full((4, 2), 7, jnp.bfloat16),
         'bias': np.full(4, 7, np.float32)}
  there = np.array(there, bool)
  found = whole_table.mean_table(jnp.asarray(there), TABLES, old)
  for name, leaf in found.items():
    expected = TABLES[name][there].mean(0) if there.any() else old[name]
    assert leaf.dtype == old[name].dtype
    # Sums of two whole numbers below 2^8 and their half are exact in both.
    np.testing.assert_array_equal(np.float32(leaf), np.float32(expected))


def test_leaves_lie_side_by_side_for_each_of_the_leading_axis():
  flat = whole_table.flatten_each(TABLES)
  assert flat.shape == (3, 4 + 8) and flat.dtype == jnp.float32
  np.testing.assert_array_equal(
      flat, np.concatenate([TABLES['bias'], TABLES['item'].reshape(3, 8)], 1))


def test_everybody_begins_alike_and_with_the_server_s_table(algorithm):
  first, second = (algorithm.init_personal(jax.random.key(s)) for s in (0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, second)
  server = algorithm.init_server(jax.random.key(2))
  rows, shared = server.item_table, server.shared
  np.testing.assert_array_equal(
      algorithm.score(first, rows, shared),
      algorithm.aggregated_score(first, rows, shared))


def test_a_table_counts_once_it_is_there(algorithm):
  server = algorithm.init_server(jax.random.key(2))
  rows, shared = server.item_table, server.shared
  own: Own = algorithm.init_personal(jax.random.key(0))
  mine = jax.tree.map(lambda x: x + 1, own.table.rows)
  own = own._replace(table=own.table._replace(rows=mine))
  for trained, of in ((0.0, rows), (1.0, mine)):
    kept = own._replace(trained=jnp.float32(trained))
    np.testing.assert_array_equal(
        algorithm.score(kept, rows, shared),
        algorithm.aggregated_score(kept, of, shared))
  # A client without interactions touches nothing, any other every row.
  np.testing.assert_array_equal(
      algorithm.touched_rows(np.array([0, 1, 5])), [0, NUM_ITEMS, NUM_ITEMS])
