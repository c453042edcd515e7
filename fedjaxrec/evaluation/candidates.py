"""What a relevant item is ranked against, prepared once per ranker. Host side.

Everything here is vectorised over users; nothing is as large as users x items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjaxrec.data.interactions import Interactions


class Pairs(NamedTuple):
  """(user, item) pairs of the evaluated users, to be read batch by batch.

  Attributes:
    slot: int32 [num_pairs + width], ascending; the user's place among the
      evaluated users. The last `width` entries are padding behind every batch.
    item: int32, same shape.
    starts: int32 [num_batches]; a batch's pairs lie within
      starts[b] : starts[b] + width.
    width: The most pairs of a batch, at least 1.
  """
  slot: np.ndarray
  item: np.ndarray
  starts: np.ndarray
  width: int


def check_ranker_inputs(
    targets: Interactions, excluded: Sequence[Interactions], num_items: int
) -> None:
  """Refuses what cannot be ranked, or what would be a leak.

  Cost: O(pairs log pairs), once a ranker.

  Raises:
    ValueError: If there is nothing to rank, if the id spaces differ, or if a
      target is also an excluded item of the same user.
  """
  if not targets.num_interactions:
    raise ValueError(
        'targets.num_interactions=0: no user has an item to be found, so no '
        'metric has a value; check --split.name and its fractions.')
  for name, part in [('targets', targets)] + [
      (f'excluded[{i}]', part) for i, part in enumerate(excluded)]:
    if part.num_items != num_items or part.num_users != targets.num_users:
      raise ValueError(
          f'{name}.num_users={part.num_users}, num_items={part.num_items}: '
          f'expected {targets.num_users} users and num_items={num_items}; all '
          'parts of a split share one id space.')
  wanted = np.sort(_keys(targets, num_items))
  for index, part in enumerate(excluded):
    keys = _keys(part, num_items)
    place = np.searchsorted(wanted, keys)
    both = wanted[np.minimum(place, wanted.size - 1)] == keys
    if both.any():
      user, item = divmod(int(keys[both.argmax()]), num_items)
      raise ValueError(
          f'excluded[{index}]={int(both.sum())} of the targets, the first '
          f'being user={user}, item={item}: the model has seen what it is '
          'asked for, which is a leak; make the parts of the split disjoint.')


def check_candidates(candidates: np.ndarray, targets: Interactions) -> None:
  """Refuses a choice of candidates that leaves a relevant item out.

  Args:
    candidates: bool [num_items].
    targets: The relevant items.

  Raises:
    ValueError: If the mask has another shape or type, or misses a target.
  """
  if candidates.shape != (targets.num_items,) or candidates.dtype != np.bool_:
    raise ValueError(
        f'candidates is {candidates.dtype}{list(candidates.shape)}; it must be '
        f'bool[{targets.num_items}], one entry an item.')
  missing = ~candidates[targets.items]
  if missing.any():
    raise ValueError(
        f'candidates leaves out {int(missing.sum())} of the targets, the first '
        f'being item={targets.items[missing.argmax()]}; what is asked for must '
        'be a candidate.')


def make_pairs(
    parts: Sequence[Interactions], users: np.ndarray, batch_size: int
) -> Pairs:
  """Collects the parts' interactions of `users`, in the order of `users`.

  Args:
    parts: Interactions in one id space.
    users: int32 [U], ascending.
    batch_size: Consecutive users of a batch.
  """
  slots, items = [], []
  for part in parts:
    slot_of = np.full(part.num_users, -1, np.int32)
    slot_of[users] = np.arange(users.size, dtype=np.int32)
    slot = np.repeat(slot_of, np.diff(part.offsets))
    slots.append(slot[slot >= 0])
    items.append(part.items[slot >= 0])
  slot = np.concatenate([np.empty(0, np.int32), *slots])
  item = np.concatenate([np.empty(0, np.int32), *items])
  order = np.argsort(slot, kind='stable')
  num_batches = -(-users.size // batch_size)
  bounds = np.searchsorted(
      slot, np.arange(num_batches + 1) * batch_size, sorter=order)
  width = max(1, int(np.diff(bounds).max()))
  behind = np.full(width, num_batches * batch_size, np.int32)
  return Pairs(
      np.concatenate([slot[order], behind]),
      np.concatenate([item[order], np.zeros(width, np.int32)]),
      bounds[:-1].astype(np.int32), width)


def sample_negatives(
    forbidden: Sequence[Interactions],
    users: np.ndarray,
    num_items: int,
    num_negatives: int,
    seed: int,
    candidates: np.ndarray | None = None,
) -> np.ndarray:
  """Draws every user's negatives: uniform, without replacement.

  A user's negatives are a uniformly random subset of the catalogue without the
  user's forbidden items. Cost: O(U * num_negatives^2) comparisons for distinct
  draws (Floyd's subset sampling, all users at once), and one binary search a
  negative.

  Args:
    forbidden: Interactions whose items are no negatives of that user.
    users: int32 [U], ascending.
    num_items: Size of the catalogue.
    num_negatives: Negatives a user.
    seed: Seed of the draw.
    candidates: bool [num_items]: the items to draw from; None: all.

  Returns:
    int32 [U, num_negatives], ascending within a user.

  Raises:
    ValueError: If a user has fewer items to draw from than `num_negatives`.

  References:
    Bentley and Floyd, 1987, A sample of brilliance, CACM 30(9), for the
    subsets.
  """
  pairs = make_pairs(forbidden, users, users.size)
  size = pairs.slot.size - pairs.width  # All in one batch, so width at the end.
  slot, item = pairs.slot[:size], pairs.item[:size]
  names = np.arange(num_items)
  if candidates is not None:  # They are a smaller catalogue of its own.
    names = np.flatnonzero(candidates)
    mine = candidates[item]
    slot, item = slot[mine], np.searchsorted(names, item[mine])
    num_items = names.size
  keys = slot.astype(np.int64) * num_items + item
  keys.sort()  # np.unique hashes int64: 35 s for 20 M keys, against 2 s.
  keys = keys[np.diff(keys, prepend=-1) > 0]
  slot, item = keys // num_items, keys % num_items
  counts = np.bincount(slot, minlength=users.size)
  free = num_items - counts
  if free.min() < num_negatives:
    poorest = int(free.argmin())
    raise ValueError(
        f'evaluation.protocol=sampled-{num_negatives}: user='
        f'{int(users[poorest])} has only {int(free[poorest])} items of '
        f'num_items={num_items} without an interaction, fewer than the '
        f'{num_negatives} negatives; use --evaluation.protocol=full.')
  generator = np.random.default_rng(seed)
  chosen = np.full((users.size, num_negatives), -1, np.int64)
  for j in range(num_negatives):
    last = free - num_negatives + j  # Grows to the user's last free item.
    drawn = generator.integers(last + 1)
    repeated = (chosen[:, :j] == drawn[:, None]).any(1)
    chosen[:, j] = np.where(repeated, last, drawn)
  chosen.sort(1)
  # The r-th free item is r + the number of forbidden items before it; the i-th
  # forbidden item stands before it if item_i - i <= r.
  offsets = np.cumsum(counts) - counts
  place = np.arange(slot.size) - offsets[slot]
  gaps = slot * (num_items + 1) + item - place
  wanted = np.arange(users.size)[:, None] * (num_items + 1) + chosen
  before = np.searchsorted(gaps, wanted.ravel(), side='right')
  before = before.reshape(chosen.shape) - offsets[:, None]
  return names[chosen + before].astype(np.int32)


def published_negatives(
    negatives: np.ndarray, targets: Interactions, users: np.ndarray
) -> np.ndarray:
  """Takes given negatives; an entry that is a target becomes `num_items`.

  Published files hold such entries (the positive among its own negatives); they
  are no candidates, so a positive is never ranked against itself.

  Args:
    negatives: int [num_users, n].
    targets: The relevant items.
    users: int32 [U], ascending.

  Returns:
    int32 [U, n].

  Raises:
    ValueError: If the shape or an id does not fit the catalogue.
  """
  num_items = targets.num_items
  if negatives.ndim != 2 or len(negatives) != targets.num_users:
    raise ValueError(
        f'negatives.shape={negatives.shape} must be [num_users, n] with '
        f'num_users={targets.num_users}; give every user one row.')
  if negatives.min() < 0 or negatives.max() >= num_items:
    raise ValueError(
        f'negatives holds ids from {negatives.min()} to {negatives.max()}, '
        f'outside 0..{num_items - 1}; remap them with the item_ids.')
  chosen = negatives[users].astype(np.int64)
  keys = users[:, None].astype(np.int64) * num_items + chosen
  return np.where(
      np.isin(keys, _keys(targets, num_items)), num_items, chosen
  ).astype(np.int32)


def _keys(part: Interactions, num_items: int) -> np.ndarray:
  """Returns user * num_items + item of every interaction: int64 [nnz]."""
  user = np.repeat(np.arange(part.num_users), np.diff(part.offsets))
  return user * num_items + part.items
