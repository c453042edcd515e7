"""A run under a privacy budget: what is promised, charged, refused and said."""

import json
import logging as std_logging
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from fedjaxrec.orchestration import experiment, private_runs
from fedjaxrec.orchestration.study_runs import Options
from fedjaxrec.orchestration.sweep import run_sweep
from fedjaxrec.privacy import explain, ledger
from fedjaxrec.privacy.ledger import BudgetExceededError, LedgerError
from fedjaxrec.reports import run_directory, sweep_directory
from tests.small_runs import (
  assert_same_run,
  make_config,
  make_interactions,
  read_arrays,
  read_lines,
)

CHANGES = {
    'cohort.sampler': 'poisson', 'privacy.epsilon': 8.0, 'privacy.delta': 1e-3,
    'privacy.l2_clip_norm': 1.0, 'evaluation.every': 0}
CONFIG = make_config(CHANGES)
TRAIN = make_interactions(
    [[(7 * u + j) % 50 for j in range(1 + u % 4)] for u in range(40)], 50)


class Fake(NamedTuple):
  """A simulation that remembers what it was asked to run."""
  run: Callable


class Interrupted(Exception):
  """Stands for whatever ends a process."""


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  experiment.train(CONFIG, workdir, progress=False)
  return workdir


@pytest.fixture(scope='module')
def private():
  """The privacy of the whole run."""
  return private_runs.prepare(
      CONFIG, experiment.load_data(CONFIG).train, verify=False)


@pytest.fixture
def copy(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'copy')


def resume(workdir, config=CONFIG):
  return experiment.train(config, workdir, resume=True, progress=False)


def test_what_is_said_is_what_the_ledger_says(whole):
  summary = run_directory.read_json(whole / 'summary.json')
  said = summary['privacy']
  assert said['unit'] == 'client' and said['neighboring'] == 'add_or_remove_one'
  assert said['sampling'].startswith('Poisson')
  assert 7.9 < said['epsilon'] <= 8 and said['delta'] == 1e-3
  assert said['ledger']['rounds'] == CONFIG.rounds
  assert said['rejected'] == 0 and len(said['uncovered']) >= 6
  explained = explain.explain(whole, said['ledger']['head'])
  assert explained['epsilon'] == pytest.approx(said['epsilon'], rel=1e-6)
  assert explained['within_budget']
  assert explained['rounds'] == explained['planned_rounds'] == CONFIG.rounds
  heads = [line[private_runs.HEAD_FIELD] for line in read_lines(whole)
           if private_runs.HEAD_FIELD in line]
  assert len(heads) == 3 and heads[-1] == said['ledger']['head']
  page = (whole / 'report.html').read_text()
  for words in (said['guarantee'], 'does not cover', said['accountant']):
    assert words in page


def test_a_resumed_run_is_the_uninterrupted_one_its_noise_included(
    whole, tmp_path, monkeypatch):
  """Rounds 3 and 4 are run again: with the same noise, and paid for once."""
  real = experiment.open_store

  def open_store(*args):
    store = real(*args)

    def save(round_index, checkpoint):
      if round_index == 4:
        raise Interrupted
      store.save(round_index, checkpoint)
    return store._replace(save=save)

  with monkeypatch.context() as patch:
    patch.setattr(experiment, 'open_store', open_store)
    with pytest.raises(Interrupted):
      experiment.train(CONFIG, tmp_path / 'run', progress=False)
  book = ledger.read(tmp_path / 'run')
  assert [e.last_round for e in book.entries] == [1, 3]  # Before they ran.
  resume(tmp_path / 'run')
  assert_same_run(tmp_path / 'run', whole)
  names = [folder / ledger.FILE_NAME for folder in (tmp_path / 'run', whole)]
  assert names[0].read_bytes() == names[1].read_bytes()
  # The control: the key is part of what was compared, and has moved.
  first, last = (read_arrays(whole, r) for r in (2, 6))
  keys = [name for name, leaf in first.items() if leaf.dtype == np.uint32]
  assert len(keys) == 1 and not np.array_equal(first[keys[0]], last[keys[0]])


def test_another_config_does_not_continue_a_private_run(copy):
  for changes, words in (
      ({'privacy.epsilon': 9.0}, 'privacy.epsilon=9.0 differs'),
      ({'privacy.l2_clip_norm': 0.5}, 'privacy.l2_clip_norm=0.5 differs'),
      ({'rounds': 8}, 'rounds=8 differs .* privacy budget')):
    with pytest.raises(ValueError, match=words):
      resume(copy, make_config(CHANGES | changes))


def test_a_ledger_that_was_edited_cut_or_lost_is_noticed(copy, private):
  path = copy / ledger.FILE_NAME
  text = path.read_text()
  for wrong, words in (
      (text.replace('"first_round":2', '"first_round":1'), 'line 3'),
      (''.join(text.splitlines(keepends=True)[:-1]), 'recorded outside it'),
      (None, 'is missing')):
    if wrong is None:
      path.unlink()
    else:
      assert wrong != text
      path.write_text(wrong)
    with pytest.raises(LedgerError, match=words):
      private_runs.open_ledger(
          private, CONFIG, copy, resuming=True)


def test_a_run_killed_while_its_ledger_began_goes_on(
    tmp_path, private, monkeypatch):
  def killed(*_):
    raise Interrupted

  with monkeypatch.context() as patch:
    patch.setattr(private_runs, 'open_ledger', killed)
    with pytest.raises(Interrupted):
      experiment.train(CONFIG, tmp_path / 'run', progress=False)
  assert run_directory.check_workdir(
      tmp_path / 'run', resume=True, overwrite=False)
  path = tmp_path / 'run' / ledger.FILE_NAME
  for half in (b'', b'{"kind": "head'):
    path.write_bytes(half)
    book = private_runs.open_ledger(
        private, CONFIG, tmp_path / 'run', resuming=True)
    assert book.entries == [] and len(path.read_bytes().splitlines()) == 1
  # A whole line is never dropped, whatever it says.
  path.write_bytes(b'{}\n')
  with pytest.raises(LedgerError):
    private_runs.open_ledger(
        private, CONFIG, tmp_path / 'run', resuming=True)


def test_rounds_beyond_the_budget_are_refused_before_they_run(copy, private):
  book = private_runs.open_ledger(private, CONFIG, copy, resuming=True)
  ran = []

  paid = private_runs.charging(
      Fake(lambda *args: ran.append(args)),
      lambda first, n: private_runs.charge(book, private, first, n))
  paid.run('state', 0, 6)  # Paid for already.
  paid.run('state', 6, 0)  # A call that only compiles.
  before = (copy / ledger.FILE_NAME).read_bytes()
  with pytest.raises(BudgetExceededError, match='privacy.epsilon=8 would be'):
    paid.run('state', 6, 2)
  assert len(ran) == 2
  assert (copy / ledger.FILE_NAME).read_bytes() == before


def test_overwriting_a_run_begins_its_ledger_anew(copy, private):
  assert run_directory.PRIVACY_LEDGER == ledger.FILE_NAME
  run_directory.prepare_workdir(copy, resume=False, overwrite=True)
  assert not (copy / ledger.FILE_NAME).exists()
  assert private_runs.open_ledger(
      private, CONFIG, copy, resuming=False).entries == []


@pytest.mark.parametrize(('changes', 'words'), [
    ({'cohort.weighting': 'examples'}, 'cohort.weighting'),
    ({'server.row_normalization': 'contributors'}, 'row_normalization'),
    ({'privacy.mechanism': 'blt'}, "cohort.sampler='poisson'"),
    ({'privacy.mechanism': 'banded', 'cohort.sampler': 'shuffled'}, 'bands'),
    ({'cohort.sampler': 'cyclic_poisson', 'cohort.groups': 3,
      'privacy.mechanism': 'banded', 'privacy.bands': 2}, 'cohort.groups=3'),
    ({'privacy.deployment_cohort': 5}, 'deployment_cohort=5'),
    ({'privacy.head_items': 60}, 'privacy.head_items=60'),
    ({'privacy.release_counts': True}, 'release_counts=True'),
])
def test_what_is_unsound_is_refused_before_anything_is_written(
    changes, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    experiment.train(
        make_config(CHANGES | changes), tmp_path / 'run', progress=False)
  assert not (tmp_path / 'run').exists()


def test_a_delta_that_lets_a_client_leak_is_warned_of(caplog):
  private = private_runs.prepare(
      make_config(CHANGES | {'privacy.delta': 0.5}), TRAIN, verify=False)
  with caplog.at_level(std_logging.WARNING, 'absl'):
    private_runs.say_warnings(private)
  assert 'N = 40' in caplog.text and 'delta=0.5' in caplog.text


def test_a_run_without_a_budget_has_no_plan_and_no_section():
  assert private_runs.prepare(make_config(), TRAIN) is None
  assert private_runs.describe(None, None) is None


@pytest.mark.parametrize('source', ['public', 'private'])
def test_head_rows_are_the_most_popular_under_the_noise_that_was_paid_for(
    source):
  config = make_config(CHANGES | {
      'privacy.head_items': 10, 'privacy.head_source': source})
  private = private_runs.prepare(config, TRAIN, verify=False)
  counts = np.bincount(TRAIN.items, minlength=50)
  exact = np.zeros(50, bool)
  exact[np.argsort(-counts, kind='stable')[:10]] = True
  assert private.open_rows.sum() == 10
  assert np.array_equal(private.open_rows, exact) == (source == 'public')
  plan = private.plan
  assert len(plan.initial_releases) == (source == 'private')
  if source == 'private':
    assert plan.head_noise_multiplier > 0
    # The same choice whenever it is asked for again; another under a seed.
    np.testing.assert_array_equal(
        private.open_rows, private_runs.choose_head(plan, TRAIN, 0))
    assert not np.array_equal(
        private.open_rows, private_runs.choose_head(plan, TRAIN, 1))
    # Without noise it is the order of the scaled vectors: a client with four
    # items weighs a half on each.
    quiet = private_runs.choose_head(
        plan._replace(head_noise_multiplier=0.0), TRAIN, 0)
    scaled = np.zeros(50)
    for u in range(40):
      mine = TRAIN.items[TRAIN.offsets[u]:TRAIN.offsets[u + 1]]
      vector = np.zeros(50)
      vector[mine] = 1 / np.sqrt(len(mine))
      assert np.linalg.norm(vector) <= 1 + 1e-12
      scaled += vector
    assert scaled[quiet].min() >= scaled[~quiet].max()


def test_the_private_choice_is_in_the_ledger_once(tmp_path):
  config = make_config(CHANGES | {
      'privacy.head_items': 10, 'privacy.head_source': 'private'})
  private = private_runs.prepare(config, TRAIN, verify=False)
  book = private_runs.open_ledger(private, config, tmp_path, resuming=False)
  assert [e.release.label for e in book.entries] == ['item popularity']
  again = private_runs.open_ledger(private, config, tmp_path, resuming=True)
  assert len(again.entries) == 1
  private_runs.charge(again, private, 0, 6)
  assert explain.explain(tmp_path)['epsilon'] == pytest.approx(
      private.plan.epsilon(), rel=0.01)
  assert json.dumps(private_runs.describe(private, again))


def test_the_cohort_is_described_as_the_sampler_makes_it():
  for changes, expected in (
      ({'cohort.sampler': 'uniform'}, (10, 'uniform', 0, 0)),
      ({'cohort.sampler': 'cyclic', 'cohort.size': 9},
       (9, 'shuffled', 0, 5)),
      ({'cohort.sampler': 'shuffled', 'cohort.size': 0},
       (40, 'shuffled', 0, 0))):
    config = make_config(CHANGES | changes)
    assert private_runs.describe_cohort(config, TRAIN.counts) == (40, expected)
  num_clients, cohort = private_runs.describe_cohort(CONFIG, TRAIN.counts)
  assert num_clients == 40 and 10 < cohort.cap <= 40


def test_every_member_of_a_sweep_keeps_its_own_budget(tmp_path):
  """Two budgets in one program: each has its noise, its ledger, its section."""
  run_sweep(
      make_config(CHANGES | {'rounds': 2}), ['privacy.epsilon=2,8'], '0',
      tmp_path / 'sweep', options=Options(show_progress=False))
  stddevs = []
  for place, budget in enumerate((2.0, 8.0)):
    folder = sweep_directory.member_folder(tmp_path / 'sweep', place)
    said = run_directory.read_json(folder / 'summary.json')['privacy']
    explained = explain.explain(folder, said['ledger']['head'])
    assert 0.99 * budget < explained['epsilon'] <= budget
    assert explained['rounds'] == 2 and explained['within_budget']
    stddevs.append(said['noise_stddev_items'])
  assert stddevs[0] > 1.5 * stddevs[1]
