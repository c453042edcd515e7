"""Ditto: a model of each client's own, pulled towards the global one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import local_steps
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.algorithms.own_model import (
    OwnModel,
    init_own_model,
    keep_own,
    own_values,
)
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.models.recommender import Recommender

PyTree = Any


class Own(NamedTuple):
  """What a client keeps.

  Attributes:
    layer: The global model's personal part.
    model: The client's own model.
  """
  layer: PyTree
  model: OwnModel


def make_ditto(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds Ditto for a recommender.

  Per batch, a FedAvg step of the global model w, and one of the client's own v
  on its loss + pull / 2 |v - w_t|^2, w_t being what was downloaded: the shared
  parameters whole, and of the item rows the mean over the batch, as with L2.
  Rows outside a batch stand still. Where rate times pull passes 1, an explicit
  step would pass w_t, and beyond 2 diverge; there it ends at w_t (of a row
  that stands once in its batch). So under a pull without bound v differs from
  the global model in rows that went out of date, and in its personal part.

  Personal: v, and the personal part of w. Travels: as with FedAvg; v never.
  Published: pull between 0.05 and 2.

  Memory: a table a client, num_clients * num_items * dim * 4 bytes; refused
  above personalization.table_limit_gib.

  Args:
    config: The whole config; ditto.pull is read.
    recommender: The model.
    num_items: Items in the catalogue.
    server_transform: See `make_server`.
    expected_cohort: See `make_server`.

  Raises:
    ValueError: For a client optimizer other than sgd.

  References:
    Li et al., 2021, `Ditto <https://arxiv.org/abs/2012.04221>`_.
  """
  local_steps.require_sgd(config)
  client, pull = config.client, config.ditto.pull
  loss = local_steps.make_batch_loss(recommender.score, config.objective)
  gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)

  def step(tables, whole, batch):
    rates = [batch.scale * rate for rate in (
        client.learning_rate, client.item_learning_rate, client.learning_rate)]

    def move(values, gradients):
      return tuple(map(local_steps.descend, values, gradients, rates))

    rows, own_rows = tables
    (layer, shared), (own_layer, own_shared) = whole
    gradients, (loss_sum, count) = gradient(layer, rows, shared, batch)
    layer, rows, shared = move((layer, rows, shared), gradients)
    start_rows, start_shared = batch.rows, batch.whole
    (g_layer, g_rows, g_shared), _ = gradient(
        own_layer, own_rows, own_shared, batch)
    # However strong, a pull ends at the global model and not beyond it.
    g_rows = optax.tree.add_scale(
        g_rows, jnp.minimum(pull / local_steps.num_used(batch), 1 / rates[1]),
        optax.tree.sub(own_rows, start_rows))
    g_shared = optax.tree.add_scale(
        g_shared, jnp.minimum(pull, 1 / rates[2]),
        optax.tree.sub(own_shared, start_shared))
    own_layer, own_rows, own_shared = move(
        (own_layer, own_rows, own_shared), (g_layer, g_rows, g_shared))
    return ((rows, own_rows), ((layer, shared), (own_layer, own_shared)),
            loss_sum, count)

  run = local_steps.make_local_steps(
      step, batch_size=client.batch_size, epochs=client.epochs,
      steps=client.steps)

  def client_update(view, examples, num_examples):
    own = view.personal
    own_rows, own_shared = own_values(own.model, view.item_rows, view.shared)
    trained = run(
        (view.item_rows, own_rows),
        ((own.layer, view.shared), (own.model.layer, own_shared)), examples,
        num_examples, view.learning_rate_scale, fixed=view.item_rows,
        fixed_whole=view.shared)
    rows, own_rows = trained.rows
    (layer, shared), (own_layer, own_shared) = trained.whole
    return (local_steps.contribution(view, trained, rows, shared),
            Own(layer, keep_own(
                own_layer, own_rows, own_shared, examples.used)))

  def init_personal(key):
    return Own(recommender.init_personal(key),
               init_own_model(recommender, num_items, key))

  def score(own, item_rows, shared):
    return recommender.score(
        own.model.layer, *own_values(own.model, item_rows, shared))

  return make_fedavg(
      config, recommender, num_items, server_transform, expected_cohort
  )._replace(
      init_personal=init_personal, client_update=client_update, score=score,
      aggregated_score=lambda own, item_rows, shared: recommender.score(
          own.layer, item_rows, shared))
