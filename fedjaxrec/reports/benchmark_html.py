"""The page of a benchmark: one HTML file that opens offline; see `page`."""

import json
from collections.abc import Mapping, Sequence
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
  return render_page('fedjaxrec benchmark', body, plots)


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
  head, *rows = benchmark_table.cells(lines, name)
  control_head, *controls = benchmark_table.control_cells(lines, name)
  height = 130 + 26 * len(rows)

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
      name, f'<p>{escape(benchmark_table.caption(lines, name))}</p>\n',
      _column(_part(head, rows, benchmark_table.RESULTS)
              + _part(head, rows, benchmark_table.REACH) + charts + costs)
  ) + section(
          f'{name}: controls',
          f'<p>{escape(benchmark_table.CONTROLS_CAPTION)}</p>\n',
          render_table(control_head, controls))


def _column(cards: str) -> str:
  """Cards one below another."""
  return ('<div class="grid" style="grid-template-columns: minmax(0, 1fr)">\n'
          f'{cards}</div>\n')


def _part(
    head: Sequence[str], rows: Sequence[Sequence[str]], wanted: Sequence[str]
) -> str:
  """Some columns of a table that would be too wide for a page."""
  at = [head.index(name) for name in wanted]
  return render_table([head[i] for i in at], [[row[i] for i in at]
                                              for row in rows])


def _notes(
    benchmark: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> str:
  notes = {
      'Interval': 'Student t, 95 %, over seeds. With few seeds it is wide; it '
                  'does not cover other users.',
      'Selection': 'Settings, and the round of each run that is tested, are '
                   'chosen on validation where the data set has one.',
      'Aggregated': "The server's model with the average of the personal "
                    'parameters: what a user without any would get.'}
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
      '<details class="card"><summary>Settings of every method</summary>\n'
      f'<pre>{text}</pre></details>\n')
