"""FedRAP: every item has a shared row and one of each client's own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import local_steps
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.blocks import Algorithm, widen
from fedjaxrec.config import Config
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.population import ByItem

PyTree = Any
# Keeps the clients' first tables apart from the server's.
_STREAM = 0xADD


class Own(NamedTuple):
  """What a client keeps.

  Attributes:
    layer: What the model marks as personal: the score layer.
    table: Its own addition to the item table.
  """
  layer: PyTree
  table: ByItem


def make_fedrap(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds FedRAP, for model.name=pfedrec or any other model.

  A client scores with item rows D_u + C, D_u its own and C shared, and
  minimises, per batch, the model's loss - lambda mean (D_u - C)^2 + mu |C|_1:
  the mean over the numbers of the batch's rows, the norm their sum. lambda and
  mu rise over the rounds as tanh(round / 10), as in the paper; the released
  code computes that and never uses it (fedrap.rising=false). Rates fall by
  fedrap.batch_decay after each batch of a round.

  Personal: what the model marks so, and D_u; all clients begin alike. Travels:
  the touched rows of C, and the deltas of these. Published: client.epochs up to
  10, batches of 2,048 examples, all rates * 0.97 a round (client.schedule=
  exponential), lambda = mu = 0.1 and client.item_learning_rate = 100, or for
  MovieLens 100K mu 1e-3, rates 1e-4 and 1e3. Other than the released code this
  draws negatives afresh each round, takes all epochs (no early stop), and never
  chooses a round by the test set.

  Memory: a table a client, num_clients * num_items * dim * 4 bytes; refused
  above personalization.table_limit_gib.

  Args:
    config: The whole config.
    recommender: The model.
    num_items: Items in the catalogue.
    server_transform: See `make_server`.
    expected_cohort: See `make_server`.

  Raises:
    ValueError: For a client optimizer other than sgd.

  References:
    Li et al., 2024, `Federated Recommendation with Additive Personalization
    <https://arxiv.org/abs/2301.09109>`_.
  """
  local_steps.require_sgd(config)
  client, settings = config.client, config.fedrap
  model_loss = local_steps.make_batch_loss(
      recommender.score, config.objective)

  def loss(layer, own_rows, rows, shared, batch):
    value, terms = model_loss(
        layer, optax.tree.add(own_rows, rows), shared, batch)
    def masked(x):
      return jnp.where(widen(batch.used, x), x, 0)

    distance = sum(
        jnp.sum(jnp.square(masked(d - c))) for d, c in zip(
            jax.tree.leaves(own_rows), jax.tree.leaves(rows), strict=True))
    numbers = local_steps.num_used(batch) * sum(
        x[0, 0].size for x in jax.tree.leaves(rows))
    norm = sum(jnp.sum(jnp.abs(masked(c))) for c in jax.tree.leaves(rows))
    strength = batch.whole
    return (value - strength * settings.independence * distance / numbers
            + strength * settings.sparsity * norm), terms

  def step(tables, whole, batch):
    own_rows, rows = tables
    layer, shared, factor = whole
    gradients, (loss_sum, count) = jax.grad(
        loss, argnums=(0, 1, 2, 3), has_aux=True)(
            layer, own_rows, rows, shared, batch)
    rate = batch.scale * factor * client.learning_rate
    item_rate = batch.scale * factor * client.item_learning_rate
    layer, own_rows, rows, shared = map(
        local_steps.descend, (layer, own_rows, rows, shared), gradients,
        (rate, item_rate, item_rate, rate))
    return ((own_rows, rows), (layer, shared, factor * settings.batch_decay),
            loss_sum, count)

  run = local_steps.make_local_steps(
      step, batch_size=client.batch_size, epochs=client.epochs,
      steps=client.steps)

  def client_update(view, examples, num_examples):
    shared, round_index = view.shared
    strength = jnp.ones(len(num_examples))
    if settings.rising:
      strength = jnp.tanh(round_index / 10)
    trained = run(
        (view.personal.table.rows, view.item_rows),
        (view.personal.layer, shared, jnp.ones(len(num_examples))), examples,
        num_examples, view.learning_rate_scale, fixed_whole=strength)
    own_rows, rows = trained.rows
    layer, new_shared, _ = trained.whole
    return (local_steps.contribution(
        view._replace(shared=shared), trained, rows, new_shared),
            Own(layer, ByItem(own_rows)))

  def init_personal(key):
    del key  # All begin alike, as in the released code.
    key = jax.random.key(config.seed)
    table, _ = recommender.init_server(jax.random.fold_in(key, _STREAM))
    return Own(recommender.init_personal(key), ByItem(table))

  return make_fedavg(
      config, recommender, num_items, server_transform, expected_cohort
  )._replace(
      init_personal=init_personal, client_update=client_update,
      broadcast=lambda server: (server.shared, server.round_index),
      score=lambda own, item_rows, shared: recommender.score(
          own.layer, optax.tree.add(own.table.rows, item_rows), shared))
