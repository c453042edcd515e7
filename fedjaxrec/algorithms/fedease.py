"""Federated EASE: the best linear item-item model, of one round of sums.

EASE solves min |X - X B|^2 + l2 |B|^2 with a zero diagonal, and all that it
needs of the users is X'X, a sum over them. So a client uploads its share, and
one round gives the centralised solution, exactly: with P = (X'X + l2 I)^-1,
B_ij = -P_ij / P_jj. To recommend, a client adds up B over its own items.

With fedease.damping an item counts n^-damping instead of 1, n being the clients
that have it (the diagonal of X'X): EASE of X D, whose scores are x D B.

Two settings read the order of a client's interactions, which no other client
and not the server needs to know:

  fedease.window   items count together by exp(-distance / window), distance
                   being how many interactions apart they are, so that B is of
                   what follows each other, and not of whole lives. The kernel
                   is positive definite, and so is the sum.
  fedease.recency  an item weighs floor + (1 - floor) exp(-age / recency) among
                   the client's own, age being how many interactions are later.

What a server that looks can see: the rows of an upload are the client's items,
and with a window their order. In the clear, nothing is hidden.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.algorithms import least_squares
from fedjaxrec.algorithms.ials import init_state, refuse_transform
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.local_training import Contribution, View, is_off
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.server import ServerState, Sum, make_whole_server

_NOT_ALONE = (
    'Federation off is not defined here: of one client alone every pair of its '
    'items counts alike, and no other item at all, so all of them are tied.')
# Rows that are eliminated together, and most bytes of the model.
_BLOCK = 64
_MAX_BYTES = 2**32
_EXACT = jax.lax.Precision.HIGHEST


def make_fedease(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds federated EASE.

  Personal: the weights of the client's own items, from its data alone. Travels:
  for each of its items a row of num_items numbers, up, once; and down, of the
  model, the entries of its items: as many. On several devices, and with any
  order of the clients, the sum is the same to the order of float32 additions.

  Cost of a client: n_u num_items numbers, and num_items for its weights, which
  a simulation keeps of all clients (no `ByItem`: scoring a few items takes the
  weights of all of the client's own); of the server: two matrices of
  num_items^2 numbers and 2 num_items^3 multiplications.

  Args:
    config: The whole config; section fedease is read.
    recommender: Not used: there are no vectors.
    num_items: Items in the catalogue.
    server_transform: Not supported.
    expected_cohort: Without effect: these are sums.

  Raises:
    ValueError: For a transform of the sum, or a catalogue whose matrices would
      be above four gigabytes.

  References:
    Steck, 2019, `Embarrassingly Shallow Autoencoders for Sparse Data
    <https://arxiv.org/abs/1905.03375>`_; for weights by order Choi et al.,
    2021, `Session-aware Linear Item-Item Models
    <https://arxiv.org/abs/2103.16104>`_, whose targets are other ones.
  """
  del recommender, expected_cohort
  refuse_transform(server_transform, 'fedease')
  if 8 * num_items**2 > _MAX_BYTES:
    raise ValueError(
        f'num_items={num_items} with algorithm.name=fedease: its server holds '
        f'two matrices of num_items squared, {8 * num_items**2:,} bytes, above '
        f'{_MAX_BYTES:,}; drop rare items (data.min_item_interactions), or use '
        'algorithm.name=ials, whose memory grows with the items alone.')
  settings = config.fedease

  def client_update(view: View, examples, num_examples):
    used = examples.used
    together = (used[:, :, None] & used[:, None, :]).astype(jnp.float32)
    if not is_off(settings.window):
      place = examples.labels
      together *= jnp.exp(
          -jnp.abs(place[:, :, None] - place[:, None, :]) / settings.window)
    # [B, capacity, capacity] -> [B, capacity, num_items].
    rows = jax.vmap(lambda weights, items: jnp.zeros(
        (len(items), num_items)).at[:, items].set(weights, mode='drop'))(
            together, examples.rows)
    count = num_examples.astype(jnp.float32)
    # There is no loss to report before the sum: the error of B = 0.
    return Contribution(
        {'weights': rows}, {}, count, count, num_examples), view.personal

  def update(state: ServerState, total: Sum) -> ServerState:
    weights = solve(
        total.item_table['weights'], settings.l2, settings.damping)
    return state._replace(
        round_index=state.round_index + 1,
        item_table={'weights': jnp.where(
            total.weight > 0, weights, state.item_table['weights'])})

  def refit(view: View, examples, num_examples):
    age = num_examples[:, None] - 1 - examples.labels
    weight = jnp.ones_like(age)
    if not is_off(settings.recency):
      weight = settings.floor + (1 - settings.floor) * jnp.exp(
          -age / settings.recency)
    return {'weight': jax.vmap(lambda w, items: jnp.zeros(num_items).at[
        items].set(w, mode='drop'))(weight, examples.rows)}

  return Algorithm(
      init_server=lambda key: init_state(
          {'weights': jnp.zeros((num_items, num_items))}),
      init_personal=lambda key: {'weight': jnp.zeros(num_items)},
      draw=least_squares.draw_slots,
      client_update=client_update,
      server=make_whole_server(
          lambda table, shared: init_state(table), update),
      learning_rate_scale=lambda round_index: jnp.float32(1),
      weight_by_examples=False,
      score=lambda own, item_rows, shared: (
          item_rows['weights'] @ own['weight']),
      refit=refit,
      touched_rows=lambda counts: np.asarray(counts, np.int64),
      is_encoded=True,
      not_alone=_NOT_ALONE)


def solve(
    gram: jax.Array, l2: float | jax.Array, damping: float | jax.Array = 0.0
) -> jax.Array:
  """EASE's weights of a Gramian, by the item that is scored.

  Args:
    gram: [num_items, num_items], symmetric, positive semidefinite.
    l2: Ridge penalty, above 0.
    damping: Power of an item's count, its entry on the diagonal, that it is
      divided by; at least 0.

  Returns:
    float32 [num_items, num_items]: row j holds d_i B_ij for all i, 0 for i = j,
    d_i being what item i counts.
  """
  counts = jnp.maximum(jnp.diagonal(gram), 1)
  scale = jnp.ones_like(counts) if is_off(damping) else counts**-damping
  inverse = invert(
      scale[:, None] * gram * scale[None] + l2 * jnp.eye(len(gram)))
  weights = -inverse / jnp.diagonal(inverse)[:, None]
  return weights * scale[None] * (1 - jnp.eye(len(gram)))


def invert(matrix: jax.Array) -> jax.Array:
  """The inverse of a positive definite matrix, by Gauss and Jordan in blocks.

  Matrix products alone: see `least_squares.solve`. 2 n^3 multiplications.

  Args:
    matrix: [n, n].
  """
  n = len(matrix)
  size = min(_BLOCK, n)
  missing = -n % size
  # The padding is a unit matrix of its own, and stays one.
  padded = jnp.pad(matrix, ((0, missing), (0, missing)))
  padded += jnp.diag((jnp.arange(n + missing) >= n).astype(matrix.dtype))

  def eliminate(k, a):
    start = k * size
    row = jax.lax.dynamic_slice_in_dim(a, start, size, 0)
    column = jax.lax.dynamic_slice_in_dim(a, start, size, 1)
    pivot = least_squares.invert_small(
        jax.lax.dynamic_slice_in_dim(row, start, size, 1)[None])[0]
    row = jax.lax.dynamic_update_slice_in_dim(
        jnp.matmul(pivot, row, precision=_EXACT), pivot, start, 1)
    a = jax.lax.dynamic_update_slice_in_dim(
        a, jnp.zeros_like(column), start, 1)
    a -= jnp.matmul(column, row, precision=_EXACT)
    return jax.lax.dynamic_update_slice_in_dim(a, row, start, 0)

  return jax.lax.fori_loop(
      0, len(padded) // size, eliminate, padded)[:n, :n]
