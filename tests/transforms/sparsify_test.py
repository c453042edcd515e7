"""Exactly k stay, the right ones, whatever the padding; against NumPy."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.config.compression import num_kept
from fedjaxrec.transforms.sparsify import (
    keep_highest,
    random_k,
    threshold,
    top_k,
)

SLOTS, WIDTH = 6, 3


@functools.cache
def compiled(fraction, granularity):
  transform = top_k(fraction, granularity=granularity)
  return jax.jit(lambda tree, mask: transform.update(
      tree, transform.init(tree), None, mask=mask)[0])


def largest(scores, k):
  """The k largest of a flat list, ties by position: bool, by sorting."""
  keep = np.zeros(len(scores), bool)
  keep[sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]] = True
  return keep


def top_k_oracle(x, used, fraction, granularity):
  """One leaf [slots, 2, WIDTH], used [slots, 2]; the slow way."""
  out = np.zeros_like(x)
  places = [tuple(p) for p in np.argwhere(used)]
  if granularity == 'entries':
    places = [(*p, c) for p in places for c in range(x.shape[-1])]
  scores = [np.linalg.norm(np.float64(x[p])) for p in places]
  k = -(-round(fraction * 100) * len(places) // 100)
  for place, keep in zip(places, largest(scores, k)):
    if keep:
      out[place] = x[place]
  return out


# Whole numbers: norms are exact enough to tell equals, and there are many.
entries = st.lists(st.integers(-3, 3), min_size=SLOTS * 2 * WIDTH,
                   max_size=SLOTS * 2 * WIDTH)


@pytest.mark.parametrize('granularity', ['rows', 'entries'])
@pytest.mark.parametrize('fraction', [0.05, 0.3, 1.0])
@hypothesis.given(entries, st.lists(
    st.booleans(), min_size=2 * SLOTS, max_size=2 * SLOTS))
@hypothesis.settings(max_examples=40)
def test_top_k_is_what_sorting_gives(granularity, fraction, numbers, used):
  used = np.array(used).reshape(SLOTS, 2)
  x = np.array(numbers, np.float32).reshape(SLOTS, 2, WIDTH)
  x[~used] = 0
  out = compiled(fraction, granularity)({'a': x}, used)
  np.testing.assert_array_equal(
      out['a'], top_k_oracle(x, used, fraction, granularity))


def test_five_percent_are_five_percent_of_what_is_in_use():
  x = np.zeros((400, 1), np.float32)
  x[:100, 0] = np.arange(1, 101)
  used = np.arange(400) < 100
  out = compiled(0.05, 'rows')({'a': x}, used)['a']
  np.testing.assert_array_equal(np.flatnonzero(out), np.arange(95, 100))
  # Positive control: without a mask, the padding counts.
  assert np.count_nonzero(compiled(0.05, 'rows')({'a': x}, None)['a']) == 20


@hypothesis.given(
    st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 3), min_size=12,
             max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12), st.data())
def test_exactly_k_candidates_stay(priority, candidate, data):
  k = data.draw(st.integers(0, sum(candidate)))
  keep = _keep(np.array(priority, np.uint32), np.array(candidate), k)
  scores = [p if c else -1 for p, c in zip(priority, candidate)]
  np.testing.assert_array_equal(keep, largest(scores, k))


_keep = jax.jit(keep_highest)


def test_shared_leaves_are_selected_by_entries_under_rows():
  shared = np.arange(1, 21, dtype=np.float32).reshape(4, 5)
  out = compiled(0.3, 'rows')({'w': shared}, True)['w']
  np.testing.assert_array_equal(np.flatnonzero(out), np.arange(14, 20))


@pytest.mark.parametrize('granularity', ['rows', 'entries'])
def test_every_entry_is_as_likely_to_stay(granularity):
  num_keys, n, fraction = 4000, 10, 0.3
  used = np.arange(14) < n
  x = np.where(used[:, None], 1, 0) * np.ones((14, 2), np.float32)

  def one(key):
    transform = random_k(fraction, key, granularity=granularity)
    return transform.update(
        {'a': x}, transform.init(None), None, mask=used)[0]['a']

  out = np.asarray(jax.jit(jax.vmap(one))(
      jax.random.split(jax.random.key(3), num_keys)))
  assert not out[:, n:].any()
  kept = out[:, :n] > 0
  np.testing.assert_array_equal(kept.sum((1, 2)), 6)
  # What stays is multiplied by n / k.
  np.testing.assert_allclose(out[:, :n][kept], 10 / 3, rtol=1e-6)
  # A binomial's standard error; six of them.
  slack = 6 * np.sqrt(fraction * (1 - fraction) / num_keys)
  assert np.abs(kept.mean(0) - fraction).max() < slack
  together = kept[:, 0, 0] & kept[:, 1, 0]
  both = 3 * 2 / (10 * 9) if granularity == 'rows' else 6 * 5 / (20 * 19)
  assert abs(together.mean() - both) < 6 * np.sqrt(both / num_keys)


def test_a_longer_leaf_keeps_the_same_random_rows():
  used = np.arange(8) < 5
  x = used[:, None] * np.ones((8, 2), np.float32)
  transform = random_k(0.4, jax.random.key(1))
  first, _ = transform.update(
      {'a': x}, transform.init(None), None, mask=used)
  longer = np.concatenate([x, np.zeros_like(x)])
  second, _ = transform.update(
      {'a': longer}, transform.init(None), None,
      mask=np.concatenate([used, np.zeros_like(used)]))
  np.testing.assert_array_equal(second['a'][:8], first['a'])
  assert np.count_nonzero(first['a']) == 4


def test_no_two_updates_and_no_two_leaves_share_a_draw():
  tree = {'a': jnp.ones(200), 'b': jnp.ones(200)}
  transform = random_k(0.5, jax.random.key(0))
  first, state = transform.update(tree, transform.init(tree))
  second, _ = transform.update(tree, state)
  draws = [np.asarray(x) > 0 for x in (
      first['a'], first['b'], second['a'], second['b'])]
  for i in range(4):
    for j in range(i):
      # Of 200 pairs half agree; 200 / 4 is the variance.
      assert abs((draws[i] == draws[j]).sum() - 100) < 6 * np.sqrt(50)


def test_threshold_by_hand():
  transform = threshold(0.5)
  out, _ = transform.update({'a': jnp.array([0.5, -0.49, -2.0, 0.0])}, None)
  np.testing.assert_array_equal(out['a'], [0.5, 0, -2, 0])


@hypothesis.given(st.integers(0, 10**7), st.integers(1, 10_000))
def test_a_share_is_exact(n, hundredths):
  fraction = hundredths / 10_000
  exact = -(-n * hundredths // 10_000)
  assert num_kept(n, fraction) == exact
  assert num_kept(np.int64(n), fraction) == exact
  assert num_kept(np.int32(n), fraction) == exact


def test_a_traced_share_is_exact():
  n = np.array([0, 1, 20, 21, 2_000_000_001], np.int32)
  np.testing.assert_array_equal(
      jax.jit(lambda n: num_kept(n, 0.05))(n), [0, 1, 1, 2, 100_000_001])


@pytest.mark.parametrize('fraction', [0.0, -0.1, 1.1, float('nan'), 1e-5])
def test_a_fraction_that_is_none_is_refused(fraction):
  with pytest.raises(ValueError, match='fraction='):
    top_k(fraction)
  with pytest.raises(ValueError, match='fraction='):
    random_k(fraction, jax.random.key(0))


def test_what_cannot_be_meant_is_refused():
  with pytest.raises(ValueError, match="granularity='columns'"):
    top_k(0.1, granularity='columns')
  for bad in (0.0, -1.0, float('nan')):
    with pytest.raises(ValueError, match='least_magnitude='):
      threshold(bad)
  for mask in (np.ones(4, bool), np.ones(3)):
    with pytest.raises(ValueError, match='mask.shape='):
      top_k(0.1).update({'a': np.ones((3, 2))}, None, mask=mask)
