"""The page of a benchmark: one HTML file that opens offline; see `page`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedjaxrec.reports import benchmark_figures as draw
from fedjaxrec.reports import benchmark_table, figures
from fedjaxrec.reports.benchmark_directory import Outcome
from fedjaxrec.reports.benchmark_table import FULL, MAIN, SAMPLED, Line
from fedjaxrec.reports.page import (
  escape,
  plot,
  render_page,
  section,
)
from fedjaxrec.reports.sweep_html import render_table
from fedjaxrec.reports.sweep_table import format_interval


def render_benchmark(
    benchmark: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> str:
  """Renders the page of a benchmark.

  Args:
    benchmark: The content of benchmark.json.
    outcomes: Its runs.
  """
  plots: dict[str, figures.Figure] = {}
  lines = benchmark_table.lines_of(outcomes)
  names = list(dict.fromkeys(o.dataset for o in outcomes))
  body = ''.join((
      _header(names, lines, outcomes),
      *(_dataset(name, lines, plots, index)
        for index, name in enumerate(names)),
      _notes(benchmark, outcomes)))
  return render_page('fedjaxrec benchmark', body, plots, wide=True)


def headline(lines: Sequence[Line], dataset: str) -> str:
  """A data set's result in one sentence."""
  found = [line for line in lines if line.dataset == dataset
           and not (line.is_reference or line.is_control or line.leaks)]
  if not found:
    return f'{dataset}: no federated method is done yet'
  best = found[0]
  text = (f'{dataset}: {best.label} ({best.parameters}) leads the federated '
          f'methods, NDCG@10 {format_interval(best.over_seeds(FULL, MAIN))}')
  reference = benchmark_table.best_reference(lines, dataset)
  if reference is not None:
    text += (f'; {reference.method} outside the federation: '
             f'{format_interval(reference.over_seeds(FULL, MAIN))}')
  return text


def _header(
    names: Sequence[str], lines: Sequence[Line], outcomes: Sequence[Outcome]
) -> str:
  counts = ', '.join(
      f'{n} {status}'
      for status in ('done', 'diverged', 'refused', 'failed', 'unfinished')
      if (n := sum(o.status == status for o in outcomes)))
  words = ''.join(f'<p>{escape(headline(lines, name))}</p>\n'
                  for name in names)
  methods = len({o.method for o in outcomes})
  return (f'<header>\n<p class="overline">fedjaxrec benchmark</p>\n'
          f'<h1>{methods} methods on {escape(", ".join(names))}</h1>\n{words}'
          f'<p>runs: {escape(counts)}</p>\n</header>\n')


def _dataset(
    name: str, lines: Sequence[Line], plots: dict[str, figures.Figure],
    index: int
) -> str:
  methods = len({line.label for line in lines
                 if line.dataset == name and not line.is_control})
  height = 130 + 26 * methods

  def place(what, figure, high=0):
    return plot(plots, f'{what}-{index}', figure,
                'No run with these numbers is done yet.', height=high)

  charts = (
      place('full', draw.by_method(
          lines, name, FULL, MAIN, 'NDCG@10, full ranking'), height)
      + place('sampled', draw.by_method(
          lines, name, SAMPLED, MAIN, 'NDCG@10, 99 sampled'), height)
      + place('popularity', draw.popularity(lines, name), height))
  costs = ''.join(
      place(cost, draw.against_cost(lines, name, cost), 420)
      for cost in ('wall_s', 'bytes'))
  return section(
      name, _paragraph(benchmark_table.caption(lines, name)),
      _table(benchmark_table.result_cells(lines, name)),
      _more(lines, name, benchmark_table.result_cells)
  ) + section(
      f'{name}: fairness and reach',
      _paragraph(benchmark_table.reach_caption(lines, name)),
      _table(benchmark_table.reach_cells(lines, name)),
      _more(lines, name, benchmark_table.reach_cells)
  ) + section(f'{name}: figures', _column(charts + costs)
  ) + section(
      f'{name}: controls', _paragraph(benchmark_table.CONTROLS_CAPTION),
      _table(benchmark_table.control_cells(lines, name)))


def _column(cards: str) -> str:
  """Cards one below another."""
  return ('<div class="grid" style="grid-template-columns: minmax(0, 1fr)">\n'
          f'{cards}</div>\n')


def _paragraph(text: str) -> str:
  return f'<p>{escape(text)}</p>\n'


def _table(cells: Sequence[Sequence[str]]) -> str:
  head, *rows = cells
  return render_table(head, rows)


def _more(
    lines: Sequence[Line], name: str, make: Callable[..., list[list[str]]]
) -> str:
  """The rows of one model for all, behind a line to click."""
  cells = make(lines, name, aggregated=True)
  if len(cells) < 2:
    return ''
  return ('<details class="more"><summary>The same with aggregated parameters: '
          f'{len(cells) - 1} methods</summary>\n'
          f'{_paragraph(benchmark_table.AGGREGATED_CAPTION)}{_table(cells)}'
          '</details>\n')


def _notes(
    benchmark: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> str:
  notes = {
      'Interval': 'Student t, 95 %, over seeds. With few seeds it is wide; it '
                  'does not cover other users.',
      'Round': _selection(benchmark),
      'Settings': _settings(benchmark),
      'Aggregated': benchmark_table.AGGREGATED_CAPTION}
  missing = ''.join(f'<li>{escape(text)}</li>\n'
                    for text in benchmark_table.failures(outcomes))
  rows = ''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n'
                 for name, text in notes.items())
  fields = {
      f'{run["dataset"]}, {run["method"]}': run['fields']
      for run in benchmark['runs']}
  text = escape(json.dumps(fields, indent=1))
  return section(
      'Notes', f'<div class="card"><dl>\n{rows}</dl></div>\n',
      f'<div class="card"><ul>\n{missing}</ul></div>\n' if missing else '',
      _sources(benchmark),
      '<details class="card"><summary>Settings of every method</summary>\n'
      f'<pre>{text}</pre></details>\n')


def _selection(benchmark: Mapping[str, Any]) -> str:
  """Which round of a run is tested."""
  last = sorted({run['method'] for run in benchmark['runs']
                 if run['fields'].get('evaluation.selection') == 'last'})
  by_errors = sorted({run['method'] for run in benchmark['runs']
                      if run['fields'].get('evaluation.select_by') == 'rmse'})
  text = ('A run is tested at its best round by NDCG@10 on validation, or at '
          'its last where the data set has no validation part')
  if by_errors:
    text += f'; the best by RMSE: {", ".join(by_errors)}'
  if last:
    text += f'; always at its last: {", ".join(last)}'
  return f'{text}.'


def _settings(benchmark: Mapping[str, Any]) -> str:
  """How many methods were tuned for this benchmark, and how many were not."""
  known = {(run['dataset'], run['method']): run.get('settings', '')
           for run in benchmark['runs']}
  tuned = sum(words.startswith('best of') for words in known.values())
  stored = sum(words == 'stored' for words in known.values())
  text = (f'Of {len(known)} methods and data sets, {tuned} have the settings '
          'that a search on the validation part of this data set found best, '
          f'and {stored} those of their stored files, which no such search '
          'chose: a difference between methods may be one of settings.')
  if tuned + stored < len(known):
    text += f' Of {len(known) - tuned - stored} it is not recorded.'
  return text


def _sources(benchmark: Mapping[str, Any]) -> str:
  """Each method's file, and what it says of itself."""
  rows = list(dict.fromkeys(
      (run['dataset'], run['method'], run['settings'], run['file'],
       run['about']) for run in benchmark['runs'] if 'settings' in run))
  if not rows:
    return ''
  return ('<details class="card words"><summary>Where the settings are from'
          '</summary>\n' + render_table(
              ['data set', 'method', 'settings', 'file', 'what the file says'],
              rows) + '</details>\n')
