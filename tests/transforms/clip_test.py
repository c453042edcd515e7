"""The bound holds for any input, and nothing below it is touched."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec.transforms.clip import (
  clip_by_l1,
  clip_by_l2,
  clip_groups_by_l2,
  clip_rows_by_l2,
  groups_l2_sensitivity,
  is_finite_update,
  rows_l2_sensitivity,
)


def apply(transform, tree):
  out, _ = transform.update(tree, transform.init(tree))
  return out


def clip(tree, bound):
  return apply(clip_by_l2(bound), tree)


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
@pytest.mark.parametrize(('make', 'name'), [
  (clip_by_l2, 'l2_clip_norm='), (clip_by_l1, 'l1_clip_norm='),
  (clip_rows_by_l2, 'l2_clip_norm='),
  (lambda bound: clip_groups_by_l2((1.0, bound)), 'l2_clip_norms='),
])
def test_a_bound_that_bounds_nothing_is_refused(make, name, bound):
  with pytest.raises(ValueError, match=name):
    make(bound)


def random_delta(seed, scale=3.0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: (scale * rng.normal(size=shape)).astype(np.float32)
  return ({'factors': draw(6, 4), 'bias': draw(6)}, {'w': draw(3, 2)})


@pytest.mark.parametrize('bound', [0.0, 0.5, 1e4])
def test_the_l1_norm_is_bounded_and_the_direction_kept(bound):
  delta = random_delta(0)
  entries = np.concatenate([x.ravel() for x in jax.tree.leaves(delta)])
  out = np.concatenate([
      np.ravel(x) for x in jax.tree.leaves(apply(clip_by_l1(bound), delta))])
  wanted = entries * min(1, bound / np.abs(entries).sum())
  # Sums of 36 terms and two more operations, in float32.
  np.testing.assert_allclose(out, wanted, rtol=40 * 2.0**-24)


def test_each_group_keeps_its_own_bound_and_the_whole_their_root_of_squares():
  bounds = (1.5, 0.2)
  for seed in range(5):
    delta = random_delta(seed)
    out = apply(clip_groups_by_l2(bounds), delta)
    for bound, before, after in zip(bounds, delta, out):
      scale = min(1, bound / norm(before))
      jax.tree.map(
          lambda a, b, scale=scale: np.testing.assert_allclose(
              a, scale * b, rtol=40 * 2.0**-24), after, before)
    assert norm(out) <= groups_l2_sensitivity(bounds) * (1 + 40 * 2.0**-24)
  assert groups_l2_sensitivity((3.0, {'a': 4.0})) == 5.0
  # Positive control: one bound for the whole lets a group pass its own.
  assert norm(clip(delta, groups_l2_sensitivity(bounds))[1]) > bounds[1]


def test_bounds_may_reach_to_the_leaves_and_a_group_may_be_empty():
  delta = ({'factors': jnp.full((2, 2), 2.0), 'bias': jnp.full(2, 3.0)}, {})
  out = apply(clip_groups_by_l2(({'factors': 1.0, 'bias': 10.0}, 1.0)), delta)
  np.testing.assert_allclose(norm(out[0]['factors']), 1.0, rtol=1e-6)
  np.testing.assert_array_equal(out[0]['bias'], 3.0)


def test_each_row_keeps_the_bound_over_all_of_its_leaves():
  rows = random_delta(0)[0]
  out = apply(clip_rows_by_l2(2.0), rows)
  for r in range(6):
    row = {name: x[r] for name, x in rows.items()}
    wanted = min(1, 2.0 / norm(row))
    for name, leaf in out.items():
      np.testing.assert_allclose(
          leaf[r], wanted * rows[name][r], rtol=20 * 2.0**-24)
  assert norm(out) <= rows_l2_sensitivity(2.0, 6) * (1 + 20 * 2.0**-24)


def test_rows_may_have_several_leading_axes():
  rows = random_delta(0)[0]
  blocks = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), rows)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-6),
      apply(clip_rows_by_l2(2.0, row_axes=2), blocks),
      apply(clip_rows_by_l2(2.0), rows))


def test_rows_can_be_clipped_beside_parts_that_have_none():
  delta = random_delta(0)
  out = apply(optax.masked(clip_rows_by_l2(2.0), (True, False)), delta)
  np.testing.assert_array_equal(out[1]['w'], delta[1]['w'])
  jax.tree.map(np.testing.assert_array_equal, out[0],
               apply(clip_rows_by_l2(2.0), delta[0]))
  with pytest.raises(ValueError, match='row_axes=1'):
    apply(clip_rows_by_l2(2.0), delta)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('transform', [
  clip_by_l2(9.0), clip_by_l1(9.0), clip_groups_by_l2((9.0, 9.0)),
  optax.chain(optax.masked(clip_rows_by_l2(9.0), (True, False)),
              clip_by_l2(9.0))])
def test_one_bad_entry_makes_all_groups_zeros_and_is_told(transform, bad):
  delta = (jnp.ones((3, 2)), jnp.array([1.0, bad]))
  assert not is_finite_update(delta)
  assert not any(
      np.asarray(x).any() for x in jax.tree.leaves(apply(transform, delta)))


def test_a_bad_row_makes_all_rows_zeros():
  rows = jnp.ones((3, 2)).at[1, 1].set(np.nan)
  assert not np.asarray(apply(clip_rows_by_l2(9.0), rows)).any()


def test_what_is_finite_is_told_so():
  assert is_finite_update(random_delta(0))
  assert is_finite_update(({}, jnp.array([3e38, -3e38, 0.0])))
  assert is_finite_update(())
  assert apply(clip_rows_by_l2(1.0), {}) == {}
