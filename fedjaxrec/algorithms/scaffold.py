"""SCAFFOLD: control variates against the drift of clients with different data.

An option of FedAvg, `client.control_variates`. A client's local steps go along

  g(y) - c_u + c

instead of g(y), c_u being what its own gradient was the last time it took part
and c the mean of these over the clients; so that many local steps point to what
all clients want, and not to what each wants by itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.blocks import Algorithm, parameters_and_sum, widen
from fedjaxrec.config import Config
from fedjaxrec.local_training import num_steps
from fedjaxrec.population import ByItem
from fedjaxrec.server import ServerState, Sum, make_whole_server

PyTree = Any

_NOT_ALONE = (
    'Alone, the control variates of a client and of the server are the same '
    'and cancel: federation off is that of the run with '
    'client.control_variates=false.')


class WithVariates(NamedTuple):
  """What a client keeps.

  Attributes:
    personal: As without control variates.
    table: ByItem of (c_u of the rows, known: float32, 1 where the client has
      touched the row in some round).
    shared: c_u of the shared parameters.
    known: float32 []: 1 once it has taken part.
  """
  personal: PyTree
  table: ByItem
  shared: PyTree
  known: jax.Array


class Holders(NamedTuple):
  """The server's optimizer state, and how many clients it has heard of.

  Attributes:
    inner: The optimizer's state.
    clients: float32 [num_items], or [] of the shared parameters: how many have
      a control variate.
  """
  inner: PyTree
  clients: jax.Array


def add_control_variates(
    config: Config, algorithm: Algorithm, train: Callable
) -> Algorithm:
  """Builds SCAFFOLD from FedAvg.

  After K local steps from x to y with learning rate eta, a client's new control
  variate is c_u - c + (x - y) / (K eta), the mean of its gradients, and it
  uploads the change of both y and c_u. The rows of the item table each are a
  problem of the clients that touch them: a client corrects, and renews, the
  rows that it touches in a round; c of a row is the mean of c_u over the
  clients that have ever touched it, and c of the shared parameters that over
  the clients that have ever taken part. (The paper counts the others with
  c_u = 0; once all have come the two agree.) Personal parameters have no
  counterpart at the server, and are not corrected.

  Personal: as with FedAvg, and c_u, which never leaves the client but for its
  change. Travels: twice what FedAvg sends, both ways: rows of the table and of
  c down, deltas of both up, and one number a row that says whether it is the
  client's first. The change of c_u shows a client's gradient as its delta does,
  with no bound on its norm: privacy, compression and secure sums are refused.

  Memory: a table a client, num_clients * num_items * (dim + 2) * 4 bytes for
  mf; refused above personalization.table_limit_gib. A local step costs the
  whole local table, because c - c_u moves every row of it. The server visits
  the whole table every round.

  Args:
    config: The whole config, which `check_corrections` has passed.
    algorithm: FedAvg.
    train: Its local training, made with corrected=True.

  References:
    Karimireddy et al., 2020, `SCAFFOLD <https://arxiv.org/abs/1910.06378>`_,
    option II.
  """
  client = config.client

  def with_variates(state: ServerState) -> ServerState:
    return state._replace(
        item_table=_pair(state.item_table), shared=_pair(state.shared),
        item_opt_state=Holders(
            state.item_opt_state,
            jnp.zeros(len(jax.tree.leaves(state.item_table)[0]))),
        shared_opt_state=Holders(state.shared_opt_state, jnp.float32(0)))

  def init_personal(key):
    state = jax.eval_shape(algorithm.init_server, key)
    table, shared = optax.tree.zeros_like(
        (state.item_table, state.shared), jnp.float32)
    num_items = len(jax.tree.leaves(table)[0])
    return WithVariates(
        algorithm.init_personal(key), ByItem((table, jnp.zeros(num_items))),
        shared, jnp.float32(0))

  def client_update(view, examples, num_examples):
    own, used = view.personal, examples.used
    old_rows, known = own.table.rows
    rows, shared = view.item_rows, view.shared
    drift = optax.tree.sub(
        (rows['variate'], shared['variate']), (old_rows, own.shared))
    contribution, personal = train(
        view._replace(item_rows=rows['model'], shared=shared['model'],
                      personal=own.personal),
        examples, num_examples, drift)
    _, steps = num_steps(
        num_examples, client.batch_size, client.epochs, client.steps)
    here = (steps > 0).astype(jnp.float32)

    def change(delta, correction, rate, mask):
      """c_u+ - c_u = (x - y) / (K eta) - c, where the client trained."""
      # A rate of 0 moves nothing, and says nothing of the gradient.
      length = steps * rate * view.learning_rate_scale
      share = jnp.where(length > 0, -1 / jnp.where(length > 0, length, 1), 0)
      return jax.tree.map(
          lambda d, c: widen(mask, d) * (d * widen(share, d) - c),
          delta, correction)

    present = used.astype(jnp.float32) * widen(here, used)
    row_change = change(
        contribution.item_rows, rows['variate'], client.item_learning_rate,
        present)
    shared_change = change(
        contribution.shared, shared['variate'], client.learning_rate, here)
    return contribution._replace(
        item_rows={'model': contribution.item_rows, 'variate': row_change,
                   'new': present * (1 - known)},
        shared={'model': contribution.shared, 'variate': shared_change,
                'new': here * (1 - own.known)},
    ), WithVariates(
        personal,
        ByItem((optax.tree.add(old_rows, row_change),
                jnp.maximum(known, present))),
        optax.tree.add(own.shared, shared_change),
        jnp.maximum(own.known, here))

  def empty_contribution(server: ServerState):
    table, shared = algorithm.empty_contribution(server)
    return ({**table, 'new': jnp.zeros_like(server.item_opt_state.clients)},
            {**shared, 'new': jnp.float32(0)})

  def update(state: ServerState, total: Sum) -> ServerState:
    table, shared = total.item_table, total.shared
    items, rest = state.item_opt_state, state.shared_opt_state
    moved = algorithm.server.update(
        state._replace(
            item_table=state.item_table['model'], shared=state.shared['model'],
            item_opt_state=items.inner, shared_opt_state=rest.inner),
        total._replace(item_table=table['model'], shared=shared['model']))
    row_clients = items.clients + table['new']
    clients = rest.clients + shared['new']
    return moved._replace(
        item_table={'model': moved.item_table, 'variate': _move_mean(
            state.item_table['variate'], table['variate'], items.clients,
            row_clients)},
        shared={'model': moved.shared, 'variate': _move_mean(
            state.shared['variate'], shared['variate'], rest.clients,
            clients)},
        item_opt_state=Holders(moved.item_opt_state, row_clients),
        shared_opt_state=Holders(moved.shared_opt_state, clients))

  def score(own, item_rows, shared):
    return algorithm.score(own.personal, item_rows['model'], shared['model'])

  return algorithm._replace(
      init_server=lambda key: with_variates(algorithm.init_server(key)),
      init_personal=init_personal,
      client_update=client_update, score=score,
      empty_contribution=empty_contribution, not_alone=_NOT_ALONE,
      traffic=parameters_and_sum(empty_contribution),
      server=make_whole_server(
          lambda table, shared: with_variates(
              algorithm.server.init(table, shared)),
          update, needs_row_weight=algorithm.server.needs_row_weight))


def _pair(model: PyTree) -> dict[str, PyTree]:
  """Parameters with their control variate, which begins at 0."""
  return {'model': model,
          'variate': optax.tree.zeros_like(model, jnp.float32)}


def _move_mean(
    mean: PyTree, change: PyTree, old_count: jax.Array, count: jax.Array
) -> PyTree:
  """The mean over `count` clients, whose sum changed by `change`."""
  share = 1 / jnp.maximum(count, 1)
  return jax.tree.map(
      lambda x, d: (x * widen(old_count, x) + d) * widen(share, x), mean,
      change)
