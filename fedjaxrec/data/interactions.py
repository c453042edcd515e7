"""Interactions: ragged user -> (item, rating, timestamp) arrays (CSR form).

Three rules are applied once, when the arrays are made, and hold ever after:
ids are dense and in the sorted order of the source's ids; a user's rows are
ordered by (timestamp, row in the source); of several interactions of a user
with one item the latest stays (the later row, where they tie in time).
Nothing here loops over users in Python.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from fedjaxrec.data import columns


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
  """Who interacted with what, how it was rated, and when.

  Arrays are read-only views. Making an object by hand checks everything (one
  sort of the rows); `from_columns` makes one from unordered columns.

  Attributes:
    offsets: int64 [num_users + 1]; user u has rows offsets[u]:offsets[u + 1].
    items: int32 [num_interactions], 0..num_items-1, distinct within a user.
    ratings: float32 [num_interactions]; 1.0 where the source has none.
    timestamps: int64 [num_interactions], seconds since 1970. A user's rows are
      ordered by (timestamp, row in the source).
    user_ids: [num_users] the source's ids, by dense id.
    item_ids: [num_items] the source's ids, by dense id.
    has_timestamps: False: the source tells no time (or not everywhere), and a
      user's rows stand in the source's order.

  Raises:
    ValueError: For arrays that break a rule above.
  """
  offsets: np.ndarray
  items: np.ndarray
  ratings: np.ndarray
  timestamps: np.ndarray
  user_ids: np.ndarray
  item_ids: np.ndarray
  has_timestamps: bool = True

  def __post_init__(self):
    for field, dtype in (('offsets', np.int64), ('items', np.int32),
                         ('ratings', np.float32), ('timestamps', np.int64),
                         ('user_ids', None), ('item_ids', None)):
      array = _as_vector(field, getattr(self, field), dtype)
      object.__setattr__(self, field, _read_only(array))
    _check(self)

  @property
  def num_users(self) -> int:
    """Users, with or without interactions."""
    return len(self.user_ids)

  @property
  def num_items(self) -> int:
    """Items, with or without interactions."""
    return len(self.item_ids)

  @property
  def num_interactions(self) -> int:
    """Rows."""
    return len(self.items)

  @functools.cached_property
  def counts(self) -> np.ndarray:
    """Interactions of each user: int64 [num_users]."""
    return _read_only(np.diff(self.offsets))

  @property
  def users(self) -> np.ndarray:
    """Dense user id of each row: int32 [num_interactions], made anew."""
    return np.repeat(np.arange(self.num_users, dtype=np.int32), self.counts)

  def take(self, mask: np.ndarray) -> 'Interactions':
    """Keeps the rows where `mask` is True, in the same id space.

    Args:
      mask: bool [num_interactions].
    """
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != self.items.shape:
      raise ValueError(
          f'mask is {mask.dtype}{list(mask.shape)}; it must be '
          f'bool[{self.num_interactions}], one entry an interaction.')
    kept = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
    return Interactions.unchecked(
        kept[self.offsets], self.items[mask], self.ratings[mask],
        self.timestamps[mask], self.user_ids, self.item_ids,
        self.has_timestamps)

  def fingerprint(self) -> str:
    """Returns a SHA-256 (hex) of the content.

    Covers both id maps and every (user, item, rating, timestamp). With
    timestamps it does not depend on the order of the source's rows, not even
    among rows of a user at the same second (they are hashed in the order of
    their items); two sources that differ only there agree in the fingerprint
    and may yet differ in which of two simultaneous interactions counts as the
    last. Without timestamps the order of a user's rows is content and is
    covered. Cost: one sort of the simultaneous rows at the first call.
    """
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    order = _canonical_order(self) if self.has_timestamps else slice(None)
    digest = hashlib.sha256(b'fedjaxrec interactions 1\n')
    digest.update(b'by time\n' if self.has_timestamps else b'by row\n')
    for ids in (self.user_ids, self.item_ids):
      digest.update(_id_bytes(ids))
    for array, dtype in ((self.offsets, '<i8'), (self.items[order], '<i4'),
                         (self.ratings[order], '<f4'),
                         (self.timestamps[order], '<i8')):
      digest.update(np.ascontiguousarray(array, dtype=dtype).data)
    return digest.hexdigest()

  @classmethod
  def unchecked(
      cls, offsets, items, ratings, timestamps, user_ids, item_ids,
      has_timestamps: bool = True) -> 'Interactions':
    """Makes one from arrays of the right types that keep the rules.

    For code that keeps them by construction: it saves the check's sort.
    """
    result = object.__new__(cls)
    for field, array in (
        ('offsets', offsets), ('items', items), ('ratings', ratings),
        ('timestamps', timestamps), ('user_ids', user_ids),
        ('item_ids', item_ids)):
      object.__setattr__(result, field, _read_only(array))
    object.__setattr__(result, 'has_timestamps', bool(has_timestamps))
    return result

  @classmethod
  def from_columns(
      cls,
      users: np.ndarray | Sequence,
      items: np.ndarray | Sequence,
      ratings: np.ndarray | Sequence | None = None,
      timestamps: np.ndarray | Sequence | None = None,
      source: str = 'the columns',
      ordered_by_time: bool = True,
  ) -> 'Interactions':
    """Makes interactions from a source's columns, rows in any order.

    Cost: two sorts of the rows; 20 million take a few seconds.

    Args:
      users: [num_rows] user ids, integers or strings.
      items: [num_rows] item ids, integers or strings.
      ratings: [num_rows] finite numbers; None: every rating is 1.
      timestamps: [num_rows] seconds since 1970, not negative (fractions are
        cut off), or datetime64; None: the order of the rows decides.
      source: Name for error messages.
      ordered_by_time: False: timestamps are kept, but are not to be trusted;
        the order of the rows decides.

    Raises:
      ValueError: For no rows at all, columns of unequal length, or a null id,
        NaN or infinite rating, missing or negative timestamp, with its row.
    """
    user_ids, user_index = columns.dense_ids(users, f'{source}: user')
    item_ids, item_index = columns.dense_ids(items, f'{source}: item')
    return cls.from_dense(
        user_index, item_index, user_ids, item_ids, ratings, timestamps,
        source, ordered_by_time)

  @classmethod
  def from_dense(
      cls,
      users: np.ndarray,
      items: np.ndarray,
      user_ids: np.ndarray,
      item_ids: np.ndarray,
      ratings: np.ndarray | Sequence | None = None,
      timestamps: np.ndarray | Sequence | None = None,
      source: str = 'the columns',
      ordered_by_time: bool = True,
  ) -> 'Interactions':
    """As `from_columns`, for ids that are dense already.

    Users and items without an interaction are possible.

    Args:
      users: int [num_rows], 0..num_users-1.
      items: int [num_rows], 0..num_items-1.
      user_ids: [num_users] the source's ids.
      item_ids: [num_items] the source's ids.
      ratings: See `from_columns`.
      timestamps: See `from_columns`.
      source: See `from_columns`.
      ordered_by_time: See `from_columns`.
    """
    users, items = np.asarray(users), np.asarray(items)
    num_rows = len(users)
    if not num_rows:
      raise ValueError(f'{source}: num_interactions=0; there is no row to use.')
    for name, array, ids in (('user', users, user_ids),
                             ('item', items, item_ids)):
      if len(array) != num_rows:
        raise ValueError(
            f'{source}: {len(array)} {name}s but {num_rows} users; the columns '
            'must be of equal length.')
      columns.refuse(
          (array < 0) | (array >= len(ids)), array, source, name,
          f'must lie in 0..{len(ids) - 1}')
    values = columns.clean_ratings(ratings, num_rows, source)
    times = columns.clean_timestamps(timestamps, num_rows, source)
    has_timestamps = timestamps is not None and ordered_by_time
    order = _row_order(users, times if has_timestamps else None)
    if order is not None:
      users, items = users[order], items[order]
      values, times = values[order], times[order]
    keep = _latest_of_duplicates(users, items, len(item_ids))
    if keep is not None:
      users, items = users[keep], items[keep]
      values, times = values[keep], times[keep]
    offsets = np.zeros(len(user_ids) + 1, np.int64)
    np.cumsum(np.bincount(users, minlength=len(user_ids)), out=offsets[1:])
    return Interactions.unchecked(
        offsets, items.astype(np.int32, copy=False), values, times,
        np.asarray(user_ids), np.asarray(item_ids), has_timestamps)


def filter_interactions(
    interactions: Interactions,
    min_rating: float = 0.0,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
) -> Interactions:
  """Drops weak ratings, then rare users and items until none is left (k-core).

  Dropping a user can make an item rare and the other way round, so the two
  activity filters are applied again and again until nothing changes. Users and
  items that lose everything leave the id space; the others keep their order.

  Args:
    interactions: All interactions.
    min_rating: Interactions rated lower are dropped; 0 keeps all.
    min_user_interactions: At least 1.
    min_item_interactions: At least 1.

  Raises:
    ValueError: If nothing is left.
  """
  users, items = interactions.users, interactions.items
  keep = np.ones(interactions.num_interactions, np.bool_)
  if min_rating > 0:
    keep = interactions.ratings >= min_rating
  num_left = -1
  while num_left != (num_left := int(keep.sum())):
    user_counts = np.bincount(users[keep], minlength=interactions.num_users)
    keep &= (user_counts >= min_user_interactions)[users]
    item_counts = np.bincount(items[keep], minlength=interactions.num_items)
    keep &= (item_counts >= min_item_interactions)[items]
  if not num_left:
    raise ValueError(
        f'data.min_rating={min_rating}, data.min_user_interactions='
        f'{min_user_interactions} and data.min_item_interactions='
        f'{min_item_interactions} leave none of the '
        f'{interactions.num_interactions} interactions of '
        f'{interactions.num_users} users with {interactions.num_items} items; '
        'lower them.')
  has_user = np.bincount(users[keep], minlength=interactions.num_users) > 0
  has_item = np.bincount(items[keep], minlength=interactions.num_items) > 0
  if keep.all() and has_user.all() and has_item.all():
    return interactions
  kept = interactions.take(keep)
  renumbered = np.cumsum(has_item, dtype=np.int32) - 1
  return Interactions.unchecked(
      np.concatenate([[0], np.cumsum(kept.counts[has_user])]),
      renumbered[kept.items], kept.ratings, kept.timestamps,
      kept.user_ids[has_user], kept.item_ids[has_item], kept.has_timestamps)


def _row_order(
    users: np.ndarray, timestamps: np.ndarray | None
) -> np.ndarray | None:
  """Stable order by (user, timestamp); None where the rows have it already."""
  key = users.astype(np.int64)
  if timestamps is not None:
    low, high = int(timestamps.min()), int(timestamps.max())
    if (int(users.max()) + 1) * (high - low + 1) >= 2**63:
      timestamps = np.unique(timestamps, return_inverse=True)[1]
      low, high = 0, int(timestamps.max())
    key *= high - low + 1
    key += timestamps
    key -= low
  if np.all(key[1:] >= key[:-1]):
    return None
  return np.argsort(key, kind='stable')


def _latest_of_duplicates(
    users: np.ndarray, items: np.ndarray, num_items: int
) -> np.ndarray | None:
  """bool mask of the last row of each (user, item); None if all are distinct.

  Rows are in the order in which a later one wins.
  """
  pair = users.astype(np.int64) * num_items
  pair += items
  # Half the width sorts in half the time.
  narrow = (int(users.max(initial=0)) + 1) * num_items <= 2**32
  in_order = pair.astype(np.uint32 if narrow else np.int64)
  in_order.sort()
  if not np.any(in_order[1:] == in_order[:-1]):
    return None
  order = np.argsort(pair, kind='stable')
  pair = pair[order]
  keep = np.ones(len(pair), np.bool_)
  keep[order[:-1]] = pair[1:] != pair[:-1]
  return keep


def _canonical_order(interactions: Interactions) -> np.ndarray:
  """Row order by (user, timestamp, item); rows already have the first two."""
  users, timestamps = interactions.users, interactions.timestamps
  same = (users[1:] == users[:-1]) & (timestamps[1:] == timestamps[:-1])
  group = np.concatenate([[0], np.cumsum(~same)])
  tied = np.flatnonzero(np.concatenate([same, [False]])
                        | np.concatenate([[False], same]))
  order = np.arange(len(users))
  key = group[tied] * interactions.num_items + interactions.items[tied]
  order[tied] = tied[np.argsort(key)]
  return order


def _id_bytes(ids: np.ndarray) -> bytes:
  if ids.dtype.kind in 'iu':
    return f'{len(ids)} integers\n'.encode() + ids.astype('<i8').tobytes()
  strings = [str(i).encode() for i in ids]
  lengths = np.array([len(s) for s in strings], '<i8')
  return (f'{len(ids)} strings\n'.encode() + lengths.tobytes()
          + b''.join(strings))


def _check(data: Interactions) -> None:
  """Refuses arrays that break the rules of `Interactions`."""
  offsets, items = data.offsets, data.items
  if len(offsets) != data.num_users + 1:
    raise ValueError(
        f'len(offsets)={len(offsets)} with {data.num_users} user_ids; offsets '
        'needs one entry more than there are users.')
  if offsets[0] != 0 or offsets[-1] != len(items) or np.any(
      np.diff(offsets) < 0):
    raise ValueError(
        f'offsets run from {offsets[0]} to {offsets[-1]}; they must rise from '
        f'0 to the number of interactions, {len(items)}, and never fall.')
  for field, array in (('rating', data.ratings),
                       ('timestamp', data.timestamps)):
    columns.same_length(field, array, len(items), 'Interactions')
  for field, ids in (('user_ids', data.user_ids), ('item_ids', data.item_ids)):
    if len(np.unique(ids)) != len(ids):
      raise ValueError(
          f'{field} holds an id twice; the map must be one to one.')
  name = 'Interactions'
  columns.refuse((items < 0) | (items >= data.num_items), items, name, 'item',
                 f'is outside the catalogue 0..{data.num_items - 1}')
  columns.refuse(~np.isfinite(data.ratings), data.ratings, name, 'rating',
                 'must be a finite number')
  columns.refuse(data.timestamps < 0, data.timestamps, name, 'timestamp',
                 'must not be negative')
  users = data.users
  if data.has_timestamps:
    falls = np.zeros(len(items), np.bool_)
    falls[1:] = ((users[1:] == users[:-1])
                 & (data.timestamps[1:] < data.timestamps[:-1]))
    columns.refuse(
        falls, data.timestamps, name, 'timestamp',
        "lies before the user's previous row; sort a user's rows by time, or "
        'use Interactions.from_columns')
  keep = _latest_of_duplicates(users, items, data.num_items)
  if keep is not None:
    row = int(np.flatnonzero(~keep)[0])
    raise ValueError(
        f'Interactions: user {users[row]} has item={items[row]} more than '
        'once; keep one, or use Interactions.from_columns, which keeps the '
        'latest.')


def _as_vector(field: str, array, dtype) -> np.ndarray:
  array = np.asarray(array)
  if array.ndim != 1:
    raise ValueError(f'{field} has shape {array.shape}; it must be a vector.')
  if dtype is None or array.dtype == dtype:
    return array
  if not np.can_cast(array.dtype, dtype, 'same_kind') and array.size:
    raise ValueError(
        f'{field} is of type {array.dtype}; it must be {np.dtype(dtype)}.')
  if np.dtype(dtype).kind == 'i' and array.size and (
      array.max() > np.iinfo(dtype).max):
    raise ValueError(
        f'{field} has an entry {array.max()} that does not fit '
        f'{np.dtype(dtype)}.')
  return array.astype(dtype)


def _read_only(array: np.ndarray) -> np.ndarray:
  if not array.flags.writeable:
    return array
  view = array.view()
  view.flags.writeable = False
  return view
