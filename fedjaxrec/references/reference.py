"""What a fitted reference is: a model in the ranker's terms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjaxrec.data.interactions import Interactions

PyTree = Any

# Users x items scores, or items x items weights, that a reference may hold.
_MAX_BYTES = 2**32


class Reference(NamedTuple):
  """A fitted model; `make_ranker(score, ...)(*reference.parameters)` ranks it.

  Attributes:
    score: (personal, item_rows, shared) -> float [num_rows]; one user.
    personal: Leaves [num_users, ...]; empty where nothing is personal.
    item_table: Leaves [num_items, ...].
    shared: The rest.
  """
  score: Callable[[PyTree, PyTree, PyTree], jax.Array]
  personal: PyTree
  item_table: PyTree
  shared: PyTree

  @property
  def parameters(self) -> tuple[PyTree, PyTree, PyTree]:
    """What a rank_fn takes."""
    return self.personal, self.item_table, self.shared


def known_items(
    train: Interactions, fold_in: Interactions | None
) -> tuple[np.ndarray, np.ndarray]:
  """What is known of every user when recommending: training and fold-in.

  Returns:
    int64 [num_users + 1] offsets and int32 [num_known] items.
  """
  if fold_in is None or not fold_in.num_interactions:
    return train.offsets, train.items
  users = np.concatenate([train.users, fold_in.users])
  items = np.concatenate([train.items, fold_in.items])
  order = np.argsort(users, kind='stable')
  counts = train.counts + fold_in.counts
  return np.concatenate([[0], np.cumsum(counts)]), items[order]


def check_size(name: str, what: str, num_bytes: int, way_out: str) -> None:
  """Refuses a dense matrix above four gigabytes.

  Raises:
    ValueError: Saying which matrix it is and how large.
  """
  if num_bytes > _MAX_BYTES:
    raise ValueError(
        f'{name}: {what} takes num_bytes={num_bytes:,}, more than the '
        f'{_MAX_BYTES:,} that a reference may hold; {way_out}.')
