"""A federated run's sequence model, trained where all the data lies, by Adam.

The same model, targets and negatives as algorithm.name=sequential, drawn by the
same code; but a batch mixes the sequences of many users, its loss is the mean
over all their places, and one optimizer steps everything, every row included.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.algorithms.sequential import (
    draw_sequence,
    encoder,
    has_past,
    score_sequence,
)
from fedjaxrec.config import ModelConfig
from fedjaxrec.config.references import CentralizedSequenceConfig
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.objectives import OBJECTIVES
from fedjaxrec.population import (
    ClientData,
    gather_clients,
    place_clients,
    places_of,
)
from fedjaxrec.references.reference import Reference, known_items

PyTree = Any
# Users that are encoded at once.
_BLOCK = 256


def train_epochs(
    train: Interactions, config: CentralizedSequenceConfig,
    fold_in: Interactions | None = None, seed: int = 0, every: int = 1
) -> Iterator[Reference]:
  """Trains, and yields the reference as it stands every few epochs.

  An epoch visits every user with two training interactions or more once. A user
  is the encoding of its latest training interactions, or of its fold-in part.

  Cost: a pass over the batch's sequences, forward and backward, and one pass of
  Adam over all parameters a batch; memory of three times the parameters and a
  batch's slots.

  Args:
    train: The training interactions.
    config: Model, loss, optimizer.
    fold_in: What held-out users show.
    seed: Seed of the initial values, the order and the negatives.
    every: Epochs between two yields; the last epoch always yields.

  Raises:
    ValueError: Without timestamps, or if nobody has two interactions.
    FloatingPointError: If the loss is not finite.
  """
  if not train.has_timestamps:
    raise ValueError(
        'reference=sequential: sequences need the time of every interaction '
        'and train has none (has_timestamps=False); use a source with times, '
        'or the references mf, ials or ease.')
  users = np.flatnonzero(train.counts > 1)
  if not len(users):
    raise ValueError(
        'reference=sequential: no user has two training interactions, so there '
        'is no next item to learn from; use popularity or ease.')
  recommender = build_recommender(ModelConfig(
      name=config.model, dim=config.dim, init_scale=config.init_scale,
      max_length=config.max_length, num_blocks=config.num_blocks,
      num_heads=config.num_heads), train.num_items)
  start_key, key = jax.random.split(jax.random.key(seed))
  params = jax.jit(recommender.init_server)(start_key)
  init, epoch = make_epoch(
      recommender, config, train.num_items, int(train.counts.max()))
  encode = make_encoder(
      recommender, config.max_length,
      *known_items(train, fold_in), train.num_items)
  data, state = _place(train.offsets, train.items), init(params)
  for index in range(config.epochs):
    order = np.random.default_rng([seed, index]).permutation(users)
    params, state, loss = epoch(
        params, state, data, order.astype(np.int32),
        jax.random.fold_in(key, index))
    if not np.isfinite(loss):
      raise FloatingPointError(
          f'sequential: loss={float(loss)} in epoch {index}; lower '
          f'sequential.learning_rate={config.learning_rate}.')
    if index + 1 == config.epochs or (index + 1) % every == 0:
      yield Reference(recommender.score, encode(*params), *params)


def fit(
    train: Interactions, config: CentralizedSequenceConfig,
    fold_in: Interactions | None = None, seed: int = 0) -> Reference:
  """Trains for all epochs; see `train_epochs`."""
  return next(train_epochs(train, config, fold_in, seed, config.epochs))


def make_epoch(
    recommender: Recommender, config: CentralizedSequenceConfig,
    num_items: int, capacity: int
) -> tuple[Callable, Callable]:
  """Builds the optimizer and a compiled epoch.

  Args:
    recommender: A model with `encode`.
    config: Loss and optimizer.
    num_items: Items in the catalogue.
    capacity: Most interactions of a user.

  Returns:
    init: (item table, shared) -> optimizer state; epoch: (parameters, state,
    data, users in their order, key) -> (parameters, state, mean loss). The last
    batch may be smaller.
  """
  optimizer = optax.adam(config.learning_rate, b2=config.b2)
  objective = OBJECTIVES[config.objective]

  def one_user(table, shared, examples):
    rows = jax.tree.map(
        lambda x: x.at[examples.rows].get(mode='fill', fill_value=0), table)
    used = examples.used & has_past(examples.used)
    return objective(
        score_sequence(recommender, rows, used, shared), examples.labels, used)

  def loss_fn(params, examples):
    table, shared = params
    sums, counts = jax.vmap(one_user, (None, None, 0))(table, shared, examples)
    return sums.sum() / jnp.maximum(counts.sum(), 1)

  @jax.jit
  def epoch(params, state, data, order, key):
    size = min(config.batch_size, len(order))
    steps = -(-len(order) // size)
    # Past the end stands a user without interactions.
    nobody = data.offsets.shape[0] - 1
    order = jnp.pad(order, (0, steps * size - len(order)),
                    constant_values=nobody)

    def step(carry, users):
      params, state = carry
      clients = gather_clients(data, users, users, capacity, num_items)
      keys = jax.vmap(lambda user: jax.random.fold_in(key, user))(users)
      examples = jax.vmap(lambda client, its: draw_sequence(
          client, its, num_items, config.num_negatives, config.max_length))(
              clients, keys)
      loss, gradient = jax.value_and_grad(loss_fn)(params, examples)
      updates, state = optimizer.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(
        step, (params, state), order.reshape(steps, size))
    return params, state, losses.mean()

  return optimizer.init, epoch


def make_encoder(
    recommender: Recommender, max_length: int, offsets: np.ndarray,
    items: np.ndarray, num_items: int
) -> Callable[[PyTree, PyTree], PyTree]:
  """Builds encode_all(item_table, shared) -> {'state': [num_users, dim]}.

  Args:
    recommender: A model with `encode`.
    max_length: Latest items that are read.
    offsets: int64 [num_users + 1].
    items: int32 [num_interactions], a user's in order of time.
    num_items: Items in the catalogue.
  """
  data = _place(offsets, items)
  num_users = len(offsets) - 1
  capacity = max(1, int(np.diff(offsets).max()))
  encode = encoder(recommender)

  @jax.jit
  def encode_block(table, shared, data, users):
    clients = gather_clients(data, users, users, capacity, num_items)
    key = jax.random.key(0)  # Nothing is drawn.
    examples = jax.vmap(lambda client: draw_sequence(
        client, key, num_items, 0, max_length))(clients)
    rows = jax.tree.map(
        lambda x: x.at[examples.rows[:, -max_length:, 0]].get(
            mode='fill', fill_value=0), table)
    return jax.vmap(encode, (0, 0, None))(
        rows, examples.used[:, -max_length:, 0], shared)[:, -1]

  def encode_all(table, shared):
    blocks = [
        encode_block(table, shared, data, np.arange(
            start, start + _BLOCK, dtype=np.int32))
        for start in range(0, num_users, _BLOCK)]
    return {'state': np.concatenate(blocks)[:num_users]}

  return encode_all


def _place(offsets: np.ndarray, items: np.ndarray) -> ClientData:
  """Sequences on the device, sorted by item, with their places as labels."""
  places = places_of(offsets).astype(np.float32)
  return jax.device_put(jax.tree.map(
      lambda x: x[0], place_clients(offsets, items, places)))
