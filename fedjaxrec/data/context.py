"""When an interaction happens, as numbers: time of day, weekday, recency."""

from collections.abc import Sequence

import numpy as np

from fedjaxrec.data.interactions import Interactions

NAMES = ('hour_sin', 'hour_cos', 'weekday_sin', 'weekday_cos', 'recency',
         'first')
# Steps of the recency, 0 to 1 in 32; longer than a year is a year.
_RECENCY_STEPS = 32
_HOURS = 7 * 24
NUM_MOMENTS = 2 * (_RECENCY_STEPS + 1) * _HOURS
_DAY_S = 24 * 3600
_YEAR_HOURS = 365.25 * 24


def make_context(
    part: Interactions, history: Sequence[Interactions] = ()) -> np.ndarray:
  """Describes the moment of each interaction, from nothing later than it.

  hour_* and weekday_* are sine and cosine of the time of day and of the week
  (UTC, Monday first). recency is log(1 + h) / log(1 + 8766), h hours since the
  user's previous interaction in `part` or `history`: 1 is a year; 0, and
  `first` 1, where there is none before. Interactions of the same second follow
  each other, those of `history` first.

  Args:
    part: The interactions to describe, of one id space with the history.
    history: What else the user did, such as the training part.

  Returns:
    float32 [part.num_interactions, 6], columns as in `NAMES`. Cost: one sort of
    all rows.

  Raises:
    ValueError: If the source has no times.
  """
  for data in (part, *history):
    if not data.has_timestamps and data.num_interactions:
      raise ValueError(
          'context features need the time of every interaction and the source '
          'has none (has_timestamps=False); use a source with times, or a '
          'model without context.')
  parts = (*history, part)
  users = np.concatenate([data.users for data in parts])
  times = np.concatenate([data.timestamps for data in parts])
  order = np.lexsort((times, users))  # Stable: history stands first.
  users, sorted_times = users[order], times[order]
  previous = np.full(len(order), -1, np.int64)
  same = np.flatnonzero(users[1:] == users[:-1]) + 1
  previous[order[same]] = sorted_times[same - 1]
  times = times[-part.num_interactions:] if part.num_interactions else times[:0]
  previous = previous[len(previous) - len(times):]
  first = previous < 0
  hours = np.where(first, 0, times - previous) / 3600
  # 1970 began on a Thursday.
  day, week = (
      2 * np.pi * ((times + shift) % period) / period
      for shift, period in ((0, _DAY_S), (3 * _DAY_S, 7 * _DAY_S)))
  return np.stack([
      np.sin(day), np.cos(day), np.sin(week), np.cos(week),
      np.log1p(hours) / np.log1p(_YEAR_HOURS), first], axis=1).astype(
          np.float32)


def encode_moments(
    part: Interactions, history: Sequence[Interactions] = ()) -> np.ndarray:
  """Each interaction's context as one whole number: float32, below NUM_MOMENTS.

  By the hour of the week and 32 steps of the recency; `decode_moments` has the
  context of every code. Whole numbers below 2^24 are exact in float32, so a
  code can stand where an interaction's rating does.

  Args:
    part: See `make_context`, as for the history and what is refused.
    history: See there.
  """
  context = make_context(part, history)
  hour = (part.timestamps // 3600 + 3 * 24) % _HOURS
  recency = np.rint(np.minimum(context[:, 4], 1) * _RECENCY_STEPS)
  step = recency.astype(np.int64) + (_RECENCY_STEPS + 1) * (
      context[:, 5] > 0)
  return (step * _HOURS + hour).astype(np.float32)


def decode_moments() -> np.ndarray:
  """The context of every code, at half past the hour: float32 [codes, 6]."""
  step, hour = np.divmod(np.arange(NUM_MOMENTS), _HOURS)
  first, recency = np.divmod(step, _RECENCY_STEPS + 1)
  week = 2 * np.pi * (hour + 0.5) / _HOURS
  day = 2 * np.pi * (hour % 24 + 0.5) / 24
  return np.stack([
      np.sin(day), np.cos(day), np.sin(week), np.cos(week),
      recency / _RECENCY_STEPS, first], axis=1).astype(np.float32)
