"""Federated alternating least squares, exact, by sums of statistics.

  L = sum over interactions (1 - p_u . v_i)^2 + a0 sum over all pairs
      (p_u . v_i)^2 + sum_u lambda_u |p_u|^2 + sum_i lambda_i |v_i|^2,
  lambda_u = lambda (n_u + a0 num_items)^nu, lambda_i likewise with clients.

A round is a sweep. A client solves for its vector, and uploads p p' and p for
each of its items, and p p' once; their sums are all that the items' half needs.
With every client in every round (cohort.size=0) this is the centralised
algorithm, sweep by sweep, to the order of float32 sums. With a part of them it
is another one: every sweep solves the problem of that cohort alone, and an item
that nobody of it has gets the vector 0.

What a server that looks can see: the rows of an upload are the client's items,
and each holds its vector. In the clear, nothing is hidden.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import least_squares
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.local_training import Contribution, View
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.server import ServerState, Sum, make_whole_server

PyTree = Any

NOT_ALONE = (
    'Federation off is not defined here: to the statistics of one client every '
    'item that it has not seen has the vector 0, so all of them are tied.')


def make_ials(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds federated iALS.

  Personal: the client's vector; it is solved for afresh in every round, and for
  evaluation once more, from the items' final vectors. Travels: the client's
  item rows and V'V (dim^2 numbers), down; (n_u + 1) dim (dim + 1) / 2 + n_u dim
  numbers, up.

  Cost of a client: n_u dim^2 + dim^3 / 3 multiplications; the server: dim^3 / 3
  an item, and a sum of num_items dim^2 / 2 numbers.

  Args:
    config: The whole config; section ials, model.dim and model.init_scale are
      read.
    recommender: The factorisation, for its initial vectors; its biases are left
      out.
    num_items: Items in the catalogue.
    server_transform: Not supported here; see `dpals`.
    expected_cohort: Stands for the number of clients in lambda_i; None: those
      that reported.

  Raises:
    ValueError: For a transform of the sum.

  References:
    Hu, Koren and Volinsky, 2008, Collaborative Filtering for Implicit Feedback
    Datasets, ICDM; the penalties after Rendle et al., 2022, `iALS
    <https://arxiv.org/abs/2110.14037>`_.
  """
  refuse_transform(server_transform, 'ials')
  init_items, init_personal = least_squares.make_vectors(recommender)
  dim, a0 = config.model.dim, config.ials.unobserved_weight

  def client_update(view: View, examples, num_examples):
    users, loss = solve_block(config, num_items, view, examples, num_examples)
    used = examples.used.astype(jnp.float32)
    mine = (num_examples > 0).astype(jnp.float32)
    packed = least_squares.pack_outer(users) * mine[:, None]
    rows = {'gramian': used[..., None] * packed[:, None, :],
            'vector': used[..., None] * users[:, None, :], 'count': used}
    return Contribution(
        rows, {'gramian': packed}, loss, num_examples.astype(jnp.float32),
        num_examples), {'user': users}

  def update(state: ServerState, total: Sum) -> ServerState:
    clients = total.weight if expected_cohort is None else expected_cohort
    sums = total.item_table
    items = least_squares.solve_items(
        sums['gramian'], sums['vector'],
        a0 * least_squares.unpack(total.shared['gramian'], dim),
        least_squares.penalty(config, sums['count'], clients))
    # Where nobody reported there is nothing to solve.
    items = jnp.where(total.weight > 0, items, state.item_table['item'])
    return state._replace(
        round_index=state.round_index + 1, item_table={'item': items})

  return Algorithm(
      init_server=lambda key: init_state(init_items(key)),
      init_personal=init_personal,
      draw=least_squares.draw_slots,
      client_update=client_update,
      server=make_whole_server(
          lambda table, shared: init_state(table), update),
      learning_rate_scale=lambda round_index: jnp.float32(1),
      weight_by_examples=False,
      score=least_squares.score,
      broadcast=lambda server: {
          'gramian': least_squares.gramian(server.item_table['item'])},
      empty_contribution=lambda server: empty_statistics(num_items, dim),
      refit=lambda view, examples, num_examples: {'user': solve_block(
          config, num_items, view, examples, num_examples)[0]},
      touched_rows=lambda counts: counts,
      not_alone=NOT_ALONE)


def refuse_transform(transform, name: str) -> None:
  """Refuses a transform of a sum that is not of deltas.

  Raises:
    ValueError: If there is one.
  """
  if transform is not None:
    raise ValueError(
        f'server_transform with algorithm.name={name}: noise on these sums '
        'needs bounds and projections of their own; use algorithm.name=dpals.')


def init_state(table: PyTree, shared: PyTree = None) -> ServerState:
  """The server before its first round: a table and no optimizer.

  Args:
    table: Leaves [num_items, ...].
    shared: What travels whole; None for nothing.
  """
  return ServerState(
      jnp.int32(0), table, {} if shared is None else shared,
      optax.EmptyState(), optax.EmptyState())


def empty_statistics(
    num_items: int, dim: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Zeros of what a cohort sums up to: (by item, whole); matrices packed."""
  entries = dim * (dim + 1) // 2
  return ({'gramian': jnp.zeros((num_items, entries)),
           'vector': jnp.zeros((num_items, dim)),
           'count': jnp.zeros(num_items)},
          {'gramian': jnp.zeros(entries)})


def solve_block(
    config: Config, num_items: int, view: View, examples: least_squares.Slots,
    num_examples: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Solves for a block of clients.

  Args:
    config: The whole config; the section ials is read.
    num_items: Items in the catalogue.
    view: The clients' item rows, and V'V in shared.
    examples: Their interactions, leaves [B, capacity].
    num_examples: int32 [B].

  Returns:
    Vectors float32 [B, dim], and the clients' shares of L, float32 [B], which
    are 0 for a padding client.
  """
  a0 = config.ials.unobserved_weight
  counts = num_examples.astype(jnp.float32)
  ridge = least_squares.penalty(config, counts, num_items)
  gram = view.shared['gramian']
  rows = view.item_rows['item']
  users = least_squares.solve_users(rows, examples.used, a0 * gram, ridge)
  misses = jnp.where(
      examples.used, 1 - jnp.einsum('bcd,bd->bc', rows, users), 0)
  spread = jnp.einsum('bi,bij,bj->b', users, gram, users)
  loss = (jnp.square(misses).sum(1) + a0 * spread
          + ridge * jnp.square(users).sum(1))
  return users, jnp.where(num_examples > 0, loss, 0)
