"""FCF: clients solve for their vectors, the server takes one gradient step.

  L = sum over all pairs c_ui (r_ui - p_u . v_i)^2 + lambda (sum_u |p_u|^2
      + sum_i |v_i|^2),  r_ui 1 or 0, c_ui = 1 + alpha r_ui.

A client uploads its share of the gradient with respect to every item, observed
or not; the server adds them up, adds 2 lambda V, and steps (Adam in the paper:
--server.optimizer=adam).

What a server that looks can see: the upload of one client has rank one, so it
is the client's vector up to scale, and its items stand out. In the clear FCF
protects nothing.
"""

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import least_squares
from fedjaxrec.algorithms.fedavg import build_server
from fedjaxrec.algorithms.ials import refuse_transform
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.local_training import Contribution, View
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.population import Client
from fedjaxrec.server import ServerState, Sum


def make_fcf(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds FCF.

  Personal: the client's vector, solved for afresh in every round. Travels: the
  whole item table, down; a gradient of its size, up.

  Cost of a client: n_u dim^2 + num_items dim + dim^3 / 3 multiplications, and
  its own gradient of the whole table in memory.

  Args:
    config: The whole config; sections fcf and server, model.dim and
      model.init_scale are read. server.row_normalization: auto is sum, as in
      the paper; with a part of the clients in a round, the regularisation is
      theirs alone.
    recommender: The factorisation, for its initial vectors; its biases are left
      out.
    num_items: Items in the catalogue.
    server_transform: Not supported.
    expected_cohort: See `make_server`.

  References:
    Ammad-ud-Din et al., 2019, `Federated Collaborative Filtering
    <https://arxiv.org/abs/1901.09888>`_.
  """
  refuse_transform(server_transform, 'fcf')
  settings = config.fcf
  init_items, init_personal = least_squares.make_vectors(recommender)
  # Every client touches every row.
  stepper = build_server(
      config, None, expected_cohort, auto='sum', lazy_rows=False)

  def draw(client: Client, key: jax.Array) -> least_squares.Slots:
    # Every item has a slot, in the catalogue's order.
    own = least_squares.draw_slots(client, key)
    everything = jnp.arange(num_items, dtype=jnp.int32)
    has = jnp.zeros(num_items, bool).at[client.items].set(
        own.used, mode='drop')
    there = client.num_examples > 0
    return least_squares.Slots(
        jnp.where(there, everything, num_items), has & there,
        jnp.where(has, 1.0, 0.0), everything)

  def solve_block(view: View, examples, num_examples):
    rows = view.item_rows['item']
    ridge = jnp.full(len(rows), settings.regularization)
    # sum of c v v' over all items: V'V, and alpha more for the client's own;
    # and the right side has the weight 1 + alpha.
    users = least_squares.solve_users(
        rows, examples.used, view.shared['gramian'], ridge, settings.alpha)
    users = (1 + settings.alpha) * users
    return jnp.where((num_examples > 0)[:, None], users, 0)

  def client_update(view: View, examples, num_examples):
    users = solve_block(view, examples, num_examples)
    rows = view.item_rows['item']
    confidence = 1 + settings.alpha * examples.labels
    missing = examples.labels - jnp.einsum(
        'bcd,bd->bc', rows, users, precision=jax.lax.Precision.HIGHEST)
    # Half of the gradient is minus this times p; the sum is of descents.
    step = 2 * (confidence * missing)[..., None] * users[:, None, :]
    loss = (confidence * jnp.square(missing)).sum(1) + (
        settings.regularization * jnp.square(users).sum(1))
    there = num_examples > 0
    return Contribution(
        {'item': jnp.where(there[:, None, None], step, 0)}, {},
        jnp.where(there, loss, 0), num_examples.astype(jnp.float32),
        num_examples), {'user': users}

  def update(state: ServerState, total: Sum) -> ServerState:
    pull = 2 * settings.regularization * state.item_table['item']
    sums = {'item': total.item_table['item'] - pull}
    return stepper.update(state, total._replace(item_table=sums))

  return Algorithm(
      init_server=lambda key: stepper.init(init_items(key), {}),
      init_personal=init_personal,
      draw=draw,
      client_update=client_update,
      server=stepper._replace(update=update, rows_stand_still=False),
      learning_rate_scale=lambda round_index: jnp.float32(1),
      weight_by_examples=False,
      score=least_squares.score,
      broadcast=lambda server: {
          'gramian': least_squares.gramian(server.item_table['item'])},
      refit=lambda view, examples, num_examples: {
          'user': solve_block(view, examples, num_examples)},
      touched_rows=lambda counts: num_items * (counts > 0),
      not_alone=(
          'Federation off is not run here: a client uploads a gradient for the '
          "server's optimizer, and takes no step of its own."))
