"""Features of a grown catalogue, in the entries that a trained model knows."""

from typing import NamedTuple

import numpy as np

from fedjaxrec.data.features import Features


class Entries(NamedTuple):
  """A row's vector: entries that are known, then new ones.

  Attributes:
    matrix: float32 [num_rows, width].
    num_known: The first so many entries are the trained model's, in its order.
  """
  matrix: np.ndarray
  num_known: int


def extend(known: Features, grown: Features, role: str) -> Entries:
  """Makes the vectors of grown features, old entries first and unchanged.

  An old number is scaled by the mean and deviation of the rows that it was
  learnt on, an old word keeps its place. New words of old columns, marks of
  numbers that are missing for the first time, and new columns come after.

  Args:
    known: What the trained model read, of its own rows.
    grown: The same columns, perhaps more, of all rows.
    role: user or item, for messages.

  Raises:
    ValueError: If a column is gone, or is of another kind.
  """
  old, new = [], []
  for name, kind in zip(known.names, known.kinds):
    if name not in grown.names:
      raise ValueError(
          f'data.{role}_features: the column {name!r} that the trained model '
          f'reads is not there; there are {", ".join(grown.names)}. Add it '
          '(empty values are possible).')
    found = grown.kinds[grown.names.index(name)]
    if found != kind:
      raise ValueError(
          f'data.{role}_features: the column {name!r} is of kind {found}, but '
          f'the trained model reads a {kind}; keep the kind, or give the '
          'column another name.')
    values = grown.column(name)
    if kind == 'number':
      first, rest = _scale(known.column(name), values)
    else:
      first, rest = _place(known, grown, name, kind)
    old += first
    new += rest
  fresh = [name for name in grown.names if name not in known.names]
  if fresh:
    pick = [grown.names.index(name) for name in fresh]
    new.append(Features(
        tuple(fresh), tuple(grown.kinds[i] for i in pick),
        tuple(grown.values[i] for i in pick),
        tuple(grown.vocabularies[i] for i in pick)).matrix())
  matrix = np.concatenate([x.astype(np.float32) for x in old + new], axis=1)
  return Entries(matrix, sum(x.shape[1] for x in old))


def _scale(learnt: np.ndarray, values: np.ndarray):
  """A number's old entries and new ones; see `Features.matrix`."""
  there = learnt[~np.isnan(learnt)].astype(np.float64)
  deviation = there.std() if there.size else 0.0
  missing = np.isnan(values)
  scaled = np.zeros(len(values))
  if deviation > 0:
    scaled[~missing] = (
        values[~missing].astype(np.float64) - there.mean()) / deviation
  mark = [missing[:, None]]
  if np.isnan(learnt).any():
    return [scaled[:, None], *mark], []
  return [scaled[:, None]], mark if missing.any() else []


def _place(known: Features, grown: Features, name: str, kind: str):
  """A category's or tags' old words, and those that are new."""
  words = known.vocabularies[known.names.index(name)]
  now = grown.vocabularies[grown.names.index(name)]
  values = grown.column(name)
  table = values if kind == 'tags' else (
      values[:, None] == np.arange(len(now))[None, :])
  nothing = np.zeros((len(table), 1), np.bool_)
  old = [table[:, [now.index(word)]] if word in now else nothing
         for word in words]
  return old, [table[:, [i]] for i, word in enumerate(now)
               if word not in words]
