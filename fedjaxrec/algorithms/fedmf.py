"""FedMF: a gradient step of the client, and the gradient of its rated rows.

  L = sum over ratings (r - p_u . v_i)^2 + lambda sum_u |p_u|^2
      + mu sum over ratings |v_i|^2.

Both gradients of a round are taken where the round begins. Explicit ratings
(labels as they are), or 1s on implicit data, without negatives, which a model
of all 1s would fit best.

A server that sees two of a client's gradients in the clear can solve for its
vector and its ratings (Chai et al., section 4).
"""

import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import least_squares
from fedjaxrec.algorithms.fedavg import build_server
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.local_training import Contribution, View
from fedjaxrec.models.recommender import Recommender


def make_fedmf(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds FedMF.

  Personal: the client's vector, kept between rounds. Travels: the rated rows
  down, their descents up (minus the gradient: 2 p (r - p . v) - 2 mu v).
  server.row_normalization chooses what an item moves by: their sum (auto, as in
  the paper), their mean over the cohort, or over its contributors.

  Args:
    config: The whole config; sections fedmf and server are read.
    recommender: The factorisation, for its initial vectors; its biases are left
      out.
    num_items: Items in the catalogue.
    server_transform: Transform of the raw sum; None for none.
    expected_cohort: See `make_server`.

  References:
    Chai et al., 2019, `Secure Federated Matrix Factorization
    <https://arxiv.org/abs/1906.05108>`_.
  """
  settings = config.fedmf
  init_items, init_personal = least_squares.make_vectors(recommender)
  stepper = build_server(
      config, server_transform, expected_cohort, auto='sum')

  def client_update(view: View, examples, num_examples):
    rows, users = view.item_rows['item'], view.personal['user']
    misses = jnp.where(
        examples.used,
        examples.labels - jnp.einsum('bcd,bd->bc', rows, users), 0)
    used = examples.used[..., None]
    items = 2 * misses[..., None] * users[:, None, :] - (
        2 * settings.item_regularization * jnp.where(used, rows, 0))
    step = 2 * jnp.einsum('bc,bcd->bd', misses, rows) - (
        2 * settings.user_regularization * users)
    there = (num_examples > 0)[:, None]
    users = users + jnp.where(there, settings.learning_rate * step, 0)
    return Contribution(
        {'item': items}, {}, jnp.square(misses).sum(1),
        num_examples.astype(jnp.float32), num_examples), {'user': users}

  return Algorithm(
      init_server=lambda key: stepper.init(init_items(key), {}),
      init_personal=init_personal,
      draw=least_squares.draw_slots,
      client_update=client_update,
      server=stepper,
      learning_rate_scale=lambda round_index: jnp.float32(1),
      weight_by_examples=False,
      score=least_squares.score,
      touched_rows=lambda counts: counts,
      not_alone=(
          'Federation off is not run here: a client uploads gradients for the '
          "server's optimizer, and takes no step of its own on the items."))
