"""Matrix factorisation with biases: s_i = p . v_i + b_i + b_u + b."""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.recommender import ItemTable, Personal


class MatrixFactorization(nnx.Module):
  """Personal user vector and bias, item table with biases, shared bias.

  Cost: a client keeps dim + 1 numbers; an item row weighs dim + 1 numbers.

  References:
    Koren, Bell and Volinsky, 2009, Matrix Factorization Techniques for
    Recommender Systems, Computer 42(8).
  """

  def __init__(self, config: ModelConfig, num_items: int, key: jax.Array):
    user_key, item_key = jax.random.split(key)
    scale = config.init_scale
    self.user = Personal(scale * jax.random.normal(user_key, (config.dim,)))
    self.user_bias = Personal(jnp.zeros(()))
    self.item = ItemTable(
        scale * jax.random.normal(item_key, (num_items, config.dim)))
    self.item_bias = ItemTable(jnp.zeros(num_items))
    self.bias = nnx.Param(jnp.zeros(()))

  def __call__(self) -> jax.Array:
    """Scores every row: float32 [num_rows]."""
    dot = self.item[...] @ self.user[...]
    return dot + self.item_bias[...] + (self.user_bias[...] + self.bias[...])
