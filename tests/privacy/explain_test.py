"""`fedjaxrec privacy explain`: epsilon from the ledger alone, in words."""

import json

import pytest

from fedjaxrec import cli
from fedjaxrec.privacy import accounting, explain, ledger
from fedjaxrec.privacy.accounting import Release
from tests.privacy.ledger_test import ROUND, header_of


@pytest.fixture
def folder(tmp_path):
  book = ledger.create(tmp_path, header_of())
  book.spend(Release(accounting.gaussian(9.0), label='item popularity'))
  book.spend(ROUND, 0, 19)
  return tmp_path


@pytest.fixture
def run(capsys):
  def run_main(*arguments):
    code = cli.main(['fedjaxrec', 'privacy', *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err
  return run_main


def test_epsilon_is_that_of_the_releases(folder):
  result = explain.explain(folder)
  releases = [Release(accounting.gaussian(9.0)), ROUND._replace(times=20)]
  assert result['epsilon'] == accounting.epsilon(
      releases, 1e-5, neighboring='replace_special', interval=accounting.FINE)
  assert result['cross_check']['epsilon'] == accounting.epsilon(
      releases, 1e-5, neighboring='replace_special', accountant='rdp')
  assert result['within_budget']
  assert (result['rounds'], result['planned_rounds']) == (20, 40)
  assert result['does_not_cover'] == ['Seeds.']
  assert any('item popularity' in line for line in result['covers'])


def test_the_bound_on_an_attack_follows_from_epsilon():
  # By hand: 1 % times e, and 1 - e^-8 times 99 %.
  assert 'at most 2.7%' in explain._meaning({'epsilon': 1.0, 'delta': 0.0})
  assert 'more than 99.9 %' in explain._meaning({'epsilon': 8.0, 'delta': 0.0})
  assert 'more than 99.9 %' in explain._meaning(
      {'epsilon': float('inf'), 'delta': 0.0})


def test_the_command_says_it_in_words_and_in_json(run, folder, monkeypatch):
  monkeypatch.setenv('COLUMNS', '100')
  code, out, _ = run('explain', folder)
  assert code == 0
  for words in ('epsilon = ', 'client', 'replace_special',
                'RDP', '20 of 40', 'item popularity', 'unbroken chain',
                'does not cover', 'Seeds.', 'Gaussian(noise_multiplier=20)'):
    assert words in out
  code, out, _ = run('explain', folder, '--json')
  assert code == 0
  assert json.loads(out) == explain.explain(folder)


def test_clipped_rows_are_told_and_change_no_epsilon(run, folder, tmp_path):
  """By the whole norm alone; a run without says nothing of rows."""
  clipped = tmp_path / 'rows'
  clipped.mkdir()
  book = ledger.create(clipped, header_of(row_clip_norm=0.25))
  book.spend(Release(accounting.gaussian(9.0), label='item popularity'))
  book.spend(ROUND, 0, 19)
  assert explain.explain(clipped)['row_clip_norm'] == 0.25
  assert explain.explain(folder)['row_clip_norm'] is None
  assert explain.explain(clipped)['epsilon'] == explain.explain(
      folder)['epsilon']
  words = 'clipped to 0.25'
  assert words in run('explain', clipped)[1]
  assert words not in run('explain', folder)[1]


def test_an_edited_ledger_is_refused_in_one_line(run, folder):
  path = folder / ledger.FILE_NAME
  path.write_text(path.read_text().replace('"noise_multiplier":20.0',
                                           '"noise_multiplier":90.0', 1))
  code, out, err = run('explain', folder)
  assert (code, out) == (2, '')
  assert 'line 1: edited or damaged' in err and err.count('\n') == 1


def test_a_ledger_beyond_its_budget_is_told_and_fails(run, tmp_path):
  header = header_of(budget_epsilon=0.2)
  book = ledger.create(tmp_path, header)
  book._append(ledger.Entry(ROUND._replace(times=20), 0, 19))  # Unasked.
  code, out, _ = run('explain', tmp_path)
  assert code == 1
  assert 'PASSED' in out


@pytest.mark.parametrize(('arguments', 'message'), [
  (('explain', 'nowhere'), 'does not exist'),
  (('explain',), 'give one run directory'),
  (('explain', 'a', 'b'), 'give one run directory'),
  (('explain', 'a', '--cohort=3'), '--cohort is no flag of'),
  ((), 'no action'), (('show',), "'show' is no action")])
def test_what_cannot_be_explained_is_refused(run, arguments, message):
  code, out, err = run(*arguments)
  assert (code, out) == (2, '')
  assert message in err and err.count('\n') == 1


def test_a_head_that_was_kept_elsewhere_is_looked_for(run, folder):
  head = ledger.read(folder).head
  assert run('explain', folder, f'--head={head}', '--json')[0] == 0
  code, _, err = run('explain', folder, '--head=00ff')
  assert code == 2 and 'cut off' in err
