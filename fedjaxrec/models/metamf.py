"""MetaMF's model: networks that generate a client's item vectors and scorer."""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.recommender import ItemTable, Personal


class MetaMF(nnx.Module):
  """c = M' u; all else of a client's model is generated from c.

  Three networks, each with a hidden layer h = relu(A c + a): one generates an
  item's vector, of low rank, e_i = (h W_i + b_i) R(h), with the client's own
  rise matrix R(h); the others weights and biases of the two layers that score
  it, s_i = w2 . relu(e_i W1 + b1) + b2.

  Personal is the vector u alone; W_i and b_i are item i's row; the memory M and
  the networks are shared.

  Cost: a client keeps dim numbers, an item row weighs (generator_width + 1) *
  generator_rank numbers. Nobody's generated table is stored: that of the rows
  in use is made where it is read, dim numbers a row and client.

  References:
    Lin et al., 2020, Meta Matrix Factorization for Federated Rating
    Predictions, SIGIR. Published: dim 32, memory 128, generator_width 512,
    generator_rank 8, 8 hidden units in the scorer (here dim / 4, at least 4).
  """

  def __init__(self, config: ModelConfig, num_items: int, key: jax.Array):
    keys = jax.random.split(key, 5)
    self.dim, self.rank = config.dim, config.generator_rank
    self.units = max(4, config.dim // 4)
    width = config.generator_width
    self.user = Personal(
        config.init_scale * jax.random.normal(keys[0], (self.dim,)))
    self.memory = nnx.Param(jax.random.normal(
        keys[1], (self.dim, config.memory)) * self.dim ** -0.5)
    scale = width ** -0.5
    self.item = ItemTable(scale * jax.random.normal(
        keys[2], (num_items, width, self.rank)))
    self.item_bias = ItemTable(
        scale * jax.random.normal(keys[3], (num_items, self.rank)))
    rngs = nnx.Rngs(keys[4])

    def uniform(rng, shape, dtype=jnp.float32, out_sharding=None):
      del out_sharding
      return jax.random.uniform(rng, shape, dtype, -scale, scale)

    def hidden():
      return nnx.Linear(config.memory, width, rngs=rngs)

    def generator(size):
      return nnx.Linear(width, size, rngs=rngs, bias_init=uniform)

    self.item_hidden, self.first_hidden, self.second_hidden = (
        hidden(), hidden(), hidden())
    self.rise = generator(self.rank * self.dim)
    self.first_weight = generator(self.dim * self.units)
    self.first_bias = generator(self.units)
    self.second_weight = generator(self.units)
    self.second_bias = generator(1)

  def __call__(self) -> jax.Array:
    """Scores every row: float32 [num_rows]."""
    c = self.user[...] @ self.memory[...]
    h = jax.nn.relu(self.item_hidden(c))
    low = jnp.einsum('w,nwr->nr', h, self.item[...])
    low = low + self.item_bias[...]
    items = low @ self.rise(h).reshape(self.rank, self.dim)
    h = jax.nn.relu(self.first_hidden(c))
    x = jax.nn.relu(
        items @ self.first_weight(h).reshape(self.dim, self.units)
        + self.first_bias(h)[None, :])
    h = jax.nn.relu(self.second_hidden(c))
    return x @ self.second_weight(h) + self.second_bias(h)[0]
