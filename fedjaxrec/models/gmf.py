"""GMF (FedNCF): a product of two vectors, weighed entry by entry."""

import jax
from flax import nnx

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.recommender import ItemTable, Personal


class GMF(nnx.Module):
  """s_i = h . (p * v_i) + b; p personal, v in the item table, h and b shared.

  Matrix factorisation with a learnt weight for every dimension, and without
  biases of users and items. The sigmoid is the objective's (bce).

  Cost: a client keeps dim numbers, an item row weighs dim numbers, and dim + 1
  numbers travel whole.

  References:
    He et al., 2017, `Neural Collaborative Filtering
    <https://arxiv.org/abs/1708.05031>`_; federated by Perifanis and
    Efraimidis, 2022, Federated Neural Collaborative Filtering, KBS 242.
  """

  def __init__(self, config: ModelConfig, num_items: int, key: jax.Array):
    keys = jax.random.split(key, 3)
    scale, dim = config.init_scale, config.dim
    self.user = Personal(scale * jax.random.normal(keys[0], (dim,)))
    self.item = ItemTable(scale * jax.random.normal(keys[1], (num_items, dim)))
    self.output = nnx.Linear(dim, 1, rngs=nnx.Rngs(keys[2]))

  def __call__(self) -> jax.Array:
    """Scores every row: float32 [num_rows]."""
    return self.output(self.user[...][None, :] * self.item[...])[..., 0]
