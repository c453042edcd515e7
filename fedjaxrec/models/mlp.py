"""MLP (FedNCF): a perceptron on a client's vector and an item's."""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.recommender import ItemTable, Personal


def make_layers(
    dim: int, hidden: tuple[int, ...], rngs: nnx.Rngs) -> nnx.List:
  """The perceptron's layers, from two vectors of dim to the last width."""
  widths = (2 * dim, *hidden)
  return nnx.List(
      [nnx.Linear(*pair, rngs=rngs)
       for pair in zip(widths[:-1], widths[1:], strict=True)])


def run_layers(
    layers: nnx.List, user: jax.Array, item: jax.Array) -> jax.Array:
  """Runs the perceptron for one client: [dim], [n, dim] -> [n, last width]."""
  x = jnp.concatenate([jnp.broadcast_to(user, item.shape), item], -1)
  for layer in layers:
    x = jax.nn.relu(layer(x))
  return x


class MLP(nnx.Module):
  """s_i = h . relu(W_L ... relu(W_1 [q, w_i] + b_1) ... + b_L) + b.

  q is personal, w is in the item table, the perceptron and h are shared. The
  sigmoid is the objective's (bce). The widths are `model.hidden`.

  Cost: a client keeps dim numbers, an item row weighs dim numbers, and the
  perceptron travels whole.

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
    rngs = nnx.Rngs(keys[2])
    self.hidden = make_layers(dim, config.hidden, rngs)
    self.output = nnx.Linear(config.hidden[-1], 1, rngs=rngs)

  def __call__(self) -> jax.Array:
    """Scores every row: float32 [num_rows]."""
    x = run_layers(self.hidden, self.user[...], self.item[...])
    return self.output(x)[..., 0]
