"""APFL: a mixture of a model of the client's own and the global one."""

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
    alpha: float32 []: the own model's share of the mixture.
  """
  layer: PyTree
  model: OwnModel
  alpha: jax.Array


def mix(alpha: jax.Array, own: PyTree, other: PyTree) -> PyTree:
  """alpha * own + (1 - alpha) * other, of the same tree; alpha float32 []."""
  return jax.tree.map(lambda v, w: alpha * v + (1 - alpha) * w, own, other)


def make_apfl(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds APFL for a recommender.

  Per batch: a FedAvg step of w; then, with g the loss's gradient at the mixture
  m = a v + (1 - a) w, v falls by rate * a g, and a by apfl.alpha_rate * <v - w,
  g>, kept in [0, 1]. The client recommends with the mixture of v and the
  server's model.

  Personal: v, a, and the personal part of w. Travels: as with FedAvg; v and a
  never.

  Memory: a table a client, num_clients * num_items * dim * 4 bytes; refused
  above personalization.table_limit_gib.

  Args:
    config: The whole config; the section apfl is read.
    recommender: The model.
    num_items: Items in the catalogue.
    server_transform: See `make_server`.
    expected_cohort: See `make_server`.

  Raises:
    ValueError: For a client optimizer other than sgd.

  References:
    Deng et al., 2020, `Adaptive Personalized Federated Learning
    <https://arxiv.org/abs/2003.13461>`_.
  """
  local_steps.require_sgd(config)
  client, settings = config.client, config.apfl
  loss = local_steps.make_batch_loss(recommender.score, config.objective)
  gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)

  def step(tables, whole, batch):
    rates = [batch.scale * rate for rate in (
        client.learning_rate, client.item_learning_rate, client.learning_rate)]
    (rows, own_rows), ((layer, shared), (own_layer, own_shared), alpha) = (
        tables, whole)
    served = (layer, rows, shared)
    gradients, (loss_sum, count) = gradient(*served, batch)
    served = tuple(map(local_steps.descend, served, gradients, rates))
    own = (own_layer, own_rows, own_shared)
    gradients, _ = gradient(*mix(alpha, own, served), batch)
    slope = sum(
        jnp.vdot(v - w, g) for v, w, g in zip(
            jax.tree.leaves(own), jax.tree.leaves(served),
            jax.tree.leaves(gradients), strict=True))
    own = tuple(map(
        local_steps.descend, own, gradients, [alpha * r for r in rates]))
    alpha = jnp.clip(
        alpha - batch.scale * settings.alpha_rate * slope, 0, 1)
    (layer, rows, shared), (own_layer, own_rows, own_shared) = served, own
    return ((rows, own_rows),
            ((layer, shared), (own_layer, own_shared), alpha), loss_sum, count)

  run = local_steps.make_local_steps(
      step, batch_size=client.batch_size, epochs=client.epochs,
      steps=client.steps)

  def client_update(view, examples, num_examples):
    own = view.personal
    own_rows, own_shared = own_values(own.model, view.item_rows, view.shared)
    trained = run(
        (view.item_rows, own_rows),
        ((own.layer, view.shared), (own.model.layer, own_shared), own.alpha),
        examples, num_examples, view.learning_rate_scale)
    rows, own_rows = trained.rows
    (layer, shared), (own_layer, own_shared), alpha = trained.whole
    return (local_steps.contribution(view, trained, rows, shared),
            Own(layer, keep_own(
                own_layer, own_rows, own_shared, examples.used), alpha))

  def init_personal(key):
    return Own(recommender.init_personal(key),
               init_own_model(recommender, num_items, key),
               jnp.float32(settings.alpha))

  def score(own, item_rows, shared):
    mine = own_values(own.model, item_rows, shared)
    return recommender.score(*mix(
        own.alpha, (own.model.layer, *mine), (own.layer, item_rows, shared)))

  return make_fedavg(
      config, recommender, num_items, server_transform, expected_cohort
  )._replace(
      init_personal=init_personal, client_update=client_update, score=score,
      aggregated_score=lambda own, item_rows, shared: recommender.score(
          own.layer, item_rows, shared))
