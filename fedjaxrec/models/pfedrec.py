"""PFedRec's model: a personal score layer on an item table, and no user."""

import jax
from flax import nnx

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.recommender import ItemTable, Personal


class PFedRec(nnx.Module):
  """s_i = w . v_i + b: w, b personal, v in the item table, nothing shared.

  Cost: a client keeps dim + 1 numbers, an item row weighs dim numbers.

  References:
    Zhang et al., 2023, `Dual Personalization on Federated Recommendation
    <https://arxiv.org/abs/2301.08143>`_.
  """

  def __init__(self, config: ModelConfig, num_items: int, key: jax.Array):
    weight_key, bias_key, item_key = jax.random.split(key, 3)
    bound = config.dim ** -0.5
    self.weight = Personal(jax.random.uniform(
        weight_key, (config.dim,), minval=-bound, maxval=bound))
    self.bias = Personal(jax.random.uniform(
        bias_key, (), minval=-bound, maxval=bound))
    self.item = ItemTable(config.init_scale * jax.random.normal(
        item_key, (num_items, config.dim)))

  def __call__(self) -> jax.Array:
    """Scores every row: float32 [num_rows]."""
    return self.item[...] @ self.weight[...] + self.bias[...]
