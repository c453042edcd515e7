"""The tables, plots and page of a sweep, from outcomes made by hand."""

import csv
import io
import math
import re
import xml.etree.ElementTree

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from fedjaxrec import config
from fedjaxrec.reports import (
    sweep_directory,
    sweep_figures,
    sweep_html,
    sweep_plot,
    sweep_table,
)
from fedjaxrec.reports.sweep_directory import Outcome

FIELDS = ['server.learning_rate']
PATH = 'test.personalised.ndcg@10'


def make_outcome(place, rate, seed, ndcg, status='done', validation=None):
  validation = ndcg if validation is None else validation
  summary = {} if status != 'done' else {
      'selected_round': 4, 'train_s': 0.5, 'wall_s': 2.0,
      'test': {'protocol': 'full', 'personalised': {
          'ndcg@10': ndcg, 'hit_rate@10': 2 * ndcg, 'num_users': 30,
          'ci95': {'ndcg@10': [ndcg - 0.01, ndcg + 0.01]}}},
      'controls': {'popularity': {'ndcg@10': 0.04}, 'local_only': None},
      'privacy': None, 'communication': {'total_bytes': 1000}}
  lines = [{'round': 2, 'validation': {'ndcg@10': validation / 2}},
           {'round': 4, 'validation': {'ndcg@10': validation}}]
  return Outcome(
      sweep_directory.member_name(place), 0, {FIELDS[0]: rate}, seed, status,
      summary, lines if status == 'done' else lines[:1],
      'loss=nan & <b>' if status == 'diverged' else '')


# By hand: 0.1 and 0.3 have the mean 0.2 and the deviation 0.1 sqrt(2).
OUTCOMES = [
    make_outcome(0, 0.01, 0, 0.1), make_outcome(1, 0.01, 1, 0.3),
    # Better on the test set, worse on the validation set.
    make_outcome(2, 0.1, 0, 0.5, validation=0.1),
    make_outcome(3, 0.1, 1, 0.5, validation=0.1),
    make_outcome(4, 1.0, 0, 0.0, status='diverged'),
    make_outcome(5, 1.0, 1, 0.0, status='unfinished')]
SWEEP = {'config': config.to_dict(config.Config()), 'fields': FIELDS}


def test_whom_a_setting_serves_and_its_errors_of_ratings_are_columns():
  def more(outcome):
    test = outcome.summary['test']
    return outcome._replace(
        lines=[line | {'validation': line['validation'] | {'rmse': 0.8}}
               for line in outcome.lines],
        summary=outcome.summary | {
            'ratings': {'personalised': {'rmse': 0.9, 'mae': 0.7}},
            'test': test | {'personalised': test['personalised'] | {
                'worst_decile_ndcg@10': 0.0125, 'coverage@10': 0.25,
                'gini@10': 0.75}}})

  settings = sweep_table.settings_of([more(OUTCOMES[0]), more(OUTCOMES[1])])
  head, row = sweep_table.cells(settings, FIELDS)
  found = dict(zip(head, row, strict=True))
  assert [found[name] for name in (
      'Worst decile, NDCG@10', 'Coverage@10', 'Gini@10', 'validation RMSE',
      'RMSE', 'MAE')] == [
          '0.0125', '0.2500', '0.7500', '0.8000', '0.9000', '0.7000']
  assert 'ratings.personalised.rmse,0.9,' in sweep_table.tidy_csv(
      [more(OUTCOMES[0])], FIELDS)
  plain, *_ = sweep_table.cells(sweep_table.settings_of(OUTCOMES), FIELDS)
  assert 'RMSE' not in plain and 'Gini@10' not in plain


def with_privacy(outcome, epsilon, deployment):
  return outcome._replace(
      values={'privacy.epsilon': epsilon},
      summary=outcome.summary | {'privacy': {
          'epsilon': epsilon, 'deployment_cohort': deployment,
          'noise_scale': 0.01}})


@pytest.mark.parametrize('cohort', [None, 10_000])
def test_whose_an_epsilon_is_stands_wherever_a_sweep_shows_it(cohort):
  outcomes = [with_privacy(OUTCOMES[i], 2.0 + i, cohort) for i in (0, 2)]
  sweep = SWEEP | {'fields': ['privacy.epsilon']}
  console = rich.console.Console(record=True, width=400, file=io.StringIO())
  sweep_table.print_settings(outcomes, sweep['fields'], console)
  svg = sweep_plot.render_svg(outcomes)
  xml.etree.ElementTree.fromstring(svg)
  page = sweep_html.render_sweep(sweep, outcomes)
  texts = [sweep_table.markdown(outcomes, sweep['fields']),
           console.export_text(), svg, page.partition('</header>')[0],
           page.partition('</header>')[2]]
  for text in texts:
    assert 'epsilon' in text
    said = 'simulated deployment with cohorts of 10,000' in ' '.join(
        re.sub(r'</?text[^>]*>', ' ', text).split())
    assert said == (cohort is not None)


def test_a_sweep_of_deployment_cohorts_says_which_epsilons_are_theirs():
  settings = sweep_table.settings_of([
      with_privacy(OUTCOMES[i], 2.0 + i, n)
      for i, n in zip((0, 2, 3), (None, 500, 10_000))])
  note = sweep_table.deployment_note(settings)
  assert '(500, 10,000) are those of a simulated deployment' in note
  assert sweep_table.deployment_note(settings[:1]) == ''


@pytest.mark.parametrize(('degrees', 'value'), [
    # Published tables of Student's distribution.
    (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (9, 2.262),
    (30, 2.042), (120, 1.980)])
def test_the_quantile_is_the_tables(degrees, value):
  assert sweep_table.student_quantile(degrees) == pytest.approx(
      value, abs=5.1e-4)


def test_the_interval_is_the_one_by_hand():
  # Half width t s / sqrt(n) = 12.706 * 0.1 sqrt(2) / sqrt(2).
  found = sweep_table.interval([0.1, 0.3])
  assert found.n == 2 and found.mean == pytest.approx(0.2)
  assert found.high - 0.2 == pytest.approx(1.2706, abs=1e-4)
  assert 0.2 - found.low == pytest.approx(1.2706, abs=1e-4)
  assert sweep_table.interval([0.4]) == (0.4, None, None, 1)
  assert sweep_table.interval([]) is None
  assert sweep_table.format_interval(found) == '0.2000 ± 1.2706'
  assert sweep_table.format_interval(
      sweep_table.interval([0.4])) == '0.4000'


def test_the_tidy_table_has_a_row_for_each_member_and_metric():
  rows = list(csv.DictReader(io.StringIO(
      sweep_table.tidy_csv(OUTCOMES, FIELDS))))
  assert list(rows[0]) == [
      'member', 'program', *FIELDS, 'seed', 'status', 'metric', 'value',
      'ci95_low', 'ci95_high', 'selected_round', 'train_s', 'wall_s']
  assert len({(row['member'], row['metric']) for row in rows}) == len(rows)
  mine = {row['metric']: row for row in rows if row['member'] == '001'}
  assert float(mine[PATH]['value']) == 0.3
  assert float(mine[PATH]['ci95_low']) == pytest.approx(0.29)
  assert float(mine['validation.ndcg@10']['value']) == 0.3
  assert mine[PATH]['server.learning_rate'] == '0.01'
  assert (mine[PATH]['seed'], mine[PATH]['wall_s']) == ('1', '2.0')
  assert {'controls.popularity.ndcg@10', 'communication.total_bytes'} <= set(
      mine)
  for name in ('004', '005'):  # Who has no result has one row that says so.
    row, = [row for row in rows if row['member'] == name]
    assert row['metric'] == row['value'] == ''
    assert row['status'] in ('diverged', 'unfinished')


def test_settings_are_compared_by_validation_and_not_by_test():
  settings = sweep_table.settings_of(OUTCOMES)
  assert [len(setting.members) for setting in settings] == [2, 2, 2]
  assert sweep_table.best_setting(settings) == 0
  assert sweep_table.over_seeds(settings[1], PATH).mean == 0.5
  lines = sweep_table.markdown(OUTCOMES, FIELDS).splitlines()
  assert lines[2].startswith('| **0.01** | **2** | **0.2000 ± 1.2706** |')
  assert lines[3].startswith('| 0.1 | 2 | 0.1000 ± 0.0000 |')
  assert '| 1 | 0, 1 diverged, 1 unfinished | - |' in lines[4]
  assert 'Best on the validation set: learning_rate=0.01' in lines[-1]


def test_the_plot_is_a_picture_with_every_setting_and_seed():
  tree = xml.etree.ElementTree.fromstring(sweep_plot.render_svg(OUTCOMES))
  name = '{http://www.w3.org/2000/svg}'
  texts = [node.text for node in tree.iter(f'{name}text')]
  assert {'learning_rate=0.01', 'learning_rate=0.1', 'learning_rate=1',
          'no result'} <= set(texts)
  circles = [(float(node.get('cx')), float(node.get('r')))
             for node in tree.iter(f'{name}circle')]
  assert len(circles) == 4 + 2  # Seeds and means.
  width = float(tree.get('width'))
  assert all(0 < x < width for x, _ in circles)
  # The mean of a setting lies in the middle of its seeds.
  (a, _), (b, _), (mean, radius) = circles[:3]
  assert mean == pytest.approx((a + b) / 2, abs=0.1) and radius > 4
  # And its interval around it, as wide as it is by the axis.
  low, high = map(float, re.search(
      r'M([\d.]+) [\d.]+v10M[\d.]+ [\d.]+H([\d.]+)M',
      sweep_plot.render_svg(OUTCOMES)).groups())
  assert (high - low) / (b - a) == pytest.approx(2 * 1.2706 / 0.2, rel=0.01)
  nothing = sweep_plot.render_svg(OUTCOMES[4:])
  assert xml.etree.ElementTree.fromstring(nothing) is not None


def test_one_numeric_field_is_an_axis_and_anything_else_a_list():
  settings = sweep_table.settings_of(OUTCOMES)
  curve = sweep_figures.by_value(settings, PATH)
  assert curve['data'][1]['x'] == [0.01, 0.1]
  assert curve['data'][1]['error_y']['array'] == [
      pytest.approx(1.2706, abs=1e-4), 0]
  assert curve['layout']['xaxis']['type'] == 'log'
  assert sorted(curve['data'][0]['y']) == [0.1, 0.3, 0.5, 0.5]
  listed = sweep_figures.by_setting(settings, PATH)
  assert listed['data'][1]['y'] == ['learning_rate=0.1', 'learning_rate=0.01']
  words = [setting._replace(values={'server.optimizer': name})
           for setting, name in zip(settings, ('sgd', 'adam', 'yogi'))]
  assert sweep_figures.by_value(words, PATH) is None
  assert sweep_figures.by_setting(words, 'test.nothing') is None


def test_curves_are_means_over_all_of_a_settings_seeds():
  settings = sweep_table.settings_of(OUTCOMES)
  first = sweep_figures.curves(settings)['data'][0]
  assert first['x'] == [2, 4]
  assert first['y'] == [pytest.approx(0.1), pytest.approx(0.2)]
  # A seed that ended early leaves no mean of the others.
  early = OUTCOMES[1]._replace(lines=OUTCOMES[1].lines[:1])
  first = sweep_figures.curves(
      sweep_table.settings_of([OUTCOMES[0], early]))['data'][0]
  assert first['x'] == [2]


def test_the_page_is_whole_and_loads_nothing():
  page = sweep_html.render_sweep(SWEEP, OUTCOMES)
  assert page.startswith('<!DOCTYPE html>')
  head = page[:page.index('<script')]
  assert "default-src 'none'" in head
  assert not re.search(r'(src|href)="http', head)
  assert 'Best of 3 settings on the validation set: learning_rate=0.01' in head
  assert '0.2000 ± 1.2706' in head
  assert 'loss=nan &amp; &lt;b&gt;' in head and '<b>' not in head
  assert 'id="metric-0"' in head and 'id="curves"' in head
  assert '2 diverged' not in head and '1 diverged' in head


def test_a_label_names_a_field_whole_where_two_end_alike():
  label = sweep_table.Setting(
      {'client.learning_rate': 3.0, 'server.learning_rate': 0.1,
       'model.dim': 8}, []).label
  assert label == 'client.learning_rate=3, server.learning_rate=0.1, dim=8'


def test_a_sweep_of_seeds_alone_says_its_mean():
  outcomes = [o._replace(values={}) for o in OUTCOMES[:2]]
  settings = sweep_table.settings_of(outcomes)
  assert sweep_html.headline(settings) == (
      'Test NDCG@10 0.2000 ± 1.2706 over 2 seeds')
  assert 'all seeds' in sweep_plot.render_svg(outcomes)
  assert sweep_table.best_setting(sweep_table.settings_of(OUTCOMES[4:])) is None
  assert math.isclose(
      sweep_table.over_seeds(settings[0], PATH).mean, 0.2)


@given(st.floats(allow_nan=False))
def test_a_shown_number_is_read_back_as_it_was(value):
  assert float(sweep_table.show(value)) == value


def test_a_shown_value_is_as_short_as_its_flag():
  assert [sweep_table.show(x) for x in (3.0, 0.1, 1 / 3, True, (1, 5))] == [
      '3', '0.1', '0.3333333333333333', 'true', '1,5']
