"""Item-item models as dense matrices: co-occurrences, and scores from weights.

A user's score of item i is the sum of weights[j, i] over the user's items j, so
scores of all users are one product of a 0/1 matrix with the weights. It is made
in blocks of users; what is kept is a score for every user and item, which the
ranker looks up.
"""

import numpy as np

from fedjaxrec.data.interactions import Interactions
from fedjaxrec.evaluation.controls import score_from_matrix
from fedjaxrec.references.reference import Reference, check_size, known_items

_BLOCK_ENTRIES = 2**25


def _blocks(offsets: np.ndarray, items: np.ndarray, num_items: int):
  """Yields (first user, float32 [users, num_items] of zeros and ones)."""
  num_users = len(offsets) - 1
  size = max(1, _BLOCK_ENTRIES // num_items)
  counts = np.diff(offsets)
  for start in range(0, num_users, size):
    stop = min(num_users, start + size)
    block = np.zeros((stop - start, num_items), np.float32)
    rows = np.repeat(np.arange(stop - start), counts[start:stop])
    block[rows, items[offsets[start]:offsets[stop]]] = 1
    yield start, block


def co_occurrences(train: Interactions, name: str) -> np.ndarray:
  """Counts users who have both items: float32 [num_items, num_items].

  Counts are exact up to 2^24 users. Cost: 2 users items^2 operations.

  Args:
    train: The training interactions.
    name: The reference's name, for the message.

  Raises:
    ValueError: If a matrix of such a size in float64 is above four gigabytes.
  """
  num_items = train.num_items
  check_size(name, f'a float64 matrix of num_items={num_items} squared',
             8 * num_items**2,
             'use ials, whose memory grows with the items and not with their '
             'square, or drop rare items (data.min_item_interactions)')
  counts = np.zeros((num_items, num_items), np.float32)
  for _, block in _blocks(train.offsets, train.items, num_items):
    counts += block.T @ block
  return counts


def from_weights(
    weights: np.ndarray, train: Interactions, fold_in: Interactions | None,
    name: str) -> Reference:
  """Scores everything for everybody.

  Args:
    weights: float [num_items, num_items]; from the user's item (row) to the
      scored item (column).
    train: The training interactions.
    fold_in: What held-out users show; disjoint from `train`.
    name: The reference's name, for the message.

  Raises:
    ValueError: If the scores take more than four gigabytes.
  """
  check_size(name, f'scores of num_users={train.num_users} times num_items='
             f'{train.num_items}', 4 * train.num_users * train.num_items,
             'use ials, or fewer users')
  weights = weights.astype(np.float32, copy=False)
  scores = np.empty((train.num_users, train.num_items), np.float32)
  for start, block in _blocks(*known_items(train, fold_in), train.num_items):
    np.matmul(block, weights, out=scores[start:start + len(block)])
  return Reference(
      score_from_matrix, scores, np.arange(train.num_items, dtype=np.int32), ())
