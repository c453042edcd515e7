"""MAML's first order, and Per-FedAvg: gradients where adaptation leads."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import local_steps
from fedjaxrec.algorithms.meta_learning import (
    make_adaptation,
    make_full_gradient,
    make_meta_learner,
)
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.local_training import Contribution
from fedjaxrec.models.recommender import Recommender


def make_fomaml(
    config: Config, recommender: Recommender, num_items: int, **server: Any
) -> Algorithm:
  """Builds first-order MAML.

  A client's interactions, in the order of the round's shuffle, are its support
  set (the even places) and its query set (the odd ones). From w it adapts to
  phi on the support set, by meta.epochs passes of rate meta.learning_rate, and
  uploads minus its rates times the gradient of the query set's mean loss at
  phi. beta is the product of the client's rates and the server's.

  With one pass this is whole-model MAML without its second order; see
  `meta_learning` for why item rows are held still while adapting. Personal and
  travels: as with `make_reptile`. A client with one interaction has no query
  set, and moves nothing.

  Args:
    config: The whole config; meta is read, client.epochs and client.steps are
      not used: one gradient a round.
    recommender: The model.
    num_items: Items in the catalogue.
    **server: See `make_fedavg`.

  Raises:
    ValueError: For a client optimizer other than sgd, or for more than one
      local epoch or step.

  References:
    Finn, Abbeel and Levine, 2017, `Model-Agnostic Meta-Learning
    <https://arxiv.org/abs/1703.03400>`_; for recommendation and federated by
    Chen et al., 2018, `Federated Meta-Learning
    <https://arxiv.org/abs/1802.07876>`_.
  """
  require_one_gradient(config)
  client = config.client

  def make_client_update(shared_model, plain):
    del plain
    adapt = make_adaptation(config, shared_model, config.meta.epochs)
    gradient = make_full_gradient(config, shared_model)

    def client_update(view, examples, num_examples):
      (support_rows, support_set), (query_rows, query_set) = (
          local_steps.split_halves((view.item_rows, examples)))
      support = adapt(
          view.shared, support_rows, support_set, (num_examples + 1) // 2)
      scale = view.learning_rate_scale
      rows = optax.tree.zeros_like(view.item_rows)
      if examples.labels.shape[1] == 1:  # Nobody has anything to query.
        zero = jnp.zeros_like(support.loss_sum)
        return Contribution(
            rows, optax.tree.zeros_like(view.shared), zero, zero,
            support.num_examples)
      query = gradient(
          (), query_rows, support.whole, query_set, num_examples // 2)
      rows = jax.tree.map(
          lambda x, g: x.at[:, 1::2].set(-scale * client.item_learning_rate * g
                                         ), rows, query.rows)
      return Contribution(
          rows, optax.tree.scale(
              -scale * client.learning_rate, query.whole[1]),
          query.loss_sum, query.loss_count,
          query.num_examples + support.num_examples)

    return client_update

  return make_meta_learner(
      config, recommender, num_items, make_client_update, **server)


def make_perfedavg(
    config: Config, recommender: Recommender, num_items: int, **server: Any
) -> Algorithm:
  """Builds Per-FedAvg: FedAvg on the loss after one step of adaptation.

  A batch falls into parts B1 and B2, every second place each (with
  meta.hessian also B3, every third each). A local step is

    phi = w - alpha grad_B1(w)
    w   = w - beta (I - alpha Hessian_B3(w)) grad_B2(phi),

  alpha = meta.learning_rate, beta the client's rates. The first order drops the
  Hessian. The paper's Hessian-free variant takes its product with a vector by a
  finite difference of two gradients; here it is exact, by differentiating the
  gradient, at the cost of about two gradients of B3. Client.epochs and
  client.steps count local steps; deltas are averaged as in FedAvg.

  Personal and travels: as with `make_reptile`. A batch whose B2 is empty moves
  nothing.

  Args:
    config: The whole config; meta is read.
    recommender: The model.
    num_items: Items in the catalogue.
    **server: See `make_fedavg`.

  Raises:
    ValueError: For a client optimizer other than sgd, or for batches that do
      not have the parts.

  References:
    Fallah, Mokhtari and Ozdaglar, 2020, `Personalized Federated Learning with
    Theoretical Guarantees <https://arxiv.org/abs/2002.07948>`_.
  """
  client, alpha = config.client, config.meta.learning_rate
  parts = 3 if config.meta.hessian else 2
  if client.batch_size < parts:
    raise ValueError(
        f'client.batch_size={client.batch_size} with algorithm.name=perfedavg '
        f'and meta.hessian={config.meta.hessian}: a batch falls into {parts} '
        f'parts; use at least {parts}.')

  def make_client_update(shared_model, plain):
    del plain
    loss = local_steps.make_batch_loss(shared_model.score, config.objective)
    # With respect to (rows, start).
    gradient = jax.grad(
        lambda rows, start, batch: loss((), rows, start, batch),
        argnums=(0, 1), has_aux=True)

    def step(rows, start, batch):
      def part(j):
        mine = jax.tree.map(lambda x: x[j::parts], (
            rows, batch.labels, batch.used))
        return mine[0], batch._replace(labels=mine[1], used=mine[2])

      (_, support), _ = gradient(part(0)[0], start, part(0)[1])
      phi = local_steps.descend(start, support, jnp.float32(alpha))
      query_rows, query = part(1)
      (row_part, start_part), (loss_sum, count) = gradient(
          query_rows, phi, query)
      row_gradient = _put(optax.tree.zeros_like(rows), row_part, 1, parts)
      if config.meta.hessian:
        other_rows, other = part(2)
        _, (row_part, bend) = jax.jvp(
            lambda r, s: gradient(r, s, other)[0], (other_rows, start),
            (optax.tree.zeros_like(other_rows),
             optax.tree.scale(alpha, start_part)))
        row_gradient = _put(
            row_gradient, optax.tree.scale(-1, row_part), 2, parts)
        start_part = optax.tree.sub(start_part, bend)
      moves = batch.scale * query.used.any()
      return (local_steps.descend(
          rows, row_gradient, moves * client.item_learning_rate),
              local_steps.descend(
                  start, start_part, moves * client.learning_rate),
              loss_sum, count)

    run = local_steps.make_local_steps(
        step, batch_size=client.batch_size, epochs=client.epochs,
        steps=client.steps)

    def client_update(view, examples, num_examples):
      trained = run(
          view.item_rows, view.shared, examples, num_examples,
          view.learning_rate_scale)
      return local_steps.contribution(
          view, trained, trained.rows, trained.whole)

    return client_update

  return make_meta_learner(
      config, recommender, num_items, make_client_update, **server)


def _put(rows, part, first, parts):
  """Rows whose places first, first + parts, ... are those of a part."""
  return jax.tree.map(
      lambda x, mine: x.at[first::parts].set(mine), rows, part)


def require_one_gradient(config: Config) -> None:
  """Refuses more than one local pass where a client sends one gradient.

  Raises:
    ValueError: For client.epochs or client.steps above 1.
  """
  client = config.client
  if client.epochs > 1 or client.steps > 1:
    raise ValueError(
        f'client.epochs={client.epochs} and client.steps={client.steps} with '
        f'algorithm.name={config.algorithm.name}, whose clients send one '
        'gradient a round; use client.epochs=1 and client.steps=0 (for '
        'fomaml, meta.epochs are the passes that adapt), or '
        'algorithm.name=perfedavg.')
