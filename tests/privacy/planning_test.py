"""`fedjaxrec privacy plan`: what noise for what epsilon."""

import json
import math

import pytest

from fedjaxrec import cli
from fedjaxrec.privacy import planning

SMALL = ('--population=500', '--cohort=10', '--rounds=20', '--delta=1e-4')
CHEAP = '--mechanisms=shuffled,blt'


@pytest.fixture
def run(capsys):
  def run_main(*arguments):
    code = cli.main(['fedjaxrec', 'privacy', 'plan', *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err
  return run_main


def test_the_json_has_a_row_for_every_combination(run):
  code, out, _ = run(*SMALL, '--epsilons=0.4,0.5', '--json',
                     '--mechanisms=banded,blt')
  assert code == 0
  rows = json.loads(out)
  assert [(row['epsilon'], row['mechanism'], row['bands']) for row in rows] == [
      (epsilon, name, bands) for epsilon in (0.4, 0.5)
      for name, bands in (('banded', 8), ('blt', None))]
  for row in rows:
    assert {'noise_multiplier', 'sampling', 'neighboring', 'accountant',
            'cross_check', 'prefix_rmse', 'rounds', 'delta'} <= row.keys()
    assert 0.97 * row['epsilon'] < row['epsilon_verified'] <= row['epsilon']
    assert row['cross_check']['epsilon'] > row['epsilon_verified']
  less, more = rows[2]['noise_multiplier'], rows[0]['noise_multiplier']
  assert less < more


def test_the_table_names_what_it_compares_and_its_accountant(run, monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  code, out, _ = run(*SMALL, '--epsilons=0.5', CHEAP, '--rounds=20,40')
  assert code == 0
  for words in ('20 rounds', '40 rounds', 'shuffled', 'blt', 'zero-out',
                'unit client', 'PLD (dp-accounting', '█'):
    assert words in out
  assert max(map(len, out.splitlines())) <= 80


def test_the_page_is_whole_and_goes_where_it_was_asked_for(run, tmp_path):
  path = tmp_path / 'plan.html'
  code, _, err = run(*SMALL, '--epsilons=0.5', '--mechanisms=shuffled',
                     f'--output={path}')
  assert code == 0 and str(path) in err
  assert path.read_text().startswith('<!DOCTYPE html>')
  assert 'shuffled' in path.read_text()


def test_a_mechanism_that_cannot_be_had_leaves_the_others(run):
  _, out, _ = run('--population=40', '--cohort=10', '--rounds=20',
                  '--epsilons=0.5', '--mechanisms=banded,shuffled', '--json')
  banded, shuffled = json.loads(out)
  assert banded['noise_multiplier'] is None
  assert 'fewer bands' in banded['refused']
  assert shuffled['noise_multiplier'] > 0
  assert run('--population=40', '--cohort=10', '--rounds=20', '--epsilons=0.5',
             '--mechanisms=banded')[0] == 0


@pytest.mark.parametrize(('arguments', 'message'), [
  (['--epsilons=0'], 'epsilon=0.0'), (['--epsilons=-1'], 'epsilon=-1.0'),
  (['--epsilons=nan'], "--epsilons='nan'"), (['--epsilons='], 'epsilons'),
  (['--delta=1'], 'delta=1.0'), (['--delta=x'], "--delta='x'"),
  (['--cohort=0'], 'cohort=0'), (['--cohort=9999'], 'cohort=9999'),
  (['--population=1'], 'population=1'), (['--rounds=0'], 'rounds=0'),
  (['--rounds=1.5'], "--rounds='1.5'"), (['--bands=0'], 'bands=0'),
  (['--mechanisms=tree'], "mechanisms='tree'"),
  (['--output=nowhere/plan.html'], '--output=nowhere'),
  (['--output=plan.txt'], '--output=plan.txt'),
  (['directory'], "'directory' was not expected"),
  (['--workdir=x'], '--workdir is no flag of')])
def test_what_cannot_be_planned_is_refused_in_one_line(
    run, arguments, message):
  code, out, err = run(*arguments)
  assert (code, out) == (2, ''), err
  assert message in err and err.count('\n') == 1


def test_correlated_noise_pays_in_the_long_run():
  rows = {row['mechanism']: row for row in planning.plan_rows(
      500, 10, [400], 1e-4, [1.0], mechanisms=('shuffled', 'blt'),
      verify=False)}
  assert rows['blt']['prefix_rmse'] < 0.5 * rows['shuffled']['prefix_rmse']
  # Independent noise is a random walk over the 400 rounds.
  assert rows['shuffled']['prefix_rmse'] == pytest.approx(
      rows['shuffled']['noise_multiplier'] * math.sqrt(401 / 2))
