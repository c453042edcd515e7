"""The control of permuted test items: each user is asked for another's.

The items that are asked for stay the same, and so does their popularity; what
is gone is that they are the user's. A model that knows who likes what falls to
what popularity alone finds; one that does as well as before was helped by the
protocol, and not by the user's taste. Host side.
"""

import dataclasses

import numpy as np

from fedjaxrec.data.interactions import Interactions
from fedjaxrec.data.splits import Split

_STREAM = 0x9E12
_PASSES = 60


def permute_test_items(split: Split, seed: int) -> Split:
  """Hands each user's test items to another user who has none of them.

  A random permutation of the users with a test item, whose conflicts (a user
  gets own items, or what it has in train, validation or fold-in) are resolved
  by swaps with users drawn at random. What is left after some passes is
  dropped: those pairs are not asked.

  Cost: O(passes * test items) and one sort of all known pairs.

  Args:
    split: The data.
    seed: Seed of the permutation.

  Returns:
    The split with another test part; the rest is as it was.

  Raises:
    ValueError: If no pair is left, as with a single user.
  """
  test, num_items = split.test, split.num_items
  users = np.flatnonzero(test.counts)
  rng = np.random.default_rng([_STREAM, seed])
  known = np.unique(np.concatenate([
      part.users.astype(np.int64) * num_items + part.items
      for part in (split.train, split.validation, split.fold_in, test)]))

  def items_of(owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in owners, item) of every test item of some users."""
    counts = test.counts[owners]
    starts = np.cumsum(counts) - counts
    rows = np.repeat(test.offsets[owners] - starts, counts) + np.arange(
        counts.sum())
    return np.repeat(np.arange(len(owners)), counts), test.items[rows]

  def pairs_known(askers: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Whether an asker has an item of the owner's: bool [n]."""
    place, items = items_of(owners)
    code = askers[place].astype(np.int64) * num_items + items
    at = np.minimum(np.searchsorted(known, code), len(known) - 1)
    return np.bincount(
        place, known[at] == code, minlength=len(owners)).astype(np.bool_)

  owners = rng.permutation(users)  # users[i] is asked for owners[i]'s items.
  for _ in range(_PASSES):
    bad = np.flatnonzero(pairs_known(users, owners))
    if not len(bad):
      break
    # Partners are distinct, and none is itself to be swapped.
    others = rng.permutation(np.setdiff1d(np.arange(len(users)), bad))
    if len(others) < len(bad):  # Few good ones: swap among all instead.
      owners = rng.permutation(owners)
      continue
    others = others[:len(bad)]
    fine = ~(pairs_known(users[bad], owners[others])
             | pairs_known(users[others], owners[bad]))
    one, two = bad[fine], others[fine]
    owners[one], owners[two] = owners[two], owners[one]

  kept = ~pairs_known(users, owners)
  if not kept.any():
    raise ValueError(
        f'num_users={len(users)} with a test item: each has all items of all '
        'others, so permuted test items ask nothing; use a larger data set.')
  place, items = items_of(owners[kept])
  counts = np.zeros(split.num_users, np.int64)
  np.add.at(counts, users[kept][place], 1)
  return dataclasses.replace(split, test=Interactions(
      np.concatenate([[0], np.cumsum(counts)]), items.astype(np.int32),
      np.ones(len(items), np.float32), np.zeros(len(items), np.int64),
      test.user_ids, test.item_ids, False))
