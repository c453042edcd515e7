"""Local training by steps that an algorithm writes for one client's batch.

For methods that move parts of the model one after the other, or two models side
by side. Steps are plain gradient descent, so what is not in a batch stands
still, and a step costs its batch alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.blocks import widen
from fedjaxrec.config import Config, ObjectiveConfig
from fedjaxrec.examples import Examples
from fedjaxrec.local_training import (
    Contribution,
    View,
    is_off,
    sum_squares,
    walk_batches,
)
from fedjaxrec.objectives import OBJECTIVES

PyTree = Any


class Batch(NamedTuple):
  """What a step reads and does not change, of one client.

  Attributes:
    rows: Leaves [batch, 1 + num_negatives, ...].
    whole: Leaves of any shape.
    labels: float32 [batch].
    used: bool [batch, 1 + num_negatives].
    scale: float32 []: the round's factor on the learning rates.
  """
  rows: PyTree
  whole: PyTree
  labels: jax.Array
  used: jax.Array
  scale: jax.Array


# The axes of a block's batch: all have one a client, but the round's factor.
_ONE: Any = 0
_NONE: Any = None
PER_CLIENT = Batch(_ONE, _ONE, _ONE, _ONE, _NONE)


class Trained(NamedTuple):
  """Where a block of clients got to.

  Attributes:
    rows: Slots' values, leaves [B, capacity, 1 + num_negatives, ...].
    whole: The other values, leaves [B, ...].
    loss_sum: float32 [B].
    loss_count: float32 [B].
    num_examples: int32 [B]: used slots over the steps taken.
  """
  rows: PyTree
  whole: PyTree
  loss_sum: jax.Array
  loss_count: jax.Array
  num_examples: jax.Array


def make_local_steps(
    step: Callable, *, batch_size: int, epochs: int = 1, steps: int = 0
) -> Callable[..., Trained]:
  """Builds run(rows, whole, examples, num_examples, scale, fixed, fixed_whole).

  Args:
    step: (rows, whole, Batch) -> (rows, whole, loss sum, terms in it), of one
      client: leaves of rows are [batch, 1 + num_negatives, ...]. Slots that are
      not used keep their values, whatever it returns.
    batch_size: Interactions in a batch.
    epochs: Passes over the interactions.
    steps: Steps; 0: as many as the epochs need.

  Returns:
    run. rows and fixed are leaves [B, capacity, 1 + num_negatives, ...]; whole
    and fixed_whole [B, ...]; examples and num_examples as in
    `make_local_training`; the fixed ones are read and not changed. A client
    without examples does not move.
  """
  step_block = jax.vmap(step, in_axes=(0, 0, PER_CLIENT))

  def run(
      rows: PyTree, whole: PyTree, examples: Examples,
      num_examples: jax.Array, scale: jax.Array, fixed: PyTree = (),
      fixed_whole: PyTree = ()
  ) -> Trained:
    block, capacity = examples.labels.shape
    size = min(batch_size, capacity)
    missing = -capacity % size

    def pad(tree):
      if not missing:
        return tree
      return jax.tree.map(
          lambda x: jnp.pad(
              x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)), tree)

    slots, fixed, labels, used_slots = pad(
        (rows, fixed, examples.labels, examples.used))

    def cut(tree, start):
      return jax.tree.map(
          lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), tree)

    def one_step(batch, active, carry: Trained) -> Trained:
      start = batch * size
      old = cut(carry.rows, start)
      used = cut(used_slots, start) & active[:, None, None]
      new, dense, loss_sum, count = step_block(
          old, carry.whole, Batch(
              cut(fixed, start), fixed_whole, cut(labels, start), used, scale))
      new = select(used, new, old)
      return Trained(
          jax.tree.map(
              lambda x, part: jax.lax.dynamic_update_slice_in_dim(
                  x, part, start, 1), carry.rows, new),
          select(active, dense, carry.whole),
          carry.loss_sum + jnp.where(active, loss_sum, 0),
          carry.loss_count + jnp.where(active, count, 0),
          carry.num_examples + used.sum((1, 2), dtype=jnp.int32))

    zero = jnp.zeros(block)
    trained = walk_batches(
        one_step,
        Trained(slots, whole, zero, zero, jnp.zeros(block, jnp.int32)),
        num_examples, batch_size, epochs, steps)
    return trained._replace(rows=jax.tree.map(
        lambda x: x[:, :capacity], trained.rows))

  return run


def make_batch_loss(
    score: Callable[[PyTree, PyTree, PyTree], jax.Array],
    settings: ObjectiveConfig
) -> Callable:
  """Builds loss(personal, rows, shared, batch) -> (loss, (sum, terms)).

  The loss of one client's batch is its mean loss + l2 (|personal|^2 +
  |shared|^2 + mean over the batch |row|^2), as in `make_local_training`.

  Args:
    score: A recommender's score.
    settings: The section objective; its l2 may be traced.

  Returns:
    loss, of one client: leaves of rows are [batch, 1 + num_negatives, ...], and
    all of its results float32 [].
  """
  objective, l2 = OBJECTIVES[settings.name], settings.l2

  def loss(personal, rows, shared, batch: Batch):
    flat = flatten_rows(rows)
    scores = score(personal, flat, shared).reshape(batch.used.shape)
    loss_sum, count = objective(scores, batch.labels, batch.used)
    value = loss_sum / jnp.maximum(count, 1)
    if not is_off(l2):
      value += l2 * (sum_squares(personal) + sum_squares(shared)
                     + sum_squares(rows) / num_used(batch))
    return value, (loss_sum, count.astype(jnp.float32))

  return loss


def select(mask: jax.Array, chosen: PyTree, other: PyTree) -> PyTree:
  """Chosen where a mask says so, other where it does not.

  Args:
    mask: bool: of the leaves' leading axes.
    chosen: Leaves [*mask.shape, ...].
    other: Of the same shapes.
  """
  return jax.tree.map(
      lambda x, y: jnp.where(widen(mask, x), x, y), chosen, other)


def split_halves(tree: PyTree) -> tuple[PyTree, PyTree]:
  """Splits interactions, leaves [B, capacity, ...], into support and query set.

  Of a client's n, the (n + 1) // 2 in even places, and the n // 2 in odd ones.
  """
  return (jax.tree.map(lambda x: x[:, ::2], tree),
          jax.tree.map(lambda x: x[:, 1::2], tree))


def flatten_rows(rows: PyTree) -> PyTree:
  """Leaves [batch, 1 + num_negatives, ...] as [rows, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def num_used(batch: Batch) -> jax.Array:
  """The batch's slots that hold an item, at least 1."""
  return jnp.maximum(batch.used.sum(), 1)


def descend(values: PyTree, gradient: PyTree, rate: jax.Array) -> PyTree:
  """values - rate * gradient, of the same tree; rate is float32 []."""
  return jax.tree.map(lambda x, g: x - rate * g, values, gradient)


def contribution(
    view: View, trained: Trained, rows: PyTree, shared: PyTree
) -> Contribution:
  """What a block uploads: deltas from what it downloaded, after - before.

  Args:
    view: What it downloaded.
    trained: Its losses.
    rows: The item rows that it ended with, as in View.item_rows.
    shared: The shared parameters that it ended with.
  """
  return Contribution(
      optax.tree.sub(rows, view.item_rows), optax.tree.sub(shared, view.shared),
      trained.loss_sum, trained.loss_count, trained.num_examples)


def require_sgd(config: Config) -> None:
  """Refuses client settings that an algorithm of plain steps does not have.

  Raises:
    ValueError: For another optimizer than sgd, or a proximal term.
  """
  name, client = config.algorithm.name, config.client
  if client.optimizer != 'sgd':
    raise ValueError(
        f'client.optimizer={client.optimizer} with algorithm.name={name}: its '
        'clients take plain gradient steps; use client.optimizer=sgd, or '
        'algorithm.name=fedavg.')
  if client.item_optimizer not in ('', 'sgd'):
    raise ValueError(
        f'client.item_optimizer={client.item_optimizer} with algorithm.name='
        f'{name}: its clients take plain gradient steps; leave it empty, or '
        'use algorithm.name=fedavg.')
  if not is_off(client.proximal_mu):
    raise ValueError(
        f'client.proximal_mu={client.proximal_mu} with algorithm.name={name}, '
        'which has no proximal term of that kind; use 0, or '
        'algorithm.name=fedavg.')
