"""Downloads of rounded rows, and uploads in which no row is named."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.communication import (
    communication_summary,
    decode_download,
    dense_upload_bytes,
    download_bytes,
    encode_download,
    make_layout,
)
from fedjaxrec.config import (
    AlgorithmConfig,
    CompressionConfig,
    Config,
    SecureConfig,
)
from fedjaxrec.config.compression import num_levels
from fedjaxrec.simulation import make_simulation
from fedjaxrec.transforms.quantize import round_rows
from tests.small_runs import make_config, make_interactions

NUM_ITEMS, DIM = 12, 16
TABLE = {'bias': jnp.zeros(NUM_ITEMS), 'item': jnp.zeros((NUM_ITEMS, DIM))}
SHARED = {'w': jnp.zeros(3)}
LAYOUT = make_layout(TABLE, SHARED, NUM_ITEMS)


def some_rows(num_rows, seed=0):
  rng = np.random.default_rng(seed)
  rows = {'bias': rng.normal(size=num_rows).astype(np.float32),
          'item': (rng.normal(size=(num_rows, DIM)) * 10.0 ** rng.integers(
              -6, 3, (num_rows, 1))).astype(np.float32)}
  if num_rows:
    rows['item'][0] = 0
  return rows


@pytest.mark.parametrize('bits', [2, 5, 8, 16])
def test_a_rounded_row_is_the_nearest_point_of_its_own_grid(bits):
  rows = some_rows(9)
  rounded = round_rows(rows, 1, bits)
  levels = num_levels(bits)
  for x, y in zip(rows['item'], np.asarray(rounded['item'])):
    step = float(np.abs(x).max()) / levels
    wanted = np.rint(x / step) * step if step else 0 * x
    # A quotient and a product in float32, where rint meets a half: 1 step.
    np.testing.assert_allclose(y, wanted, atol=step * (1e-3 + levels * 2**-22))
    assert np.abs(y - x).max() <= step / 2 * (1 + levels * 2**-20) + 1e-30
  # A bias of one number would not be shorter, and stays as it is.
  np.testing.assert_array_equal(rounded['bias'], rows['bias'])


@pytest.mark.parametrize('bits', [0, 3, 8, 16])
@pytest.mark.parametrize('num_rows', [0, 1, 7])
def test_the_ledgers_length_is_that_of_a_message_which_reads_back(
    bits, num_rows):
  rows = some_rows(num_rows)
  if bits:
    rows = {name: np.asarray(x) for name, x in round_rows(
        rows, 1, bits).items()}
  shared = [np.arange(3, dtype=np.float32)]
  message = encode_download([rows['bias'], rows['item']], shared, bits)
  assert len(message) == download_bytes(num_rows, LAYOUT, bits)
  item, whole = decode_download(LAYOUT, message, bits)
  np.testing.assert_array_equal(item[0], rows['bias'])
  np.testing.assert_array_equal(item[1], rows['item'])
  np.testing.assert_array_equal(whole[0], shared[0])
  for bad in (message[:-1], message + b'x'):
    with pytest.raises(ValueError, match='too many or too few'):
      decode_download(LAYOUT, bad, bits)


def test_by_hand():
  # Seven rows: a bias of 4 bytes, a scale of 4, 16 numbers of 5 bits; shared.
  assert download_bytes(7, LAYOUT, 5) == 7 * 4 + 7 * 4 + 7 * 16 * 5 // 8 + 12
  assert download_bytes(7, LAYOUT) == 7 * 17 * 4 + 12
  assert dense_upload_bytes(12, LAYOUT) == 12 * 17 * 4 + 12 == len(
      encode_download([np.zeros(12, np.float32), np.zeros(
          (12, DIM), np.float32)], [np.zeros(3, np.float32)]))


def test_rows_that_were_not_rounded_are_not_coded_as_if_they_were():
  with pytest.raises(ValueError, match='not on the grid'):
    encode_download([some_rows(4)['bias'], some_rows(4)['item']], [], 8)


def test_the_summary_counts_rounded_and_dense_messages():
  rows, came = np.array([2, 5]), np.array([1, 3])
  plain = communication_summary(TABLE, SHARED, rows, came, NUM_ITEMS)
  small = communication_summary(
      TABLE, SHARED, rows, came, NUM_ITEMS, CompressionConfig(downlink_bits=8))
  assert small['uplink_bytes_per_client'] == plain['uplink_bytes_per_client']
  assert small['uncompressed_downlink_bytes_per_client'] == (
      plain['downlink_bytes_per_client'])
  assert small['downlink_bytes_per_client'] == sum(
      n * float(download_bytes(r, LAYOUT, 8)) for r, n in zip(rows, came)) / 4
  dense = communication_summary(
      TABLE, SHARED, rows, came, NUM_ITEMS, dense_rows=10)
  assert dense['uplink_bytes_per_client'] == dense_upload_bytes(10, LAYOUT)
  assert dense['downlink_bytes_per_client'] == download_bytes(10, LAYOUT)
  assert dense['total_bytes'] == 4 * 2 * (10 * 68 + 12)


def test_clients_train_on_the_rounded_rows_and_the_table_stays_as_it_is():
  """One step of squared error by hand, from the rows that travelled."""
  train = make_interactions([[0, 1, 2]], 5)
  base = {
      'rounds': 1, 'cohort.size': 1, 'objective.name': 'squared_error',
      'objective.num_negatives': 0, 'client.batch_size': 4, 'model.dim': DIM,
      'client.learning_rate': 1e-9, 'server.optimizer': 'sgd',
      'server.learning_rate': 1e-30, 'model.init_scale': 0.5}
  losses = {}
  for bits in (0, 2):
    config = make_config(base | {'compression.downlink_bits': bits})
    simulation = make_simulation(
        config, train.offsets, train.items, train.ratings, 5)
    state = simulation.init()
    before = {k: np.array(v) for k, v in state.server.item_table.items()}
    user = {k: np.array(v)[0, 0] for k, v in state.personal.items()}
    state, metrics = simulation.run(state, 0, 1)
    for name, x in before.items():  # Nothing of the server's is rounded.
      np.testing.assert_allclose(
          x, state.server.item_table[name], rtol=0, atol=1e-25)
    table = before if not bits else {
        k: np.asarray(x) for k, x in round_rows(before, 1, bits).items()}
    vector = next(k for k, v in table.items() if v.ndim == 2)
    own = next(v for v in user.values() if v.ndim == 1)
    shared = sum(float(np.sum(x)) for x in state.server.shared.values())
    scores = table[vector][:3] @ own + sum(
        v[:3] for k, v in table.items() if v.ndim == 1) + shared + sum(
            float(v) for v in user.values() if v.ndim == 0)
    losses[bits] = float(metrics.loss[0])
    assert losses[bits] == pytest.approx(np.mean((1 - scores)**2), rel=1e-4)
  assert abs(losses[0] - losses[2]) > 1e-3 * losses[0]


def test_where_downloads_cannot_be_rounded_is_said():
  small = CompressionConfig(downlink_bits=8)
  for bad in (1, 17, -1):
    with pytest.raises(ValueError, match=f'downlink_bits={bad}'):
      CompressionConfig(downlink_bits=bad)
  with pytest.raises(ValueError, match='secure.level=ideal'):
    Config(compression=small, secure=SecureConfig(level='ideal'))
  with pytest.raises(ValueError, match='algorithm.name=ials'):
    Config(compression=small, algorithm=AlgorithmConfig(name='ials'))
  for name in ('gpfedrec', 'cofedrec'):
    with pytest.raises(ValueError, match=f'algorithm.name={name}.*pfedrec'):
      Config(compression=small, algorithm=AlgorithmConfig(name=name))
  Config(compression=small, algorithm=AlgorithmConfig(name='pfedrec'))
