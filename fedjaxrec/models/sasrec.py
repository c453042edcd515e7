"""SASRec: self-attention over the client's own sequence, and no user vector."""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.recommender import ItemTable, Personal

# Below every score, and finite: a row of nothing else has no NaN.
_NEVER = -1e9


class Block(nnx.Module):
  """x + Attention(LayerNorm(x)), then x + FeedForward(LayerNorm(x))."""

  def __init__(self, dim: int, num_heads: int, rngs: nnx.Rngs):
    self.num_heads = num_heads
    self.attention_norm = nnx.LayerNorm(dim, rngs=rngs)
    self.query = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
    self.key = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
    self.value = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
    self.forward_norm = nnx.LayerNorm(dim, rngs=rngs)
    self.widen = nnx.Linear(dim, dim, rngs=rngs)
    self.narrow = nnx.Linear(dim, dim, rngs=rngs)

  def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
    """Transforms float32 [length, dim]; allowed is bool [length, length]."""
    length, dim = x.shape

    def split(y):
      return y.reshape(length, self.num_heads, dim // self.num_heads)

    normed = self.attention_norm(x)
    queries, keys, values = (
        split(layer(normed)) for layer in (self.query, self.key, self.value))
    logits = jnp.einsum('qhd,khd->hqk', queries, keys)
    logits /= jnp.sqrt(jnp.float32(dim // self.num_heads))
    weights = jax.nn.softmax(jnp.where(allowed[None], logits, _NEVER), -1)
    x = x + jnp.einsum('hqk,khd->qhd', weights, values).reshape(length, dim)
    hidden = jax.nn.relu(self.widen(self.forward_norm(x)))
    return x + self.narrow(hidden)


class SASRec(nnx.Module):
  """s_i = h . v_i: h the last state of causal self-attention over the sequence.

  x_t = sqrt(dim) v_{i_t} + position_t, `num_blocks` blocks of `num_heads` heads
  in which a place sees itself and earlier ones, and a last layer norm. Places
  are counted from the end of the sequence, so its latest item always stands in
  the last one. No dropout.

  In the item table: v, whose rows are read as inputs and as outputs. Shared:
  positions, attention, feed-forward layers and norms. Personal: h, the encoding
  of the client's sequence, which is computed and never trained.

  Cost: a client keeps dim numbers, an item row weighs dim numbers, and dim
  (max_length + 2) + num_blocks dim (5 dim + 6) numbers travel whole. A pass
  over a sequence of T items: num_blocks T (5 dim^2 + 2 T dim) multiplications.

  References:
    Kang and McAuley, 2018, `Self-Attentive Sequential Recommendation
    <https://arxiv.org/abs/1808.09781>`_: layers, residuals and the tied table
    as in its equations, dropout left out.
  """

  def __init__(self, config: ModelConfig, num_items: int, key: jax.Array):
    item_key, place_key, block_key = jax.random.split(key, 3)
    dim, scale = config.dim, config.init_scale
    rngs = nnx.Rngs(block_key)
    self.state = Personal(jnp.zeros(dim))
    self.item = ItemTable(scale * jax.random.normal(item_key, (num_items, dim)))
    self.position = nnx.Param(
        scale * jax.random.normal(place_key, (config.max_length, dim)))
    self.blocks = nnx.List(
        [Block(dim, config.num_heads, rngs) for _ in range(config.num_blocks)])
    self.last_norm = nnx.LayerNorm(dim, rngs=rngs)

  def encode(self, used: jax.Array) -> jax.Array:
    """The states of a sequence whose items the item table holds.

    Args:
      used: bool [length], at most max_length: the last places, which hold an
        item; those before are padding.

    Returns:
      float32 [length, dim]; of no meaning where not used.
    """
    items = self.item[...]
    length, dim = items.shape
    x = jnp.sqrt(jnp.float32(dim)) * items
    x += self.position[...][self.position.shape[0] - length:]
    x = jnp.where(used[:, None], x, 0)
    place = jnp.arange(length)
    # A place sees itself even where it is padding: no softmax is over nothing.
    allowed = (place[:, None] >= place[None, :]) & (
        used[None, :] | (place[:, None] == place[None, :]))
    for block in self.blocks:
      x = block(x, allowed)
    return self.last_norm(x)

  def __call__(self) -> jax.Array:
    """Scores every row: float32 [num_rows]."""
    return self.item[...] @ self.state[...]
