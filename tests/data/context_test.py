"""Context of an interaction against a loop over everything before it."""

import datetime
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec.data import context, splits
from fedjaxrec.data.interactions import Interactions

ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 20),
              st.integers(0, 3_000_000)), min_size=1, max_size=40)


def slow_context(part, history):
  result = []
  for row in range(part.num_interactions):
    user, time = part.users[row], int(part.timestamps[row])
    before = [int(t) for data in history
              for u, t in zip(data.users, data.timestamps)
              if u == user and t <= time]
    before += [int(part.timestamps[other]) for other in range(row)
               if part.users[other] == user]
    hours = (time - max(before)) / 3600 if before else 0.0
    moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
    day = moment.hour + moment.minute / 60 + moment.second / 3600
    week = moment.weekday() + day / 24
    result.append([
        math.sin(2 * math.pi * day / 24), math.cos(2 * math.pi * day / 24),
        math.sin(2 * math.pi * week / 7), math.cos(2 * math.pi * week / 7),
        math.log1p(hours) / math.log1p(8766), float(not before)])
  return np.array(result).reshape(-1, len(context.NAMES))


@hypothesis.given(ROWS, st.integers(0, 2**40 - 1))
def test_context_is_the_loop(rows, kept):
  users, items, times = np.array(rows).T
  data = Interactions.from_columns(users, items, timestamps=times)
  mask = np.array([bool(kept >> i & 1) for i in range(data.num_interactions)])
  part, history = data.take(mask), data.take(~mask)
  for seen in ([], [history]):
    np.testing.assert_allclose(
        context.make_context(part, seen), slow_context(part, seen),
        rtol=0, atol=1e-6)


def test_a_known_moment():
  # Monday 2001-02-05 06:00:00 UTC, six hours after Sunday's end.
  data = Interactions.from_columns(
      [1, 1], [1, 2], timestamps=[981331200, 981352800])
  first, second = context.make_context(data)
  np.testing.assert_allclose(first, [0, 1, 0, 1, 0, 1], atol=1e-6)
  np.testing.assert_allclose(
      second, [1, 0, math.sin(math.pi / 14), math.cos(math.pi / 14),
               math.log(7) / math.log(8767), 0], atol=1e-6)


def test_nothing_later_is_told():
  generator = np.random.default_rng(0)
  data = Interactions.from_columns(
      np.repeat(np.arange(5), 8), generator.integers(0, 30, 40),
      timestamps=generator.integers(0, 10**6, 40))
  split = splits.leave_one_out(data)
  told = context.make_context(split.validation, [split.train])
  np.testing.assert_array_equal(
      told, context.make_context(split.validation, [split.train, split.test]))
  # Positive control: what comes before does matter.
  assert not np.array_equal(told, context.make_context(split.validation))


def test_a_source_without_times_is_refused():
  data = Interactions.from_columns([1, 1], [1, 2])
  with pytest.raises(ValueError, match='has_timestamps=False'):
    context.make_context(data)


@hypothesis.given(ROWS)
def test_a_moments_code_stands_for_its_context(rows):
  users, items, times = map(np.array, zip(*rows))
  part = Interactions.from_columns(users, items, timestamps=times)
  exact = context.make_context(part)
  codes = context.encode_moments(part)
  assert codes.dtype == np.float32 and codes.max() < context.NUM_MOMENTS
  found = context.decode_moments()[codes.astype(int)]
  # Half an hour of a day, and of a week; half a step of the recency.
  np.testing.assert_allclose(
      found[:, :2], exact[:, :2], atol=2 * math.pi / 48 + 1e-6)
  np.testing.assert_allclose(
      found[:, 2:4], exact[:, 2:4], atol=2 * math.pi / 336 + 1e-6)
  np.testing.assert_allclose(
      found[:, 4], np.minimum(exact[:, 4], 1), atol=1 / 64 + 1e-6)
  np.testing.assert_array_equal(found[:, 5], exact[:, 5])
