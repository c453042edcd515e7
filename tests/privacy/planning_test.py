"""`fedjaxrec privacy plan`: what noise for what epsilon."""

import json
import math
import re
import xml.etree.ElementTree

import pytest

from fedjaxrec import cli
from fedjaxrec.privacy import planning
from fedjaxrec.reports import plan_plot

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
  page = path.read_text()
  assert page.startswith('<!DOCTYPE html>') and 'shuffled' in page
  figures = json.loads(re.search(
      r'<script type="application/json" id="figures">(.*?)</script>', page,
      re.DOTALL)[1])
  assert set(figures) == {'noise_multiplier', 'prefix_rmse'}
  (line,) = figures['noise_multiplier']['data']
  assert line['x'] == [0.5] and line['y'][0] > 0


def test_the_picture_has_a_dot_for_every_noise_multiplier(run, tmp_path):
  path = tmp_path / 'plan.svg'
  code, out, err = run(*SMALL, '--epsilons=0.25,0.5,1', CHEAP, '--json',
                       f'--output={path}')
  assert code == 0 and f'Plot: {path}' in err
  rows = json.loads(out)
  assert dots_of(path.read_text()) == {
      (row['mechanism'], row['epsilon'], f'{row["noise_multiplier"]:.4g}')
      for row in rows}


def dots_of(svg):
  """(line, place on the axis, value) of every dot of a picture."""
  root = xml.etree.ElementTree.fromstring(svg)
  spaces = {'s': 'http://www.w3.org/2000/svg'}
  assert root.tag == '{http://www.w3.org/2000/svg}svg'
  found = []
  for dot in root.iterfind('s:circle[s:title]', spaces):
    name, _, rest = dot.find('s:title', spaces).text.partition(': ')
    axis, value = rest.split(', ')
    place = float(dot.get('cx')), float(dot.get('cy'))
    assert 0 < place[0] < 760 and 0 < place[1] < 420
    found.append((name, float(axis.split()[-1]), value, place))
  # More noise is higher up, and equals are as high.
  for one in found:
    for other in found:
      if float(one[2]) > 1.02 * float(other[2]):
        assert one[3][1] < other[3][1]
      if one[1] > other[1]:
        assert one[3][0] > other[3][0]
  lines = root.findall('s:polyline', spaces)
  assert sum(len(line.get('points').split()) for line in lines) == len(found)
  return {dot[:3] for dot in found}


def make_row(mechanism, noise, *, epsilon=1.0, rounds=100, bands=None):
  return {'mechanism': mechanism, 'noise_multiplier': noise, 'delta': 1e-5,
          'epsilon': epsilon, 'rounds': rounds, 'bands': bands,
          'prefix_rmse': None if noise is None else 7 * noise,
          'refused': '<no>', 'neighboring': 'add_or_remove_one',
          'cross_check': {'noise_multiplier': None}, 'accountant': 'PLD'}


def test_the_axis_is_what_varies_and_the_rest_makes_lines():
  by_rounds = [make_row('blt', 2.0 + i, rounds=100 * (i + 1)) for i in (0, 1)]
  assert dots_of(plan_plot.render_svg(by_rounds)) == {
      ('blt', 100, '2'), ('blt', 200, '3')}
  both = [make_row('blt', 4 / e + r / 100, epsilon=e, rounds=r)
          for e in (1.0, 8.0) for r in (100, 400)]
  assert dots_of(plan_plot.render_svg(both)) == {
      (f'blt, rounds {r}', e, f'{4 / e + r / 100:.4g}')
      for e in (1.0, 8.0) for r in (100, 400)}
  # What has no bands is as good with any.
  bands = [make_row('shuffled', 3.0), make_row('banded', 2.0, bands=8),
           make_row('banded', 1.5, bands=16)]
  assert dots_of(plan_plot.render_svg(bands)) == {
      ('shuffled', 8, '3'), ('shuffled', 16, '3'), ('banded', 8, '2'),
      ('banded', 16, '1.5')}


def test_what_was_refused_has_no_dot_and_its_reason_on_the_page():
  rows = [make_row('banded', None, bands=8), make_row('poisson', 1.25)]
  assert dots_of(plan_plot.render_svg(rows)) == {('poisson', 1, '1.25')}
  words = {'banded': 'a & b', 'poisson': 'c'}
  page = plan_plot.render_plan(rows, words)
  assert '&lt;no&gt;' in page and 'a &amp; b' in page and '<no>' not in page
  nothing = plan_plot.render_svg(rows[:1])
  assert dots_of(nothing) == set() and 'No mechanism can be had' in nothing
  assert 'No mechanism can be had' in plan_plot.render_plan(rows[:1], words)


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
