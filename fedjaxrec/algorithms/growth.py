"""New items, users and feature columns for a trained two-tower model.

Nothing is trained again: what is old keeps its values, new item rows and the
weights of new feature columns are zero, new clients begin as any client does.
So old pairs have the scores that they had, and a new item is scored by its
features at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.algorithms.local_steps import select
from fedjaxrec.blocks import Algorithm

PyTree = Any


class Places(NamedTuple):
  """Where old things are in the grown model.

  Attributes:
    items: int [num_items]: each item's old id, -1 for a new one.
    users: int [num_users]: each user's old id, -1 for a new one.
    item_entries: Entries of an item's features that are old, the first ones.
    user_entries: The same of a user's.
  """
  items: np.ndarray
  users: np.ndarray
  item_entries: int
  user_entries: int


def find_places(old_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """Returns int64 [len(ids)]: the place of each id among the old ones, or -1.

  Ids agree if their texts do.
  """
  place = {str(name): i for i, name in enumerate(old_ids)}
  return np.array([place.get(str(name), -1) for name in ids], np.int64)


def grow_rows(old: PyTree, start: PyTree, places: np.ndarray) -> PyTree:
  """Rows of things that are there already, and a start for the others.

  Args:
    old: Leaves [old rows, ...], NumPy.
    start: Leaves [rows, ...] of the same tree.
    places: int [rows]: each row's old place; -1 for a new one.

  Raises:
    ValueError: If a row has not the same shape in both.
  """
  def grow(path, before, now):
    if before.shape[1:] != now.shape[1:]:
      raise ValueError(
          f'{jax.tree_util.keystr(path)} has rows of shape {now.shape[1:]}, '
          f'but {before.shape[1:]} in the trained model; keep model.dim and '
          'the section two_tower as they were.')
    is_old = (places >= 0).reshape(-1, *[1] * (before.ndim - 1))
    return np.where(is_old, before[places], now).astype(before.dtype)

  return jax.tree_util.tree_map_with_path(grow, old, start)


def same_structure(left: PyTree, right: PyTree) -> bool:
  """Whether two pytrees differ in their leaves alone."""
  structure: Any = jax.tree.structure
  return structure(left) == structure(right)


def grow_shared(old: PyTree, start: PyTree, places: Places) -> PyTree:
  """The towers, with weights of zero for the entries that are new.

  Args:
    old: The trained model's shared parameters, NumPy.
    start: The grown model's, for the shapes.
    places: How many entries are old.

  Raises:
    ValueError: If the towers differ in more than their first layers' inputs.
  """
  if not same_structure(old, start):
    raise ValueError(
        'two_tower.start names a model with other towers; give features of '
        'users and of items where it had them, and its widths.')
  inputs = _known_inputs(start, places)

  def grow(path, before, now):
    if before.shape == now.shape:
      return before
    known = inputs.get(jax.tree_util.keystr(path), -1)
    if known != len(before) or before.shape[1:] != now.shape[1:]:
      raise ValueError(
          f'{jax.tree_util.keystr(path)} is {now.shape}, but {before.shape} in '
          'the trained model; keep model.dim and the section two_tower as they '
          'were.')
    return np.concatenate(
        [before, np.zeros((len(now) - known, *now.shape[1:]), before.dtype)])

  return jax.tree_util.tree_map_with_path(grow, old, start)


def _known_inputs(shared: PyTree, places: Places) -> dict[str, int]:
  """Where each tower's first kernel is -> how many of its inputs are old."""
  return {
      f"['{tower}']{layer}['kernel']": known
      for tower, known in (('item_tower', places.item_entries),
                           ('user_tower', places.user_entries))
      if tower in shared
      for layer in (
          "['hidden'][0]" if 'hidden' in shared[tower] else "['output']",)}


def make_freeze(places: Places) -> Callable[[Algorithm], Algorithm]:
  """Builds freeze(algorithm): only what is new moves.

  The server keeps old item rows, and of the towers all but the weights of new
  entries; clients keep their own parameters. Clients still take part, and new
  rows learn from them.

  Args:
    places: What is old.
  """
  old_items = jnp.asarray(places.items >= 0)

  def freeze(algorithm):
    def update(state, total):
      new = algorithm.server.update(state, total)
      inputs = _known_inputs(state.shared, places)

      def keep(path, old, moved):
        known = inputs.get(jax.tree_util.keystr(path))
        if known is None:
          return old
        return select(jnp.arange(len(old)) < known, old, moved)

      return new._replace(
          item_table=select(old_items, state.item_table, new.item_table),
          shared=jax.tree_util.tree_map_with_path(
              keep, state.shared, new.shared))

    def client_update(view, examples, num_examples):
      contribution, _ = algorithm.client_update(view, examples, num_examples)
      return contribution, view.personal

    return algorithm._replace(
        client_update=client_update, server=algorithm.server._replace(
            update=update, rows_stand_still=False))

  return freeze
