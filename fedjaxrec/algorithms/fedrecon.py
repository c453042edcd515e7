"""FedRecon: the personal part is made anew in each round, and never kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import local_steps
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.algorithms.fedper import make_alternation
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.examples import Examples, draw_examples
from fedjaxrec.models.recommender import Recommender

PyTree = Any
# Keeps the start of a reconstruction apart from the draws of the round.
_STREAM = 0x5EED


class Reconstruction(NamedTuple):
  """A client's interactions of one round, and where it starts from.

  Attributes:
    rows: As in `Examples`.
    labels: As in `Examples`.
    used: As in `Examples`.
    start: The fresh personal parameters.
  """
  rows: jax.Array
  labels: jax.Array
  used: jax.Array
  start: PyTree


def make_fedrecon(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds FedRecon for a recommender.

  A client's interactions, in the order of the round's shuffle, are its support
  set (the even places) and its query set (the odd ones). From fresh values it
  fits its personal part on the support set, then, with that part fixed, trains
  what is shared on the query set, and uploads the deltas.

  Personal: what the model marks so; no round reads what an earlier one made, so
  that a client never seen is as good as any. For evaluation, and for users who
  never trained, `refit` does the same reconstruction on all that a client has.
  Travels: as with FedAvg. Published for MovieLens 1M: 100 clients a round, 500
  rounds, batches of 5, client rate 0.5, reconstruction rate 0.1.

  Args:
    config: The whole config; the section fedrecon is read, and client.epochs
      and client.steps are those of the query set.
    recommender: The model.
    num_items: Items in the catalogue.
    server_transform: See `make_server`.
    expected_cohort: See `make_server`.

  Raises:
    ValueError: For a client optimizer other than sgd.

  References:
    Singhal et al., 2021, `Federated Reconstruction
    <https://arxiv.org/abs/2102.03448>`_.
  """
  local_steps.require_sgd(config)
  settings = config.fedrecon
  reconstruct, train = make_alternation(
      config, recommender, settings.learning_rate, settings.epochs)
  reconstruct_finally, _ = make_alternation(
      config, recommender, settings.learning_rate, settings.final_epochs)

  def draw(client, key):
    drawn = draw_examples(
        client, key, num_items, config.objective.drawn_negatives)
    return Reconstruction(*drawn, recommender.init_personal(
        jax.random.fold_in(key, _STREAM)))

  def client_update(view, examples, num_examples):
    (support_rows, support), (query_rows, query) = local_steps.split_halves(
        (view.item_rows, Examples(*examples[:3])))
    head = reconstruct(
        (), examples.start, support, (num_examples + 1) // 2,
        view.learning_rate_scale, fixed=support_rows, fixed_whole=view.shared)
    if examples.labels.shape[1] > 1:
      base = train(
          query_rows, view.shared, query, num_examples // 2,
          view.learning_rate_scale, fixed_whole=head.whole)
      rows = jax.tree.map(
          lambda x, part: x.at[:, 1::2].set(part), view.item_rows, base.rows)
      trained = base._replace(
          num_examples=base.num_examples + head.num_examples)
      shared = base.whole
    else:  # One interaction leaves nothing to query.
      rows, shared = view.item_rows, view.shared
      trained = head._replace(
          loss_sum=jnp.zeros_like(head.loss_sum),
          loss_count=jnp.zeros_like(head.loss_count))
    return (local_steps.contribution(view, trained, rows, shared), head.whole)

  def refit(view, examples, num_examples):
    return reconstruct_finally(
        (), examples.start, Examples(*examples[:3]), num_examples,
        view.learning_rate_scale, fixed=view.item_rows,
        fixed_whole=view.shared).whole

  return make_fedavg(
      config, recommender, num_items, server_transform, expected_cohort
  )._replace(draw=draw, client_update=client_update, refit=refit)
