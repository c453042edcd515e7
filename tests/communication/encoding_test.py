"""Messages of the engine's own draws: their length is the formula's."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec.communication import (
    Layout,
    bits,
    decode_download,
    decode_upload,
    download_bytes,
    encode_download,
    encode_upload,
    make_layout,
    touched_rows,
    wire_bytes,
)
from fedjaxrec.config import CompressionConfig
from fedjaxrec.config.compression import ROTATION_CHUNK
from fedjaxrec.examples import draw_examples
from fedjaxrec.population import Client
from fedjaxrec.transforms import compression as compression_lib
from fedjaxrec.transforms.compression import build_compression
from fedjaxrec.transforms.message_length import (
    build_message_length,
    depends_on_content,
    positions_bytes,
)

NUM_ITEMS, NUM_NEGATIVES, CAPACITY, DIM = 90, 3, 32, 6
TABLE = {'bias': jnp.zeros(NUM_ITEMS), 'item': jnp.zeros((NUM_ITEMS, DIM))}
SHARED = {'b': jnp.zeros(()), 'w': jnp.zeros((7, 4))}
LAYOUT = make_layout(TABLE, SHARED, NUM_ITEMS)
# Nobody's, one interaction, some, and so many that negatives run short.
COUNTS = [0, 1, 11, 30]
CONFIGS = {
    'none': CompressionConfig(),
    'top_k rows': CompressionConfig(sparsify='top_k'),
    'top_k entries, 8 bits': CompressionConfig(
        sparsify='top_k', granularity='entries', quantize='qsgd'),
    'top_k rows, 8 bits': CompressionConfig(sparsify='top_k', quantize='qsgd'),
    'top_k, sign': CompressionConfig(
        sparsify='top_k', fraction=0.3, quantize='sign'),
    'random_k, ternary': CompressionConfig(
        sparsify='random_k', fraction=0.2, quantize='ternary'),
    'random_k entries': CompressionConfig(
        sparsify='random_k', granularity='entries'),
    'threshold, 3 bits': CompressionConfig(
        sparsify='threshold', threshold=1.0, quantize='qsgd', bits=3),
    'threshold that few reach': CompressionConfig(
        sparsify='threshold', threshold=2.5),
    'threshold that nobody reaches': CompressionConfig(
        sparsify='threshold', threshold=1e6),
    'threshold, sign': CompressionConfig(
        sparsify='threshold', threshold=1.0, quantize='sign'),
    'sign': CompressionConfig(quantize='sign'),
    'ternary': CompressionConfig(quantize='ternary'),
    '16 bits': CompressionConfig(quantize='qsgd', bits=16),
    'rotated 5 bits': CompressionConfig(
        quantize='qsgd', bits=5, rotate=True),
    'rotated sign': CompressionConfig(quantize='sign', rotate=True),
    'low rank': CompressionConfig(sketch='low_rank', rank=2),
    'low rank, 4 bits': CompressionConfig(
        sketch='low_rank', rank=2, quantize='qsgd', bits=4),
    'count': CompressionConfig(
        sketch='count', sketch_width=50, sketch_depth=2),
    'count, 5 bits': CompressionConfig(
        sketch='count', sketch_width=7, sketch_depth=3, quantize='qsgd',
        bits=5),
    'count, ternary': CompressionConfig(
        sketch='count', sketch_width=7, sketch_depth=1, quantize='ternary'),
}


def client(count, seed=0):
  items = np.full(CAPACITY, NUM_ITEMS, np.int32)
  items[:count] = np.sort(
      np.random.default_rng(seed).choice(NUM_ITEMS, count, replace=False))
  values = {'num_examples': jnp.int32(count), 'items': jnp.asarray(items),
            'labels': jnp.ones(CAPACITY)}
  return Client(**{field: values.get(field, jnp.int32(0))
                   for field in Client._fields})


@jax.jit
def draw(client, key):
  """The engine's examples, and deltas that are zero in unused slots."""
  examples = draw_examples(client, key, NUM_ITEMS, NUM_NEGATIVES)
  keys = jax.random.split(key, 4)
  used = examples.used
  item = {
      'bias': jax.random.normal(keys[0], used.shape) * used,
      'item': jax.random.normal(keys[1], (*used.shape, DIM)) * used[..., None]}
  shared = {'b': jax.random.normal(keys[2]),
            'w': jax.random.normal(keys[3], (7, 4))}
  return examples, (item, shared)


def recording(inner):
  """A transform whose state holds what it put out last."""
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return inner.init(params), params

  def update(updates, state, params=None, **extra_args):
    out, inner_state = inner.update(updates, state[0], params, **extra_args)
    return out, (inner_state, out)

  return optax.GradientTransformationExtraArgs(init, update)


@functools.cache
@functools.cache
def compiled(name):
  """(delta, mask) -> (the transform's output, what the quantizer put out)."""
  make = build_compression(
      name if isinstance(name, CompressionConfig) else CONFIGS[name])

  def run(delta, used):
    transform = make(jax.random.key(3), jax.random.key(4))
    return transform.update(
        delta, transform.init(delta), None, mask=(used, jnp.bool_(True)))
  return jax.jit(run)


def upload(name, count):
  """(message, rows, item leaves, shared leaves as they travel)."""
  config = CONFIGS[name]
  examples, delta = draw(client(count), jax.random.key(count))
  used = np.asarray(examples.used)
  rows = np.asarray(examples.rows)[used]
  output = delta
  if config.is_on:
    output, state = compiled(name)(delta, examples.used)
  travels = output
  if config.rotate or config.sketch != 'none':
    travels = state[1][1]  # The recorded output of the quantizer.
  if config.sketch == 'count':
    travels = ((), travels)  # One table, of no rows.
  if config.rotate:
    order = np.argsort(rows)
    rows = rows[order]
    needed = [-(-len(rows) * leaf.size // ROTATION_CHUNK)
              for leaf in LAYOUT.item]
    item = [np.asarray(x)[:n]
            for x, n in zip(jax.tree.leaves(travels[0]), needed)]
  else:
    item = [np.asarray(x)[used] for x in jax.tree.leaves(travels[0])]
  shared = [np.asarray(x) for x in jax.tree.leaves(travels[1])]
  return (
      encode_upload(config, LAYOUT, rows, item, shared), rows, item, shared)


@pytest.fixture(autouse=True, scope='module')
def record_what_quantizers_put_out():
  """Rotations and sketches hand their quantizer's output out by its state."""
  with pytest.MonkeyPatch.context() as patch:
    for module, function in [('rotate', 'with_rotation'),
                             ('sketch', 'low_rank'),
                             ('sketch', 'count_sketch')]:
      plain = getattr(getattr(compression_lib, module), function)

      def recorded(first, *args, plain=plain, **kwargs):
        if 'inner' in kwargs:
          kwargs['inner'] = recording(kwargs['inner'])
        else:
          first = recording(first)
        return plain(first, *args, **kwargs)

      patch.setattr(getattr(compression_lib, module), function, recorded)
    yield


def counted_length(name, count):
  """What the round counts for the message that `upload` writes."""
  examples, delta = draw(client(count), jax.random.key(count))
  output, _ = compiled(name)(delta, examples.used)
  return int(build_message_length(CONFIGS[name])(
      output, examples.used, NUM_ITEMS))


@pytest.mark.parametrize('count', COUNTS)
@pytest.mark.parametrize('name', CONFIGS)
def test_a_message_has_the_stated_length_and_reads_back_to_the_bit(name, count):
  config = CONFIGS[name]
  message, rows, item, shared = upload(name, count)
  num_rows = int(touched_rows(np.array(count), NUM_NEGATIVES, NUM_ITEMS))
  assert len(rows) == num_rows
  stated = int(wire_bytes(config, num_rows, LAYOUT))
  if config.sparsify == 'threshold':
    assert len(message) <= stated
  else:
    assert len(message) == stated
  if depends_on_content(config):
    assert counted_length(name, count) == len(message)
  read = decode_upload(config, LAYOUT, message)
  order = np.arange(len(rows)) if name == 'none' else np.argsort(rows)
  np.testing.assert_array_equal(read.rows, rows[order])
  for x, y in zip(read.item, item, strict=True):
    np.testing.assert_array_equal(x, y if config.rotate else y[order])
  for x, y in zip(read.shared, shared, strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('name', [
    'sign', 'top_k, sign', 'top_k entries, sign', 'random_k, sign'])
def test_signs_that_are_zero_are_counted_in_the_round(name):
  config = {
      'sign': CompressionConfig(quantize='sign'),
      'top_k, sign': CONFIGS['top_k, sign'],
      'top_k entries, sign': CompressionConfig(
          sparsify='top_k', granularity='entries', fraction=0.6,
          quantize='sign'),
      'random_k, sign': CompressionConfig(
          sparsify='random_k', fraction=0.6, quantize='sign')}[name]
  examples, (item, shared) = draw(client(11), jax.random.key(11))
  used = np.asarray(examples.used)
  # Every other number that travels is exactly zero.
  item, shared = jax.tree.map(
      lambda x: x * (jnp.arange(x.size).reshape(x.shape) % 2), (item, shared))
  output, _ = compiled(config)((item, shared), examples.used)
  message = encode_upload(
      config, LAYOUT, np.asarray(examples.rows)[used],
      [np.asarray(x)[used] for x in jax.tree.leaves(output[0])],
      [np.asarray(x) for x in jax.tree.leaves(output[1])])
  counted = int(build_message_length(config)(output, examples.used, NUM_ITEMS))
  assert counted == len(message)
  assert len(message) > wire_bytes(config, int(used.sum()), LAYOUT)


def test_lengths_are_counted_only_where_content_decides():
  for name, config in CONFIGS.items():
    decides = 'threshold' in name or name in ('sign', 'top_k, sign')
    assert (build_message_length(config) is not None) == decides


@hypothesis.given(st.integers(0, 2**30 - 1), st.data())
@hypothesis.settings(max_examples=100, deadline=None)
def test_the_device_codes_positions_in_as_many_bytes(n, data):
  k = data.draw(st.integers(0, n))
  assert int(DEVICE_BYTES(n, k)) == bits.positions_bytes(n, k)


DEVICE_BYTES = jax.jit(positions_bytes)


def test_the_formula_takes_many_clients_at_once():
  rows = np.array([0, 1, 44, 90])
  for config in CONFIGS.values():
    np.testing.assert_array_equal(
        wire_bytes(config, rows, LAYOUT),
        [wire_bytes(config, n, LAYOUT) for n in rows])


def test_lengths_by_hand():
  layout = make_layout({'item': np.zeros((1000, 10), np.float32)},
                       {'w': np.zeros(30, np.float32)}, 1000)
  length = functools.partial(wire_bytes, num_rows=100, layout=layout)
  assert length(CompressionConfig()) == 100 * 44 + 120
  # The count of rows, 100 of 1,000 places: 10 = 2^3 and more places each, so
  # 100 * (3 + 1) + (999 >> 3) bits.
  head = 4 + -(-(400 + 124) // 8)
  # Five rows of 100: 5 * (4 + 1) + (99 >> 4) bits; two entries of 30:
  # 2 * (3 + 1) + (29 >> 3) bits.
  assert length(CompressionConfig(sparsify='top_k')) == (
      head + 4 + 5 * 40 + 2 + 2 * 4)
  assert length(CompressionConfig(sparsify='top_k', quantize='qsgd')) == (
      head + 4 + 4 + 50 + 2 + 4 + 2)
  # Fifty of 1,000 entries: 50 * (4 + 1) + (999 >> 4) bits, which is 39 bytes.
  assert length(CompressionConfig(
      sparsify='top_k', quantize='qsgd', granularity='entries')) == (
          head + 39 + 4 + 50 + 2 + 4 + 2)
  assert length(CompressionConfig(quantize='ternary')) == (
      head + 4 + 200 + 4 + 6)
  assert length(CompressionConfig(quantize='sign')) == (
      head + 8 + 125 + 8 + 4)
  assert length(CompressionConfig(quantize='qsgd', bits=3, rotate=True)) == (
      head + 4 + 4 * 256 * 3 // 8 + 4 + 256 * 3 // 8)
  assert length(CompressionConfig(sketch='low_rank', rank=3)) == (
      head + 100 * 12 + 120)
  # A table, however many rows there are; and none of its positions.
  assert length(CompressionConfig(
      sketch='count', sketch_width=40, sketch_depth=3)) == head + 40 * 3 * 4
  assert length(CompressionConfig(
      sketch='count', sketch_width=41, sketch_depth=1, quantize='qsgd',
      bits=5)) == head + 4 + 26


def test_top_k_and_8_bits_are_an_order_of_magnitude_less():
  """The layout of matrix factorisation on ML-1M, the mean client's rows."""
  layout = make_layout(
      {'item': jax.ShapeDtypeStruct((3706, 32), jnp.float32),
       'item_bias': jax.ShapeDtypeStruct((3706,), jnp.float32)},
      {'bias': jax.ShapeDtypeStruct((), jnp.float32)}, 3706)
  rows = touched_rows(np.array([20, 96, 163, 700, 2000]), 8, 3706)
  plain = wire_bytes(CompressionConfig(), rows, layout)
  for granularity, least in [('entries', 25), ('rows', 35)]:
    small = wire_bytes(CompressionConfig(
        sparsify='top_k', quantize='qsgd', granularity=granularity), rows,
                       layout)
    assert (plain / small > least).all()


def test_what_a_chain_cannot_have_put_out_is_refused():
  ones = [np.ones((4,), np.float32), np.ones((4, DIM), np.float32)]
  shared = [np.zeros((), np.float32), np.zeros((7, 4), np.float32)]
  rows = np.array([5, 2, 9, 1])

  def encode(config, rows=rows, item=ones, shared=shared):
    return encode_upload(config, LAYOUT, rows, item, shared)

  plain = CompressionConfig()
  with pytest.raises(ValueError, match='keeps 1'):
    encode(CompressionConfig(sparsify='top_k'))
  steps = np.linspace(-1, 1, 4).astype(np.float32)
  with pytest.raises(ValueError, match='not 127 times a step'):
    encode(CompressionConfig(quantize='qsgd'), item=[
        steps**3 + 0.01, ones[1]])
  for bad in ([5, 2, 9, 9], [5, 2, 9, NUM_ITEMS], [-1, 2, 3, 4]):
    with pytest.raises(ValueError, match='distinct'):
      encode(plain, rows=np.array(bad))
  with pytest.raises(ValueError, match='must increase'):
    encode(CONFIGS['rotated sign'])
  with pytest.raises(ValueError, match='leaves do not fit'):
    encode(plain, item=ones[:1])
  with pytest.raises(ValueError, match='does not fit a leaf'):
    encode(plain, item=[ones[1], ones[0]])
  with pytest.raises(ValueError, match='x.dtype=float64'):
    encode(plain, item=[ones[0].astype(float), ones[1]])


def test_leaves_of_half_precision_travel_at_their_width():
  layout = make_layout({'a': np.zeros((9, 2), np.float16)}, {}, 9)
  x = [np.arange(6, dtype=np.float16).reshape(3, 2)]
  rows = np.array([4, 1, 8])
  for config in (CompressionConfig(), CompressionConfig(
      sparsify='top_k', fraction=1.0)):
    message = encode_upload(config, layout, rows, x, [])
    assert len(message) == wire_bytes(config, 3, layout)
    read = decode_upload(config, layout, message)
    assert dict(zip(read.rows, read.item[0][:, 1])) == {4: 1, 1: 3, 8: 5}
  with pytest.raises(ValueError, match='x.dtype=float16'):
    encode_upload(CompressionConfig(quantize='sign'), layout, rows, x, [])


@pytest.mark.parametrize('name', ['none', 'top_k rows, 8 bits', 'sign'])
def test_a_damaged_message_is_refused(name):
  message = upload(name, 11)[0]
  for bad in (message[:-1], message + b'x', b''):
    with pytest.raises(ValueError, match='message'):
      decode_upload(CONFIGS[name], LAYOUT, bad)
  if name != 'none':
    with pytest.raises(ValueError, match='message'):
      decode_upload(CONFIGS[name], LAYOUT, b'\xff' * len(message))


def test_a_download_has_the_stated_length_and_reads_back():
  rng = np.random.default_rng(0)
  item = [rng.normal(size=(5,)).astype(np.float32),
          rng.normal(size=(5, DIM)).astype(np.float32)]
  shared = [np.float32(2), rng.normal(size=(7, 4)).astype(np.float32)]
  message = encode_download(item, shared)
  assert len(message) == download_bytes(5, LAYOUT) == 5 * 28 + 4 + 112
  read = decode_download(LAYOUT, message)
  for x, y in zip((*read[0], *read[1]), (*item, *shared), strict=True):
    np.testing.assert_array_equal(x, y)
  for bad in (message[:-1], message + b'x'):
    with pytest.raises(ValueError, match='message'):
      decode_download(LAYOUT, bad)


def test_a_model_without_shared_parameters_or_without_items_has_messages():
  layout = Layout(4, (), ())
  for config in (CompressionConfig(), CompressionConfig(quantize='sign')):
    message = encode_upload(config, layout, np.array([2, 3]), [], [])
    assert len(message) == wire_bytes(config, 2, layout)
    np.testing.assert_array_equal(
        decode_upload(config, layout, message).rows, [2, 3])
