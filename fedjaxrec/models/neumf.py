"""NeuMF (FedNCF): a generalised dot product beside a multilayer perceptron."""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.mlp import make_layers, run_layers
from fedjaxrec.models.recommender import ItemTable, Personal


class NeuMF(nnx.Module):
  """s_i = h . [p * v_i, MLP([q, w_i])]; p, q personal, v, w in the item table.

  Cost: a client keeps 2 dim numbers, an item row weighs 2 dim numbers, and the
  perceptron travels whole.

  References:
    He et al., 2017, `Neural Collaborative Filtering
    <https://arxiv.org/abs/1708.05031>`_; federated by Perifanis and
    Efraimidis, 2022, Federated Neural Collaborative Filtering, KBS 242.
  """

  def __init__(self, config: ModelConfig, num_items: int, key: jax.Array):
    keys = jax.random.split(key, 5)
    scale, dim = config.init_scale, config.dim
    self.user = Personal(scale * jax.random.normal(keys[0], (dim,)))
    self.user_mlp = Personal(scale * jax.random.normal(keys[1], (dim,)))
    self.item = ItemTable(scale * jax.random.normal(keys[2], (num_items, dim)))
    self.item_mlp = ItemTable(
        scale * jax.random.normal(keys[3], (num_items, dim)))
    rngs = nnx.Rngs(keys[4])
    self.hidden = make_layers(dim, config.hidden, rngs)
    self.output = nnx.Linear(dim + config.hidden[-1], 1, rngs=rngs)

  def __call__(self) -> jax.Array:
    """Scores every row: float32 [num_rows]."""
    x = run_layers(self.hidden, self.user_mlp[...], self.item_mlp[...])
    gmf = self.user[...][None, :] * self.item[...]
    return self.output(jnp.concatenate([gmf, x], -1))[..., 0]
