"""PFedRec: a personal score layer, and a personal view of the items.

Per batch, a step of the score layer; the loss again; then a step of the item
rows. The client recommends with its own table, as its last round left it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import local_steps, whole_table
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.population import ByItem

PyTree = Any


class Own(NamedTuple):
  """What a client keeps.

  Attributes:
    layer: What the model marks as personal: the score layer.
    table: Its own view of the items.
    trained: float32 []: 1 once it has taken part; until then it scores with
      the server's table.
  """
  layer: PyTree
  table: ByItem
  trained: jax.Array


def make_pfedrec(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds PFedRec, for model.name=pfedrec or any other model.

  Personal: what the model marks so (all clients begin alike), and the item
  table as the client's last round left it. Travels: whole tables. Published:
  all clients, 1 local epoch, batches of 256 examples (client.batch_size=51 with
  4 negatives), score rate 0.1, item rate 0.1 * num_items * 80, server mean,
  100 rounds, dim 32.

  Memory: a table a client, num_clients * num_items * dim * 4 bytes (203 MB for
  MovieLens 100K, 2.9 GB for 1M), on the device and in checkpoints; refused
  above personalization.table_limit_gib. A client that does not take part keeps
  the table of its last round.

  Args:
    config: The whole config; the item rate is client.learning_rate * num_items
      * pfedrec.lr_eta, or client.item_learning_rate where lr_eta is 0.
    recommender: The model.
    num_items: Items in the catalogue.
    server_transform: See `make_server`.
    expected_cohort: See `make_server`.

  Raises:
    ValueError: For a client optimizer other than sgd.

  References:
    Zhang et al., 2023, `PFedRec <https://arxiv.org/abs/2301.08143>`_.
  """
  local_steps.require_sgd(config)
  client = config.client
  item_rate = whole_table.choose_item_rate(
      client, num_items, config.pfedrec.lr_eta)
  loss = local_steps.make_batch_loss(recommender.score, config.objective)

  def step(rows, whole, batch):
    layer, shared = whole
    (layer_gradient, shared_gradient), (loss_sum, count) = jax.grad(
        loss, argnums=(0, 2), has_aux=True)(layer, rows, shared, batch)
    rate = batch.scale * client.learning_rate
    layer = local_steps.descend(layer, layer_gradient, rate)
    shared = local_steps.descend(shared, shared_gradient, rate)
    gradient, _ = jax.grad(loss, argnums=1, has_aux=True)(
        layer, rows, shared, batch)
    rows = local_steps.descend(rows, gradient, batch.scale * item_rate)
    return rows, (layer, shared), loss_sum, count

  run = whole_table.make_table_steps(
      step, batch_size=client.batch_size, epochs=client.epochs,
      steps=client.steps)

  def client_update(view, examples, num_examples):
    own = view.personal
    trained = run(view.item_rows, (own.layer, view.shared), examples,
                  num_examples, view.learning_rate_scale)
    layer, shared = trained.whole
    return (local_steps.contribution(view, trained, trained.rows, shared),
            Own(layer, ByItem(trained.rows), jnp.ones_like(own.trained)))

  algorithm = make_fedavg(
      config, recommender, num_items, server_transform, expected_cohort
  )._replace(
      init_personal=lambda key: Own(
          *whole_table.begin_alike(config, recommender), jnp.float32(0)),
      client_update=client_update)
  return whole_table.keep_tables(
      algorithm, config, recommender, num_items, lambda own: own.trained > 0)
