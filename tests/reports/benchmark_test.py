"""The tables and the page of a benchmark, from summaries made by hand."""

import csv
import html
import io
import math

import pytest
import rich.console

from fedjaxrec.reports import (
  benchmark_directory,
  benchmark_figures,
  benchmark_html,
  benchmark_table,
  run_directory,
)
from fedjaxrec.reports.benchmark_directory import Outcome


def metrics(value):
  return {'ndcg@10': value, 'hit_rate@10': 2 * value, 'coverage@10': 0.5,
          'gini@10': 0.75, 'worst_decile_ndcg@10': value / 2,
          'ci95': {'ndcg@10': [0, 1]}, 'num_users': 7}


def section(value, protocol, is_reference=False):
  return {
      'test': {'protocol': protocol, 'personalised': metrics(value),
               'aggregated': metrics(value / 2)},
      'controls': {
          'popularity': metrics(0.04),
          'local_only': None if is_reference else metrics(0.001)},
      'item_groups': [
          {'label': f'{n}', 'num_pairs': 2,
           'personalised': {'recall@10': n / 10},
           **({} if is_reference else {
               'aggregated': {'recall@10': n / 20},
               'local_only': {'recall@10': n / 100}})}
          for n in range(1, 6)]}


def outcome(method, seed, value, reference='', counterpart='', prefix='',
            dataset='small'):
  summary = {
      **section(value, f'{prefix}full', bool(reference)),
      'other_protocols': {'sampled-99': section(
          5 * value, f'{prefix}sampled-99', bool(reference))},
      'permuted': {'full': metrics(0.01), 'sampled-99': metrics(0.1)},
      'wall_s': 2.0 + seed,
      **({'reference': reference} if reference else
         {'communication': {'total_bytes': 1000.0}})}
  return Outcome(dataset, method, seed, counterpart, bool(reference), 'done',
                 summary)


OUTCOMES = [
    *(outcome('fedavg', s, 0.06 + s / 100, counterpart='central_mf')
      for s in range(3)),
    *(outcome('central_mf', s, 0.08, 'mf') for s in range(3)),
    *(outcome('ease', s, 0.10, 'ease') for s in range(3)),
    *(outcome('popularity', s, 0.04, 'popularity') for s in range(3)),
    Outcome('small', 'apfl', 0, '', False, 'diverged', {}, 'loss=nan'),
    Outcome('small', 'apfl', 1, '', False, 'unfinished', {})]


def tidy(outcomes=OUTCOMES):
  return list(csv.DictReader(io.StringIO(benchmark_table.tidy_csv(outcomes))))


def test_the_tidy_table_has_exactly_these_columns_and_a_row_a_number():
  rows = tidy()
  assert tuple(rows[0]) == (
      'dataset', 'protocol', 'method', 'parameters', 'seed', 'metric', 'value',
      'wall_s', 'bytes')
  keys = [tuple(list(row.values())[:6]) for row in rows]
  assert len(set(keys)) == len(keys)
  assert {row['parameters'] for row in rows} == {'personalised', 'aggregated'}
  assert {row['protocol'] for row in rows} == {'full', 'sampled-99'}
  assert all(math.isfinite(float(row['value'])) for row in rows)
  assert not [row for row in rows if 'ci95' in row['metric']]


@pytest.mark.parametrize(('where', 'expected'), [
    (('full', 'fedavg', 'personalised', '1', 'ndcg@10'), (0.07, 3, 1000)),
    (('full', 'fedavg', 'aggregated', '1', 'ndcg@10'), (0.035, 3, 1000)),
    (('sampled-99', 'fedavg', 'personalised', '2', 'hit_rate@10'),
     (0.8, 4, 1000)),
    (('full', 'fedavg', 'personalised', '0', 'item_quintile_4_recall@10'),
     (0.4, 2, 1000)),
    (('full', 'fedavg', 'aggregated', '0', 'item_quintile_4_recall@10'),
     (0.2, 2, 1000)),
    (('full', 'fedavg:local_only', 'personalised', '0',
      'item_quintile_1_recall@10'), (0.01, 2, 0)),
    (('full', 'fedavg:local_only', 'personalised', '0', 'ndcg@10'),
     (0.001, 2, 0)),
    (('sampled-99', 'fedavg:permuted', 'personalised', '0', 'ndcg@10'),
     (0.1, 2, 1000)),
    (('full', 'ease', 'personalised', '2', 'gini@10'), (0.75, 4, 0)),
    (('full', 'popularity', 'aggregated', '2', 'ndcg@10'), (0.04, 4, 0))])
def test_a_number_stands_where_it_belongs(where, expected):
  names = ('protocol', 'method', 'parameters', 'seed', 'metric')
  row, = [r for r in tidy() if tuple(r[name] for name in names) == where]
  assert tuple(float(row[name]) for name in (
      'value', 'wall_s', 'bytes')) == pytest.approx(expected)


def test_what_is_no_model_of_its_own_has_no_rows():
  found = {(row['method'], row['parameters']) for row in tidy()}
  assert ('ease', 'aggregated') not in found
  assert ('popularity', 'personalised') not in found
  assert not [m for m, _ in found if m.startswith(('apfl', 'ease:local'))]


def test_lines_are_means_with_student_intervals_the_best_first():
  lines = [line for line in benchmark_table.lines_of(OUTCOMES)
           if not line.is_control]
  assert [line.method for line in lines] == [
      'ease', 'central_mf', 'fedavg', 'popularity', 'fedavg']
  found = lines[2].over_seeds('full', 'ndcg@10')
  # Seeds .06, .07, .08: sd .01, t(2) = 4.302653.
  assert found.mean == pytest.approx(0.07)
  assert found.high - found.mean == pytest.approx(
      4.302653 * 0.01 / math.sqrt(3), rel=1e-6)


def test_the_gaps_are_to_the_best_reference_and_to_the_own_model():
  lines = benchmark_table.lines_of(OUTCOMES)
  row, *_ = rows = table(benchmark_table.result_cells(lines, 'small'))[2:]
  assert row['method'] == 'fedavg' and row['seeds'] == '3'
  assert row['gap to best central'] == '-0.0300 (-30.0 %)'
  assert row['gap to own central'] == '-0.0100 (-12.5 %)'
  assert (row['wall_s'], row['bytes']) == ('3.0', '1 kB')
  assert rows[-1]['gap to best central'] == '-'


def table(cells):
  head, *rows = cells
  return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize('make', [
    benchmark_table.result_cells, benchmark_table.reach_cells])
def test_aggregated_rows_stand_apart_from_the_others(make):
  lines = benchmark_table.lines_of(OUTCOMES)
  assert [row['method'] for row in table(make(lines, 'small'))] == [
      'ease', 'central_mf', 'fedavg', 'popularity']
  assert [row['method'] for row in table(
      make(lines, 'small', aggregated=True))] == ['fedavg']


def test_whom_a_method_serves_is_in_every_table():
  lines = benchmark_table.lines_of(OUTCOMES)
  row = table(benchmark_table.reach_cells(lines, 'small'))[2]
  assert (row['worst decile'], row['coverage@10'], row['Gini@10']) == (
      '0.0350', '0.5000', '0.7500')
  assert row['items 5'] == '0.5000'
  row, = table(benchmark_table.reach_cells(lines, 'small', aggregated=True))
  assert row['items 4'] == '0.2000'
  stream = io.StringIO()
  benchmark_table.print_results(
      OUTCOMES, rich.console.Console(file=stream, width=200))
  for words in (stream.getvalue(), benchmark_table.markdown(OUTCOMES)):
    for name in ('worst decile', 'coverage@10', 'Gini@10', 'items 5'):
      assert name in words


def with_groups(outcome, *labels):
  groups = [{'label': label, 'personalised': {'recall@10': index / 10}}
            for index, label in enumerate(labels)]
  return outcome._replace(summary=outcome.summary | {'item_groups': groups})


def test_groups_of_tied_popularity_are_no_quintiles():
  two = with_groups(OUTCOMES[0], '1 interaction', '2-7 interactions')
  found = {row['metric'] for row in tidy([two])
           if row['protocol'] == 'full' and row['metric'].startswith('item_')}
  assert found == {'item_group_1_of_2_recall@10', 'item_group_2_of_2_recall@10'}
  lines = benchmark_table.lines_of([two])
  row, = table(benchmark_table.reach_cells(lines, 'small'))
  assert (row['items 1'], row['items 2-7']) == ('0.0000', '0.1000')
  assert benchmark_figures.popularity(lines, 'small')['data'][0]['x'] == [
      'items 1', 'items 2-7']


def test_groups_that_differ_from_seed_to_seed_have_no_common_name():
  outcomes = [
      with_groups(OUTCOMES[0], '1-2 interactions', '3 interactions'),
      with_groups(OUTCOMES[1], '1 interaction', '2-3 interactions')]
  assert list(benchmark_table.item_columns(
      benchmark_table.lines_of(outcomes), 'small')) == [
          'items 1 of 2', 'items 2 of 2']


def test_errors_of_ratings_are_shown_where_ratings_are_predicted():
  errors = {'personalised': {'rmse': 0.9, 'mae': 0.7},
            'aggregated': {'rmse': 1.1, 'mae': 0.8},
            'user_mean': {'rmse': 1.0, 'mae': 0.9}}
  rated = OUTCOMES[0]._replace(
      summary=OUTCOMES[0].summary | {'ratings': errors})
  found = {(row['parameters'], row['metric']): float(row['value'])
           for row in tidy([rated]) if row['metric'] in ('rmse', 'mae')}
  assert found == {
      ('personalised', 'rmse'): 0.9, ('personalised', 'mae'): 0.7,
      ('aggregated', 'rmse'): 1.1, ('aggregated', 'mae'): 0.8}
  lines = benchmark_table.lines_of([rated, *OUTCOMES[3:]])
  rows = {row['method']: row
          for row in table(benchmark_table.result_cells(lines, 'small'))}
  assert (rows['fedavg']['RMSE'], rows['fedavg']['MAE']) == ('0.9000', '0.7000')
  assert rows['ease']['RMSE'] == '-'
  row, = table(benchmark_table.result_cells(lines, 'small', aggregated=True))
  assert row['RMSE'] == '1.1000'
  plain = benchmark_table.result_cells(
      benchmark_table.lines_of(OUTCOMES), 'small')
  assert 'RMSE' not in plain[0]


def test_the_page_says_whose_settings_were_searched_for():
  def run_of(name, settings):
    return {'dataset': 'small', 'method': name, 'fields': {
        'evaluation.selection': 'last' if name == 'ease' else 'best'}} | (
            {'settings': settings, 'file': f'default/{name}.flags',
             'about': f'About {name}.'} if settings else {})

  runs = [run_of('fedavg', 'best of 12'), run_of('ease', 'stored')]
  outcomes = [o._replace(settings={
      'fedavg': 'best of 12', 'ease': 'stored'}.get(o.method, ''))
              for o in OUTCOMES]
  rows = {row['method']: row['settings'] for row in table(
      benchmark_table.reach_cells(
          benchmark_table.lines_of(outcomes), 'small'))}
  assert rows == {'fedavg': 'best of 12', 'ease': 'stored', 'central_mf': '-',
                  'popularity': '-'}
  page = benchmark_html.render_benchmark({'runs': runs}, outcomes)
  assert '1 have the settings that a search' in page
  assert 'and 1 those of their stored files' in page
  assert 'About fedavg.' in page and 'always at its last: ease.' in page
  page = benchmark_html.render_benchmark({'runs': [run_of('a', '')]}, [])
  assert 'Of 1 it is not recorded' in page


def test_controls_have_a_table_of_their_own():
  head, *rows = benchmark_table.control_cells(
      benchmark_table.lines_of(OUTCOMES), 'small')
  row, = [r for r in rows if r[0] == 'fedavg']
  assert row[1] == '3' and row[2].startswith('0.0010')
  assert row[6].startswith('0.0100') and len(head) == len(row)
  assert [r for r in rows if r[0] == 'ease'][0][2] == '-'


def test_a_leaking_protocol_is_labelled_and_leads_nothing():
  leaky = [*OUTCOMES, outcome('pfedrec', 0, 0.9, prefix='pfedrec-leaky: ')]
  lines = benchmark_table.lines_of(leaky)
  assert lines[0].method == 'ease'
  text = benchmark_table.markdown(leaky)
  assert 'pfedrec (LEAKING PROTOCOL)' in text
  row, = [r for r in table(benchmark_table.result_cells(lines, 'small'))
          if r['method'].startswith('pfedrec')]
  assert row['gap to best central'] == row['gap to own central'] == '-'
  assert 'fedavg' in benchmark_html.headline(lines, 'small')
  assert {row['protocol'] for row in tidy(leaky)
          if row['method'] == 'pfedrec'} == {
              'pfedrec-leaky: full', 'pfedrec-leaky: sampled-99'}


def test_what_has_no_numbers_is_said():
  text = benchmark_table.markdown(OUTCOMES)
  assert 'apfl, seed 0: diverged: loss=nan' in text
  assert 'apfl, seed 1: unfinished' in text
  assert '## small' in text and '### Controls' in text


def test_the_page_is_whole_and_escapes(tmp_path):
  name = '<b>&small'
  outcomes = [o._replace(dataset=name) for o in OUTCOMES]
  page = benchmark_html.render_benchmark(
      {'runs': [{'dataset': name, 'method': 'ease', 'fields': {'x': '<i>'}}]},
      outcomes)
  assert '<b>' not in page.partition('<script')[0]
  assert html.escape(name) in page and '&lt;i&gt;' in page
  for what in ('full-0', 'sampled-0', 'popularity-0', 'wall_s-0', 'bytes-0'):
    assert f'id="{what}"' in page


def test_what_is_printed_is_printed_as_it_is():
  outcomes = [o._replace(dataset='csv:[b]x.csv') for o in OUTCOMES]
  outcomes[-2] = outcomes[-2]._replace(message='ids [num_users] or [/]')
  stream = io.StringIO()
  benchmark_table.print_results(
      outcomes, rich.console.Console(file=stream, width=250))
  text = stream.getvalue()
  assert 'csv:[b]x.csv' in text.splitlines()[0]
  assert 'diverged: ids [num_users] or [/]' in text


def test_figures_of_nothing_are_none():
  assert benchmark_figures.by_method([], 'small', 'full', 'ndcg@10', '') is None
  assert benchmark_figures.popularity([], 'small') is None
  assert benchmark_figures.against_cost([], 'small', 'bytes') is None
  one = benchmark_table.lines_of([OUTCOMES[0]])
  figure = benchmark_figures.by_method(one, 'small', 'full', 'ndcg@10', 'x')
  assert 'single seeds' not in {trace['name'] for trace in figure['data']}


def test_a_page_and_tables_of_a_benchmark_that_has_just_begun():
  waiting = [OUTCOMES[-1]]
  assert benchmark_table.tidy_csv(waiting).count('\n') == 1
  assert 'unfinished' in benchmark_table.markdown(waiting)
  assert 'no federated method is done' in benchmark_html.render_benchmark(
      {'runs': []}, waiting)


class TestDirectory:

  def test_only_its_own_files_are_removed(self, tmp_path):
    kind = benchmark_directory.KIND
    run_directory.make_workdir(tmp_path, kind)
    run_directory.write_json(tmp_path / 'benchmark.json', {
        'command': 'benchmark', 'datasets': {}, 'protocols': [], 'runs': [],
        'tune': 0})
    (tmp_path / 'notes.txt').write_text('mine')
    folder = benchmark_directory.run_folder(tmp_path, 'csv:a b.csv', 'x', 3)
    folder.mkdir(parents=True)
    assert folder.relative_to(tmp_path).parts == (
        'runs', 'csv-a-b.csv', 'x', '3')
    assert run_directory.holds(tmp_path, kind)
    with pytest.raises(ValueError, match='--resume'):
      run_directory.check_workdir(
          tmp_path, resume=False, overwrite=False, kind=kind)
    run_directory.make_workdir(tmp_path, kind)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']

  def test_a_run_is_done_with_its_summary_and_failed_by_what_is_said(
      self, tmp_path):
    assert benchmark_directory.status_of(tmp_path) == 'unfinished'
    run_directory.write_json(
        tmp_path / 'failed.json', {'status': 'refused', 'message': 'no'})
    assert benchmark_directory.status_of(tmp_path) == 'refused'
    (tmp_path / 'summary.json').write_text('{"test": {"pro')
    assert benchmark_directory.status_of(tmp_path) == 'refused'
    (tmp_path / 'failed.json').write_text('{"sta')
    assert benchmark_directory.status_of(tmp_path) == 'unfinished'
    run_directory.write_json(tmp_path / 'summary.json', {})
    assert benchmark_directory.status_of(tmp_path) == 'done'
