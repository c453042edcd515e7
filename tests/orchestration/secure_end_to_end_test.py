"""One model at every level of secrecy, and what is refused on the way."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.aggregation.messages import Stage
from fedjaxrec.orchestration import (
  experiment,
  secure,
  secure_account,
  secure_sums,
)
from fedjaxrec.simulation import make_simulation
from tests.orchestration.resume_test import train_until
from tests.small_runs import (
  assert_same_run,
  make_config,
  make_interactions,
  read_lines,
)

NUM_ITEMS = 24
ROWS = [list(range(i % 5, NUM_ITEMS, 5)) for i in range(12)]
BASE = {'rounds': 2, 'cohort.size': 6, 'secure.l2_clip_norm': 2.0,
        'client.item_learning_rate': 0.5}


def small(level, **changes):
  """Two rounds of six clients of twelve."""
  return make_config({**BASE, 'secure.level': level, **{
      name.replace('__', '.'): value for name, value in changes.items()}})


def play(config, rounds=2, spoil=None):
  """(table before, state after, reported, rejected, totals on the host)."""
  train = make_interactions(ROWS, NUM_ITEMS)
  run = secure.prepare(config, train, NUM_ITEMS)
  sums = run.sums
  simulation = make_simulation(
      run.config, train.offsets, train.items, train.ratings, NUM_ITEMS,
      open_rows=run.open_rows, sum_on_host=sums,
      transform_algorithm=spoil or (lambda algorithm: algorithm))
  first = simulation.init()
  before = [np.array(x) for x in jax.tree.leaves(first.server.item_table)]
  state, metrics = simulation.run(first, 0, rounds)
  return (before, [np.array(x) for x in jax.tree.leaves(
      (state.server.item_table, state.server.shared))],
          [int(n) for n in np.asarray(metrics.reported)[:rounds]],
          [int(n) for n in np.asarray(metrics.rejected)[:rounds]],
          sums and secure_account.add_up(
              sums.take(r) for r in range(rounds)))


def assert_same(left, right):
  for a, b in zip(left, right, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope='module')
def ideal():
  return play(small('ideal'))


def test_the_model_moves(ideal):
  before, after, reported, _, _ = ideal
  assert reported == [6, 6]
  assert np.abs(before[0] - after[0]).max() > 1e-3


@pytest.mark.parametrize('changes', [
    {'level': 'masked'}, {'level': 'protocol'},
    {'level': 'protocol', 'secure__rows': 'union'},
    {'level': 'masked', 'secure__rows': 'union', 'engine__data': 'host'},
    {'level': 'shares', 'secure__num_servers': 3},
    {'level': 'shares', 'secure__norm_check': True},
    {'level': 'he'},
], ids=lambda changes: '-'.join(map(str, changes.values())))
def test_every_level_has_the_same_model_bit_for_bit(ideal, changes):
  if changes['level'] == 'he':
    pytest.importorskip('tenseal')
  _, after, reported, _, sums = play(small(**changes))
  assert_same(after, ideal[1])
  assert reported == [6, 6]
  assert sums.rounds == 2 and not sums.aborts and not sums.rejected
  assert sums.participations == 12 and sum(sums.uplink_bytes.values()) > 0
  assert not sums.inexact_rounds


def test_clients_in_other_processes_have_the_same_model():
  config = small('protocol', secure__transport='tcp')
  assert_same(play(config, rounds=1)[1], play(small('ideal'), rounds=1)[1])


def test_a_rotation_is_undone_and_is_the_same_at_every_level():
  """Item rows have four entries; their biases stay as they are."""
  turned = {'secure__bits': 32, 'server__optimizer': 'sgd',
            'server__learning_rate': 1.0, 'rounds': 1}
  before, ideal, reported, _, _ = play(
      small('ideal', secure__rotation=4, **turned), 1)
  _, masked, _, _, sums = play(small(
      'masked', secure__rotation=4, secure__rows='union', **turned), 1)
  assert_same(ideal, masked)
  assert reported == [6] and sums.survivors == 6
  _, plain, _, _, _ = play(small('ideal', **turned), 1)
  # Six clients' roundings in a mean of six: an integer an entry, and of four
  # rotated back twice that, with scale 2^31 / 6 / 2. Norms of up to 2 pass
  # eight steps of float32 there and back, and the decoded sum of six a few.
  atol = 2 * 2 * 12 / 2**31 + 16 * 2 * 2.0**-24
  for a, b in zip(ideal, plain, strict=True):
    np.testing.assert_allclose(a, b, atol=atol)
  assert np.abs(ideal[0] - before[0]).max() > 100 * atol
  assert any((a != b).any() for a, b in zip(ideal, plain))  # It was rotated.


@pytest.mark.parametrize(('level', 'rotation', 'words'), [
    ('ideal', 12, 'power of two'), ('ideal', -4, 'power of two'),
    ('none', 4, 'secure.level=none'), ('ideal', 8, 'secure.rotation=4 or less'),
    ('masked', 64, 'has 4 entries')])
def test_a_rotation_that_cannot_be_is_refused(level, rotation, words):
  with pytest.raises(ValueError, match=f'secure.rotation={rotation}.*{words}'):
    secure.prepare(
        make_config({'secure.level': level, 'secure.rotation': rotation}),
        make_interactions(ROWS, NUM_ITEMS), NUM_ITEMS)


DROPS = {'secure__dropout': 0.1, 'secure__min_survivors': 2,
         'secure__num_neighbors': 9, 'secure__threshold': 5, 'seed': 7,
         'cohort__size': 10}


def test_those_who_are_counted_are_the_survivors():
  """Whoever falls silent before the upload is in no sum, at any level."""
  config = small('protocol', **DROPS)
  _, after, reported, _, sums = play(config)
  expected = [10 - sum(
      stage <= Stage.MASKED_INPUT for stage in secure_sums.draw_dropouts(
          list(range(10)), 0.1, 7, r).values()) for r in range(2)]
  assert reported == expected and sum(reported) < 20  # Somebody is gone.
  assert sums.survivors == sum(reported) and not sums.aborts
  _, masked, counted, _, _ = play(small('masked', **DROPS))
  assert counted == reported
  assert_same(after, masked)
  _, union, counted, _, _ = play(small('masked', secure__rows='union', **DROPS))
  assert counted == reported
  assert_same(after, union)


def test_an_aborted_round_leaves_the_model_alone():
  config = small('masked', secure__min_survivors=6, secure__dropout=0.45,
                 secure__num_neighbors=4, server__optimizer='sgd')
  before, after, reported, _, sums = play(config)
  assert reported == [0, 0]
  assert sums.aborts == {'too_few_survivors': 2}
  # What was sent in vain stands apart.
  assert not sums.uplink_bytes and sums.participations == 0
  assert sums.aborted_participations == 12 and sums.aborted_uplink_bytes > 0
  assert_same(before, after[:len(before)])


@pytest.mark.parametrize(('value', 'level'), [
    (np.nan, 'masked'), (np.inf, 'ideal'), (1e30, 'masked')])
def test_a_client_that_breaks_is_refused_and_counted(value, level):
  def spoil(algorithm):
    def update(view, examples, num_examples):
      found, own = algorithm.client_update(view, examples, num_examples)
      return found._replace(item_rows=jax.tree.map(
          lambda x: x.at[0].set(jnp.float32(value)), found.item_rows)), own
    return algorithm._replace(client_update=update)

  config = small(level, engine__block_size=6)
  _, after, reported, rejected, _ = play(config, spoil=spoil)
  assert reported == [5, 5] and rejected == [1, 1]
  assert all(np.isfinite(x).all() for x in after)


def test_too_few_in_the_compiled_round_are_as_nobody():
  def spoil(algorithm):
    def update(view, examples, num_examples):
      found, own = algorithm.client_update(view, examples, num_examples)
      return found._replace(item_rows=jax.tree.map(
          lambda x: x * jnp.nan, found.item_rows)), own
    return algorithm._replace(client_update=update)

  before, after, reported, rejected, _ = play(small('ideal'), spoil=spoil)
  assert reported == [0, 0] and rejected == [6, 6]
  assert_same(before, after[:len(before)])


@pytest.mark.parametrize(('noise', 'level'), [
    ('skellam', 'masked'), ('discrete_gaussian', 'ideal')])
def test_the_clients_noise_is_as_large_as_said(level, noise):
  """The sums of still clients are noise: its size, measured from outside."""
  config = small(
      level, secure__noise=noise, secure__bits=13, model__dim=64,
      privacy__l2_clip_norm=2.0, secure__l2_clip_norm=0.0,
      privacy__noise_multiplier=0.5, server__optimizer='sgd',
      server__learning_rate=1.0, secure__min_survivors=4,
      client__item_learning_rate=1e-12, client__learning_rate=1e-12)
  before, after, reported, _, _ = play(config, rounds=1)
  assert reported == [6]
  # Six shares, of which four make up the multiplier; a mean over six.
  expected = 0.5 * 2.0 * (6 / 4) ** 0.5 / 6
  moved = (after[0] - before[0]).reshape(-1)
  # The variance of 1,536 entries is off by 5 sigma = 18 % at most, rounding
  # adds less than 1 %.
  assert moved.size == 24 * 64
  assert 0.8 < moved.var() / expected**2 < 1.2


def test_head_rows_alone_travel_and_move():
  config = small(
      'masked', secure__rows='chosen', privacy__head_items=10,
      secure__noise='skellam', privacy__l2_clip_norm=2.0,
      privacy__noise_multiplier=0.5, secure__l2_clip_norm=0.0)
  before, after, _, _, sums = play(config)
  still = (before[0] == after[0]).all(axis=1)
  assert still.sum() == NUM_ITEMS - 10
  # Sixteen bits for ten rows; the shared parameters come on top.
  assert sum(sums.uplink_bytes.values()) / 12 < 2 * 5 * NUM_ITEMS


class TestRunDirectory:

  @pytest.fixture(scope='class')
  def finished(self, tmp_path_factory):
    config = make_config({'secure.level': 'masked', 'rounds': 2,
                          'secure.rows': 'union'})
    return experiment.train(
        config, tmp_path_factory.mktemp('secure') / 'run', progress=False)

  def test_the_summary_says_what_was_secret_and_what_it_cost(self, finished):
    found = json.loads((finished.workdir / 'summary.json').read_text())
    section = found['secure']
    assert section['level'] == 'masked' and section['bits'] == 16
    assert section['survivors'] == 10 and section['aborted_rounds'] == 0
    assert 'operator' in section['trusted']
    assert 'which rows the cohort touched' in section['server_learns']
    rows, dim = section['rows_travelling'], 4
    # Two bytes a number, a word an item for the union.
    shared = section['dimension'] - found['data']['num_items'] * (
        (section['dimension']) // found['data']['num_items'])
    assert section['uplink_payload_bytes_per_client'] >= 2 * rows * dim + (
        4 * found['data']['num_items']) - 2 * shared
    assert found['communication']['uplink_bytes_per_client'] == (
        section['uplink_bytes_per_client'])
    assert section['client_s'] > 0
    report = (finished.workdir / 'report.html').read_text()
    assert 'Secure sums' in report and 'operator' in report

  def test_a_resumed_run_is_the_uninterrupted_one(self, tmp_path):
    config = make_config({'secure.level': 'ideal', 'rounds': 4})
    experiment.train(config, tmp_path / 'whole', progress=False)
    train_until(tmp_path / 'cut', 2, config)
    experiment.train(config, tmp_path / 'cut', resume=True, progress=False)
    assert_same_run(tmp_path / 'whole', tmp_path / 'cut')
    assert read_lines(tmp_path / 'cut')


@pytest.mark.parametrize(('changes', 'words'), [
    ({'server.row_normalization': 'contributors'}, 'row_normalization=mean'),
    ({'parallel.mode': 'shard_map'}, 'parallel.mode=single'),
    ({'parallel.mode': 'auto', 'parallel.num_devices': 2},
     'parallel.mode=single'),
    ({'secure.rows': 'chosen'}, 'privacy.head_items'),
    ({'secure.min_survivors': 11}, 'lower it'),
    ({'secure.min_survivors': 1}, 'at least 2'),
    ({'secure.threshold': 4}, 'give both'),
    ({'secure.transport': 'tcp', 'secure.level': 'masked'},
     'secure.level=protocol'),
    ({'secure.norm_check': True}, 'secure.level=shares'),
    ({'secure.noise': 'skellam'}, 'privacy.noise_multiplier'),
    ({'secure.level': 'he', 'secure.rows': 'union'}, 'rows=dense'),
    ({'secure.level': 'he', 'secure.bits': 32}, '24'),
    ({'cohort.size': 1}, 'invite more'),
    ({'secure.l2_clip_norm': 16.0, 'privacy.l2_clip_norm': 2.0},
     'secure.l2_clip_norm=16.0.*clip norm of 2 '),
    ({'secure.l2_clip_norm': 4.0, 'privacy.item_clip_norm': 3.0,
      'privacy.shared_clip_norm': 4.0}, 'clip norm of 5 .*item_clip_norm'),
])
def test_what_cannot_be_is_refused_with_the_way_out(changes, words):
  with pytest.raises(ValueError, match=words):
    make_config({'secure.level': 'protocol', **changes})


def test_the_same_clip_norm_may_be_said_twice():
  for privacy in ({'privacy.l2_clip_norm': 2.0}, {
      'privacy.item_clip_norm': 1.2, 'privacy.shared_clip_norm': 1.6}):
    config = make_config({
        'secure.level': 'ideal', 'secure.l2_clip_norm': 2.0, **privacy})
    assert secure.ring_clip_norm(config) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize(('changes', 'words'), [
    # Thirty-two bits for six clients: norms of 2^29 integers.
    ({'secure__level': 'shares', 'secure__norm_check': True,
      'secure__bits': 32}, r'secure.bits=32 with.*use secure.bits=(\d+)'),
    # Of twelve clients half, by coins: more than six may come.
    ({'secure__level': 'masked', 'secure__num_neighbors': 5,
      'cohort__sampler': 'poisson'}, 'secure.num_neighbors=5 is odd'),
    ({'secure__level': 'protocol', 'secure__num_neighbors': 5,
      'secure__threshold': 4, 'cohort__sampler': 'poisson'},
     'secure.num_neighbors=5 is odd'),
])
def test_what_would_stop_in_a_round_is_refused_before(changes, words):
  train = make_interactions(ROWS, NUM_ITEMS)
  level = changes.pop('secure__level')
  with pytest.raises(ValueError, match=words) as refusal:
    secure.prepare(small(level, **changes), train, NUM_ITEMS)
  if 'secure__bits' in changes:  # What it names is the most that works.
    enough = int(re.search(words, str(refusal.value))[1])
    secure.prepare(small(
        level, **{**changes, 'secure__bits': enough}), train, NUM_ITEMS)
    with pytest.raises(ValueError, match='norm_check'):
      secure.prepare(small(
          level, **{**changes, 'secure__bits': enough + 1}), train, NUM_ITEMS)


def test_a_complete_graph_of_fixed_cohorts_may_be_odd():
  secure.prepare(small('masked', secure__num_neighbors=5),
                 make_interactions(ROWS, NUM_ITEMS), NUM_ITEMS)


def test_a_graph_that_hides_nobody_is_refused():
  with pytest.raises(ValueError, match='secure.num_neighbors'):
    play(small('protocol', secure__dropout=0.4))


def test_a_budget_is_kept_and_used_up_in_the_ring_of_the_run():
  """More participations of the busiest client cost more noise."""
  train = make_interactions(ROWS, NUM_ITEMS)

  def plan(rounds):
    return secure.prepare(small(
        'ideal', rounds=rounds, secure__noise='skellam', secure__bits=20,
        privacy__l2_clip_norm=2.0, secure__l2_clip_norm=0.0,
        privacy__epsilon=8.0), train, NUM_ITEMS)

  short, long = plan(2), plan(12)
  for found in (short, long):
    spent = found.private.plan.epsilon()
    assert 0.97 * 8 < spent <= 8
    assert found.private.plan.schedule.sampling_prob == 1
    assert found.config.privacy.noise_multiplier == (
        found.private.plan.noise.noise_multiplier)
  assert short.private.plan.totals[-1] <= 2
  assert long.private.plan.noise.noise_multiplier > (
      1.2 * short.private.plan.noise.noise_multiplier)
