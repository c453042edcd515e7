"""Noise that the clients add is charged, explained and refused like any."""

import collections
import json
import math

import numpy as np
import pytest

from fedjaxrec.orchestration import experiment, private_runs, secure
from fedjaxrec.privacy import accounting, distributed, explain, ledger
from fedjaxrec.privacy.integer_noise import DistributedNoise
from fedjaxrec.reports import privacy as privacy_words
from tests.orchestration.resume_test import train_until
from tests.small_runs import make_config, make_interactions

BUDGET = 20.0
NOISY = {'rounds': 4, 'secure.level': 'masked', 'secure.noise': 'skellam',
         'secure.bits': 20, 'privacy.l2_clip_norm': 1.0,
         'privacy.epsilon': BUDGET, 'privacy.delta': 1e-3}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('noisy') / 'run'
  return experiment.train(make_config(NOISY), workdir, progress=False)


def busiest(config, num_clients, rounds):
  """The oracle: the most invitations of any client, round by round."""
  sampler, _ = secure.build_sampler(
      config.cohort, np.full(num_clients, 5), config.seed)
  times, totals = collections.Counter(), []
  for r in range(rounds):
    times.update(int(c) for c in sampler(r))
    totals.append(max(times.values()))
  return totals


def test_the_ledger_alone_gives_epsilon_again(finished):
  """By hand from its lines: noise and sums, with the formulas alone."""
  lines = [json.loads(line) for line in (
      finished.workdir / ledger.FILE_NAME).read_text().splitlines()]
  said = finished.summary['privacy']
  event = dict(lines[1]['event'])
  assert event.pop('class_name') == 'DistributedNoiseDpEvent'
  event.pop('module_name')
  sums = sum(line['count'] for line in lines[1:])
  assert sums == said['sums_of_the_busiest_client'] <= 4
  assert lines[-1]['last_round'] == 3
  by_hand = distributed.distributed_epsilon(
      DistributedNoise(**event), sampling_prob=1.0, rounds=sums,
      delta=lines[0]['delta'])
  assert by_hand == pytest.approx(said['epsilon'], rel=1e-12)
  assert said['ledger']['epsilon'] == said['epsilon'] <= BUDGET
  assert said['epsilon'] > 0.97 * BUDGET  # It is used up, not only kept.
  assert lines[0]['budget_epsilon'] == BUDGET


def test_what_is_charged_is_the_busiest_clients_share(finished):
  config = make_config(NOISY)
  entries = ledger.read(finished.workdir).entries
  totals = busiest(config, 40, 4)
  for entry in entries:
    before = totals[entry.first_round - 1] if entry.first_round else 0
    assert entry.release.times == totals[entry.last_round] - before
  assert sum(e.release.times for e in entries) == totals[-1]


def test_it_is_explained_with_what_it_leaves_out(finished):
  result = explain.explain(finished.workdir)
  assert result['within_budget'] and result['rounds'] == 4
  assert result['epsilon'] == pytest.approx(
      finished.summary['privacy']['epsilon'], rel=1e-12)
  assert any('sums themselves' in line for line in result['covers'])
  left_out = '\n'.join(result['does_not_cover'])
  for words in ('who was invited', 'work with the server', 'Tuning',
                'Evaluation'):
    assert words in left_out
  assert 'busiest' in result['sampling']
  assert result['cross_check']['epsilon'] is None
  assert explain.render(result)


def test_the_report_has_the_same_section(finished):
  said = dict(privacy_words.facts(finished.summary['privacy']))
  assert 'replace_special' in said['Guarantee']
  assert 'added by the clients' in said['Noise']
  assert 'head' in said['Ledger']
  assert privacy_words.not_covered(finished.summary['privacy'])
  page = (finished.workdir / 'report.html').read_text()
  assert 'who survived' in page


def test_a_resumed_run_is_the_same_and_pays_once(tmp_path, finished):
  train_until(tmp_path / 'cut', 2, make_config(NOISY))
  experiment.train(
      make_config(NOISY), tmp_path / 'cut', resume=True, progress=False)
  again = json.loads((tmp_path / 'cut' / 'summary.json').read_text())
  for section in ('privacy', 'test'):
    assert again[section] == json.loads(
        (finished.workdir / 'summary.json').read_text())[section]
  counts = [entry.release.times
            for entry in ledger.read(tmp_path / 'cut').entries]
  assert sum(counts) == finished.summary['privacy'][
      'sums_of_the_busiest_client']


def prepare(changes=None, num_clients=12):
  train = make_interactions(
      [list(range(i % 5, 24, 5)) for i in range(num_clients)], 24)
  return secure.prepare(
      make_config({**NOISY, 'cohort.size': 6, **(changes or {})}), train,
      24).private


def test_a_delta_that_is_too_large_is_warned_about_with_the_clients_named():
  private = prepare({'privacy.delta': 0.1})
  assert any('1 / 12' in warning and 'N = 12' in warning
             for warning in private.plan.warnings)
  assert not prepare({'privacy.delta': 0.05}).plan.warnings
  assert private.plan.summary()['warnings'] == list(private.plan.warnings)


def test_a_budget_that_would_be_passed_is_refused_before_the_rounds(tmp_path):
  """A ledger that has spent more already, here a too small budget."""
  private = prepare()
  config = make_config({**NOISY, 'cohort.size': 6})
  header = ledger.make_header(private.plan, config)
  enough = private.plan.epsilon(2)
  assert 0 < enough < private.plan.epsilon()
  book = ledger.create(
      tmp_path, ledger.dataclasses.replace(header, budget_epsilon=enough))
  assert private_runs.charge(book, private, 0, 2) == book.head
  with pytest.raises(ledger.BudgetExceededError, match='sums with the busiest'):
    private_runs.charge(book, private, 2, 2)
  assert len(ledger.read(tmp_path).entries) == 1
  with pytest.raises(ValueError, match='beyond the 4 rounds'):
    private.plan.round_release.for_rounds(0, 4)


def test_more_clients_in_a_round_than_one_busiest_cost_nothing_more():
  """Rounds without the busiest client are free; the others cost one each."""
  release = prepare().plan.round_release._replace(totals=(1, 1, 2, 2))
  assert [release.for_rounds(r, r).times for r in range(4)] == [1, 0, 1, 0]
  assert release.for_rounds(1, 3).times == 1
  assert accounting.epsilon(
      [release.for_rounds(1, 1)], 1e-3, accountant='rdp',
      neighboring='replace_special') == 0


def test_an_edited_event_is_not_read():
  event = accounting.event_to_json(prepare().plan.round_release.event)
  assert accounting.event_from_json(event) == prepare(
      ).plan.round_release.event
  for field, value in (('scale', -1.0), ('mechanism', 'uniform'),
                       ('module_name', 'os')):
    with pytest.raises(ValueError, match=f'{field.split("_")[0]}|DpEvent'):
      accounting.event_from_json({**event, field: value})


def test_a_sum_without_cryptography_is_named_as_a_gap():
  assert 'secure.level=ideal' in prepare({
      'secure.level': 'ideal'}).plan.uncovered[-1]


def test_nobody_hides_in_a_population_of_one():
  with pytest.raises(ValueError, match='num_clients=1'):
    prepare({'cohort.size': 0}, num_clients=1)


def test_pld_and_replacing_a_client_are_not_accounted_for():
  release = prepare().plan.round_release.for_rounds(0, 3)
  with pytest.raises(ValueError, match='cannot take'):
    accounting.epsilon([release], 1e-3, neighboring='replace_special')
  with pytest.raises(ValueError, match='cannot take'):
    accounting.epsilon(
        [release], 1e-3, accountant='rdp', neighboring='replace_one')
  assert math.isfinite(accounting.epsilon(
      [release], 1e-3, accountant='rdp', neighboring='add_or_remove_one'))
