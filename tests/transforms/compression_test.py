"""The chain that a config names, and in the form that its memory needs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.config import (
    GRANULARITIES,
    QUANTIZERS,
    SKETCHES,
    SPARSIFIERS,
    CompressionConfig,
)
from fedjaxrec.transforms.compression import build_compression

NUM = 10
_rng = np.random.default_rng(1)
DELTA = ({'bias': _rng.normal(size=(NUM, 2)).astype(np.float32),
          'item': _rng.normal(size=(NUM, 2, 6)).astype(np.float32)},
         {'w': _rng.normal(size=(3, 4)).astype(np.float32)})
MASK = (np.arange(NUM * 2).reshape(NUM, 2) < 14, True)
for _leaf in DELTA[0].values():
  _leaf[~MASK[0]] = 0


def every_config():
  for sparsify, granularity, quantize, rotate, sketch in itertools.product(
      SPARSIFIERS, GRANULARITIES, QUANTIZERS, (False, True), SKETCHES):
    try:
      yield CompressionConfig(
          sparsify=sparsify, granularity=granularity, quantize=quantize,
          rotate=rotate, sketch=sketch, fraction=0.2, threshold=1.0, bits=4,
          rank=2, sketch_width=8, sketch_depth=2)
    except ValueError:
      continue


CONFIGS = [config for config in every_config() if config.is_on]


def compress(config, client_key, round_key=None, delta=DELTA, mask=MASK):
  transform = build_compression(config)(
      client_key, jax.random.key(9) if round_key is None else round_key)
  return transform.update(delta, transform.init(delta), None, mask=mask)[0]


def test_nothing_to_do_is_no_transform():
  assert build_compression(CompressionConfig()) is None


def test_every_config_that_is_accepted_can_be_built():
  assert len(CONFIGS) > 30
  delta = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, DELTA))
  for config in CONFIGS:
    assert jax.eval_shape(
        lambda key, d, m, c=config: compress(c, key, key, d, m),
        jax.random.key(0), delta, jax.tree.map(jnp.asarray, MASK)) == delta


@pytest.mark.parametrize('config', [
    CompressionConfig(sparsify='top_k', fraction=0.2, quantize='qsgd'),
    CompressionConfig(sparsify='random_k', fraction=0.2, quantize='ternary'),
    CompressionConfig(quantize='sign', rotate=True),
    CompressionConfig(sketch='low_rank', rank=2, quantize='qsgd'),
    CompressionConfig(sketch='count', sketch_width=30, quantize='qsgd'),
])
def test_a_larger_size_class_gets_the_same_result(config):
  def grow(x):
    return np.concatenate([x, np.zeros_like(x)])
  run = jax.jit(lambda key, delta, mask: compress(
      config, key, delta=delta, mask=mask))
  small = run(jax.random.key(1), DELTA, MASK)
  large = run(jax.random.key(1), (jax.tree.map(grow, DELTA[0]), DELTA[1]),
              (grow(MASK[0]), True))
  # Sums of 168 numbers of size 1, over 336 places, may round differently.
  for leaf, x in small[0].items():
    np.testing.assert_allclose(large[0][leaf][:NUM], x, atol=1e-5)
    assert not np.asarray(large[0][leaf])[NUM:].any()
    assert not np.asarray(x)[~MASK[0]].any()
  np.testing.assert_allclose(large[1]['w'], small[1]['w'], atol=1e-5)
  # Positive control: it compresses.
  assert np.abs(small[0]['item'] - DELTA[0]['item']).max() > 0.01


def test_only_sketches_are_made_of_the_rounds_key():
  keys = jax.random.split(jax.random.key(2), 3)
  for config, ours, theirs in [
      (CompressionConfig(sketch='low_rank', rank=2), True, False),
      (CompressionConfig(sketch='count', sketch_width=30), True, False),
      (CompressionConfig(quantize='qsgd', bits=4), False, True),
      (CompressionConfig(quantize='ternary', rotate=True), False, True),
      (CompressionConfig(sparsify='random_k', fraction=0.5), False, True)]:
    run = jax.jit(lambda client, round_key, c=config: compress(
        c, client, round_key)[0]['item'])
    first = run(keys[0], keys[1])
    assert np.array_equal(first, run(keys[2], keys[1])) == ours
    assert np.array_equal(first, run(keys[0], keys[2])) == theirs


@pytest.mark.parametrize('settings', [
    {'sparsify': 'random_k', 'fraction': 0.2},
    {'sparsify': 'random_k', 'fraction': 0.2, 'granularity': 'entries'},
    {'sketch': 'low_rank', 'rank': 2}])
def test_with_a_memory_it_is_a_contraction_and_without_it_has_no_bias(settings):
  keys = jax.random.split(jax.random.key(5), 2000)
  exact = DELTA[0]['item']

  def many(error_feedback):
    config = CompressionConfig(**settings, error_feedback=error_feedback)
    return np.asarray(jax.jit(jax.vmap(
        lambda key: compress(config, key, key)[0]['item']))(keys))

  plain, contraction = many(False), many(True)
  slack = 6 * plain.std(0) / np.sqrt(len(keys)) + 1e-6
  assert (np.abs(plain.mean(0) - exact) <= slack).all()
  errors = np.square(contraction - exact).sum((1, 2, 3))
  assert (errors <= np.square(exact).sum() * (1 + 1e-5)).all()
  # Positive control: what has no bias is no contraction.
  assert np.square(plain - exact).sum((1, 2, 3)).max() > np.square(exact).sum()
