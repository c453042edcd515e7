"""Reptile: the start moves towards where clients' local training ends."""

from typing import Any

from fedjaxrec.algorithms.meta_learning import make_meta_learner
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.models.recommender import Recommender


def make_reptile(
    config: Config, recommender: Recommender, num_items: int, **server: Any
) -> Algorithm:
  """Builds Reptile: FedAvg's rounds on a model of which nothing is personal.

  A client takes its local steps (client.epochs, client.steps) on the whole
  model w, what the model marks as personal included, and uploads phi_u - w; the
  server adds the mean times epsilon, which is server.learning_rate with
  server.optimizer=sgd. For evaluation, and for users who never trained, a
  client adapts the start to its interactions: meta.final_epochs passes of rate
  meta.learning_rate, item rows held still.

  Personal: nothing for longer than a recommendation; no round reads what an
  earlier one made. Travels: the touched rows of the item table, the shared
  parameters and the start of the personal part, down; their deltas, up. So a
  client's own vector, less the start, is in its upload, which FedAvg's is not.

  Args:
    config: The whole config; meta is read.
    recommender: The model.
    num_items: Items in the catalogue.
    **server: See `make_fedavg`.

  Raises:
    ValueError: For a client optimizer other than sgd.

  References:
    Nichol, Achiam and Schulman, 2018, `On First-Order Meta-Learning Algorithms
    <https://arxiv.org/abs/1803.02999>`_.
  """
  def make_client_update(shared_model, plain):
    del shared_model
    return lambda view, examples, num_examples: plain.client_update(
        view, examples, num_examples)[0]

  return make_meta_learner(
      config, recommender, num_items, make_client_update, **server)
