"""Clipping every item row before the whole, seen from outside a run.

Clients do not train: each sends a delta that is known beforehand, so what the
server moves by can be written down, client by client and row by row.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.local_training import Contribution
from fedjaxrec.protection import build_protection
from fedjaxrec.simulation import make_simulation
from fedjaxrec.study_fields import program_key, trace_fields
from fedjaxrec.uplink import send
from tests import oracles, plain
from tests.orchestration import secure_end_to_end_test as secure_runs

COUNTS = [3, 5, 1, 8, 4, 7, 2]
NUM_CLIENTS, NUM_ITEMS, DIM = len(COUNTS), 20, 3
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=4)
BROKEN = 4
# Between the shortest row, 2 / 64 long, and the longest, 140 / 32; and between
# the norms of the clients' deltas, with clipped rows and without.
ROW, WHOLE = 0.9, 1.5
ROWS = {'row_clip_norm': ROW}
BOTH = ROWS | {'l2_clip_norm': WHOLE}
GROUPS = ROWS | {'item_clip_norm': 1.2, 'shared_clip_norm': 0.2}


def make_config(privacy, **sections):
  return config.Config(**{
      'rounds': 2, 'model': config.ModelConfig(dim=DIM),
      'objective': plain.objective(name='squared_error'),
      'client': plain.client(batch_size=8), 'server': plain.server(),
      'cohort': plain.cohort(size=0),
      'privacy': config.PrivacyConfig(**privacy),
      'engine': config.EngineConfig(block_size=2, num_size_classes=1),
      'parallel': config.ParallelConfig(mode='single'), **sections})


def send_known_deltas(algorithm, broken=False):
  """Client c sends (c + 1) (i + 1) / 64 in row i, and (c + 1) / 16 shared."""
  def draw(client, key):
    examples = algorithm.draw(client, key)
    return examples._replace(labels=jnp.full_like(
        examples.labels, client.client_id + 1))

  def client_update(view, examples, num_examples):
    client = examples.labels[:, :1, None]
    value = jnp.where(examples.used, client * (examples.rows + 1) / 64, 0.0)
    if broken:
      value = jnp.where(
          (client == BROKEN + 1) & examples.used, jnp.nan, value)
    rows = {name: jnp.broadcast_to(
        value.reshape(*value.shape, *[1] * (x.ndim - value.ndim)), x.shape)
            for name, x in view.item_rows.items()}
    ones = jnp.ones(len(num_examples))
    return Contribution(
        rows, jax.tree.map(
            lambda x: jnp.broadcast_to(
                client[:, 0, 0].reshape(-1, *[1] * (x.ndim - 1)) / 16, x.shape),
            view.shared), ones, ones, num_examples), view.personal

  return algorithm._replace(draw=draw, client_update=client_update)


def run(settings, broken=False, rounds=1):
  """(what rows moved by [items, dim + 1], what shared moved by, metrics)."""
  simulation = make_simulation(
      settings, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS,
      transform_algorithm=lambda a: send_known_deltas(a, broken))
  start = simulation.init()
  before = jax.tree.map(np.array, (start.server.item_table,
                                   start.server.shared))
  state, metrics = simulation.run(start, 0, rounds)
  table, shared = jax.tree.map(
      lambda new, old: np.asarray(new, np.float64) - old,
      (state.server.item_table, state.server.shared), before)
  return (np.concatenate([table['item_bias'][:, None], table['item']], 1),
          float(shared['bias']), metrics, state)


def sum_by_hand(privacy, clients=range(NUM_CLIENTS), rows_too=True):
  """float64: (sum of clipped rows [items, dim + 1], of the shared numbers)."""
  total, total_shared = np.zeros((NUM_ITEMS, DIM + 1)), 0.0
  for c in clients:
    delta = np.zeros((NUM_ITEMS, DIM + 1))
    mine, _ = POPULATION.client(c)
    for item in mine:
      row = np.full(DIM + 1, (c + 1) * (item + 1) / 64)
      if rows_too and 'row_clip_norm' in privacy:
        row *= min(1, privacy['row_clip_norm'] / np.sqrt((row**2).sum()))
      delta[item] = row
    shared = (c + 1) / 16
    if 'item_clip_norm' in privacy:
      delta *= min(1, privacy['item_clip_norm'] / np.sqrt((delta**2).sum()))
      shared *= min(1, privacy['shared_clip_norm'] / shared)
    elif 'l2_clip_norm' in privacy:
      scale = min(1, privacy['l2_clip_norm'] / np.sqrt(
          (delta**2).sum() + shared**2))
      delta, shared = delta * scale, shared * scale
    total, total_shared = total + delta, total_shared + shared
  return total, total_shared


# Each of 7 clients' numbers, below 4, is off by at most 8 roundings of half an
# ulp (norm, two scales, products); their sum, on a table of numbers below 1.
ATOL = (7 * 8 * 4 + 8 * 32) * 2.0**-24


def assert_moved(found, expected, atol=ATOL):
  """The server's step is the mean over who reported."""
  np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=atol)
  np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=atol)


def divided(total, number):
  return total[0] / number, total[1] / number


@functools.cache
def plainly(which):
  return run(make_config({'rows': ROWS, 'both': BOTH, 'groups': GROUPS}[which]))


@pytest.mark.parametrize('which', ['rows', 'both', 'groups'])
def test_rows_are_clipped_and_then_the_whole(which):
  privacy = {'rows': ROWS, 'both': BOTH, 'groups': GROUPS}[which]
  expected = divided(sum_by_hand(privacy), NUM_CLIENTS)
  assert_moved(plainly(which), expected)
  # Positive control: without the clipping of rows it is another sum.
  without = divided(sum_by_hand(privacy, rows_too=False), NUM_CLIENTS)
  assert np.abs(without[0] - expected[0]).max() > 100 * ATOL


def test_both_bounds_bind_for_some_and_not_for_others():
  """What the tests above rest on."""
  rows = [(c + 1) * (i + 1) / 32 for c in range(NUM_CLIENTS)
          for i in POPULATION.client(c)[0]]
  assert min(rows) < ROW < max(rows)
  norms = [np.hypot(*map(np.linalg.norm, sum_by_hand(ROWS, [c])))
           for c in range(NUM_CLIENTS)]
  assert min(norms) < WHOLE < max(norms)


@pytest.mark.parametrize(('num_devices', 'block_size', 'place'), [
    (3, 1, 'host'), (1, 7, 'device')])
def test_blocks_devices_and_the_place_of_the_data_change_nothing(
    num_devices, block_size, place):
  found = run(make_config(
      BOTH, parallel=config.ParallelConfig(
          mode='single' if num_devices == 1 else 'shard_map',
          num_devices=num_devices),
      engine=config.EngineConfig(
          block_size=block_size, num_size_classes=1, data=place)))
  assert_moved(found, plainly('both')[:2], 2 * ATOL)


def test_a_client_that_is_not_finite_is_left_out_and_counted():
  found = run(make_config(BOTH), broken=True)
  others = [c for c in range(NUM_CLIENTS) if c != BROKEN]
  assert_moved(found, divided(sum_by_hand(BOTH, others), len(others)))
  assert int(found[2].rejected[0]) == 1
  assert int(found[2].reported[0]) == len(others)


def test_a_secure_sum_gets_rows_that_were_clipped_before_they_were_packed():
  found = run(make_config(BOTH, secure=config.SecureConfig(
      level='ideal', bits=24)))
  # 24 bits hold 7 clients' entries of at most 1.5: a unit is 2^-18, and every
  # client's entry is rounded to a whole number of units.
  unit = NUM_CLIENTS * WHOLE / (2.0**23 - 1 - NUM_CLIENTS)
  assert unit < 2.0**-18
  assert_moved(
      found, divided(sum_by_hand(BOTH), NUM_CLIENTS), ATOL + unit)


def test_a_secure_sum_on_the_host_is_that_of_the_compiled_round():
  changes = {'privacy__row_clip_norm': 0.02}
  ideal = secure_runs.play(secure_runs.small('ideal', **changes))
  masked = secure_runs.play(secure_runs.small('masked', **changes))
  secure_runs.assert_same(ideal[1], masked[1])


def send_one(settings, sizes=(1, 2, 3), round_index=0, memory=()):
  """What one client's delta of three rows becomes, by the run's own uplink."""
  rows = jnp.array([*sizes, 0.0])[:, None, None] * jnp.ones((4, 1, DIM))
  delta = ({'item': rows, 'item_bias': rows[..., 0]},
           {'bias': jnp.float32(0.1)})
  protection = build_protection(settings, 10.0, 10)
  state = ()
  if protection.server_transform is not None:
    state = protection.server_transform.init(delta)
  key = jax.random.fold_in(jax.random.key(3), round_index)
  if protection.uplink.has_memory and not memory:
    memory = jax.tree.map(jnp.zeros_like, delta)
  return send(protection.uplink, delta, jnp.array([[1], [1], [1], [0]], bool),
              memory, state, key, key)


def row_norms(sent):
  item, bias = sent.delta[0]['item'], sent.delta[0]['item_bias']
  return np.sqrt(np.square(item).sum(-1) + np.square(bias))


@pytest.mark.parametrize('compression', [
    {'sparsify': 'random_k', 'fraction': 0.3, 'granularity': 'entries'},
    {'sketch': 'low_rank', 'rank': 1},
    {'sparsify': 'top_k', 'fraction': 0.3, 'error_feedback': True}])
def test_no_row_that_is_sent_is_longer_than_the_bound(compression):
  """What compression makes longer, memory too, is clipped again."""
  def longest(privacy):
    settings = make_config(
        privacy, compression=config.CompressionConfig(**compression))
    memory, norms = (), []
    for r in range(3):
      # Four entries of 0.45: rows of 0.9, which both settings leave alone.
      sent = send_one(settings, [ROW / 2] * 3, r, memory)
      memory = sent.memory
      norms.append(row_norms(sent).max())
    return max(norms)

  assert 0 < longest(ROWS) <= ROW * (1 + 1e-6)
  # Positive control: that they are short before is not enough.
  assert longest({'l2_clip_norm': 100.0}) > ROW + 0.1


def test_an_adaptive_norm_learns_from_deltas_whose_rows_are_clipped():
  adaptive = {'l2_clip_norm': 1.0, 'clipping': 'adaptive',
              'noise_multiplier': 0.1}
  # Below the norm, +1/2: three rows of 0.5, and 0.1, but not rows as they are.
  assert send_one(make_config(adaptive | {'row_clip_norm': 0.5})).reports == 0.5
  assert send_one(make_config(adaptive)).reports == -0.5
  # Three rows of 0.6 are longer than 1.
  assert send_one(
      make_config(adaptive | {'row_clip_norm': 0.6})).reports == -0.5


def test_a_traced_bound_is_its_value():
  """As the members of a study share a program."""
  settings = make_config(BOTH)
  traced = jax.jit(lambda bound: send_one(trace_fields(
      settings, {'privacy.row_clip_norm': bound})).delta)(0.2)
  expected = send_one(make_config(BOTH | {'row_clip_norm': 0.2})).delta
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-6), traced, expected)
  assert program_key(settings) == program_key(
      make_config(BOTH | {'row_clip_norm': 0.2}))
  assert program_key(settings) != program_key(
      make_config({'l2_clip_norm': WHOLE}))


def test_no_delta_is_longer_than_what_epsilon_rests_on():
  for scale in (0.01, 1.0, 1e6):
    sent = send_one(make_config(BOTH), np.array([1, 2, 3]) * scale)
    assert np.hypot(np.linalg.norm(row_norms(sent)), float(
        sent.delta[1]['bias'])) <= WHOLE * (1 + 1e-6)
    assert row_norms(sent).max() <= ROW * (1 + 1e-6)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'privacy': config.PrivacyConfig(**ROWS),
      'local_privacy': config.LocalPrivacyConfig(
          mechanism='gaussian', epsilon=8.0)}, 'local_privacy.mechanism'),
    ({'privacy': config.PrivacyConfig(**ROWS),
      'algorithm': config.AlgorithmConfig(name='fcf')},
     'algorithm.name=fcf with a section privacy')])
def test_what_has_no_rows_to_clip_is_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    config.Config(**changes)


def test_rows_alone_are_no_bound_for_a_budget():
  with pytest.raises(ValueError, match='row_clip_norm=0.9 with a budget'):
    config.PrivacyConfig(epsilon=8.0, **ROWS)
