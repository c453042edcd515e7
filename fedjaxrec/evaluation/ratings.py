"""Explicit ratings: how far predictions are off, beside two constants.

RMSE and MAE are over the held-out interactions, as published ones are, and not
over users.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.data.interactions import Interactions
from fedjaxrec.population import gather_personal

PyTree = Any
# Predictions made at once: users times held-out interactions of a user.
_AT_ONCE = 2**14


def errors(predicted: np.ndarray, ratings: np.ndarray) -> dict[str, float]:
  """Root of the mean square, and mean absolute error."""
  miss = np.asarray(predicted, np.float64) - ratings
  return {'rmse': float(np.sqrt(np.mean(miss**2))),
          'mae': float(np.mean(np.abs(miss)))}


def make_predictor(
    score: Callable[[PyTree, PyTree, PyTree], jax.Array],
    asked: Interactions,
) -> Callable[[PyTree, PyTree, PyTree], np.ndarray]:
  """Builds predict(personal, item_table, shared) -> float32 [interactions].

  Args:
    score: A recommender's score.
    asked: The pairs that are predicted, in this order.

  Returns:
    predict. Leaves of personal are [num_users, ...], of item_table [num_items,
    ...]. Users of similar counts go together, so little is padding.
  """
  @jax.jit
  def predict_block(personal, rows, item_table, shared):
    places = jnp.arange(len(rows), dtype=jnp.int32)
    own = gather_personal(personal, places, rows)
    # Numbers of rows stay whole.
    table = jax.tree.map(
        lambda x: x.at[rows].get(mode='clip').astype(
            jnp.promote_types(x.dtype, jnp.float32)
            if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), item_table)
    return jax.vmap(score, (0, 0, None))(own, table, shared)

  counts = asked.counts
  order = np.argsort(counts, kind='stable')
  order = order[counts[order] > 0]

  def predict(personal, item_table, shared):
    result = np.zeros(asked.num_interactions, np.float32)
    stop = len(order)
    while stop > 0:
      # Widths are powers of 2: few programs, at most half of it padding.
      width = 1 << int(counts[order[stop - 1]] - 1).bit_length()
      size = max(1, _AT_ONCE // width)
      start = max(0, stop - size, int(np.searchsorted(
          counts[order], width // 2, side='right')))
      mine = order[start:stop]
      padded = np.pad(mine, (0, size - len(mine)), mode='edge')
      place = asked.offsets[padded][:, None] + np.arange(width)[None, :]
      there = np.arange(width)[None, :] < counts[padded][:, None]
      rows = asked.items[np.where(there, place, 0)]
      scores = np.asarray(predict_block(
          jax.tree.map(lambda x, who=padded: x[who], personal), rows,
          item_table, shared))
      there[len(mine):] = False
      result[place[there]] = scores[there]
      stop = start
    return result

  return predict


def constants(
    train: Interactions, asked: Interactions) -> dict[str, dict[str, float]]:
  """What needs no model: the mean of all ratings, and each user's own mean.

  A user without a training interaction gets the mean of all.
  """
  mean = float(train.ratings.mean()) if train.num_interactions else 0.0
  users = np.repeat(np.arange(train.num_users), train.counts)
  total = np.bincount(users, train.ratings, train.num_users)
  own = np.where(train.counts > 0, total / np.maximum(train.counts, 1), mean)
  return {
      'global_mean': errors(np.full(asked.num_interactions, mean),
                            asked.ratings),
      'user_mean': errors(np.repeat(own, asked.counts), asked.ratings)}
