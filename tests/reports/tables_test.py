"""The table of results."""

import io

import pytest
import rich.console

from fedjaxrec.reports import tables

SUMMARY = {
    'data': {'name': 'csv:[red]x.csv', 'split': 'leave_one_out'},
    'test': {
        'protocol': 'full',
        'personalised': {
            'ndcg@10': 0.07123, 'hit_rate@10': 0.2, 'num_users': 1943,
            'ci95': {'ndcg@10': [0.0612, 0.0818]}},
        'aggregated': {'ndcg@10': 0.05, 'mrr': None, 'num_users': 1943},
    },
    'controls': {'popularity': {'ndcg@10': 0.043}, 'local_only': None},
}


def render(summary):
  stream = io.StringIO()
  tables.print_comparison(summary, rich.console.Console(file=stream, width=140))
  return stream.getvalue()


def test_the_table_holds_rows_columns_and_title():
  text = render(SUMMARY)
  assert '0.0712 [0.061, 0.082]' in text
  for word in ('HR@10', 'NDCG@10', 'MRR', 'Recall@20', 'Popularity',
               'Federated (aggregated)', 'Federated (personalised)'):
    assert word in text
  title = ' '.join(text.split())
  assert 'csv:[red]x.csv · split leave_one_out · full ranking' in title
  assert '1,943 test users' in title


def test_a_control_that_was_not_run_has_no_row():
  assert 'Local only' not in render(SUMMARY)
  controls = SUMMARY['controls'] | {'local_only': {'ndcg@10': 0.004}}
  assert 'Local only' in render(SUMMARY | {'controls': controls})


def test_an_empty_summary_is_an_empty_table():
  assert 'Model' in render({})


@pytest.mark.parametrize('metrics, text', [
    ({'mrr': 0.5}, '0.5000'),
    ({'mrr': 0.5, 'ci95': {'mrr': [0.1, None]}}, '0.5000'),
    ({'mrr': 0.5, 'ci95': {'mrr': [0.1, 0.75]}}, '0.5000 [0.100, 0.750]'),
    ({'mrr': float('nan')}, '-'), ({'mrr': None}, '-'), ({}, '-')])
def test_missing_and_undefined_numbers_are_shown_as_such(metrics, text):
  assert tables.format_metric(metrics, 'mrr') == text


@pytest.mark.parametrize('protocol, words', [
    ('full', 'full ranking'), ('sampled-99', 'sampled ranking, 99 negatives'),
    (None, 'unknown protocol')])
def test_the_protocol_is_said_in_words(protocol, words):
  assert tables.describe_protocol(protocol) == words


def test_cells_stand_as_they_are_in_markdown_and_on_the_console():
  rows = [['name', 'a|b'], ['csv:[b]x.csv', '[/]'], ['y', '1 | 2']]
  assert tables.markdown_rows(rows) == [
      '| name | a\\|b |', '| --- | --- |', '| csv:[b]x.csv | [/] |',
      '| y | 1 \\| 2 |']
  stream = io.StringIO()
  console = rich.console.Console(
      file=stream, width=60, force_terminal=True, color_system='standard')
  console.print(
      tables.cell_table(rows, title='[i]', caption='[/i]', left=1, bold=1))
  lines = stream.getvalue().splitlines()
  assert any('csv:[b]x.csv' in line and '[/]' in line for line in lines)
  assert '[i]' in lines[0] and '[/i]' in lines[-1]
  bold = [line for line in lines if '\x1b[1m' in line and '1 | 2' in line]
  assert len(bold) == 1
  assert not [line for line in lines if '\x1b[1m' in line and '[/]' in line]


def test_a_file_gets_the_width_asked_for_and_a_terminal_its_own(monkeypatch):
  assert tables.open_console().width == 160  # Under pytest, a file.
  assert tables.open_console(99).width == 99
  monkeypatch.setenv('FORCE_COLOR', '1')
  monkeypatch.setenv('COLUMNS', '77')
  assert tables.open_console(99).width == 77


def test_fairness_and_ratings_are_printed_with_the_results():
  summary = {
      'test': {'personalised': {
          'ndcg@10': 0.07, 'worst_decile_ndcg@10': 0.0123, 'coverage@10': 0.31,
          'gini@10': 0.8}},
      'item_groups': [{'label': '0-41 interactions',
                       'personalised': {'recall@10': 0.0456}}],
      'ratings': {'personalised': {'rmse': 0.9123, 'mae': 0.7},
                  'user_mean': {'rmse': 1.0456, 'mae': 0.8}}}
  text = render(summary)
  for word in ('0.0123', '0.3100', '0.8000', '0.0456', 'Items of 0-41', 'RMSE',
               '0.9123', '1.0456', "Users' means"):
    assert word in text
  assert 'RMSE' not in render(SUMMARY) and 'Fairness' not in render(SUMMARY)
