"""FedNova: what a client asks for does not grow with the steps it takes.

An option of FedAvg, `cohort.normalization=local_steps`. A client with ten times
the data takes ten times the local steps, and in a plain mean its delta counts
ten times as much as that of another of the same weight. Here a delta is divided
by how far its steps could have gone, and the mean of these directions is walked
as far as the cohort's steps reach on average:

  w += tau sum_u p_u delta_u / |a_u|_1,  tau = sum_u p_u |a_u|_1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.blocks import Algorithm, parameters_and_sum, widen
from fedjaxrec.config import Config
from fedjaxrec.local_training import is_off, num_steps
from fedjaxrec.server import ServerState, Sum, make_whole_server

PyTree = Any

_NOT_ALONE = (
    'Alone, a client is normalised by its own steps and walks them again: '
    'federation off is that of the run with cohort.normalization=none.')


def reach(
    steps: jax.Array, momentum: float | jax.Array = 0.0,
    shrinkage: float | jax.Array = 0.0
) -> jax.Array:
  """|a|_1: the sum of the coefficients of the gradients in a delta, over -rate.

  With t steps: t for sgd; (t - m (1 - m^t) / (1 - m)) / (1 - m) with momentum
  m; (1 - (1 - s)^t) / s with a proximal term of s = rate * mu.

  Args:
    steps: Local steps, at least 0, any shape.
    momentum: m, in [0, 1); 0 together with a shrinkage.
    shrinkage: s, in [0, 1).
  """
  steps = steps.astype(jnp.float32)
  if not is_off(momentum):
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (
        1 - momentum)
  if not is_off(shrinkage):
    # For a small s the difference would be lost in rounding.
    return -jnp.expm1(steps * jnp.log1p(-shrinkage)) / shrinkage
  return steps


def normalize_steps(config: Config, algorithm: Algorithm) -> Algorithm:
  """Builds FedNova from FedAvg.

  Item rows and shared parameters have learning rates, and may have optimizers,
  of their own, and so each an |a_u|_1. p_u is cohort.weighting's. Where all
  take equally many steps this is FedAvg.

  Personal: as with FedAvg. Travels: as with FedAvg, and up the two |a_u|_1, of
  which the sums are all that the server needs; they tell how many interactions
  a client has. Privacy, compression and secure sums, which would bend them, are
  refused; so is client.steps, with which every client takes the same number,
  and there is nothing to normalise. The server visits the whole table every
  round.

  Args:
    config: The whole config, which `check_corrections` has passed.
    algorithm: FedAvg.

  References:
    Wang et al., 2020, `Tackling the Objective Inconsistency Problem
    <https://arxiv.org/abs/2007.07481>`_.
  """
  client = config.client

  def reaches(num_examples, scale):
    _, steps = num_steps(
        num_examples, client.batch_size, client.epochs, client.steps)

    def one(name, rate):
      return reach(
          steps, client.momentum if name == 'momentum' else 0.0,
          0.0 if is_off(client.proximal_mu) else (
              rate * scale * client.proximal_mu))

    return {'item': one(client.item_optimizer or client.optimizer,
                        client.item_learning_rate),
            'shared': one(client.optimizer, client.learning_rate)}

  def client_update(view, examples, num_examples):
    contribution, personal = algorithm.client_update(
        view, examples, num_examples)
    reached = reaches(num_examples, view.learning_rate_scale)

    def divide(tree, by):
      share = jnp.where(by > 0, 1 / jnp.where(by > 0, by, 1), 0)
      return jax.tree.map(lambda x: x * widen(share, x), tree)

    return contribution._replace(
        item_rows=divide(contribution.item_rows, reached['item']),
        shared={'model': divide(contribution.shared, reached['shared']),
                'reach': reached}), personal

  def empty_contribution(server: ServerState):
    table, shared = algorithm.empty_contribution(server)
    return table, {'model': shared, 'reach': {
        'item': jnp.float32(0), 'shared': jnp.float32(0)}}

  def update(state: ServerState, total: Sum) -> ServerState:
    weight = jnp.where(total.weight > 0, total.weight, 1)
    mean = optax.tree.scale(1 / weight, total.shared['reach'])
    return algorithm.server.update(state, total._replace(
        item_table=optax.tree.scale(mean['item'], total.item_table),
        shared=optax.tree.scale(mean['shared'], total.shared['model'])))

  return algorithm._replace(
      client_update=client_update, empty_contribution=empty_contribution,
      not_alone=_NOT_ALONE,
      traffic=parameters_and_sum(empty_contribution),
      server=make_whole_server(
          algorithm.server.init, update,
          needs_row_weight=algorithm.server.needs_row_weight))
