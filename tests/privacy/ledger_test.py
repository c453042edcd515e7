"""The ledger: nothing above the budget, nothing edited, nothing paid twice."""

import dataclasses
import json
import pathlib
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjaxrec.config import (
  Config,
  EngineConfig,
  PrivacyConfig,
)
from fedjaxrec.privacy import accounting, ledger, plan
from fedjaxrec.privacy.accounting import Release
from fedjaxrec.privacy.schedules import Cohort

ROUND = Release(accounting.gaussian(20.0))


def header_of(**changes):
  fields = {
      'neighboring': 'replace_special', 'delta': 1e-5, 'budget_epsilon': 2.0,
      'accountant': 'pld', 'accountant_version': 'PLD', 'population': 1000,
      'sampling': 'every client in every round', 'l2_clip_norm': 1.0,
      'noise_multiplier': 20.0, 'planned_rounds': 40, 'config_digest': 'abc',
      'uncovered': ('Seeds.',)}
  return ledger.Header(**{**fields, **changes})


@pytest.fixture
def spent(tmp_path):
  """A run directory with 30 rounds charged, ten at a time."""
  book = ledger.create(tmp_path, header_of())
  for first in (0, 10, 20):
    assert book.spend(ROUND, first, first + 9)
  return tmp_path


def lines_of(folder):
  return (folder / ledger.FILE_NAME).read_bytes().splitlines(keepends=True)


def write(folder, lines):
  (folder / ledger.FILE_NAME).write_bytes(b''.join(lines))


def test_epsilon_is_recomputed_from_the_file_alone(spent):
  found = ledger.read(spent).recompute()
  by_hand = accounting.epsilon(
      [ROUND._replace(times=30)], 1e-5, neighboring='replace_special')
  assert found.epsilon == by_hand
  assert found.cross_epsilon > by_hand
  assert (found.rounds, len(found.releases)) == (30, 1)
  assert ledger.read(spent).header == header_of()


def test_every_line_says_what_it_is_in_json(spent):
  first, *rest = [json.loads(line) for line in lines_of(spent)]
  assert first['kind'] == 'header'
  assert [line['first_round'] for line in rest] == [0, 10, 20]
  assert {line['count'] for line in rest} == {10}
  assert all(line['event']['class_name'] == 'GaussianDpEvent' for line in rest)


# The budget.

def after(rounds, release=ROUND):
  return accounting.epsilon([release._replace(times=rounds)], 1e-5,
                            neighboring='replace_special')


def test_spending_stops_before_the_budget_is_passed(tmp_path):
  book = ledger.create(tmp_path, header_of(
      budget_epsilon=1.0, planned_rounds=9999))
  release = Release(accounting.gaussian(12.0))
  done = 0
  with pytest.raises(ledger.BudgetExceededError) as error:
    for done in range(99):  # noqa: B007
      book.spend(release, done, done)
  # All of it could be spent, and nothing more.
  assert 3 < done < 20
  assert after(done, release) <= 1.0 < after(done + 1, release)
  assert len(lines_of(tmp_path)) == 1 + done
  for part in ('privacy.epsilon=1 ', 'spent so far 0.', 'begin a new run'):
    assert part in str(error.value)


def test_a_planned_run_is_judged_once_and_its_end_refuses_more(
    tmp_path, monkeypatch):
  calls = []
  original = accounting.epsilon
  monkeypatch.setattr(accounting, 'epsilon', lambda *args, **kwargs: (
      calls.append(1), original(*args, **kwargs))[1])
  book = ledger.create(tmp_path, header_of(
      budget_epsilon=original([ROUND._replace(times=40)], 1e-5,
                              neighboring='replace_special')))
  for first in range(0, 40, 5):
    book.spend(ROUND, first, first + 4)
  assert len(calls) == 1
  with pytest.raises(ledger.BudgetExceededError):
    book.spend(ROUND, 40, 40)
  assert len(ledger.read(tmp_path).entries) == 8


def test_a_release_that_does_not_fit_at_once_is_refused_whole(tmp_path):
  book = ledger.create(tmp_path, header_of(budget_epsilon=0.5))
  with pytest.raises(ledger.BudgetExceededError):
    book.spend(ROUND, 0, 39)
  assert not book.entries and len(lines_of(tmp_path)) == 1
  assert book.spend(ROUND, 0, 1)


def test_a_release_outside_the_rounds_counts_once_and_with_the_rest(tmp_path):
  book = ledger.create(tmp_path, header_of())
  head = Release(accounting.gaussian(5.0), label='item popularity')
  assert book.spend(head)
  assert not book.spend(head)
  book.spend(ROUND, 0, 4)
  assert ledger.read(tmp_path).epsilon() == accounting.epsilon(
      [head, ROUND._replace(times=5)], 1e-5, neighboring='replace_special')


def test_correlated_noise_is_paid_for_with_its_first_round(tmp_path):
  book = ledger.create(tmp_path, header_of())
  whole = Release(accounting.gaussian(4.0), rounds_per_count=40)
  book.spend(whole, 0, 9)
  after = book.epsilon()
  book.spend(whole, 10, 39)
  assert book.epsilon() == after == accounting.epsilon(
      [whole], 1e-5, neighboring='replace_special')


# Resuming.

def test_rounds_that_are_run_again_are_not_paid_again(spent):
  book = ledger.resume(spent, header_of())
  assert not book.spend(ROUND, 10, 19)
  assert book.spend(ROUND, 25, 34)  # Half of them are new.
  assert book.entries[-1] == ledger.Entry(ROUND._replace(times=5), 30, 34)
  assert ledger.read(spent).recompute().rounds == 35


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=12))
def test_whatever_is_repeated_every_round_is_paid_once(blocks):
  with tempfile.TemporaryDirectory() as folder:
    book = ledger.create(folder, header_of(budget_epsilon=100.0))
    done = 0
    for first, length in blocks:
      first = min(first, done)  # A run restarts at what it has, or before.
      book.spend(ROUND, first, first + length - 1)
      done = max(done, first + length)
    assert sum(entry.release.times for entry in book.entries) == done
    assert ledger.read(folder).entries == book.entries


@pytest.mark.parametrize('changes', [
  {'config_digest': 'other'}, {'delta': 1e-3}, {'population': 999},
  {'l2_clip_norm': 2.0}, {'neighboring': 'replace_one'},
  {'deployment_cohort': 10}, {'accountant': 'rdp'}])
def test_another_config_cannot_continue_the_run(spent, changes):
  (name, value), = changes.items()
  with pytest.raises(ledger.LedgerError, match=f'{name}={value!r}'):
    ledger.resume(spent, header_of(**changes))


@pytest.mark.parametrize('other', [
  ROUND._replace(event=accounting.gaussian(19.0)),
  ROUND._replace(tail_probability=1e-9), ROUND._replace(rounds_per_count=2)])
@pytest.mark.parametrize('first', [0, 30])
def test_another_mechanism_cannot_continue_the_run(spent, other, first):
  with pytest.raises(ledger.LedgerError, match='cannot change'):
    ledger.resume(spent, header_of()).spend(other, first, first + 9)


def test_rounds_that_nobody_paid_for_are_noticed(spent):
  with pytest.raises(ledger.LedgerError, match='no charge for rounds 30 to 39'):
    ledger.resume(spent, header_of()).spend(ROUND, 40, 49)


def test_a_ledger_is_never_begun_twice(spent):
  with pytest.raises(ledger.LedgerError, match='stays spent'):
    ledger.create(spent, header_of())
  assert len(ledger.read(spent).entries) == 3


def test_two_processes_cannot_spend_on_one_ledger(spent):
  one, two = (ledger.resume(spent, header_of()) for _ in range(2))
  one.spend(ROUND, 30, 34)
  with pytest.raises(ledger.LedgerError, match='another process'):
    two.spend(ROUND, 30, 34)
  assert len(ledger.read(spent).entries) == 4


@pytest.mark.parametrize('length', [1, 40, -1])
def test_a_line_that_was_half_written_is_dropped(spent, length):
  lines = lines_of(spent)
  write(spent, [*lines, lines[-1][:length]])
  assert len(ledger.read(spent).entries) == 3
  book = ledger.resume(spent, header_of())
  assert lines_of(spent) == lines
  assert book.spend(ROUND, 30, 39)
  assert len(ledger.read(spent).entries) == 4


# Tampering.

@given(st.data())
def test_no_byte_of_the_ledger_can_be_changed(data):
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    book = ledger.create(folder, header_of())
    book.spend(ROUND, 0, 9)
    book.spend(ROUND, 10, 19)
    content = bytearray((folder / ledger.FILE_NAME).read_bytes())
    place = data.draw(st.integers(0, len(content) - 2))
    content[place] = data.draw(st.sampled_from(
        [byte for byte in (0x20, 0x30, 0x39, 0x61, 0x0a, 0xff)
         if byte != content[place]]))
    (folder / ledger.FILE_NAME).write_bytes(content)
    with pytest.raises(ledger.LedgerError):
      ledger.read(folder)


@pytest.mark.parametrize('order', [
  (0, 2, 3), (0, 1, 3), (1, 2, 3), (0, 2, 1, 3), (0, 1, 1, 2, 3),
  (1, 0, 2, 3)])
def test_lines_cannot_be_removed_repeated_or_moved(spent, order):
  lines = lines_of(spent)
  write(spent, [lines[index] for index in order])
  with pytest.raises(ledger.LedgerError, match='line|this version'):
    ledger.read(spent)


def test_an_end_that_was_cut_off_is_found_with_the_head_kept_elsewhere(spent):
  head = ledger.read(spent).head
  assert ledger.read(spent, head).head == head
  write(spent, lines_of(spent)[:-1])
  ledger.read(spent)  # A whole, shorter ledger: the chain alone cannot tell.
  with pytest.raises(ledger.LedgerError, match='cut off'):
    ledger.read(spent, head)


def test_an_older_head_is_part_of_a_longer_ledger(spent):
  head = ledger.read(spent).head
  ledger.resume(spent, header_of(), head).spend(ROUND, 30, 39)
  ledger.read(spent, head)


@pytest.mark.parametrize('content', [b'', b'no json\n', b'{}\n', b'[]\n'])
def test_what_is_no_ledger_is_refused(tmp_path, content):
  write(tmp_path, [content])
  with pytest.raises(ledger.LedgerError):
    ledger.read(tmp_path)


def test_a_run_without_a_budget_has_no_ledger(tmp_path):
  with pytest.raises(FileNotFoundError, match='no privacy budget'):
    ledger.read(tmp_path)


# From a plan.

def test_a_planned_run_fits_its_own_ledger_exactly(tmp_path):
  config = Config(
      rounds=30, privacy=PrivacyConfig(epsilon=0.5, l2_clip_norm=1.0))
  made = plan.make_privacy_plan(
      config, 500, Cohort(10, 'poisson', 60), verify=False)
  book = ledger.create(tmp_path, ledger.make_header(made, config))
  assert book.spend(made.round_release, 0, 19)
  assert book.spend(made.round_release, 20, 29)
  assert book.epsilon() == pytest.approx(made.epsilon())
  with pytest.raises(ledger.BudgetExceededError):
    for index in range(30, 40):
      book.spend(made.round_release, index, index)


def test_the_digest_ignores_what_changes_no_release():
  config = Config()
  digest = ledger.config_digest(config)
  for same in (
      dataclasses.replace(config, rounds=3),
      dataclasses.replace(config, engine=EngineConfig(block_size=7)),
      dataclasses.replace(config, data=dataclasses.replace(
          config.data, cache_dir='elsewhere'))):
    assert ledger.config_digest(same) == digest
  for other in (
      dataclasses.replace(config, seed=1),
      dataclasses.replace(config, privacy=PrivacyConfig(l2_clip_norm=1.0)),
      dataclasses.replace(config, cohort=dataclasses.replace(
          config.cohort, size=7))):
    assert ledger.config_digest(other) != digest
