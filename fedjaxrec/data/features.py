"""Side features of users or items, as arrays in the order of their dense ids.

Three kinds of columns: numbers, categories (one of a vocabulary) and tags (any
of a vocabulary). `matrix` makes of them what a model reads: one float32 vector
a row.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KINDS = ('number', 'category', 'tags')
# More distinct values than this are no category but a name or a text.
_MAX_CATEGORIES = 5_000


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """What is known of every user, or of every item; row r is dense id r.

  Attributes:
    names: Each column's name.
    kinds: Each column's kind: number, category or tags.
    values: Each column's values. number: float32 [num_rows], NaN where missing;
      category: int32 [num_rows], an index into the vocabulary, -1 where
      missing; tags: bool [num_rows, len(vocabulary)].
    vocabularies: Each column's vocabulary, sorted; empty for numbers.

  Raises:
    ValueError: For columns that do not fit each other or their kind.
  """
  names: tuple[str, ...]
  kinds: tuple[str, ...]
  values: tuple[np.ndarray, ...]
  vocabularies: tuple[tuple[str, ...], ...]

  def __post_init__(self):
    views = tuple(values.view() for values in self.values)
    for view in views:
      view.flags.writeable = False
    object.__setattr__(self, 'values', views)
    lengths = [len(part) for part in (
        self.names, self.kinds, self.values, self.vocabularies)]
    if len(set(lengths)) > 1 or not self.names:
      raise ValueError(
          f'Features: {lengths} names, kinds, values and vocabularies; there '
          'must be equally many, and at least one.')
    if len(set(self.names)) < len(self.names):
      raise ValueError(f'Features: names={self.names} holds a name twice.')
    for name, kind, values, words in zip(
        self.names, self.kinds, self.values, self.vocabularies):
      _check_column(name, kind, values, words)
      if len(values) != self.num_rows:
        raise ValueError(
            f'Features: column {name!r} has {len(values)} rows, but '
            f'{self.names[0]!r} has {self.num_rows}; every column needs one '
            'value a row.')

  @property
  def num_rows(self) -> int:
    """Users, or items."""
    return len(self.values[0])

  def column(self, name: str) -> np.ndarray:
    """The values of one column; see `values`."""
    if name not in self.names:
      raise ValueError(
          f'feature={name!r} is not there; there are {", ".join(self.names)}.')
    return self.values[self.names.index(name)]

  @functools.cached_property
  def entry_names(self) -> tuple[str, ...]:
    """What each entry of a row's vector is: `age`, `gender=F`, ..."""
    result = []
    for name, kind, values, words in zip(
        self.names, self.kinds, self.values, self.vocabularies):
      if kind == 'number':
        result += [name]
        if np.isnan(values).any():
          result += [f'{name}=missing']
      else:
        result += [f'{name}={word}' for word in words]
    return tuple(result)

  @property
  def width(self) -> int:
    """Entries of a row's vector."""
    return len(self.entry_names)

  def matrix(self) -> np.ndarray:
    """Makes every row's vector: float32 [num_rows, width].

    A number is standardised over the rows that have it (mean 0, deviation 1; a
    constant becomes 0); where it is missing it is 0 and, if any is missing, a
    second entry is 1. A category is one 1 among zeros, or zeros where it is
    missing. Tags are ones. Memory: 4 bytes an entry.
    """
    blocks = []
    for kind, values, words in zip(
        self.kinds, self.values, self.vocabularies):
      if kind == 'number':
        missing = np.isnan(values)
        known = values[~missing].astype(np.float64)
        deviation = known.std() if known.size else 0.0
        scaled = np.zeros(len(values))
        if deviation > 0:
          scaled[~missing] = (known - known.mean()) / deviation
        blocks.append(scaled[:, None])
        if missing.any():
          blocks.append(missing[:, None])
      elif kind == 'category':
        blocks.append(values[:, None] == np.arange(len(words))[None, :])
      else:
        blocks.append(values)
    return np.concatenate([b.astype(np.float32) for b in blocks], axis=1)

  def take(self, rows: np.ndarray) -> 'Features':
    """The features of some rows, in the order given; vocabularies stay."""
    return Features(
        self.names, self.kinds, tuple(v[rows] for v in self.values),
        self.vocabularies)


def _check_column(
    name: str, kind: str, values: np.ndarray, words: Sequence[str]) -> None:
  if kind not in KINDS:
    raise ValueError(
        f'Features: column {name!r} has kind={kind!r}; choose one of '
        f'{", ".join(KINDS)}.')
  wanted = {'number': (np.float32, 1), 'category': (np.int32, 1),
            'tags': (np.bool_, 2)}[kind]
  if (values.dtype, values.ndim) != (np.dtype(wanted[0]), wanted[1]):
    raise ValueError(
        f'Features: column {name!r} of kind {kind} is '
        f'{values.dtype}{list(values.shape)}; it must be '
        f'{np.dtype(wanted[0])} of {wanted[1]} dimensions.')
  if kind == 'number' and np.isinf(values).any():
    raise ValueError(
        f'Features: column {name!r} holds an infinite value; write a missing '
        'one as NaN.')
  if kind == 'category' and values.size and (
      values.min() < -1 or values.max() >= len(words)):
    raise ValueError(
        f'Features: column {name!r} holds the category {values.max()}, outside '
        f'-1..{len(words) - 1}.')
  if kind == 'tags' and values.shape[1] != len(words):
    raise ValueError(
        f'Features: column {name!r} has {values.shape[1]} tags and a '
        f'vocabulary of {len(words)}.')


def from_columns(
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    source: str = 'the columns') -> Features:
  """Makes features of raw columns; their type tells their kind.

  Numbers (and truth values) are numbers. Texts are a category, or tags
  separated by `|` if any of them holds one. Lists of texts are tags. None, NaN
  and empty texts are missing.

  Args:
    columns: Name -> [num_rows] values.
    source: Name for error messages.

  Raises:
    ValueError: For no column, a column of another type, or a category of more
      than 5,000 distinct values.
  """
  if not columns:
    raise ValueError(f'{source}: no feature column; at least one is needed.')
  made = [_encode(name, values, source) for name, values in columns.items()]
  return Features(
      tuple(columns), tuple(kind for kind, _, _ in made),
      tuple(values for _, values, _ in made),
      tuple(words for _, _, words in made))


def _encode(
    name: str, values: Sequence[Any] | np.ndarray, source: str
) -> tuple[str, np.ndarray, tuple[str, ...]]:
  """Returns kind, values and vocabulary."""
  array = values if isinstance(values, np.ndarray) else None
  if array is not None and array.dtype.kind in 'iufb':
    return 'number', array.astype(np.float32), ()
  entries = [None if is_missing(v) else v for v in values]
  present = [v for v in entries if v is not None]
  if present and all(isinstance(v, (int, float, np.number)) for v in present):
    numbers = [np.nan if v is None else float(v) for v in entries]
    return 'number', np.array(numbers, np.float32), ()
  if all(isinstance(v, str) for v in present):
    if not any('|' in v for v in present):
      return _encode_category(name, entries, source)
    entries = [[] if v is None else v.split('|') for v in entries]
  elif not all(isinstance(v, (list, tuple, np.ndarray)) for v in present):
    kind = next(type(v).__name__ for v in present if not isinstance(v, str))
    raise ValueError(
        f'{source}: feature {name!r} mixes types, among them {kind}; a column '
        'holds numbers, texts or lists of texts.')
  lists = [[str(tag) for tag in v or () if not is_missing(tag)]
           if not isinstance(v, np.ndarray) else list(map(str, v))
           for v in entries]
  words = tuple(sorted({tag for tags in lists for tag in tags}))
  place = {word: i for i, word in enumerate(words)}
  table = np.zeros((len(lists), len(words)), np.bool_)
  for row, tags in enumerate(lists):
    table[row, [place[tag] for tag in tags]] = True
  return 'tags', table, words


def _encode_category(name, entries, source):
  words = tuple(sorted({v for v in entries if v is not None}))
  if len(words) > _MAX_CATEGORIES:
    raise ValueError(
        f'{source}: feature {name!r} has {len(words):,} distinct texts, more '
        f'than the {_MAX_CATEGORIES:,} of a category; it looks like a name or '
        'a text: drop the column, or group its values.')
  place = {word: i for i, word in enumerate(words)}
  return 'category', np.array(
      [-1 if v is None else place[v] for v in entries], np.int32), words


def is_missing(value: Any) -> bool:
  """Whether a raw value is None, NaN or an empty text."""
  if value is None or isinstance(value, str):
    return not value
  return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def align(
    ids: np.ndarray, found: Sequence[Any] | np.ndarray, role: str, source: str
) -> np.ndarray:
  """Finds each id's row in a table of features.

  Ids agree if their texts do, so that 17 and '17' are one user. Rows of others
  are left out.

  Args:
    ids: [num_rows] the source's ids, by dense id.
    found: The table's ids, one a row.
    role: user or item, for messages.
    source: The table's name.

  Returns:
    int64 [num_rows] rows of the table.

  Raises:
    ValueError: If an id has no row, or several.
  """
  texts = np.asarray(found).astype(np.str_)
  order = np.argsort(texts, kind='stable')
  texts = texts[order]
  twice = np.flatnonzero(texts[1:] == texts[:-1])
  if twice.size:
    raise ValueError(
        f'{source}: {role}={texts[twice[0]]} has several rows; keep one row a '
        f'{role}.')
  wanted = np.asarray(ids).astype(np.str_)
  place = np.searchsorted(texts, wanted)
  there = place < len(texts)
  there[there] = texts[place[there]] == wanted[there]
  if not there.all():
    missing = wanted[~there]
    raise ValueError(
        f'{source} lacks {len(missing):,} of {len(wanted):,} {role}s, the '
        f'first being {role}={missing[0]}; add a row for each (empty values '
        f'are possible), or leave these {role}s out of the interactions.')
  return order[place]
