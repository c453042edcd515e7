"""Matrix factorisation against its formula."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.registry import build_recommender


def test_the_score_by_hand():
  recommender = build_recommender(ModelConfig(dim=2), 3)
  scores = recommender.score(
      {'user': jnp.array([1.0, -2.0]), 'user_bias': jnp.float32(0.25)},
      {'item': jnp.array([[3.0, 1.0], [0.5, 0.5], [0.0, -1.0]]),
       'item_bias': jnp.array([0.0, 1.0, -1.0])}, {'bias': jnp.float32(10.0)})
  np.testing.assert_array_equal(scores, [11.25, 10.75, 11.25])


def test_vectors_start_with_the_configured_scale_and_biases_at_zero():
  num_items, dim = 2, 5000
  recommender = build_recommender(
      ModelConfig(dim=dim, init_scale=0.3), num_items)
  table, shared = recommender.init_server(jax.random.key(0))
  personal = recommender.init_personal(jax.random.key(0))
  for vectors in (table['item'], personal['user']):
    # The standard error of a standard deviation is scale / sqrt(2 n).
    limit = 5 * 0.3 / np.sqrt(2 * vectors.size)
    assert abs(np.std(vectors) - 0.3) < limit
  np.testing.assert_array_equal(table['item_bias'], 0)
  assert shared == {'bias': 0} and personal['user_bias'] == 0
