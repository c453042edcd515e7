"""The optimizers by name, for clients and the server, and their schedules.

A new optimizer is one line in `build_optimizer` and its name in `config`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.config import ClientConfig, ServerConfig

_STAND_STILL = ('sgd', 'adagrad', 'rowwise_adagrad')


def build_optimizer(
    config: ClientConfig | ServerConfig, learning_rate: float, name: str = ''
) -> optax.GradientTransformation:
  """Returns the Optax optimizer that `config.optimizer` names.

  On the server these are FedAvg (sgd), FedAvgM (momentum), FedAdagrad, FedAdam
  and FedYogi, with two differences from the paper: Optax corrects the bias of
  Adam's and Yogi's moments, the paper does not; and the second moments start at
  0, the paper's at tau^2.

  Args:
    config: A client's or the server's config.
    learning_rate: Step size; the round's schedule is applied outside.
    name: Another optimizer, with the config's settings; for item rows of
      clients also rowwise_adagrad.

  References:
    Reddi et al., 2021, `Adaptive Federated Optimization
    <https://arxiv.org/abs/2003.00295>`_.
  """
  b1, b2, eps = (getattr(config, name, default) for name, default in (
      ('b1', 0.9), ('b2', 0.99), ('eps', 1e-3)))
  direction = {
      'sgd': optax.identity,
      'momentum': lambda: optax.trace(config.momentum),
      'adagrad': lambda: _scale_by_adagrad(eps),
      'adam': lambda: optax.scale_by_adam(b1, b2, eps),
      # Optax starts both moments above zero: then a row without a gradient
      # would move.
      'yogi': lambda: optax.scale_by_yogi(
          b1, b2, eps, initial_accumulator_value=0.0),
      'rowwise_adagrad': lambda: _scale_by_rowwise_adagrad(eps),
  }[name or config.optimizer]()
  return optax.chain(direction, optax.scale(-learning_rate))


def build_item_optimizer(config: ClientConfig) -> optax.GradientTransformation:
  """Returns the clients' optimizer of item rows, leaves [slots, k, ...]."""
  return build_optimizer(
      config, config.item_learning_rate, config.item_optimizer)


def stands_still(config: ClientConfig) -> bool:
  """Whether a zero gradient moves neither a row nor the row's state.

  Then the item optimizer may leave alone what is not in a batch, and has the
  same numbers: momentum and Adam's moments would go on moving it.
  """
  return (config.item_optimizer or config.optimizer) in _STAND_STILL


def _scale_by_adagrad(eps: float) -> optax.GradientTransformation:
  """g / (sqrt(sum of g^2) + eps); Optax's own adds eps inside the root."""
  def update(updates, total, params=None):
    del params
    total = jax.tree.map(lambda g, t: t + jnp.square(g), updates, total)
    return jax.tree.map(
        lambda g, t: g / (jnp.sqrt(t) + eps), updates, total), total

  return optax.GradientTransformation(optax.tree.zeros_like, update)


def _scale_by_rowwise_adagrad(eps: float) -> optax.GradientTransformation:
  """g / (sqrt(sum of mean g^2) + eps), with one accumulator a row and leaf.

  Leaves are [slots, k, ...]: a row is what comes after the first two axes, and
  the mean is over it. State: one number for the dim numbers of a row.

  References:
    Gupta et al., 2014, `Training Highly Multiclass Classifiers
    <https://jmlr.org/papers/v15/gupta14a.html>`_; Mudigere et al., 2022,
    `Software-Hardware Co-design for Recommendation Models
    <https://arxiv.org/abs/2104.05158>`_.
  """
  def init(params):
    return jax.tree.map(lambda x: jnp.zeros(x.shape[:2], x.dtype), params)

  def update(updates, total, params=None):
    del params
    total = jax.tree.map(
        lambda g, t: t + jnp.square(g).mean(range(2, g.ndim)), updates, total)
    return jax.tree.map(
        lambda g, t: g / (
            jnp.sqrt(t).reshape(*t.shape, *[1] * (g.ndim - 2)) + eps),
        updates, total), total

  return optax.GradientTransformation(init, update)


def make_schedule(
    kind: str, final_fraction: float, rounds: int
) -> Callable[[jax.Array], jax.Array]:
  """Builds round_index -> factor on the learning rate, 1 to final_fraction.

  Args:
    kind: constant, cosine or exponential.
    final_fraction: The factor at the last round.
    rounds: Rounds of the run.
  """
  def schedule(round_index):
    progress = jnp.minimum(round_index / max(rounds - 1, 1), 1.0)
    if kind == 'cosine':
      fall = 0.5 * (1 + jnp.cos(jnp.pi * progress))
      return final_fraction + (1 - final_fraction) * fall
    if kind == 'exponential':
      return final_fraction ** progress
    return jnp.ones_like(progress)

  return schedule
