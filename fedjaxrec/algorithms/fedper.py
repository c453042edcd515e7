"""FedPer and FedRep: layers that stay with the client, and a base that travels.

Which layers are personal is the model's marker: the user vector of mf,
gmf, mlp and neumf, the score layer of pfedrec.
"""

from typing import Any

import jax
import optax

from fedjaxrec.algorithms import local_steps
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.models.recommender import Recommender

PyTree = Any


def make_fedper(
    config: Config, recommender: Recommender, num_items: int, **server: Any
) -> Algorithm:
  """Builds FedPer: personal layers and base train together, the base travels.

  With markers in the model that is what FedAvg does here, under its own name.

  Args:
    config: The whole config.
    recommender: The model.
    num_items: Items in the catalogue.
    **server: See `make_fedavg`.

  References:
    Arivazhagan et al., 2019, `Federated Learning with Personalization Layers
    <https://arxiv.org/abs/1912.00818>`_.
  """
  return make_fedavg(config, recommender, num_items, **server)


def make_fedrep(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds FedRep: first the personal layers, then the base with these fixed.

  Personal: what the model marks so. Travels: as with FedAvg. Memory: as
  FedAvg's.

  Args:
    config: The whole config; fedrep.head_epochs is read, and client.epochs and
      client.steps are those of the base.
    recommender: The model.
    num_items: Items in the catalogue.
    server_transform: See `make_server`.
    expected_cohort: See `make_server`.

  Raises:
    ValueError: For a client optimizer other than sgd.

  References:
    Collins et al., 2021, `FedRep <https://arxiv.org/abs/2102.07078>`_.
  """
  local_steps.require_sgd(config)
  client = config.client
  train_head, train_base = make_alternation(
      config, recommender, client.learning_rate, config.fedrep.head_epochs)

  def client_update(view, examples, num_examples):
    head = train_head(
        (), view.personal, examples, num_examples, view.learning_rate_scale,
        fixed=view.item_rows, fixed_whole=view.shared)
    base = train_base(
        view.item_rows, view.shared, examples, num_examples,
        view.learning_rate_scale, fixed_whole=head.whole)
    trained = base._replace(num_examples=base.num_examples + head.num_examples)
    return (local_steps.contribution(view, trained, base.rows, base.whole),
            head.whole)

  return make_fedavg(
      config, recommender, num_items, server_transform, expected_cohort
  )._replace(client_update=client_update)


def make_alternation(
    config: Config, recommender: Recommender, head_rate: float,
    head_epochs: int
) -> tuple[Any, Any]:
  """Builds the training of the personal part alone, and of the rest alone.

  Args:
    config: The whole config.
    recommender: The model.
    head_rate: Learning rate of the personal part.
    head_epochs: Passes that train it.

  Returns:
    Two functions of `make_local_steps`: the first moves whole = personal, with
    fixed = item rows and fixed_whole = shared; the second rows = item rows and
    whole = shared, with fixed_whole = personal.
  """
  client = config.client
  loss = local_steps.make_batch_loss(recommender.score, config.objective)

  def head_step(rows, personal, batch):
    gradient, (loss_sum, count) = jax.grad(loss, has_aux=True)(
        personal, batch.rows, batch.whole, batch)
    return (rows, local_steps.descend(
        personal, gradient, batch.scale * head_rate), loss_sum, count)

  def base_step(rows, shared, batch):
    gradients, (loss_sum, count) = jax.grad(
        loss, argnums=(1, 2), has_aux=True)(batch.whole, rows, shared, batch)
    return (local_steps.descend(
        rows, gradients[0], batch.scale * client.item_learning_rate),
            local_steps.descend(
                shared, gradients[1], batch.scale * client.learning_rate),
            loss_sum, count)

  return (
      local_steps.make_local_steps(
          head_step, batch_size=client.batch_size, epochs=head_epochs),
      local_steps.make_local_steps(
          base_step, batch_size=client.batch_size, epochs=client.epochs,
          steps=client.steps))
