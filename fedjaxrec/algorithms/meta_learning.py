"""What the meta-learners share: a start for all clients, and its adaptation.

In meta-learning no parameter is a client's own from the beginning: what the
model marks as personal starts from values that all share and that the server
learns with the rest, and a client adapts them to its interactions anew whenever
it needs to. Item rows are held still meanwhile: those of a batch stand in no
other, so in one pass their adaptation would change no later gradient, and in
the end it would change the scores of items that the client has already, and of
drawn negatives, which it would push down at random.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import local_steps
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.algorithms.fedper import make_alternation
from fedjaxrec.blocks import Algorithm, widen
from fedjaxrec.config import Config
from fedjaxrec.models.recommender import Recommender

PyTree = Any


class Start(NamedTuple):
  """All of a model but its item rows.

  Attributes:
    layer: What the model marks as personal.
    shared: The rest.
  """
  layer: PyTree
  shared: PyTree


class Adapted(NamedTuple):
  """What a client keeps.

  Attributes:
    model: What it adapted the start to; of no meaning before `known`.
    known: float32 []: 1 once it has.
  """
  model: Start
  known: jax.Array


def share_everything(recommender: Recommender) -> Recommender:
  """The same model, whose personal part is shared: score((), rows, Start)."""
  def init_server(key):
    server_key, layer_key = jax.random.split(key)
    table, shared = recommender.init_server(server_key)
    return table, Start(recommender.init_personal(layer_key), shared)

  def score(personal, item_rows, start):
    del personal
    return recommender.score(start.layer, item_rows, start.shared)

  return Recommender(init_server, lambda key: (), score)


def make_meta_learner(
    config: Config, recommender: Recommender, num_items: int,
    make_client_update: Callable[[Recommender, Algorithm], Callable],
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds what reptile, fomaml and perfedavg have in common.

  Clients keep the model that they adapted (`Adapted`), which no round reads.

  Args:
    config: The whole config; meta.learning_rate and meta.final_epochs are read.
    recommender: The model.
    num_items: Items in the catalogue.
    make_client_update: (the model that shares everything, FedAvg on it) ->
      (View without personal parameters, examples, num_examples) ->
      Contribution; View.shared is a Start.
    server_transform: See `make_server`.
    expected_cohort: See `make_server`.

  Raises:
    ValueError: For a client optimizer other than sgd, or a proximal term.
  """
  local_steps.require_sgd(config)
  shared_model = share_everything(recommender)
  plain = make_fedavg(
      config, shared_model, num_items, server_transform, expected_cohort)
  train = make_client_update(shared_model, plain)
  adapt = make_adaptation(config, shared_model, config.meta.final_epochs)

  def keep(model, num_examples):
    return Adapted(model, (num_examples > 0).astype(jnp.float32))

  def client_update(view, examples, num_examples):
    contribution = train(view._replace(personal=()), examples, num_examples)
    # Rounds do not read it: whoever adapts begins from the start.
    return contribution, keep(
        optax.tree.add(view.shared, contribution.shared), num_examples)

  def refit(view, examples, num_examples):
    return keep(adapt(
        view.shared, view.item_rows, examples, num_examples).whole,
                num_examples)

  def init_personal(key):
    _, start = jax.eval_shape(shared_model.init_server, key)
    return Adapted(optax.tree.zeros_like(start), jnp.float32(0))

  def score(own, item_rows, start):
    return shared_model.score(
        (), item_rows, local_steps.select(own.known > 0, own.model, start))

  return plain._replace(
      init_personal=init_personal, client_update=client_update, refit=refit,
      score=score, aggregated_score=lambda own, item_rows, start:
      shared_model.score((), item_rows, start))


def make_adaptation(
    config: Config, shared_model: Recommender, epochs: int
) -> Callable:
  """Builds adapt(start, item_rows, examples, num_examples) -> Trained.

  Gradient steps of rate meta.learning_rate, whatever the round; `whole` of the
  result is the adapted Start of each client.

  Args:
    config: The whole config.
    shared_model: From `share_everything`.
    epochs: Passes over the interactions.
  """
  as_layer = shared_model._replace(
      score=lambda start, rows, _: shared_model.score((), rows, start))
  steps, _ = make_alternation(
      config, as_layer, config.meta.learning_rate, epochs)

  def adapt(start, item_rows, examples, num_examples):
    return steps((), start, examples, num_examples, jnp.float32(1),
                 fixed=item_rows)

  return adapt


def make_full_gradient(
    config: Config, recommender: Recommender
) -> Callable[..., local_steps.Trained]:
  """Builds gradient(personal, rows, shared, examples, num_examples).

  Of a block of clients' mean losses, over all their examples. Taken batch after
  batch at one point and added up, in the room of a batch; its L2 term is that
  of local training with all examples in one batch. Zero for a client without
  examples.

  Args:
    config: The whole config; objective and client.batch_size are read.
    recommender: The model.

  Returns:
    gradient; arguments as in `make_local_steps`. Of its result, rows and whole
    (personal, shared) are gradients, in the shapes of what they are of.
  """
  l2 = config.objective.l2
  mean_loss = local_steps.make_batch_loss(recommender.score, config.objective)

  def loss(*args):
    _, sums = mean_loss(*args)
    return sums[0], sums

  def step(_, total, batch):
    personal, shared = batch.whole
    (personal_part, row_part, shared_part), (loss_sum, terms) = jax.grad(
        loss, argnums=(0, 1, 2), has_aux=True)(
            personal, batch.rows, shared, batch)
    return (row_part, optax.tree.add(total, (personal_part, shared_part)),
            loss_sum, terms)

  run = local_steps.make_local_steps(step, batch_size=config.client.batch_size)

  def gradient(personal, rows, shared, examples, num_examples):
    total = run(
        optax.tree.zeros_like(rows), optax.tree.zeros_like((personal, shared)),
        examples, num_examples, jnp.float32(1), fixed=rows,
        fixed_whole=(personal, shared))
    there = (num_examples > 0).astype(jnp.float32)
    terms = jnp.maximum(total.loss_count, 1)
    slots = jnp.maximum(total.num_examples, 1)

    def mean(sums, values, weight):
      return jax.tree.map(
          lambda g, x: widen(1 / terms, g) * g + 2 * l2 * widen(weight, x) * x,
          sums, values)

    used = jax.tree.map(
        lambda x: jnp.where(widen(examples.used, x), x, 0), rows)
    return total._replace(
        rows=mean(total.rows, used, there / slots),
        whole=mean(total.whole, (personal, shared), there))

  return gradient
