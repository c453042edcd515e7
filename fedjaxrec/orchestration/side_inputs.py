"""The side features that a run's model reads, and the run that it grew from."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjaxrec import config as config_lib
from fedjaxrec.algorithms.growth import (
    Places,
    find_places,
    grow_rows,
    grow_shared,
    same_structure,
)
from fedjaxrec.config import Config
from fedjaxrec.data.context import encode_moments
from fedjaxrec.data.feature_files import load_features
from fedjaxrec.data.feature_growth import extend
from fedjaxrec.data.features import Features
from fedjaxrec.data.sources import load_split
from fedjaxrec.data.splits import Split
from fedjaxrec.models.two_tower import SideInputs
from fedjaxrec.orchestration.checkpoints import Best
from fedjaxrec.population import is_known
from fedjaxrec.reports import run_directory
from fedjaxrec.simulation import Simulation, State

PyTree = Any


class Grown(NamedTuple):
  """The run that another grows from.

  Attributes:
    places: Where its things are in the other.
    split: Its data.
  """
  places: Places
  split: Split


def load_side_inputs(
    config: Config, split: Split
) -> tuple[SideInputs | None, Grown | None]:
  """Loads what model.name=two_tower reads; nothing for other models.

  Where the split's items of validation and test are cold (item_holdout,
  citeulike-a), these are new items: they join after training. A run that grows
  from another (two_tower.start) reads features in that run's entries.

  Args:
    config: The run.
    split: Its data.

  Returns:
    The features, and the run that it grows from; None where there is none.

  Raises:
    FileNotFoundError, ValueError: See `load_features` and `extend`; and where
      the other run knows what this one is asked.
  """
  if config.model.name != 'two_tower':
    return None, None
  found = load_features(
      config.data, split.train.user_ids, split.train.item_ids)
  new_items = None
  if (split.test_candidates is not None
      and split.validation_candidates is not None):
    new_items = split.test_candidates | split.validation_candidates
  when = load_moments(split) if config.two_tower.context else {}
  if not config.two_tower.start:
    return SideInputs(
        None if found.users is None else found.users.matrix(),
        None if found.items is None else found.items.matrix(), new_items,
        **when), None
  before = read_config(config.two_tower.start)
  old = load_split(before)
  places = (find_places(old.train.item_ids, split.train.item_ids),
            find_places(old.train.user_ids, split.train.user_ids))
  _refuse_known_answers(config, old, split, *places)
  known = load_features(before.data, old.train.user_ids, old.train.item_ids)
  users, user_entries = _grow(known.users, found.users, 'user')
  items, item_entries = _grow(known.items, found.items, 'item')
  return SideInputs(users, items, new_items, **when), Grown(
      Places(*places, item_entries, user_entries), old)


def _refuse_known_answers(
    config: Config, old: Split, split: Split, items: np.ndarray,
    users: np.ndarray
) -> None:
  """Refuses a start whose model was made from what this run is asked.

  Args:
    config: The run that grows.
    old: The data of the run it grows from.
    split: Its own data.
    items: int [num_items]: each item's place in `old`, or -1.
    users: int [num_users]: likewise.
  """
  def pairs(part, place_of_user, place_of_item):
    user = np.repeat(place_of_user, part.counts)
    item = place_of_item[part.items]
    return (user * old.num_items + item)[(user >= 0) & (item >= 0)]

  there = np.arange(old.num_users), np.arange(old.num_items)
  trained, chose = (
      pairs(part, *there) for part in (old.train, old.validation))
  for name, part, known, what in (
      ('test', split.test, trained, 'trained on'),
      ('validation', split.validation, trained, 'trained on'),
      ('test', split.test, chose, 'was selected by')):
    shared = int(np.isin(pairs(part, users, items), known).sum())
    if shared:
      raise ValueError(
          f'two_tower.start={config.two_tower.start!r} is a run that {what} '
          f'{shared:,} of the {len(part.items):,} {name} interactions of this '
          'one, whose figures would be those of answers that are known; split '
          'both alike (the section split, and seed), with later '
          'interactions alone in what is held out, or train anew.')


def load_moments(split: Split) -> dict[str, np.ndarray]:
  """When everything happened, from nothing later: the moments of SideInputs.

  A user is asked at the moment of the earliest interaction that is held out.

  Raises:
    ValueError: If the source has no times.
  """
  shown = (split.train, split.fold_in)

  def asked(part, history):
    codes = np.zeros(split.num_users, np.float32)
    there = part.counts > 0
    codes[there] = encode_moments(part, history)[part.offsets[:-1][there]]
    return codes

  return {
      'train_moments': encode_moments(split.train),
      'fold_in_moments': encode_moments(split.fold_in),
      'validation_moments': asked(split.validation, shown),
      'test_moments': asked(split.test, (*shown, split.validation))}


def _grow(
    known: Features | None, found: Features | None, role: str
) -> tuple[np.ndarray | None, int]:
  if (known is None) != (found is None):
    raise ValueError(
        f'data.{role}_features is {"missing" if found is None else "given"}, '
        'which the run of two_tower.start has the other way round; towers '
        'cannot be added or dropped: give the same sides.')
  if known is None or found is None:
    return None, 0
  return extend(known, found, role)


def read_config(folder: str) -> Config:
  """The config of the run of two_tower.start.

  Raises:
    FileNotFoundError, ValueError: If there is none, or of another model.
  """
  file = pathlib.Path(folder).expanduser() / run_directory.CONFIG
  if not file.is_file():
    raise FileNotFoundError(
        f'two_tower.start={folder!r} holds no {run_directory.CONFIG}; give the '
        '--workdir of a run with model.name=two_tower.')
  config = config_lib.from_dict(run_directory.read_json(file))
  if config.model.name != 'two_tower':
    raise ValueError(
        f'two_tower.start={folder!r} is a run of model.name='
        f'{config.model.name}; only a two_tower can grow.')
  if config.two_tower.start:
    raise ValueError(
        f'two_tower.start={folder!r} is a run that grew itself, and its '
        'entries are those of a third run; start from that one '
        f'({config.two_tower.start!r}), or train anew.')
  return config


def grow_state(
    config: Config, simulation: Simulation, best: Best, places: Places
) -> State:
  """A simulation's start, with everything that the trained model has.

  Args:
    config: The run that grows; two_tower.frozen is read: new clients then begin
      with nothing of their own, for they will not train.
    simulation: Its simulation.
    best: The trained model.
    places: Where its things are.

  Raises:
    ValueError: If the two models differ in more than what is new.
  """
  state = simulation.init()
  server = jax.tree.map(np.asarray, state.server)
  own = simulation.personal_by_client(state)
  if config.two_tower.frozen:
    own = jax.tree.map(
        lambda x: x if is_known(x) else np.zeros_like(x), own,
        is_leaf=is_known)
  if not same_structure(own, best.personal):
    raise ValueError(
        'two_tower.start names a run whose clients keep other parameters; keep '
        'two_tower.personal_vector as it was.')
  # Features are those of this run: they may have new entries.
  kept = jax.tree.map(
      lambda now, before: now if is_known(now) else grow_rows(
          before, now, places.users), own, best.personal, is_leaf=is_known)
  return simulation.restore(
      server._replace(
          item_table=grow_rows(
              best.item_table, server.item_table, places.items),
          shared=grow_shared(best.shared, server.shared, places)),
      kept)
