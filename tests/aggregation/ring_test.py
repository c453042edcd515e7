"""The ring: exact, without bias, without overflow, blind to padding."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.aggregation import ranges, rotation
from fedjaxrec.aggregation.ring import make_ring, random_bits

COHORT, ROWS, DIM = 12, 6, 8


def keys(count, seed=0):
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(
      jnp.arange(count))


def deltas(count=COHORT, seed=1, norm=1.0):
  """Clients' deltas of one norm: a table's rows and a whole leaf."""
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(count, ROWS, DIM)).astype(np.float32)
  whole = rng.normal(size=(count, 5)).astype(np.float32)
  length = np.sqrt((rows**2).sum((1, 2)) + (whole**2).sum(1))
  return (jnp.asarray(rows * norm / length[:, None, None]),
          jnp.asarray(whole * norm / length[:, None]))


@functools.cache
def compiled(bits=16, **options):
  ring = make_ring(bits, 1.0, COHORT, **options)
  return ring, jax.jit(jax.vmap(lambda d, k: ring.encode(d, k))), jax.jit(
      ring.decode)


def numpy_decode(values, bits, scale):
  """The slow way: Python integers, summed one by one, modulo 2^b."""
  out = np.zeros(values.shape[1:])
  for place in np.ndindex(*out.shape):
    total = 0
    for client in range(len(values)):
      total = (total + int(values[(client, *place)])) % 2**bits
    if total >= 2 ** (bits - 1):
      total -= 2**bits
    out[place] = np.float32(total) * np.float32(1 / scale)
  return out


@pytest.mark.parametrize('bits', [8, 16, 20, 32])
def test_the_sum_is_the_modular_sum_bit_for_bit(bits):
  ring, encode, decode = compiled(bits)
  encoded = encode(deltas(), keys(COHORT))
  assert bool(encoded.accepted.all())
  assert all(int(x.max()) < 2**bits for x in encoded.values)
  total = jax.tree.map(lambda x: x.sum(0, dtype=jnp.uint32), encoded.values)
  for ours, values in zip(decode(total), encoded.values):
    np.testing.assert_array_equal(
        ours, numpy_decode(np.asarray(values), bits, ring.scale))


def test_the_sum_is_that_of_the_deltas_within_its_rounding():
  ring, encode, decode = compiled(16)
  delta = deltas()
  encoded = encode(delta, keys(COHORT))
  total = decode(jax.tree.map(
      lambda x: x.sum(0, dtype=jnp.uint32), encoded.values))
  for ours, exact in zip(total, delta):
    error = np.asarray(ours) - np.asarray(exact, np.float64).sum(0)
    # Every client is off by less than one integer.
    assert np.abs(error).max() < COHORT / ring.scale
    # Of uniform fractions: variance at most 1/4 each.
    assert error.std() < 2 * math.sqrt(COHORT) / 2 / ring.scale


def test_the_order_of_the_sum_does_not_matter():
  _, encode, _ = compiled(16)
  values = encode(deltas(), keys(COHORT)).values[0]
  one = values.sum(0, dtype=jnp.uint32)
  halves = values[::-1].reshape(3, 4, ROWS, DIM).sum(1, dtype=jnp.uint32)
  np.testing.assert_array_equal(one, halves[::-1].sum(0, dtype=jnp.uint32))
  # A float sum in another order is another sum (positive control).
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1000, 500)).astype(np.float32)
  assert (np.cumsum(x, 0)[-1] != np.cumsum(x[::-1], 0)[-1]).any()


@pytest.mark.parametrize('dimension', [None, 53])
def test_zero_rows_at_the_end_change_nothing(dimension):
  _, encode, _ = compiled(16, dimension=dimension)
  rows, whole = deltas()
  padded = jnp.concatenate([rows, jnp.zeros((COHORT, 7, DIM))], 1)
  short, long = (encode((r, whole), keys(COHORT)) for r in (rows, padded))
  np.testing.assert_array_equal(short.values[0], long.values[0][:, :ROWS])
  np.testing.assert_array_equal(short.values[1], long.values[1])
  assert not np.asarray(long.values[0][:, ROWS:]).any()


def test_a_rotation_of_rows_is_blind_to_padding_too():
  ring = make_ring(16, 1.0, COHORT, rotation=8)
  sign_key = jax.random.key(5)
  encode = jax.jit(jax.vmap(
      lambda d, k: ring.encode(d, k, sign_key, leading_axes=1)))
  rows, _ = deltas()
  padded = jnp.concatenate([rows, jnp.zeros((COHORT, 3, DIM))], 1)
  short, long = encode(rows, keys(COHORT)), encode(padded, keys(COHORT))
  np.testing.assert_array_equal(short.values, long.values[:, :ROWS])
  assert not np.asarray(long.values[:, ROWS:]).any()


def test_rounding_has_no_bias_and_its_own_variance():
  draws = 20_000
  ring = make_ring(16, 8.0, 1, scale=1.0)
  x = np.array([0.1, 0.5, 0.93, -0.25, -2.75, 3.0, 0.0, 1e-3], np.float32)
  out = jax.jit(jax.vmap(lambda k: ring.encode(x, k).values))(keys(draws))
  rounded = np.asarray(jax.vmap(ring.decode)(out))
  fraction = np.abs(x) - np.floor(np.abs(x))
  variance = fraction * (1 - fraction)
  assert set(np.unique(rounded - np.trunc(x))) <= {-1.0, 0.0, 1.0}
  # Six standard errors of a mean of Bernoulli draws.
  error = 6 * np.sqrt(variance / draws) + 2.0**-24
  assert (np.abs(rounded.mean(0) - x) <= error).all()
  # Rounding to the nearest has a bias that this finds (positive control).
  assert (np.abs(np.round(x) - x) > error).sum() == 5
  assert not rounded[:, 6].any()
  assert (rounded[:, 5] == 3).all()


def test_the_bits_of_rounding_are_uniform_and_independent():
  count = 2**16
  words = np.asarray(jax.vmap(
      lambda k: random_bits(k[0], k[1], 0, (count,)))(jnp.array(
          [[0, 0], [0, 1], [1, 0], [12345, 678]], jnp.uint32)))
  # Chi-square of the leading and of the trailing byte: 255 degrees of freedom,
  # standard deviation sqrt(510).
  def surprise(values):
    expected = values.size / 256
    counts = np.bincount(values, minlength=256)
    return abs(((counts - expected) ** 2 / expected).sum() - 255) / 510**0.5

  for stream in words:
    assert surprise(stream >> 24) < 6
    assert surprise(stream & 255) < 6
    # Pairs of neighbours: the high four bits of each.
    assert surprise((stream[:-1] >> 28) * 16 + (stream[1:] >> 28)) < 6
  unit = words / 2.0**32 - 0.5
  off = np.abs(np.corrcoef(np.vstack([unit, unit[0, np.r_[1:count, 0]]])))
  assert (off - np.eye(5)).max() < 6 / count**0.5
  # A counter is not uniform in its leading byte (positive control).
  assert surprise(np.arange(count, dtype=np.uint32) >> 24) > 6


def test_no_two_clients_leaves_or_attempts_share_their_draws():
  ring = make_ring(16, 100.0, 1, scale=1.0)
  half = jnp.full(4096, 0.5)
  encode = jax.jit(lambda k: ring.encode((half, half), k).values)
  first, second = encode(jax.random.key(0)), encode(jax.random.key(1))
  draws = np.array([*first, *second], np.float64)
  assert (np.abs(np.corrcoef(draws)) - np.eye(4)).max() < 6 / 4096**0.5
  np.testing.assert_array_equal(encode(jax.random.key(0))[0], first[0])


@hypothesis.given(
    bits=st.integers(6, 32), cohort=st.integers(1, 5000),
    clip=st.floats(1e-3, 1e3))
def test_nothing_overflows_at_the_limit_and_one_bit_less_does(
    bits, cohort, clip):
  hypothesis.assume(2 ** (bits - 1) - 1 >= 3 * cohort)
  scale = ranges.largest_scale(bits, cohort, clip)
  most = cohort * ranges.magnitude(clip, scale)
  assert most <= 2 ** (bits - 1) - 1
  assert ranges.required_bits(cohort, clip, scale) <= bits
  # By what is required, one bit less wraps around (positive control).
  needed = ranges.required_bits(cohort, clip, scale)
  assert most > 2 ** (needed - 2) - 1


@pytest.mark.parametrize(('bits', 'holds'), [(10, True), (9, False)])
def test_the_worst_cohort_fits_and_one_bit_less_wraps(bits, holds):
  """Every client puts its whole norm into the same coordinate."""
  scale = ranges.largest_scale(10, COHORT, 1.0)
  ring = make_ring(10, 1.0, COHORT, scale=scale)
  worst = jnp.zeros((COHORT, 3)).at[:, 1].set(-1.0)
  values = jax.vmap(ring.encode)(worst, keys(COHORT)).values
  total = np.asarray(values.sum(0, dtype=jnp.uint32), np.int64)[1]
  total = total % 2**bits
  total -= 2**bits if total >= 2 ** (bits - 1) else 0
  # Every client is off by less than one integer.
  assert (abs(total / scale + COHORT) < COHORT / scale) == holds
  if holds:
    with pytest.raises(ValueError, match='use secure.bits=10'):
      make_ring(9, 1.0, COHORT, scale=scale)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 3e38, 1.01])
def test_what_is_no_clipped_delta_is_zeroed_and_flagged(bad):
  _, encode, _ = compiled(16)
  rows, whole = deltas()
  encoded = encode((rows.at[4, 2, 1].set(bad), whole), keys(COHORT))
  np.testing.assert_array_equal(
      encoded.accepted, np.arange(COHORT) != 4)
  assert not any(np.asarray(x[4]).any() for x in encoded.values)
  assert all(np.asarray(x[3]).any() for x in encoded.values)


def test_float32_rounding_of_the_clip_is_no_reason_to_refuse():
  ring = make_ring(16, 1.0, 100)
  one = jnp.zeros(3).at[0].set(1 + 1e-5)
  encoded = ring.encode(one, jax.random.key(0))
  assert bool(encoded.accepted)
  assert int(encoded.values[0]) == ring.levels  # Cut, not wrapped.


def test_entries_beyond_their_own_bound_are_cut():
  ring = make_ring(16, 1.0, 100, entry_bound=0.01)
  assert ring.scale > 90 * make_ring(16, 1.0, 100).scale
  x = jnp.array([0.5, -0.5, 0.005, 0.0])
  out = ring.decode(ring.encode(x, jax.random.key(0)).values)
  np.testing.assert_allclose(
      out, [0.01, -0.01, 0.005, 0.0], atol=1 / ring.scale)


class TestConditionalRounding:

  def test_every_vector_keeps_the_bound_that_the_accountant_uses(self):
    dimension = 53
    ring, encode, _ = compiled(12, dimension=dimension)
    bound = ranges.rounded_l2_bound(ring.scale, dimension)
    assert ring.l2_bound_squared == int(bound**2)
    squares = []
    for seed in range(8):
      values = encode(deltas(seed=seed), keys(COHORT, seed)).values
      flat = np.concatenate(
          [np.asarray(x).reshape(COHORT, -1) for x in values], 1)
      signed = flat.astype(np.int64) - (flat >= 2**11) * 2**12
      squares.extend((signed**2).sum(1))
    assert 0 < min(squares) <= max(squares) <= ring.l2_bound_squared

  def test_a_vector_that_always_rounds_too_far_is_drawn_towards_zero(self):
    # Norm 10, and a bound made for a single entry: at most 121. A rounding of
    # 400 halves has a squared norm of about 200.
    ring = make_ring(16, 10.0, 1, scale=1.0, dimension=1)
    halves = jnp.full(400, 0.5)
    values = ring.encode(halves, jax.random.key(0)).values
    free = make_ring(16, 10.0, 1, scale=1.0).encode(
        halves, jax.random.key(0)).values
    square = lambda v: int((np.asarray(v, np.int32).astype(
        np.int16).astype(np.int64) ** 2).sum())
    assert square(values) <= ring.l2_bound_squared < square(free)
    assert not np.asarray(values).any()

  def test_float32_slack_of_the_clip_is_no_slack_of_the_bound(self):
    ring = make_ring(32, 1.0, 1, scale=60_000.0, dimension=2)
    # A norm 9e-5 above the clip norm: every rounding of it is too long.
    x = jnp.full(2, math.sqrt(0.5) * (1 + 9e-5))
    encoded = ring.encode(x, jax.random.key(0))
    assert bool(encoded.accepted)
    square = sum(int(v) ** 2 for v in encoded.values)
    assert 0.999 * ring.l2_bound_squared < square <= ring.l2_bound_squared

  def test_the_condition_leaves_the_mean_where_it_is(self):
    draws = 5000
    ring = make_ring(8, 4.0, 1, scale=1.0, dimension=8)
    x = jnp.asarray([0.3, -0.7, 1.2, 0.5, -2.4, 0.9, 0.1, 0.45])
    out = jax.jit(jax.vmap(
        lambda k: ring.decode(ring.encode(x, k).values)))(keys(draws))
    # The few draws that are refused bend the mean by less than their share.
    error = np.abs(np.asarray(out).mean(0) - np.asarray(x)).max()
    assert error < 6 * 0.5 / draws**0.5 + 0.02


class TestRotation:

  @pytest.mark.parametrize('size', [1, 2, 6, 16, 24, 100])
  def test_it_keeps_norms_and_comes_back(self, size):
    x = jax.random.normal(jax.random.key(size), (3, size))
    key = jax.random.key(1)
    turned = jax.jit(rotation.rotate)(x, key)
    back = jax.jit(rotation.rotate_back)
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=1), jnp.linalg.norm(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(back(turned, key), x, atol=1e-5)
    other = back(turned, jax.random.key(2))
    if size > 2:  # Positive control: another key does not bring it back.
      assert np.abs(other - x).max() > 0.01

  def test_it_is_the_matrix_of_the_definition(self):
    hadamard = np.array([[1.0]])
    for _ in range(3):
      hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    key = jax.random.key(3)
    signs = np.asarray(jax.random.rademacher(
        jax.random.fold_in(key, 0), (8,), jnp.float32))
    x = np.arange(8, dtype=np.float32) - 2
    np.testing.assert_allclose(
        rotation.rotate(jnp.asarray(x), key),
        hadamard @ (signs * x) / math.sqrt(8), atol=1e-5)

  @pytest.mark.parametrize('size', [64, 100])
  def test_a_spike_is_spread_as_the_docstring_says(self, size):
    spike = jnp.zeros(size).at[3].set(1.0)
    turned = np.asarray(jax.jit(jax.vmap(
        lambda k: rotation.rotate(spike, k)))(keys(500)))
    sigma = 1 / math.sqrt(rotation.rotated_together(size))
    assert (np.abs(turned) > 4 * sigma).mean() <= 2 * math.exp(-8)

  def test_rotated_sums_decode_to_the_sum_of_the_deltas(self):
    ring = make_ring(20, 1.0, COHORT, rotation=4)
    sign_key = jax.random.key(9)
    rows, whole = deltas()
    encoded = jax.jit(jax.vmap(lambda d, k: ring.encode(
        d, k, sign_key, leading_axes=(1, 0))))((rows, whole), keys(COHORT))
    # Rows go to places of a table; a rotation of a row does not see which.
    place = jnp.array([3, 0, 8, 1, 5, 2])
    table = jnp.zeros((9, DIM), jnp.uint32).at[place].add(
        encoded.values[0].sum(0, dtype=jnp.uint32))
    total = (table, encoded.values[1].sum(0, dtype=jnp.uint32))
    got = ring.decode(total, sign_key, leading_axes=(1, 0))
    want = jnp.zeros((9, DIM)).at[place].add(rows.sum(0))
    # COHORT roundings of variance 1/4, eight of them; rotated back the same.
    error = 8 * math.sqrt(COHORT) / 2 / ring.scale
    np.testing.assert_allclose(got[0], want, atol=error)
    np.testing.assert_allclose(got[1], whole.sum(0), atol=error)

  def test_wrapping_at_k_sigmas_buys_scale_and_still_decodes(self):
    size = 1024
    plain = make_ring(12, 1.0, COHORT, rotation=size)
    ring = make_ring(12, 1.0, COHORT, rotation=size, wrap_sigmas=5.0)
    assert ring.scale > 3 * plain.scale
    # All clients point the same way: the worst case.
    x = jnp.zeros((COHORT, size)).at[:, 7].set(1.0)
    sign_key = jax.random.key(4)
    values = jax.jit(jax.vmap(lambda d, k: ring.encode(d, k, sign_key)))(
        x, keys(COHORT)).values
    got = jax.jit(ring.decode)(values.sum(0, dtype=jnp.uint32), sign_key)
    error = np.asarray(got) - np.asarray(x.sum(0))
    assert np.abs(error).max() < 8 * math.sqrt(COHORT) / 2 / ring.scale
    # Without the rotation's spreading the same scale wraps (positive control).
    bare = np.asarray(x[0, 7]) * ring.scale * COHORT
    assert bare > 2**11

  def test_what_cannot_be_rotated_is_refused(self):
    ring = make_ring(16, 1.0, 4, rotation=16)
    with pytest.raises(ValueError, match='sign_key=None'):
      ring.encode(jnp.zeros((3, 16)), jax.random.key(0))
    # Room for k sigmas of rotated entries is no room for others.
    ring = make_ring(16, 1.0, 4, rotation=16, wrap_sigmas=3.0)
    with pytest.raises(ValueError, match='rotation=16 with a leaf'):
      ring.encode(jnp.zeros((3, 8)), jax.random.key(0), jax.random.key(1), 1)

  def test_a_leaf_that_is_too_short_stays_as_it_is(self):
    rng = np.random.default_rng(3)
    delta = {'short': jnp.asarray(rng.normal(size=(3, 8)), jnp.float32),
             'long': jnp.asarray(rng.normal(size=(3, 16)), jnp.float32),
             'number': jnp.float32(0.25)}
    delta = jax.tree.map(lambda x: x / 16, delta)
    key, sign_key = jax.random.key(0), jax.random.key(1)
    axes = {'short': 1, 'long': 1, 'number': 0}
    plain, ring = (make_ring(16, 1.0, 4, rotation=r) for r in (0, 16))
    left, right = (one.encode(delta, key, sign_key, axes).values
                   for one in (plain, ring))
    assert plain.scale == ring.scale  # The bound of an entry is the norm.
    for name in ('short', 'number'):
      np.testing.assert_array_equal(left[name], right[name])
    assert (left['long'] != right['long']).mean() > 0.5
    got = ring.decode(right, sign_key, axes)
    for name, x in delta.items():
      # An integer an entry at most, sixteen of them rotated back.
      np.testing.assert_allclose(got[name], x, atol=4 / ring.scale)
    # Rotated back by another key it is another vector (positive control).
    other = ring.decode(right, jax.random.key(2), axes)
    assert np.abs(other['long'] - delta['long']).max() > 100 * 4 / ring.scale


@pytest.mark.parametrize(('options', 'message'), [
  (dict(bits=33), 'secure.bits=33'),
  (dict(bits=1), 'secure.bits=1'),
  (dict(bits=8.0), 'secure.bits=8.0'),
  (dict(max_cohort=0), 'max_cohort=0'),
  (dict(l2_clip_norm=0.0), 'l2_clip_norm=0.0'),
  (dict(l2_clip_norm=math.nan), 'l2_clip_norm=nan'),
  (dict(scale=-1.0), 'scale=-1.0'),
  (dict(scale=1e9), 'use secure.bits=|at most 32'),
  (dict(bits=8, max_cohort=1000), 'use secure.bits=12'),
  (dict(max_cohort=2**31), 'smaller cohort'),
  (dict(rotation=12), 'rotation=12'),
  (dict(wrap_sigmas=4.0), 'wrap_sigmas=4.0'),
  (dict(wrap_sigmas=4.0, rotation=8, entry_bound=0.1), 'choose one'),
  (dict(dimension=0), 'dimension=0'),
  (dict(dimension=2**33), 'dimension=8589934592'),
  (dict(dimension=10, beta=1.0), 'beta=1.0'),
  (dict(bits=32, dimension=10, scale=1e5), 'sums squares'),
])
def test_a_ring_that_cannot_be_is_refused(options, message):
  options = dict(bits=16, l2_clip_norm=1.0, max_cohort=100) | options
  with pytest.raises(ValueError, match=message):
    make_ring(options.pop('bits'), options.pop('l2_clip_norm'),
              options.pop('max_cohort'), **options)


def test_the_smallest_ring_that_is_named_works_and_one_bit_less_does_not():
  for cohort in (1, 3, 100, 127, 128, 1000):
    with pytest.raises(ValueError, match='use secure.bits=') as refusal:
      make_ring(2, 1.0, cohort)
    named = int(str(refusal.value).rsplit('bits=', 1)[1].rstrip('.'))
    make_ring(named, 1.0, cohort)
    with pytest.raises(ValueError, match=f'use secure.bits={named}'):
      make_ring(named - 1, 1.0, cohort)
