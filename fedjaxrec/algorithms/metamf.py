"""MetaMF: the server generates a private model for each client."""

from typing import Any

import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import local_steps
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.algorithms.maml import require_one_gradient
from fedjaxrec.algorithms.meta_learning import make_full_gradient
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.config.corrections import sections_on
from fedjaxrec.local_training import Contribution
from fedjaxrec.models.recommender import Recommender


def make_metamf(
    config: Config, recommender: Recommender, num_items: int, **server: Any
) -> Algorithm:
  """Builds MetaMF, for model.name=metamf.

  A round is one gradient: the server generates, from a client's vector, the
  client's item vectors (those that it touches) and its scorer; the client sends
  back the gradient of its mean loss with respect to what was generated; the
  server passes that on through the generating networks. Here both are one
  gradient, which by the chain rule is the same, and what the cohort sums up to
  is the networks' part.

  Personal: the client's vector u, and what is generated from it. But the server
  keeps u, and sees which client a gradient is of: weaker privacy than where
  users' vectors stay with the clients, and no sum can hide an upload. Travels:
  the generated vectors, of rank generator_rank, of touched items, the rise
  matrix and the scorer, down; the gradients of these, up. To recommend, a
  client downloads all items' generated vectors, num_items * generator_rank
  numbers, which is not counted among the rounds' bytes.

  Memory: nobody's generated table is kept. A block of clients needs its slots'
  rows of the networks, (generator_width + 1) * generator_rank numbers a slot,
  which counts in the estimate of `fedjaxrec.memory`.

  Other than the paper, which has one Adam for everything: u moves by plain
  steps of metamf.user_learning_rate, because it moves when its client takes
  part, and the rest by the server's optimizer. A user who never trained has no
  vector at the paper's server; fold-in fits one, with the networks held still.

  Args:
    config: The whole config; metamf is read.
    recommender: The model.
    num_items: Items in the catalogue.
    **server: See `make_fedavg`.

  Raises:
    ValueError: For another model, more than one local step, a client optimizer
      other than sgd, or where uploads would be compressed, summed unseen or
      randomised on the device.

  References:
    Lin et al., 2020, Meta Matrix Factorization for Federated Rating
    Predictions, SIGIR.
  """
  local_steps.require_sgd(config)
  require_one_gradient(config)
  if config.model.name != 'metamf':
    raise ValueError(
        f'algorithm.name=metamf with model.name={config.model.name}: its '
        "server generates the clients' models; use model.name=metamf, or, for "
        f'{config.model.name}, algorithm.name=fedavg.')
  if set(sections_on(config)) - {'privacy'}:
    raise ValueError(
        'algorithm.name=metamf with compression, a secure sum or local '
        'privacy: the server must see each gradient, with its client, to pass '
        'it on through the networks that generated the model, and keeps the '
        "client's vector; switch them off, or train the networks on the "
        'clients, by algorithm.name=fedavg with model.name=metamf.')
  client, user_rate = config.client, config.metamf.user_learning_rate
  gradient = make_full_gradient(config, recommender)

  def client_update(view, examples, num_examples):
    found = gradient(
        view.personal, view.item_rows, view.shared, examples, num_examples)
    scale = view.learning_rate_scale
    own, shared = found.whole
    return Contribution(
        optax.tree.scale(-scale * client.item_learning_rate, found.rows),
        optax.tree.scale(-scale * client.learning_rate, shared),
        found.loss_sum, found.loss_count, found.num_examples
    ), local_steps.descend(view.personal, own, scale * user_rate)

  def traffic(state):
    """Shapes of what is generated; its gradients have the same."""
    rank = state.item_table['item_bias'].shape[1]
    generated = {
        name: jnp.zeros(state.shared[name]['bias'].shape)
        for name in ('rise', 'first_weight', 'first_bias', 'second_weight',
                     'second_bias')}
    message = ({'item': jnp.zeros((num_items, rank))}, generated)
    return message, message

  return make_fedavg(config, recommender, num_items, **server)._replace(
      client_update=client_update, traffic=traffic)
