"""Every transform of the table keeps to its claims."""

import ast
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec import transforms
from fedjaxrec.communication import (
    decode_upload,
    encode_upload,
    make_layout,
    wire_bytes,
)
from fedjaxrec.transforms.registry import TRANSFORMS

NUM_KEYS = 2000
NUM_ITEMS = 50
ROWS = 7
_rng = np.random.default_rng(5)


def _random(*shape):
  return _rng.normal(size=shape).astype(np.float32)


TREE = {'bias': _random(ROWS), 'item': _random(ROWS, 5), 'scalar': _random()}
# A row and a few entries that are exactly zero, as in a delta of few steps.
TREE['item'][3] = 0
TREE['item'][:, 2] = np.where(np.arange(ROWS) % 2, TREE['item'][:, 2], 0)
MASK = {'bias': np.ones(ROWS, bool), 'item': np.ones(ROWS, bool),
        'scalar': np.array(True)}
KEYS = jax.random.split(jax.random.key(11), NUM_KEYS)
NAMES = sorted(TRANSFORMS)
traces = dict.fromkeys(NAMES, 0)


def pad(tree, rows=4):
  """The tree with rows that are not in use at the end."""
  def one(x):
    x = np.asarray(x)
    return x if not x.ndim else np.concatenate(
        [x, np.zeros((rows, *x.shape[1:]), x.dtype)])
  return jax.tree.map(one, tree)


def apply(name, key, tree, mask=None):
  transform = optax.with_extra_args_support(TRANSFORMS[name].make(key))
  return transform.update(tree, transform.init(tree), None, mask=mask)[0]


@functools.cache
def many(name):
  """The compiled update for many keys at once."""
  def run(keys, tree):
    traces[name] += 1
    return jax.vmap(lambda key: apply(name, key, tree))(keys)
  return jax.jit(run)


@functools.cache
def outputs(name):
  """Leaf name -> float64 [NUM_KEYS, ...]: what comes out of TREE."""
  return {leaf: np.asarray(x, np.float64)
          for leaf, x in many(name)(KEYS, TREE).items()}


def claiming(field):
  return [name for name in NAMES if getattr(TRANSFORMS[name], field)]


def norms(tree):
  """L2 norms of trees with a leading axis of keys."""
  return np.sqrt(sum(
      np.square(x).reshape(len(x), -1).sum(1) for x in tree.values()))


@pytest.mark.parametrize('name', NAMES)
def test_shapes_and_dtypes_are_kept(name):
  for dtype in (jnp.float32, jnp.bfloat16):
    tree = {'bias': jax.ShapeDtypeStruct((ROWS,), dtype),
            'item': jax.ShapeDtypeStruct((ROWS, 5), dtype),
            'scalar': jax.ShapeDtypeStruct((), jnp.float32),
            'nothing': jax.ShapeDtypeStruct((0, 3), dtype)}
    assert jax.eval_shape(
        lambda x: apply(name, KEYS[0], x), tree) == tree


@pytest.mark.parametrize('name', NAMES)
def test_new_keys_and_values_do_not_retrace(name):
  many(name)(KEYS, TREE)
  before = traces[name]
  many(name)(KEYS[::-1], jax.tree.map(lambda x: 2 * x, TREE))
  assert traces[name] == before == 1


@pytest.mark.parametrize('name', claiming('ignores_padding'))
def test_rows_that_are_not_in_use_change_nothing(name):
  plain = jax.tree.map(lambda x: x[0], outputs(name))
  padded = jax.jit(lambda key, tree, mask: apply(name, key, tree, mask))(
      KEYS[0], pad(TREE), pad(MASK))
  for leaf, x in plain.items():
    # Sums of 39 and of 59 numbers, half of them zeros, may round differently.
    np.testing.assert_allclose(
        padded[leaf][:ROWS] if x.ndim else padded[leaf], x,
        rtol=64 * 2.0**-24, atol=64 * 2.0**-24)
    if x.ndim:
      assert not np.asarray(padded[leaf])[ROWS:].any()


@pytest.mark.parametrize('name', claiming('zero_to_zero'))
def test_all_zeros_stay_all_zeros(name):
  out = many(name)(KEYS, jax.tree.map(np.zeros_like, TREE))
  assert not any(np.asarray(x).any() for x in out.values())


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('name', claiming('non_finite_to_zero'))
def test_one_entry_that_is_not_finite_makes_all_zeros(name, bad):
  tree = {**TREE, 'item': TREE['item'].copy()}
  tree['item'][1, 1] = bad
  out = many(name)(KEYS, tree)
  assert not any(np.asarray(x).any() for x in out.values())


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [1e18, 1e-18])
def test_large_and_small_numbers_stay_finite(name, size):
  out = many(name)(
      KEYS, jax.tree.map(lambda x: (x * size).astype(np.float32), TREE))
  assert all(np.isfinite(x).all() for x in out.values())


@pytest.mark.parametrize('name', claiming('norm_never_grows'))
def test_the_norm_never_grows(name):
  bound = norms({leaf: x[None] for leaf, x in TREE.items()})
  assert (norms(outputs(name)) <= bound * (1 + 64 * 2.0**-24)).all()


def test_the_rows_of_clipping_clip_groups_and_rows():
  """By NumPy: the table's example is no clipping of the whole in disguise."""
  groups, rows, item_rows = (
      {leaf: x[0] for leaf, x in outputs(name).items()}
      for name in ('clip_groups_by_l2', 'clip_rows_by_l2', 'clip_item_rows'))
  joined = np.concatenate([TREE['bias'][:, None], TREE['item']], 1)
  scale = min(1, 1.0 / np.linalg.norm(joined))
  np.testing.assert_allclose(groups['item'], TREE['item'] * scale, rtol=1e-5)
  np.testing.assert_allclose(groups['bias'], TREE['bias'] * scale, rtol=1e-5)
  np.testing.assert_allclose(
      np.abs(groups['scalar']), min(0.25, abs(TREE['scalar'])), rtol=1e-5)
  lengths = np.linalg.norm(joined, axis=1)
  scales = np.minimum(1, 1.0 / lengths)
  assert (scales == 1).any() and (scales < 1).any() and scale < 1
  np.testing.assert_allclose(
      rows['item'], TREE['item'] * scales[:, None], rtol=1e-5)
  np.testing.assert_allclose(rows['bias'], TREE['bias'] * scales, rtol=1e-5)
  assert rows['scalar'] == TREE['scalar']
  for leaf, x in rows.items():
    np.testing.assert_array_equal(item_rows[leaf], x)


@pytest.mark.parametrize('name', claiming('unbiased'))
def test_the_mean_over_keys_is_the_input(name):
  for leaf, x in outputs(name).items():
    error = np.abs(x.mean(0) - TREE[leaf])
    # Six standard errors, passed once in 500 million; and float rounding.
    assert (error <= 6 * x.std(0) / np.sqrt(NUM_KEYS)
            + 1e-6 * np.abs(TREE[leaf])).all(), leaf


@pytest.mark.parametrize('name', ['top_k rows', 'low_rank', 'sign'])
def test_a_biased_one_would_be_caught(name):
  """Positive control of the test above."""
  x = outputs(name)['item']
  error = np.abs(x.mean(0) - TREE['item'])
  assert (error > 6 * x.std(0) / np.sqrt(NUM_KEYS) + 1e-3).any()


@pytest.mark.parametrize('name', claiming('largest_error'))
def test_no_entry_errs_by_more_than_is_stated(name):
  for leaf, x in outputs(name).items():
    bound = float(TRANSFORMS[name].largest_error(TREE[leaf]))
    assert np.abs(x - TREE[leaf]).max() <= bound * (1 + 1e-5), leaf


@pytest.mark.parametrize('name', claiming('squared_error'))
def test_the_mean_squared_error_is_what_is_stated(name):
  for leaf, x in outputs(name).items():
    bound = float(TRANSFORMS[name].squared_error(TREE[leaf]))
    errors = np.square(x - TREE[leaf]).reshape(NUM_KEYS, -1).sum(1)
    slack = 6 * errors.std() / np.sqrt(NUM_KEYS) + 1e-5 * bound + 1e-12
    assert errors.mean() <= bound + slack, leaf


@pytest.mark.parametrize('name', claiming('linear'))
def test_sketches_of_one_seed_add_up(name):
  other = jax.tree.map(lambda x: (np.cos(x) * 3).astype(np.float32), TREE)
  both = many(name)(KEYS, jax.tree.map(np.add, TREE, other))
  mine, theirs = outputs(name), many(name)(KEYS, other)
  for leaf, x in both.items():
    np.testing.assert_allclose(
        x, mine[leaf] + theirs[leaf], rtol=1e-5, atol=1e-4)


def test_what_is_not_linear_would_be_caught():
  """Positive control of the test above."""
  mine = outputs('top_k rows')['item'][0]
  other = jax.tree.map(lambda x: (np.cos(x) * 3).astype(np.float32), TREE)
  theirs = np.asarray(many('top_k rows')(KEYS, other)['item'][0])
  both = np.asarray(many('top_k rows')(
      KEYS, jax.tree.map(np.add, TREE, other))['item'][0])
  assert np.abs(both - mine - theirs).max() > 0.1


@pytest.mark.parametrize('name', [
    name for name in claiming('wire')
    if TRANSFORMS[name].wire.sketch == 'none'])
def test_the_stated_bytes_are_the_length_of_a_message(name):
  config = TRANSFORMS[name].wire
  # A leaf without rows is a shared one.
  layout = make_layout(
      {'bias': np.zeros(NUM_ITEMS, np.float32),
       'item': np.zeros((NUM_ITEMS, 5), np.float32)},
      {'scalar': np.zeros((), np.float32)}, NUM_ITEMS)
  rows = np.array([41, 3, 8, 0, 49, 20, 22])
  out = {leaf: x[0].astype(np.float32) for leaf, x in outputs(name).items()}
  message = encode_upload(
      config, layout, rows, [out['bias'], out['item']], [out['scalar']])
  stated = int(wire_bytes(config, ROWS, layout))
  if config.sparsify == 'threshold':
    assert len(message) <= stated
  elif config.quantize == 'sign':
    # Five bytes of positions of the eight exact zeros among 35.
    assert len(message) == stated + 5
  else:
    assert len(message) == stated
  read = decode_upload(config, layout, message)
  order = np.argsort(rows)
  np.testing.assert_array_equal(read.rows, rows[order])
  np.testing.assert_array_equal(read.item[0], out['bias'][order])
  np.testing.assert_array_equal(read.item[1], out['item'][order])
  np.testing.assert_array_equal(read.shared[0], out['scalar'])


def test_every_transform_has_a_row():
  """By the source: a public function that makes a transform is in the table."""
  folder = pathlib.Path(transforms.__path__[0])
  makers = {
      node.name
      for path in folder.glob('*.py') if path.name != 'leaves.py'
      for node in ast.parse(path.read_text()).body
      if isinstance(node, ast.FunctionDef) and not node.name.startswith('_')
      and node.returns is not None
      and 'GradientTransformation' in ast.unparse(node.returns)}
  assert {'top_k', 'clip_by_l2'} <= makers
  source = (folder / 'registry.py').read_text()
  called = {ast.unparse(node) for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Name)}
  # These have tests of their own: one takes sums together with the clients'
  # reports, the others choose between, or wrap, some that are listed.
  makers -= {'add_noise_and_adapt', 'add_correlated_noise',
             'build_local_privacy', 'in_units_of', 'only_rows', 'with_counts'}
  assert not makers - called, makers - called
