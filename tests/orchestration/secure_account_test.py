"""What secure sums cost is counted once, aborted rounds and resumes included.
"""

import dataclasses
import json

import numpy as np
import pytest

from fedjaxrec.aggregation.packing import packed_bytes
from fedjaxrec.aggregation.row_union import RowLayout
from fedjaxrec.orchestration import (
  experiment,
  secure,
  secure_account,
  secure_sums,
)
from fedjaxrec.orchestration.secure_sums import make_sum_on_host
from tests.orchestration.resume_test import train_until
from tests.small_runs import make_config

D = 30
LAYOUT = RowLayout(10, (3,), 0)
TIMES = ('client_s', 'server_s', 'key_holder_s')


def make_sums(level, **changes):
  config = make_config({'secure.level': level, 'cohort.size': 8, **{
      name.replace('__', '.'): value for name, value in changes.items()}})
  return make_sum_on_host(config, 16, 100.0, 8, LAYOUT)


def messages(n=8):
  rng = np.random.default_rng(0)
  return {c: rng.integers(0, 50, D).astype(np.uint32) for c in range(n)}


@pytest.mark.parametrize('level', ['masked', 'protocol', 'shares', 'he'])
def test_a_round_without_a_sum_counts_what_was_sent(level, monkeypatch):
  """Everybody sends, and the sum of so few is not opened."""
  if level == 'he':
    pytest.importorskip('tenseal')
  sums = make_sums(level, secure__min_survivors=2)
  sums(messages(), 0)
  # Of eight one sends what is no vector, and all eight are wanted.
  monkeypatch.setattr(sums, 'threshold', 8)
  spoiled = messages() | {0: np.zeros(D + 1, np.uint32)}
  nothing = sums(spoiled, 1)
  assert nothing.reported == 0 and nothing.counted == ()
  assert not nothing.total.any()
  whole, aborted = (sums.take(r) for r in range(2))
  assert aborted['aborted'] == 'too_few_survivors'
  assert aborted['asked'] == 8 and aborted['survivors'] == 0
  assert aborted['rejected'] == {'bad_input': 1}
  totals = secure_account.add_up([whole, aborted])
  assert totals.rounds == 2 and totals.summed == 1
  assert totals.participations == 8 and totals.aborted_participations == 8
  assert totals.uplink_bytes == whole['uplink_bytes']
  assert 0 < totals.aborted_uplink_bytes < sum(whole['uplink_bytes'].values())
  if level == 'masked':  # By hand: seven vectors of sixteen bits.
    assert totals.aborted_uplink_bytes == 7 * packed_bytes(D, 16)
  said = secure_account.describe(totals)
  assert said['aborts'] == {'too_few_survivors': 1}
  assert said['aborted']['clients'] == 8
  assert sum(said['uplink_bytes_by_stage'].values()) == (
      sum(whole['uplink_bytes'].values()) / 8)


def test_too_few_invited_send_nothing():
  sums = make_sums('masked', secure__min_survivors=4)
  assert sums(messages(3), 5).reported == 0
  account = sums.take(5)
  assert account['aborted'] == 'too_few_invited' and account['asked'] == 3
  assert not account['uplink_bytes'] and not sums.accounts


def test_survivors_are_named_so_that_others_may_keep_what_they_have():
  sums = make_sums('masked', secure__dropout=0.4, secure__min_survivors=2)
  found = sums(messages(), 0)
  assert found.reported == len(found.counted) < 8
  assert sums.take(0)['survivors'] == found.reported


def test_the_norm_is_proved_of_what_is_summed_and_not_of_the_union():
  """In a ring of 32 bits too, which is as wide as that of the union."""
  config = make_config({
      'secure.level': 'shares', 'secure.rows': 'union', 'cohort.size': 8,
      'secure.norm_check': True, 'secure.bits': 32})
  sums = make_sum_on_host(config, 32, 100.0, 8, LAYOUT, None, 500.0)
  found = sums(messages(), 0)
  assert found.reported == 8 and not sums.take(0)['rejected']
  np.testing.assert_array_equal(found.total, sum(messages().values()))
  too_long = messages() | {3: np.full(D, 400, np.uint32)}
  assert 3 not in sums(too_long, 1).counted
  assert sums.take(1)['rejected'] == {'over_norm': 1}


def test_a_graph_of_ones_own_says_how_little_it_hides():
  config = make_config({
      'secure.level': 'protocol', 'cohort.size': 100,
      'secure.num_neighbors': 6, 'secure.threshold': 4,
      'synthetic.num_users': 200})
  few = secure_sums.graph_bits(config.secure, 100)
  alone = dataclasses.replace(config.secure, num_neighbors=0, threshold=0)
  assert few < 20 and secure_sums.graph_bits(alone, 100) >= 40


def test_accounts_survive_being_written_down():
  account = secure_account.RoundAccount(asked=3, survivors=2, client_s=0.5)
  account.uplink_bytes['shares'] = 7
  read = json.loads(json.dumps(account.to_json()))
  assert read == account.to_json()
  assert {f.name for f in dataclasses.fields(account)} == read.keys()
  assert secure_account.add_up([read, read]).uplink_bytes == {'shares': 14}
  assert secure_account.add_up([]).participations == 0


def timeless(section):
  return {name: value for name, value in section.items() if name not in TIMES}


def test_a_resumed_run_reports_the_whole(tmp_path):
  """The second process measured half of the rounds, and says all of them."""
  config = make_config({
      'rounds': 4, 'secure.level': 'shares', 'secure.dropout': 0.15,
      'secure.min_survivors': 9, 'model.dim': 2})
  whole = experiment.train(config, tmp_path / 'whole', progress=False).summary
  train_until(tmp_path / 'cut', 2, config)
  again = experiment.train(
      config, tmp_path / 'cut', resume=True, progress=False).summary
  assert again['secure']['measured_rounds'] == 4
  assert timeless(again['secure']) == timeless(whole['secure'])
  assert again['communication'] == whole['communication']
  # The seconds of the first process are in it: more than its own lines say.
  lines = [json.loads(line) for line in (
      tmp_path / 'cut' / 'metrics.jsonl').read_text().splitlines()]
  assert again['secure']['client_s'] == pytest.approx(
      sum(line['secure']['client_s'] for line in lines), abs=1e-5)
  aborted = whole['secure']['aborted_rounds']
  assert 0 < aborted < 4  # The seed has rounds of both kinds.
  # By hand, from the bytes that a message has.
  section = whole['secure']
  sent = sum(sum(line['secure']['uplink_bytes'].values()) for line in lines)
  down = sum(line['secure']['asked'] for line in lines) * (
      section['downlink_payload_bytes_per_client'])
  assert whole['communication']['total_bytes'] == pytest.approx(sent + down)
  assert section['aborted']['uplink_bytes'] == sum(
      sum(line['secure']['uplink_bytes'].values()) for line in lines
      if line['secure']['aborted'])


def test_a_total_that_was_measured_is_not_scaled_from_the_mean():
  traffic = {'uplink_bytes_per_client': 10.0, 'downlink_bytes_per_client': 10.0,
             'total_bytes': 200.0}
  section = {'uplink_bytes_per_client': 20.0, 'downlink_bytes_per_client': 10.0}
  assert secure.count_upload(traffic, section)['total_bytes'] == 300.0
  assert secure.count_upload(
      traffic, section | {'total_bytes': 7.0})['total_bytes'] == 7.0


@pytest.mark.parametrize('opened', [True, False])
def test_the_seconds_of_a_key_holder_are_in_the_account(opened, monkeypatch):
  """Of a library in whose place the seconds are known."""
  from fedjaxrec.aggregation import homomorphic
  from fedjaxrec.aggregation.cost import Cost, SumNotRevealed
  clients = tuple(range(8))
  traffic = {'ciphertexts': dict.fromkeys(clients, 9)}

  def summed(vectors, *, min_survivors):
    if not opened:
      raise SumNotRevealed('few', {}, Cost(
          traffic, {}, 1.0, 2.0, key_holder_s=4.0))
    return homomorphic.HomomorphicSumResult(
        'homomorphic', sum(vectors.values()), clients, {}, traffic, {}, 1.0,
        2.0, 4.0, 'a third party')

  monkeypatch.setattr(homomorphic, 'KeyHolder', lambda: None)
  monkeypatch.setattr(homomorphic, 'run_homomorphic_sum', summed)
  sums = make_sums('he')
  for r in range(2):
    assert sums(messages(), r).reported == (8 if opened else 0)
  lines = [sums.take(r) for r in range(2)]
  assert [line['key_holder_s'] for line in lines] == [4.0, 4.0]
  totals = secure_account.add_up(json.loads(json.dumps(lines)))
  assert (totals.client_s, totals.server_s, totals.key_holder_s) == (2, 4, 8)
  assert secure_account.describe(totals)['key_holder_s'] == 8.0
  for line in lines:  # As an older version wrote it.
    del line['key_holder_s']
  assert secure_account.add_up(lines).key_holder_s == 0
