"""The union of rows: what it finds, what it shows, what it loses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjaxrec.aggregation import row_union
from fedjaxrec.aggregation.row_union import RowLayout

LAYOUT = RowLayout(num_items=7, row_sizes=(3, 1), shared_size=2)


def draw_message(seed, rows):
  """A message that is not zero in these rows."""
  generator = np.random.default_rng(seed)
  table = np.zeros((7, 3), np.uint32)
  bias = np.zeros((7, 1), np.uint32)
  for row in rows:
    table[row, generator.integers(3)] = generator.integers(1, 100)
    bias[row] = generator.integers(0, 2)
  return np.concatenate([
      table.reshape(-1), bias.reshape(-1),
      generator.integers(0, 9, 2).astype(np.uint32)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=5))
def test_the_sum_of_what_travels_is_the_sum_of_everything(clients):
  messages = [draw_message(i, rows) for i, rows in enumerate(clients)]
  asked = [row_union.touched(m, LAYOUT) for m in messages]
  assert [set(np.flatnonzero(a)) for a in asked] == clients
  total = sum(row_union.random_multiples(a).astype(np.uint64) for a in asked)
  union = total.astype(np.uint32) != 0
  # Lost with a chance of 1e-9.
  assert set(np.flatnonzero(union)) == set().union(*clients)
  rows = row_union.padded_rows(union)
  short = [row_union.restrict(m, rows, LAYOUT) for m in messages]
  assert {len(m) for m in short} == {LAYOUT.size_of(len(rows))}
  np.testing.assert_array_equal(
      row_union.expand(sum(short), rows, LAYOUT), sum(messages))


@pytest.mark.parametrize(('touched', 'travel'), [
    (0, 1), (1, 1), (2, 2), (3, 4), (5, 8), (9, 10), (10, 10)])
def test_a_message_has_one_of_few_lengths(touched, travel):
  union = np.arange(10) < touched
  rows = row_union.padded_rows(union)
  assert len(rows) == travel == row_union.padded_size(touched, 10)
  assert set(np.flatnonzero(union)) <= set(rows)
  assert len(set(rows)) == len(rows)


def test_multiples_are_never_zero_and_uniform():
  """The words that give 0 and 2^32 - 1, and the spread of the others."""
  edge = lambda n: np.array(  # noqa: E731
      [0, 2**32 - 2, 2**32 - 1, 2**64 - 1], '<u8').tobytes()[:n]
  found = row_union.random_multiples(np.ones(4, bool), edge)
  assert found.tolist() == [1, 2**32 - 1, 1, 1]
  drawn = row_union.random_multiples(
      np.ones(20_000, bool), np.random.default_rng(0).bytes)
  counts = np.bincount(drawn >> 28, minlength=16)
  # Chi-square with 15 degrees: above 50 with a probability of 1e-5.
  assert ((counts - 1250) ** 2 / 1250).sum() < 50


def test_the_sum_does_not_tell_how_many_touched_a_row():
  """Of one client, or of five: the same distribution; zeros as a control."""
  generator = np.random.default_rng(1)
  everybody = np.ones(20_000, bool)
  one = row_union.random_multiples(everybody, generator.bytes)
  five = sum(row_union.random_multiples(everybody, generator.bytes)
             for _ in range(5))

  def distance(values):
    counts = np.bincount(values >> 28, minlength=16)
    return ((counts - 1250) ** 2 / 1250).sum()

  assert distance(one) < 50 and distance(five) < 50
  # Without the ring five small multiples would show.
  small = sum((row_union.random_multiples(everybody, generator.bytes) >> 3)
              for _ in range(5))
  assert distance(small) > 1000


def test_rows_are_lost_as_rarely_as_said():
  """In a ring of six bits, where it can be counted."""
  generator = np.random.default_rng(2)
  a, b = generator.integers(1, 64, (2, 200_000))
  lost = ((a + b) % 64 == 0).mean()
  bound = row_union.chance_of_a_lost_row(1, bits=6)
  # Exactly 1 / 63; five standard deviations of 200,000 draws.
  assert abs(lost - bound) < 5 * (bound / 200_000) ** 0.5
  assert row_union.chance_of_a_lost_row(3706) < 1e-6


def test_a_message_of_another_length_is_refused():
  with pytest.raises(ValueError, match='give all rows'):
    row_union.touched(np.zeros(5, np.uint32), LAYOUT)
