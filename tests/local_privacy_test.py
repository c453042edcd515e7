"""Uploads under local privacy, seen as the server sees them: one by one."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import cli
from fedjaxrec.orchestration import local_runs, private_runs
from fedjaxrec.privacy import explain
from fedjaxrec.protection import build_protection
from fedjaxrec.simulation import make_simulation
from fedjaxrec.transforms.head_reports import ORACLES, estimate_popularity
from fedjaxrec.uplink import send
from tests.small_runs import as_flags, make_config, make_interactions

NUM_CLIENTS, NUM_ITEMS = 6, 40
ROWS = [[(7 * c + 3 * j) % NUM_ITEMS for j in range(1 + c)]
        for c in range(NUM_CLIENTS)]
LOCAL = {
    'rounds': 2, 'cohort.size': 1, 'objective.name': 'squared_error',
    'objective.num_negatives': 0, 'server.optimizer': 'sgd',
    'server.learning_rate': 1.0, 'engine.rounds_per_call': 1,
    'local_privacy.mechanism': 'gaussian', 'local_privacy.epsilon': 2.0,
    'local_privacy.delta': 1e-3, 'local_privacy.clip_norm': 0.5}
MECHANISMS = ('gaussian', 'laplace', 'priv_unit')


def upload(config, open_rows=None):
  """What the clients of the first round send: (first id, float [items, all]).
  """
  train = make_interactions(ROWS, NUM_ITEMS)
  simulation = make_simulation(
      config, train.offsets, train.items, train.ratings, NUM_ITEMS,
      open_rows=open_rows)

  def table(state):
    return np.concatenate([
        np.array(x).reshape(NUM_ITEMS, -1)
        for x in jax.tree.leaves(state.server.item_table)], axis=1)

  state = simulation.init()
  before = table(state)
  state, _ = simulation.run(state, 0, 1)
  return int(simulation.sampler(0)[0]), table(state) - before


@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_an_upload_shows_every_open_row_and_no_other(mechanism):
  changes = {'local_privacy.mechanism': mechanism}
  open_rows = np.arange(NUM_ITEMS) % 4 < 3
  client, sent = upload(
      make_config(LOCAL | changes | {'local_privacy.head_items': 30}),
      open_rows)
  assert (np.abs(sent[open_rows]) > 0).all()
  np.testing.assert_array_equal(sent[~open_rows], 0)
  if mechanism != 'gaussian':
    return
  # The control: without it the upload names the client's items.
  plain = {k: v for k, v in LOCAL.items() if not k.startswith('local')}
  other, shown = upload(make_config(plain))
  assert other == client
  assert set(np.flatnonzero(np.abs(shown).sum(1))) == set(ROWS[client])


def released(config, deltas, keys):
  """Many uploads of one client, of the deltas [2, entries], by `send`."""
  uplink = build_protection(config, 1.0, 1).uplink
  entries = deltas.shape[-1]

  def one(delta, key):
    return send(
        uplink, (({'item': delta[:, None]}), {}), jnp.ones(entries, bool), (),
        (), key, jax.random.key(0)).delta[0]['item'][:, 0]

  return np.asarray(jax.jit(jax.vmap(
      lambda key: jax.vmap(lambda d: one(d, key))(deltas)))(keys))


@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_an_upload_has_the_mean_and_the_noise_that_are_accounted_for(
    mechanism):
  config, train = make_config(
      LOCAL | {'local_privacy.mechanism': mechanism}), make_interactions(
          ROWS, NUM_ITEMS)
  plan = private_runs.prepare(config, train).plan
  norm = {'laplace': 1}.get(mechanism, 2)
  delta = np.zeros((1, 50), np.float32)
  delta[0, :2] = 3.0, 4.0
  clipped = delta[0] * 0.5 / np.linalg.norm(delta[0], norm)
  sent = released(config, delta, jax.random.split(jax.random.key(3), 20_000))
  sent = sent[:, 0]
  noise = sent - clipped
  stddev = noise[:, 2:].std()  # A million draws: 1 % is 14 deviations.
  if mechanism == 'priv_unit':
    wanted = 0.5 * plan._replace(dimension=50).summary()['local'][
        'upload_norm_over_clip_norm']
    np.testing.assert_allclose(
        np.linalg.norm(sent, axis=1), wanted, rtol=1e-4)
  else:
    assert stddev == pytest.approx(0.5 * plan.noise_multiplier, rel=0.01)
  assert np.abs(noise.mean(0)).max() < 5 * stddev / math.sqrt(len(sent))


@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_an_attack_on_one_upload_stays_below_epsilon_and_finds_less_noise(
    mechanism):
  """Two opposite deltas on the bound; the control has a tenth of the noise."""
  def bound(epsilon):
    config = make_config(LOCAL | {
        'local_privacy.mechanism': mechanism, 'local_privacy.epsilon': epsilon})
    deltas = np.zeros((2, 8), np.float32)
    deltas[:, 0] = 1.0, -1.0
    sent = released(config, deltas, jax.random.split(jax.random.key(5), 20_000))
    best = 0.0
    for threshold in np.quantile(sent[:, :, 0], (0.3, 0.5, 0.7, 0.9, 0.98)):
      seen, wrong = (sent[:, :, 0] > threshold).mean(0)
      # Five standard deviations towards no leak, on both sides.
      slack = lambda p: 5 * math.sqrt(max(p * (1 - p), 1e-3) / len(sent))
      low, high = seen - slack(seen) - 1e-3, wrong + slack(wrong)
      if low > 0:
        best = max(best, math.log(low / high))
    return best

  assert 0.1 < bound(1.0) <= 1.0
  assert bound(10.0) > 1.0  # The control.


def test_an_uploads_randomness_is_the_clients_own_whatever_the_engine():
  base = make_config(LOCAL | {'cohort.size': 6})
  tables = []
  for devices, block_size in ((1, 4), (4, 1)):
    config = dataclasses.replace(
        base, engine=dataclasses.replace(base.engine, block_size=block_size),
        parallel=dataclasses.replace(
            base.parallel, num_devices=devices,
            mode='single' if devices == 1 else 'shard_map'))
    tables.append(upload(config)[1])
  # Sums of six float32 numbers of at most some ten, in another order.
  np.testing.assert_allclose(*tables, atol=6 * 16 * 2**-23)


@pytest.mark.parametrize('name', sorted(ORACLES))
def test_one_report_of_every_client_finds_the_popular_items(name):
  rng = np.random.default_rng(0)
  rows = [sorted({0, int(rng.integers(1, 30))} if c % 2 else {
      int(rng.integers(1, 30))}) for c in range(1500)] + [[]]
  train = make_interactions(rows, 30)
  wanted = np.zeros(30)
  for row in rows:
    for item in row:
      wanted[item] += 1 / len(row)
  estimates = np.stack([np.asarray(estimate_popularity(
      name, 2.0, jnp.asarray(train.offsets, jnp.int32),
      jnp.asarray(train.items), 30, jax.random.key(k))) for k in range(8)])
  # One report each of one item drawn from its own: a binomial's deviation, and
  # the oracle's.
  stddev = math.hypot(
      ORACLES[name](30, 2.0).stddev(1501, int(wanted[0])),
      math.sqrt(1500) / 2) / math.sqrt(8)
  assert abs(estimates.mean(0) - wanted).max() < 5 * stddev
  config = make_config(LOCAL | {
      'local_privacy.head_items': 1, 'local_privacy.head_choice': name,
      'local_privacy.head_epsilon': 4.0})
  assert local_runs.choose_head(config, train)[0]
  with pytest.raises(ValueError, match='head_items=1 of 1 items'):
    local_runs.choose_head(config, make_interactions([[0]], 1))


def test_a_run_by_flags_says_what_each_user_paid_in_bytes_and_epsilon(tmp_path):
  changes = {
      'rounds': 2, 'evaluation.every': 0, 'checkpoint.every': 0,
      'cohort.size': 10, 'local_privacy.mechanism': 'laplace',
      'local_privacy.epsilon': 1.0, 'local_privacy.head_items': 20,
      'local_privacy.head_choice': 'randomized_response'}
  assert cli.main(['fedjaxrec', 'train', *as_flags(changes), '--noprogress',
                   f'--workdir={tmp_path / "run"}']) == 0
  said = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  paid, bytes_ = said['privacy']['local'], said['communication']
  assert 1.0 <= paid['epsilon'] <= paid['epsilon_by_adding_up'] + 0.01
  assert paid['epsilon_by_adding_up'] == 1.0 + paid['participations']
  # 20 rows of 4 numbers and their biases, and one shared number: dense.
  assert bytes_['uplink_bytes_per_client'] == 4 * paid['dimension'] == (
      bytes_['downlink_bytes_per_client'])
  assert explain.explain(tmp_path / 'run')['epsilon'] == pytest.approx(
      paid['epsilon'], abs=2e-2)
  assert 'Local privacy' in (tmp_path / 'run' / 'report.html').read_text()


def test_estimates_before_the_plan_and_sweeps_know_local_privacy():
  config = make_config(LOCAL | {'local_privacy.delta': 0.0})
  assert private_runs.with_some_noise(config).local_privacy.delta > 0
  uplink = build_protection(
      private_runs.with_some_noise(config), 1.0, 1).uplink
  assert uplink.is_dense and not uplink.is_plain
  with pytest.raises(ValueError, match='local_privacy.delta=0'):
    build_protection(config, 1.0, 1)
