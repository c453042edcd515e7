"""Slots add up to what a sum of the whole table holds."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec.examples import Examples
from fedjaxrec.touched_rows import (
    add_slots,
    choose_num_slots,
    make_touched,
    merge_slots,
    read_rows,
)

NUM_ITEMS, NUM_SLOTS, BLOCK = 7, 12, 4
TABLE = {'bias': np.arange(NUM_ITEMS, dtype=np.float32),
         'vector': np.arange(NUM_ITEMS * 2, dtype=np.float32).reshape(-1, 2)}


@jax.jit
def one_round(sums, touched, blocks, deltas):
  for rows, delta in zip(blocks, deltas, strict=True):
    start = {name: read_rows(jnp.asarray(table), rows)
             for name, table in TABLE.items()}
    sums, touched = add_slots(sums, touched, rows, delta, start)
  return sums, *merge_slots(sums, touched)


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(
    st.lists(st.integers(0, NUM_ITEMS), min_size=NUM_SLOTS,
             max_size=NUM_SLOTS), min_size=1, max_size=3))
def test_slots_add_up_to_the_sum_by_row(rounds):
  """Rows that come twice, unused slots, and what an earlier round left."""
  empty = jax.tree.map(
      lambda x: jnp.full((NUM_SLOTS, *x.shape[1:]), jnp.nan), TABLE)
  sums, touched = empty, make_touched(NUM_SLOTS, NUM_ITEMS, TABLE)
  random = np.random.default_rng(0)
  for rows in rounds:
    # Whole numbers are summed without rounding, in any order.
    delta = jax.tree.map(
        lambda x: random.integers(
            -9, 9, (NUM_SLOTS, *x.shape[1:])).astype(np.float32), TABLE)
    rows = np.array(rows, np.int32)
    blocks = rows.reshape(-1, BLOCK)
    sums, merged, found, touched = one_round(
        sums, touched, tuple(blocks),
        tuple({name: x[i:i + BLOCK] for name, x in delta.items()}
              for i in range(0, NUM_SLOTS, BLOCK)))
    found = np.asarray(found)
    used = found < NUM_ITEMS
    assert sorted(found[used]) == sorted(set(rows[rows < NUM_ITEMS]))
    for name, table in TABLE.items():
      expected = np.zeros_like(table)
      inside = rows < NUM_ITEMS
      np.add.at(expected, rows[inside], delta[name][inside])
      np.testing.assert_array_equal(merged[name][used], expected[found[used]])
      np.testing.assert_array_equal(
          touched.start[name][used], table[found[used]])
    assert int(touched.filled) == 0
    assert (np.asarray(touched.rows) == NUM_ITEMS).all()


@pytest.mark.parametrize('compiled', [False, True])
def test_a_row_past_the_end_is_read_as_zeros(compiled):
  read = jax.jit(read_rows) if compiled else read_rows
  rows = np.array([[0, NUM_ITEMS], [6, 3]], np.int32)
  for table in TABLE.values():
    expected = np.concatenate([table, np.zeros_like(table[:1])])[rows]
    np.testing.assert_array_equal(read(jnp.asarray(table), rows), expected)


def test_slots_are_for_catalogues_that_are_large_beside_the_cohort():
  def draw(client, key):
    del key
    rows = jnp.stack([client.items] * 3, 1)
    return Examples(rows, client.labels, rows < 1)

  slots = (2 * 10 + 1 * 20) * 8 * 3
  blocks = np.array([2, 1])
  assert choose_num_slots(draw, 2 * slots + 1, (10, 20), blocks, 8) == slots
  assert choose_num_slots(draw, 2 * slots, (10, 20), blocks, 8) == 0
