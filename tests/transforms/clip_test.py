"""The bound holds for any input, and nothing below it is touched."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.transforms.clip import clip_by_l2


def clip(tree, bound):
  transform = clip_by_l2(bound)
  out, _ = transform.update(tree, transform.init(tree))
  return out


def norm(tree):
  return np.sqrt(sum(
      np.sum(np.square(np.asarray(x, np.float64)))
      for x in jax.tree.leaves(tree)))


@hypothesis.given(
    hnp.arrays(np.float32, 12, elements=st.floats(
        width=32, allow_nan=True, allow_infinity=True)),
    st.sampled_from([0.0, 1e-3, 1.0, 1e4]))
def test_the_norm_never_passes_the_bound(entries, bound):
  out = clip({'a': jnp.asarray(entries[:5]), 'b': jnp.asarray(entries[5:])},
             bound)
  # A dozen float32 operations an entry: 12 * 2^-24 relative, doubled.
  assert norm(out) <= bound * (1 + 24 * 2.0**-24)


def test_below_the_bound_nothing_changes():
  tree = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[4.0]])}
  for bound in (5.0, 6.0, np.inf):
    jax.tree.map(np.testing.assert_array_equal, clip(tree, bound), tree)


def test_above_the_bound_the_direction_is_kept():
  out = clip({'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[4.0]])}, 1.0)
  np.testing.assert_allclose(out['a'], [0.6, 0.0], rtol=1e-6)
  np.testing.assert_allclose(out['b'], [[0.8]], rtol=1e-6)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_zero_in_every_leaf(bad):
  out = clip({'a': jnp.array([1.0, bad]), 'b': jnp.ones(3)}, 10.0)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(out))


def test_entries_whose_squares_overflow_are_clipped_and_not_dropped():
  out = clip({'a': jnp.array([3e30, 4e30])}, 5.0)
  np.testing.assert_allclose(out['a'], [3.0, 4.0], rtol=1e-6)


@pytest.mark.parametrize('bound', [-1.0, float('nan')])
def test_a_bound_that_bounds_nothing_is_refused(bound):
  with pytest.raises(ValueError, match='l2_clip_norm='):
    clip_by_l2(bound)
