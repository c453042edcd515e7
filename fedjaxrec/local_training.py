"""What clients do in a round: (view, examples) -> (contribution, personal).

Written for a block of clients side by side: what is one client's mathematics is
vmapped, and what is the same for all of them (which slots a step reads and
writes) is not, so that a step costs slices and no gathers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import custom_batching

from fedjaxrec.examples import Examples
from fedjaxrec.objectives import Objective
from fedjaxrec.population import Numbered, parameters

PyTree = Any


class View(NamedTuple):
  """What a block of clients downloads and owns at the start of a round.

  Attributes:
    item_rows: Leaves [B, capacity, 1 + num_negatives, ...]: a row of the item
      table for every slot; zeros where a slot is unused.
    shared: Leaves [B, ...]: the shared parameters, whole.
    personal: Leaves [B, ...]: the clients' own parameters.
    learning_rate_scale: float32 []: the round's factor on both learning rates.
  """
  item_rows: PyTree
  shared: PyTree
  personal: PyTree
  learning_rate_scale: jax.Array


class Contribution(NamedTuple):
  """What a block of clients uploads, and what they measure on the way.

  Attributes:
    item_rows: Item-addressed leaves, as in View: deltas, after - before.
    shared: Whole leaves [B, ...]: deltas, after - before.
    loss_sum: float32 [B]: the losses summed, of the steps taken.
    loss_count: float32 [B]: terms in that sum.
    num_examples: int32 [B]: used slots over the steps taken.
  """
  item_rows: PyTree
  shared: PyTree
  loss_sum: jax.Array
  loss_count: jax.Array
  num_examples: jax.Array


class _Carry(NamedTuple):
  item_delta: PyTree
  dense: PyTree  # (personal, shared), leaves [B, ...].
  item_state: optax.OptState
  dense_state: optax.OptState
  loss_sum: jax.Array
  loss_count: jax.Array
  num_examples: jax.Array


@custom_batching.custom_vmap
def most(counts: jax.Array) -> jax.Array:
  """The largest of some counts: the trip count of a loop that all share.

  Under `jax.vmap` (several runs side by side) it is the largest of all lanes,
  and no batch of numbers: a loop with a trip count for each lane would copy its
  whole carry at every turn. So a loop up to `most` may turn more often than a
  lane needs, and must leave alone who has finished.
  """
  return counts.max()


@most.def_vmap
def _most_of_all(axis_size, is_batched, counts):
  del axis_size, is_batched
  return most(counts.reshape(-1)), False


def is_off(scalar: float | jax.Array) -> bool:
  """Whether a scalar is known to be 0, before tracing; a traced one is not."""
  return isinstance(scalar, (int, float)) and scalar == 0


def num_steps(
    num_examples: jax.Array, batch_size: int, epochs: int, steps: int
) -> tuple[jax.Array, jax.Array]:
  """Returns (batches in an epoch, steps in the round), elementwise."""
  batches = -(-num_examples // batch_size)
  total = jnp.where(batches > 0, steps, 0) if steps else batches * epochs
  return batches, total


def sum_squares(tree: PyTree) -> Any:
  """The sum of the squares of a pytree's parameters: float32 []; 0 of none."""
  return sum(jnp.sum(jnp.square(x)) for x in parameters(tree))


def walk_batches(
    step: Callable[[jax.Array, jax.Array, PyTree], PyTree], carry: PyTree,
    num_examples: jax.Array, batch_size: int, epochs: int, steps: int
) -> PyTree:
  """Takes a block's steps of a round, epoch by epoch in the same order.

  Args:
    step: (batch, active, carry) -> carry, of all clients of the block: int32
      [], which batch of the epoch; bool [B], who takes a step on it. The block
      takes as many as its longest client needs, so step must leave alone who is
      not active.
    carry: What the first step gets.
    num_examples: int32 [B]: interactions.
    batch_size: Interactions in a batch.
    epochs: Passes over the interactions.
    steps: Steps in the round; 0: as many as the epochs need.

  Returns:
    What the last step made.
  """
  batches, total_steps = num_steps(num_examples, batch_size, epochs, steps)
  passes = -(-total_steps // jnp.maximum(batches, 1))

  def epoch(e, carry):
    def one_step(batch, inner):
      index = e * batches + batch
      return step(batch, (batch < batches) & (index < total_steps), inner)

    return jax.lax.fori_loop(0, most(batches), one_step, carry)

  return jax.lax.fori_loop(0, most(passes), epoch, carry)


def make_local_training(
    score: Callable[[PyTree, PyTree, PyTree], jax.Array],
    objective: Objective,
    dense_optimizer: optax.GradientTransformation,
    item_optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    epochs: int = 1,
    steps: int = 0,
    l2: float = 0.0,
    proximal_mu: float = 0.0,
    lazy_items: bool = False,
    tile_size: int = 0,
    numbered: bool = False,
    penalty: Callable[..., jax.Array] | None = None,
    score_batch: Callable[..., jax.Array] | None = None,
    corrected: bool = False,
) -> Callable:
  """Builds train(view, examples, num_examples), for a block of clients.

  Gradient steps on batches of consecutive slots, every epoch in the same order.
  The loss of a batch is

    mean loss + l2 (|personal|^2 + |shared|^2 + mean over the batch |row|^2)
      + penalty / used slots
      + proximal_mu / 2 |(item table, shared) - (what was downloaded)|^2.

  The numbers are those of training on a copy of the whole item table: a row
  outside the batch has a zero gradient (but for the proximal term, which pulls
  the rows of the local table at every step), and rows that the client never
  touches do not move under any optimizer whose update at zero gradient and zero
  state is zero (sgd, momentum, adagrad, adam, yogi).

  Args:
    score: A recommender's score.
    objective: See `objectives`.
    dense_optimizer: For (personal, shared), without the round's schedule.
    item_optimizer: For the item rows, likewise. If it has no state (sgd) or is
      lazy, a step costs one batch; otherwise, and with a proximal term, it
      costs the whole local table, because rows outside the batch move too.
    batch_size: Interactions in a batch; negatives come on top.
    epochs: Passes over the interactions.
    steps: Steps in the round; 0: as many as the epochs need.
    l2: Weight of the squared norms; may be traced.
    proximal_mu: FedProx's mu; may be traced.
    lazy_items: A zero gradient moves neither a row nor its state under
      item_optimizer, whose state is by slot, leaves [capacity, 1 +
      num_negatives, ...]: a step then reads and writes its batch's part alone,
      with the same numbers. See `optimizers.stands_still`.
    tile_size: Interactions that are computed at once; a batch's gradient is
      their sum, and a partial batch costs only the tiles that it has. 0, or no
      divisor of a batch, or where a step costs the local table: the batch.
    numbered: Whether score takes `population.Numbered` rows.
    penalty: See `Recommender`; None for none.
    score_batch: (personal, rows, used, shared) -> scores, the shape of used,
      for a model in which slots of a batch read each other; leaves of rows are
      [batch, 1 + num_negatives, ...]. Batches are then not cut into tiles.
      None: `score` of each slot by itself.
    corrected: train takes a fourth argument, the pair (item rows, shared) of
      leaves as in View, which every step adds to its gradient; zeros in unused
      slots. A step then costs the whole local table.

  Returns:
    train(view, examples, num_examples) -> (Contribution, personal); leaves of
    examples are [B, ...], num_examples is int32 [B] (interactions, 0 for a
    padding client, which does not move). The block takes as many steps as its
    longest client needs; capacities above batch_size are multiples of it.

  References:
    McMahan et al., 2017, `FedAvg <https://arxiv.org/abs/1602.05629>`_; Li et
    al., 2020, `FedProx <https://arxiv.org/abs/1812.06127>`_.
  """
  has_state = bool(jax.tree.leaves(
      jax.eval_shape(item_optimizer.init, jnp.zeros(1))))
  touched_only = ((lazy_items or not has_state) and is_off(proximal_mu)
                  and not corrected)
  # Each slot is read once: its row then makes room for its delta, in place.
  in_place = touched_only and epochs == 1 and not steps

  def tile_loss(rows, dense, numbers, labels, used, terms, num_used, is_first):
    # A tile's part of the batch's loss: the batch has `terms` and `num_used`.
    personal, shared = dense
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    if numbered:
      flat = Numbered(flat, numbers.reshape(-1),
                      jnp.repeat(labels, used.shape[1]))
    scores = (
        score(personal, flat, shared).reshape(used.shape)
        if score_batch is None
        else score_batch(personal, rows, used, shared))
    loss_sum, _ = objective(scores, labels, used)
    loss = loss_sum / jnp.maximum(terms, 1)
    if not is_off(l2):
      loss += l2 * (is_first * sum_squares(dense)
                    + sum_squares(rows) / jnp.maximum(num_used, 1))
    if penalty is not None:
      loss += penalty(personal, flat, shared, used) / jnp.maximum(num_used, 1)
    return loss, loss_sum

  gradient = jax.vmap(jax.grad(tile_loss, argnums=(0, 1), has_aux=True),
                      in_axes=(0, 0, 0, 0, 0, 0, 0, None))
  count_terms = jax.vmap(lambda labels, used: objective(
      jnp.zeros(used.shape), labels, used)[1])
  init_item, init_dense = jax.vmap(item_optimizer.init), jax.vmap(
      dense_optimizer.init)
  update_item = jax.vmap(item_optimizer.update)
  update_dense = jax.vmap(dense_optimizer.update)

  def train(view: View, examples: Examples, num_examples: jax.Array,
            correction: tuple[PyTree, PyTree] | None = None):
    block, capacity = examples.labels.shape
    size = min(batch_size, capacity)
    if capacity % size:
      raise ValueError(
          f'capacity={capacity} is above batch_size={batch_size} and no '
          'multiple of it: batches are whole slices; choose capacities with '
          'the same batch size.')
    tile = min(tile_size or size, size)
    if size % tile or not touched_only or score_batch is not None:
      tile = size

    def cut(tree, start, length=tile):
      return jax.tree.map(
          lambda x: jax.lax.dynamic_slice_in_dim(x, start, length, 1), tree)

    def paste(tree, part, start):
      return jax.tree.map(
          lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 1),
          tree, part)

    def scale(updates):
      return optax.tree.scale(view.learning_rate_scale, updates)

    def step(batch, active, carry: _Carry) -> _Carry:
      def keep(new, old):
        return jax.tree.map(
            lambda n, o: jnp.where(
                active.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)

      start = batch * size
      used_in_batch = cut(examples.used, start, size) & active[:, None, None]
      num_used = used_in_batch.sum((1, 2))
      terms = count_terms(cut(examples.labels, start, size), used_in_batch)

      def one_tile(t, done):
        item_delta, item_state, dense_gradient, loss_sum = done
        begin = start + t * tile
        if in_place:
          rows = cut(item_delta, begin)
        else:
          moved = cut(item_delta, begin)
          rows = optax.tree.add(cut(view.item_rows, begin), moved)
        used = cut(examples.used, begin) & active[:, None, None]
        (row_gradient, part), loss = gradient(
            rows, carry.dense, cut(examples.rows, begin),
            cut(examples.labels, begin), used, terms, num_used,
            jnp.float32(t == 0))
        if touched_only:
          # Slots unused or at rest have zero rows, gradients and so updates.
          state = init_item(rows) if in_place else cut(item_state, begin)
          update, state = update_item(row_gradient, state)
          update = scale(update)
          if not in_place:
            update = keep(optax.tree.add(moved, update), moved)
            item_state = paste(
                item_state, keep(state, cut(item_state, begin)), begin)
          item_delta = paste(item_delta, update, begin)
        else:
          full = optax.tree.scale(proximal_mu, item_delta)
          if correction is not None:
            full = optax.tree.add(full, correction[0])
          full = paste(
              full, optax.tree.add(cut(full, begin), row_gradient), begin)
          update, state = update_item(
              full, item_state, optax.tree.add(view.item_rows, item_delta))
          item_delta = keep(
              optax.tree.add(item_delta, scale(update)), item_delta)
          item_state = keep(state, item_state)
        return (item_delta, item_state,
                optax.tree.add(dense_gradient, part), loss_sum + loss)

      done = (carry.item_delta, carry.item_state,
              optax.tree.zeros_like(carry.dense), carry.loss_sum)
      if tile == size:
        done = one_tile(0, done)
      else:
        longest = most(jnp.where(active, num_examples - start, 0))
        done = jax.lax.fori_loop(
            0, -(-jnp.minimum(longest, size) // tile), one_tile, done)
      item_delta, item_state, dense_gradient, loss_sum = done
      if not is_off(proximal_mu):
        pull = optax.tree.sub(carry.dense[1], view.shared)
        dense_gradient = (dense_gradient[0], optax.tree.add_scale(
            dense_gradient[1], proximal_mu, pull))
      if correction is not None:
        dense_gradient = (dense_gradient[0], optax.tree.add(
            dense_gradient[1], correction[1]))
      update, dense_state = update_dense(
          dense_gradient, carry.dense_state, carry.dense)
      dense = optax.apply_updates(carry.dense, scale(update))
      return _Carry(
          item_delta, keep(dense, carry.dense), item_state,
          keep(dense_state, carry.dense_state),
          loss_sum, carry.loss_count + terms,
          carry.num_examples + num_used)

    delta = view.item_rows if in_place else optax.tree.zeros_like(
        view.item_rows)
    dense = (view.personal, view.shared)
    zero = jnp.zeros(block)
    # A slot that is stepped once needs no room for its state.
    item_state = () if in_place else init_item(delta)
    carry = walk_batches(
        step, _Carry(delta, dense, item_state, init_dense(dense), zero, zero,
                     zero.astype(jnp.int32)),
        num_examples, batch_size, epochs, steps)
    personal, shared = carry.dense
    return Contribution(
        carry.item_delta, optax.tree.sub(shared, view.shared),
        carry.loss_sum, carry.loss_count, carry.num_examples), personal

  return train
