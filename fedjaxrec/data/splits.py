"""Splits: which interactions are for training, for selection and for the test.

All splits keep the id space of the interactions and, in every part, the order
of a user's rows. "Latest" means last in that order: by time, and by row in the
source among interactions of the same second; where the source has no times, by
row alone. Users are handled all at once by arithmetic on row positions.
"""

import dataclasses
import hashlib

import numpy as np

from fedjaxrec import config as config_lib
from fedjaxrec.data import interactions as interactions_lib

Interactions = interactions_lib.Interactions

# A share of 0.29 of 100 rows is 28.999... in floating point and means 29.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """One data set, taken apart; all parts share one id space.

  Attributes:
    name: The split's name, as in `SplitConfig`.
    train: What clients train on.
    validation: What models are chosen by.
    test: What is reported; read once.
    fold_in: What a held-out user shows before being asked (user_holdout);
      otherwise empty: all counts 0.
    negatives: Published candidates, int32 [num_users, 99]; otherwise None. A
      user's own positive can be among them (the NCF files): the evaluator
      masks it.
    fingerprint: Of all the interactions, before they were taken apart.
    validation_candidates: bool [num_items]: what validation items are ranked
      among; None: all items. Cold items are ranked among cold ones.
    test_candidates: The same for the test.
  """
  name: str
  train: Interactions
  validation: Interactions
  test: Interactions
  fold_in: Interactions
  negatives: np.ndarray | None = None
  fingerprint: str = ''
  validation_candidates: np.ndarray | None = None
  test_candidates: np.ndarray | None = None

  def split_fingerprint(self) -> str:
    """A digest of who has which items in which part, in order.

    Two sources of one data set share `fingerprint` but may order simultaneous
    rows differently, and so be split differently; this tells them apart.
    """
    digest = hashlib.sha256(self.fingerprint.encode())
    for part in (self.train, self.validation, self.test, self.fold_in):
      digest.update(part.offsets.astype('<i8').tobytes())
      digest.update(part.items.astype('<i4').tobytes())
    return digest.hexdigest()

  @property
  def num_users(self) -> int:
    """Users of the id space, in every part the same."""
    return self.train.num_users

  @property
  def num_items(self) -> int:
    """Items of the id space."""
    return self.train.num_items

  @property
  def user_ids(self) -> np.ndarray:
    """The source's user ids, by dense id."""
    return self.train.user_ids

  @property
  def item_ids(self) -> np.ndarray:
    """The source's item ids, by dense id."""
    return self.train.item_ids


def make_split(
    interactions: Interactions, config: config_lib.SplitConfig, seed: int = 0
) -> Split:
  """Splits interactions as `config` says.

  Args:
    interactions: All interactions.
    config: Name and shares.
    seed: Chooses the held-out users or items (user_holdout, item_holdout). It
      is not the run's seed, so that runs with different seeds are asked the
      same questions.

  Raises:
    ValueError: If the split needs times that the source does not have, or
      leaves nothing to train or to test on.
  """
  if config.name == 'leave_one_out':
    split = leave_one_out(interactions)
  elif config.name == 'user_ratio':
    split = user_ratio(
        interactions, config.validation_fraction, config.test_fraction)
  elif config.name == 'global_time':
    split = global_time(
        interactions, config.validation_fraction, config.test_fraction)
  elif config.name == 'user_holdout':
    split = user_holdout(
        interactions, config.validation_fraction, config.test_fraction,
        config.fold_in_fraction, seed)
  elif config.name == 'item_holdout':
    split = item_holdout(
        interactions, config.validation_fraction, config.test_fraction, seed)
  else:
    raise ValueError(
        f'split.name={config.name!r} cannot be made from interactions: it '
        'comes ready with its source; use it with --data.source=ncf or '
        'citeulike-a, or choose leave_one_out, user_ratio, global_time, '
        'user_holdout or item_holdout.')
  for part in ('train', 'validation', 'test'):
    if not getattr(split, part).num_interactions:
      raise ValueError(
          f'split.name={config.name} leaves no {part} interaction of '
          f'{interactions.num_interactions} of {interactions.num_users} users '
          f'(split.validation_fraction={config.validation_fraction}, '
          f'split.test_fraction={config.test_fraction}); change the shares, '
          'choose another split, or use more data.')
  return dataclasses.replace(split, fingerprint=interactions.fingerprint())


def leave_one_out(interactions: Interactions) -> Split:
  """Last interaction of a user: test; second last: validation; rest: train.

  A user with fewer than three interactions keeps all of them in train.
  """
  from_end = _rows_from_end(interactions)
  large = np.repeat(interactions.counts >= 3, interactions.counts)
  return _from_masks('leave_one_out', interactions,
                     validation=large & (from_end == 1),
                     test=large & (from_end == 0))


def user_ratio(
    interactions: Interactions, validation_fraction: float,
    test_fraction: float) -> Split:
  """Latest rows of each user: test; those before: validation; rest: train.

  Of a user's n rows, floor(n * test_fraction) are for the test and
  floor(n * validation_fraction) for validation, so at least one is left to
  train on, and a user with few rows may have none in the other two.
  """
  counts = interactions.counts
  num_test = _share(counts, test_fraction)
  num_validation = _share(counts, validation_fraction)
  from_end = _rows_from_end(interactions)
  test = from_end < np.repeat(num_test, counts)
  held_out = from_end < np.repeat(num_test + num_validation, counts)
  return _from_masks('user_ratio', interactions,
                     validation=held_out & ~test, test=test)


def global_time(
    interactions: Interactions, validation_fraction: float,
    test_fraction: float) -> Split:
  """Two instants cut all users' interactions: nothing is learnt from later.

  The test cut is the time of the floor(n * test_fraction)-th latest of all n
  rows, the validation cut that of the floor(n * validation_fraction)-th before
  these. A row at a cut's very second belongs to the later part, so the parts
  can be somewhat larger than their shares. Users may have nothing in train.

  Raises:
    ValueError: If the source has no times.
  """
  if not interactions.has_timestamps:
    raise ValueError(
        'split.name=global_time needs the time of every interaction and the '
        'source has none (has_timestamps=False); use leave_one_out or '
        'user_ratio, which follow the order of the rows, or user_holdout.')
  times = np.sort(interactions.timestamps)
  num_test = int(_share(len(times), test_fraction))
  num_held_out = num_test + int(_share(len(times), validation_fraction))
  # A share that rounds to no row cuts after the last second.
  times = np.append(times, times[-1] + 1)
  test_cut = times[len(times) - 1 - num_test]
  validation_cut = times[len(times) - 1 - num_held_out]
  test = interactions.timestamps >= test_cut
  return _from_masks(
      'global_time', interactions,
      validation=(interactions.timestamps >= validation_cut) & ~test, test=test)


def user_holdout(
    interactions: Interactions, validation_fraction: float,
    test_fraction: float, fold_in_fraction: float, seed: int = 0) -> Split:
  """Strong generalisation: validation and test users are not trained on.

  A random floor(share) of the users, at least one, is held out for the test,
  and as many as their share says for validation. Of a held-out user's n rows
  the earliest floor(n * fold_in_fraction), at least one and, if n > 1, at most
  n - 1, are shown to the model (`fold_in`), and the rest is asked for.

  References:
    Liang et al., 2018, `Variational Autoencoders for Collaborative Filtering
    <https://arxiv.org/abs/1802.05814>`_; there the shown part is drawn at
    random, here it is the earliest, so that nothing is told from the future.

  Raises:
    ValueError: If there are fewer than three users with an interaction.
  """
  counts = interactions.counts
  active = np.flatnonzero(counts)
  if len(active) < 3:
    raise ValueError(
        f'split.name=user_holdout with {len(active)} users: it needs at least '
        '3, one each for training, validation and test.')
  shuffled = np.random.default_rng(seed).permutation(active)
  num_test = max(1, int(_share(len(active), test_fraction)))
  num_validation = max(1, int(_share(len(active), validation_fraction)))
  role = np.zeros(interactions.num_users, np.int8)
  role[shuffled[:num_test]] = 2
  role[shuffled[num_test:num_test + num_validation]] = 1
  shown = np.maximum(
      np.minimum(_share(counts, fold_in_fraction), counts - 1), 1)
  row_role = np.repeat(role, counts)
  asked = _rows_from_start(interactions) >= np.repeat(shown, counts)
  return _from_masks(
      'user_holdout', interactions,
      validation=(row_role == 1) & asked, test=(row_role == 2) & asked,
      fold_in=(row_role > 0) & ~asked)


def item_holdout(
    interactions: Interactions, validation_fraction: float,
    test_fraction: float, seed: int = 0) -> Split:
  """Cold start: validation and test items are in nobody's training data.

  A random floor(share) of the items that somebody has, at least one, is held
  out for the test with all its interactions, and as many as their share says
  for validation. Only an item's features can tell who wants it, and it is
  ranked among the held-out items of its own part: beside items that models were
  trained on, every score would say first of all which items are new.

  Raises:
    ValueError: If there are fewer than three items with an interaction.
  """
  counts = np.bincount(interactions.items, minlength=interactions.num_items)
  active = np.flatnonzero(counts)
  if len(active) < 3:
    raise ValueError(
        f'split.name=item_holdout with {len(active)} items: it needs at least '
        '3, one each for training, validation and test.')
  shuffled = np.random.default_rng(seed).permutation(active)
  num_test = max(1, int(_share(len(active), test_fraction)))
  num_validation = max(1, int(_share(len(active), validation_fraction)))
  role = np.zeros(interactions.num_items, np.int8)
  role[shuffled[:num_test]] = 2
  role[shuffled[num_test:num_test + num_validation]] = 1
  row_role = role[interactions.items]
  split = _from_masks('item_holdout', interactions,
                      validation=row_role == 1, test=row_role == 2)
  return dataclasses.replace(
      split, validation_candidates=role == 1, test_candidates=role == 2)


def _from_masks(
    name: str, interactions: Interactions, validation: np.ndarray,
    test: np.ndarray, fold_in: np.ndarray | None = None) -> Split:
  if fold_in is None:
    fold_in = np.zeros(interactions.num_interactions, np.bool_)
  return Split(
      name, interactions.take(~(validation | test | fold_in)),
      interactions.take(validation), interactions.take(test),
      interactions.take(fold_in))


def _share(count, fraction: float) -> np.ndarray:
  return np.floor(np.asarray(count) * fraction + _ROUNDING).astype(np.int64)


def _rows_from_start(interactions: Interactions) -> np.ndarray:
  """Position of each row among its user's rows, 0 = earliest."""
  return (np.arange(interactions.num_interactions)
          - np.repeat(interactions.offsets[:-1], interactions.counts))


def _rows_from_end(interactions: Interactions) -> np.ndarray:
  """Position of each row among its user's rows, 0 = latest."""
  return (np.repeat(interactions.offsets[1:] - 1, interactions.counts)
          - np.arange(interactions.num_interactions))
