"""A federated run's model, trained where all the data lies, by Adam.

The same model, objective and negatives (uniform from what the user has not in
train) as in a federated run; but batches mix the interactions of all users, and
one optimizer steps everything.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.config import ModelConfig
from fedjaxrec.config.references import CentralizedConfig
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.objectives import OBJECTIVES
from fedjaxrec.references.reference import Reference

PyTree = Any

# Passes over a held-out user's interactions that fit their own parameters.
_FOLD_IN_EPOCHS = 20


class Parameters(NamedTuple):
  """Everything that is trained."""
  personal: PyTree  # Leaves [num_users, ...].
  item_table: PyTree  # Leaves [num_items, ...].
  shared: PyTree


class Pairs(NamedTuple):
  """Interactions by user, items sorted within a user."""
  offsets: jax.Array  # int32 [num_users + 1]
  users: jax.Array  # int32 [nnz]
  items: jax.Array  # int32 [nnz]
  ratings: jax.Array  # float32 [nnz]


def make_pairs(interactions: Interactions) -> Pairs:
  """Sorts interactions by (user, item) and puts them on the device."""
  users = interactions.users
  order = np.lexsort((interactions.items, users))
  return Pairs(*jax.device_put((
      interactions.offsets.astype(np.int32), users,
      interactions.items[order], interactions.ratings[order])))


def nth_absent(pairs: Pairs, users: jax.Array, n: jax.Array) -> jax.Array:
  """Returns the n-th smallest item (from 0) that a user does not have.

  Binary search over each user's sorted items; on the device, for any number of
  users at once.

  Args:
    pairs: Interactions sorted by (user, item).
    users: int32, any shape.
    n: int32, same shape; below the number of items the user does not have.
  """
  start, stop = pairs.offsets[users], pairs.offsets[users + 1]
  # The k-th item has (item - k) absent ids before it, which never falls.
  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    open_ = low < high
    before = pairs.items.at[middle].get(mode='clip') - (middle - start) <= n
    return (jnp.where(open_ & before, middle + 1, low),
            jnp.where(open_ & ~before, middle, high))

  low, _ = jax.lax.fori_loop(
      0, pairs.items.shape[0].bit_length(), halve, (start, stop))
  return n + low - start


def make_epoch(
    recommender: Recommender, config: CentralizedConfig, num_items: int,
    only_personal: bool = False):
  """Builds the optimizer and a compiled epoch.

  Args:
    recommender: The model.
    config: Loss and optimizer.
    num_items: Items in the catalogue.
    only_personal: Hold the item table and the shared parameters still.

  Returns:
    init: parameters -> optimizer state; epoch: (parameters, state, pairs, key)
    -> (parameters, state, mean loss). Batches visit every pair once, in an
    order drawn from the key; the last one may be smaller.
  """
  optimizer = optax.adam(config.learning_rate)
  objective = OBJECTIVES[config.objective]
  num_negatives = (
      0 if config.objective == 'squared_error' else config.num_negatives)

  def loss_fn(params, users, rows, labels, used):
    mine = jax.tree.map(lambda leaf: leaf[users], params.personal)
    item_rows = jax.tree.map(
        lambda leaf: leaf.at[rows].get(mode='clip'), params.item_table)
    scores = jax.vmap(recommender.score, (0, 0, None))(
        mine, item_rows, params.shared)
    loss_sum, count = objective(scores, labels, used)
    squares = sum(
        (_sum_of_squares(leaf, used[:, 0]) for leaf in jax.tree.leaves(mine)),
        start=jnp.zeros(()))
    squares += sum(
        (_sum_of_squares(leaf, used) for leaf in jax.tree.leaves(item_rows)),
        start=jnp.zeros(()))
    num_pairs = jnp.maximum(used[:, 0].sum(), 1)
    return loss_sum / jnp.maximum(count, 1) + config.l2 * squares / num_pairs

  @jax.jit
  def epoch(params, state, pairs, key):
    size = pairs.users.shape[0]
    num_steps = -(-size // config.batch_size)
    order_key, draw_key = jax.random.split(key)
    order = jax.random.permutation(order_key, size)

    def step(carry, index):
      params, state = carry
      place = index * config.batch_size + jnp.arange(config.batch_size)
      used = place < size
      pair = order.at[place].get(mode='clip')
      users, items = pairs.users[pair], pairs.items[pair]
      absent = num_items - (pairs.offsets[users + 1] - pairs.offsets[users])
      drawn = jax.random.randint(
          jax.random.fold_in(draw_key, index),
          (config.batch_size, num_negatives), 0,
          jnp.maximum(absent, 1)[:, None])
      shape = drawn.shape
      negatives = nth_absent(
          pairs, jnp.broadcast_to(users[:, None], shape), drawn)
      rows = jnp.concatenate([items[:, None], negatives], 1)
      used = jnp.concatenate(
          [used[:, None],
           jnp.broadcast_to((used & (absent > 0))[:, None], shape)], 1)
      loss, gradient = jax.value_and_grad(loss_fn)(
          params, users, rows, pairs.ratings[pair], used)
      updates, state = optimizer.update(gradient, state, params)
      if only_personal:
        updates = Parameters(
            updates.personal,
            *jax.tree.map(jnp.zeros_like, (updates.item_table, updates.shared)))
      return (optax.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(
        step, (params, state), jnp.arange(num_steps))
    return params, state, losses.mean()

  return optimizer.init, epoch


def _sum_of_squares(values: jax.Array, used: jax.Array) -> jax.Array:
  """Of the rows in use: padding reads some row, and must not shrink it."""
  used = used.reshape(used.shape + (1,) * (values.ndim - used.ndim))
  return jnp.where(used, jnp.square(values), 0).sum()


def _initial(
    recommender: Recommender, num_users: int, seed: int
) -> tuple[Parameters, jax.Array]:
  server_key, personal_key, key = jax.random.split(jax.random.key(seed), 3)
  personal = jax.jit(jax.vmap(recommender.init_personal))(
      jax.vmap(lambda user: jax.random.fold_in(personal_key, user))(
          jnp.arange(num_users)))
  return Parameters(
      personal, *jax.jit(recommender.init_server)(server_key)), key


def train_epochs(
    train: Interactions, config: CentralizedConfig,
    fold_in: Interactions | None = None, seed: int = 0, every: int = 1
) -> Iterator[Reference]:
  """Trains, and yields the reference as it stands every few epochs.

  Adam steps every row at every step, those without a gradient by their moment.
  Users with fold-in interactions get their personal parameters by epochs of the
  same training on these, with everything else held still.

  Cost: per batch, the gathered rows and one pass of Adam over all parameters;
  memory of three times the parameters.

  Args:
    train: The training interactions; their ratings are read by `squared_error`.
    config: Model, loss, optimizer.
    fold_in: What held-out users show.
    seed: Seed of the initial values, the order and the negatives.
    every: Epochs between two yields; the last epoch always yields.

  Raises:
    FloatingPointError: If the loss is not finite.
  """
  model = ModelConfig(
      name=config.model, dim=config.dim, init_scale=config.init_scale)
  recommender = build_recommender(model, train.num_items)
  params, key = _initial(recommender, train.num_users, seed)
  init, epoch = make_epoch(recommender, config, train.num_items)
  pairs, state = make_pairs(train), init(params)
  finish = _make_fold_in(recommender, config, fold_in, key)
  for index in range(config.epochs):
    params, state, loss = epoch(
        params, state, pairs, jax.random.fold_in(key, index))
    if not np.isfinite(loss):
      raise FloatingPointError(
          f'mf: loss={float(loss)} in epoch {index}; lower mf.learning_rate='
          f'{config.learning_rate} or raise mf.l2={config.l2}.')
    if index + 1 == config.epochs or (index + 1) % every == 0:
      yield Reference(recommender.score, *finish(params))


def _make_fold_in(
    recommender: Recommender, config: CentralizedConfig,
    fold_in: Interactions | None, key: jax.Array
) -> Callable[[Parameters], Parameters]:
  """Builds params -> params with the held-out users' own fitted."""
  if fold_in is None or not fold_in.num_interactions:
    return lambda params: params
  shown = make_pairs(fold_in)
  init, epoch = make_epoch(
      recommender, config, fold_in.num_items, only_personal=True)

  def finish(params):
    fitted, state = params, init(params)
    for turn in range(_FOLD_IN_EPOCHS):
      fitted, state, _ = epoch(
          fitted, state, shown,
          jax.random.fold_in(key, config.epochs + turn))
    return fitted

  return finish


def fit(
    train: Interactions, config: CentralizedConfig,
    fold_in: Interactions | None = None, seed: int = 0) -> Reference:
  """Trains for all epochs; see `train_epochs`."""
  return next(train_epochs(train, config, fold_in, seed, config.epochs))
