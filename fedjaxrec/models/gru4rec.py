"""GRU4Rec: a recurrent network over the client's own sequence."""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.recommender import ItemTable, Personal


class GRU4Rec(nnx.Module):
  """s_i = h . v_i + b_i: h the last state of a GRU over the sequence.

  z, r = sigmoid(W v + U h + c), n = tanh(W v + U (r * h) + c),
  h <- (1 - z) * h + z * n, from h = 0. The output layer is the table of the
  inputs, as wide as the state (the "constrained embedding" of the second
  paper), with a bias an item.

  In the item table: v and b. Shared: the cell. Personal: h, the encoding of the
  client's sequence, which is computed and never trained.

  Cost: a client keeps dim numbers, an item row weighs dim + 1 numbers, and
  6 dim^2 + 3 dim numbers travel whole. A pass over a sequence of T items: 6 T
  dim^2 multiplications, one item after the other.

  References:
    Hidasi et al., 2016, `Session-based Recommendations with Recurrent Neural
    Networks <https://arxiv.org/abs/1511.06939>`_; Hidasi and Karatzoglou, 2018,
    `Recurrent Neural Networks with Top-k Gains
    <https://arxiv.org/abs/1706.03847>`_.
  """

  def __init__(self, config: ModelConfig, num_items: int, key: jax.Array):
    item_key, cell_key = jax.random.split(key)
    dim, rngs = config.dim, nnx.Rngs(cell_key)
    self.state = Personal(jnp.zeros(dim))
    self.item = ItemTable(
        config.init_scale * jax.random.normal(item_key, (num_items, dim)))
    self.item_bias = ItemTable(jnp.zeros(num_items))
    self.inputs = nnx.Linear(dim, 3 * dim, rngs=rngs)
    self.gates = nnx.Linear(dim, 2 * dim, use_bias=False, rngs=rngs)
    self.candidate = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)

  def encode(self, used: jax.Array) -> jax.Array:
    """The states of a sequence whose items the item table holds.

    Args:
      used: bool [length]: the last places, which hold an item; those before are
        padding, and leave the state at 0.

    Returns:
      float32 [length, dim].
    """
    # What does not depend on the state is one product for all places.
    from_items = self.inputs(self.item[...])
    gates = self.gates.kernel[...]
    candidate = self.candidate.kernel[...]

    def step(state, place):
      given, is_used = place
      update_in, reset_in, new_in = jnp.split(given, 3)
      update_own, reset_own = jnp.split(state @ gates, 2)
      update = jax.nn.sigmoid(update_in + update_own)
      reset = jax.nn.sigmoid(reset_in + reset_own)
      new = jnp.tanh(new_in + (reset * state) @ candidate)
      state = jnp.where(is_used, (1 - update) * state + update * new, state)
      return state, state

    start = jnp.zeros(candidate.shape[0])
    return jax.lax.scan(step, start, (from_items, used))[1]

  def __call__(self) -> jax.Array:
    """Scores every row: float32 [num_rows]."""
    return self.item[...] @ self.state[...] + self.item_bias[...]
