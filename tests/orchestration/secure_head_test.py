"""The rows that travel are chosen by a noisy sum that the ledger pays for."""

import json
import math

import numpy as np
import pytest

from fedjaxrec.orchestration import experiment, secure, secure_head
from fedjaxrec.privacy import distributed_plan, explain, ledger
from fedjaxrec.privacy.accounting import ORDERS
from fedjaxrec.privacy.integer_noise import DistributedNoise, distributed_rdp
from tests.small_runs import make_config, make_interactions

NUM_ITEMS = 30
# Item i is liked by every (i + 2)nd client or so: popularity falls with the id.
ROWS = [[i for i in range(NUM_ITEMS) if u % (i + 2) == 0] or [0]
        for u in range(40)] + [[]]
TRAIN = make_interactions(ROWS, NUM_ITEMS)
CHOSEN = {
    'rounds': 2, 'cohort.size': 6, 'secure.level': 'masked',
    'secure.rows': 'chosen', 'secure.noise': 'skellam', 'secure.bits': 20,
    'privacy.l2_clip_norm': 1.0, 'privacy.epsilon': 20.0,
    'privacy.delta': 1e-3, 'privacy.head_items': 8,
    'privacy.head_source': 'private'}


def plain_popularity():
  """The oracle: client by client."""
  total = np.zeros(NUM_ITEMS)
  for items in ROWS:
    for item in items:
      total[item] += 1 / math.sqrt(len(items))
  return total


def noisy(**changes):
  """Popularity by the sum, and its noise and account."""
  config = make_config({**CHOSEN, **{
      name.replace('__', '.'): value for name, value in changes.items()}})
  noise = secure_head.calibrate_head(config, 40, NUM_ITEMS, 1e-3)
  return noise, *secure_head.sum_popularity(config, noise, TRAIN)


@pytest.mark.parametrize(('level', 'kind'), [
    ('masked', 'skellam'), ('ideal', 'discrete_gaussian')])
def test_the_sum_is_the_popularity_with_all_shares_of_the_noise(level, kind):
  noise, found, account = noisy(secure__level=level, secure__noise=kind)
  assert account['clients'] == account['survivors'] == 40
  assert account['min_survivors'] == 20
  # 20 of the 40 clients make up the multiplier; all of them sqrt(2) of it.
  stddev = noise.noise_multiplier * math.sqrt(2)
  errors = (found - plain_popularity()) / stddev
  # 30 squares of standard normals: the law's tail beyond 8e-9 on each side.
  assert 5 < (errors**2).sum() < 90
  if level == 'ideal':
    return
  # With next to no noise it is the popularity, to the rounding of 40 clients,
  # each off by less than an integer: nothing of them is lost or added.
  noise, found, account = noisy(
      secure__level=level, secure__noise=kind, privacy__epsilon=1e5,
      privacy__head_epsilon_share=0.9)
  reach = 40 / noise.scale + 9 * math.sqrt(2) * noise.noise_multiplier
  assert reach < 1.5
  np.testing.assert_allclose(found, plain_popularity(), atol=reach)


def test_the_noise_is_what_its_share_of_the_budget_asks_for():
  config = make_config(CHOSEN)
  noise = secure_head.calibrate_head(config, 40, NUM_ITEMS, 1e-3)
  assert noise.l2_clip_norm == 1.0 and noise.dimension == NUM_ITEMS

  def epsilon(z):
    rdp = distributed_rdp(
        secure_head.dataclasses.replace(noise, noise_multiplier=z), ORDERS)
    # The conversion of Canonne, Kamath and Steinke, order by order.
    return min(r + math.log1p(-1 / a) - math.log(1e-3 * a) / (a - 1)
               for a, r in zip(ORDERS, rdp))

  # A tenth of 20; the bisection is to 0.1 per cent of the noise, and the
  # ring's whole bits make the scale a little finer than was asked for.
  assert epsilon(noise.noise_multiplier) <= 2.0 * (1 + 1e-9)
  assert epsilon(0.97 * noise.noise_multiplier) > 2.0


@pytest.mark.parametrize('num_clients', [2, 3, 943, 100_000])
def test_all_clients_are_asked_whatever_a_cohort_holds(num_clients):
  config = secure_head.head_config(
      make_config(CHOSEN), 5.0, num_clients, 1682)
  assert config.cohort.size == 0 and config.secure.rows == 'dense'
  assert config.secure.min_survivors == max(2, -(-num_clients // 2))
  ring = secure_head.make_run_ring(config, num_clients, num_clients, 1682)
  # Four integers for each root of an item, at least: finer than the rounding.
  assert ring.scale >= 4 * 1682**0.5


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  return experiment.train(
      make_config(CHOSEN | {'secure.level': 'protocol'}),
      tmp_path_factory.mktemp('chosen') / 'run', progress=False)


def test_the_ledger_explains_the_choice_and_gives_epsilon_again(finished):
  said = finished.summary['privacy']
  lines = [json.loads(line) for line in (
      finished.workdir / ledger.FILE_NAME).read_text().splitlines()]
  assert [line['label'] for line in lines[1:]] == [
      distributed_plan.HEAD_LABEL, distributed_plan.LABEL]
  rdp = np.zeros(len(ORDERS))
  for line in lines[1:]:
    event = {k: v for k, v in line['event'].items()
             if k not in ('class_name', 'module_name')}
    rdp += line['count'] * distributed_rdp(DistributedNoise(**event), ORDERS)
  by_hand = min(r + math.log1p(-1 / a) - math.log(1e-3 * a) / (a - 1)
                for a, r in zip(ORDERS, rdp))
  result = explain.explain(finished.workdir)
  assert result['epsilon'] == pytest.approx(by_hand, rel=1e-9)
  assert said['epsilon'] == pytest.approx(by_hand, rel=1e-9)
  assert result['within_budget'] and 0.97 * 20 < by_hand <= 20
  assert any('popularity' in line for line in result['covers'])
  assert not any('declared public' in line for line in said['uncovered'])
  # Without the choice there would be budget left: it is charged.
  assert finished.summary['privacy']['head_noise_multiplier'] > 0


def test_the_summary_says_what_the_choice_cost_and_shows(finished):
  section = finished.summary['secure']
  head = section['head_sum']
  assert section['rows_travelling'] == 8 == finished.summary[
      'privacy']['open_rows']
  assert head['clients'] == head['survivors'] == 40
  assert head['uplink_bytes'] > 40 * 60 * head['bits'] / 8
  assert head['downlink_bytes'] > 0 and head['client_s'] > 0
  assert 'popularity of all items' in section['server_learns']
  assert finished.summary['communication']['total_bytes'] == pytest.approx(
      section['total_bytes'] + head['uplink_bytes'] + head['downlink_bytes'])


def test_a_sum_that_is_not_opened_chooses_nothing():
  with pytest.raises(ValueError, match='secure.dropout=0.45.*which is not'):
    secure.prepare(make_config({
        **CHOSEN, 'secure.dropout': 0.45, 'secure.num_neighbors': 8}), TRAIN,
        NUM_ITEMS)


def test_a_choice_that_takes_all_of_a_budget_is_refused_beforehand(
    monkeypatch):
  monkeypatch.setattr(
      secure_head, 'sum_popularity', lambda *_: pytest.fail('summed'))
  with pytest.raises(ValueError, match='head_items=30 of 30 items'):
    secure.prepare(
        make_config(CHOSEN | {'privacy.head_items': 30}), TRAIN, NUM_ITEMS)
