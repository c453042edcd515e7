"""A benchmark's plots as plain Plotly figures; see `figures`."""

import html
from collections.abc import Sequence

from fedjaxrec.reports.benchmark_table import (
  FULL,
  MAIN,
  Line,
  item_columns,
)
from fedjaxrec.reports.figures import Figure, format_bytes
from fedjaxrec.reports.sweep_table import format_interval, interval

# personalised, aggregated, outside the federation: one colour each.
_KINDS = {
    'Federated, personalised': 'personalised',
    'Federated, aggregated': 'aggregated',
    'Outside the federation': 'popularity'}


def _kind(line: Line) -> str:
  if line.is_reference:
    return 'Outside the federation'
  return f'Federated, {line.parameters}'


def _of(lines: Sequence[Line], dataset: str) -> list[Line]:
  return [line for line in lines
          if line.dataset == dataset and not line.is_control]


def by_method(
    lines: Sequence[Line], dataset: str, protocol: str, metric: str, title: str
) -> Figure | None:
  """One metric of every method: mean, interval and seeds; the best on top."""
  shown = [line for line in _of(lines, dataset)
           if line.over_seeds(protocol, metric)]
  order = list(dict.fromkeys(line.label for line in shown))[::-1]
  data = []
  for kind, colour in _KINDS.items():
    mine = [line for line in shown if _kind(line) == kind]
    means = [line.over_seeds(protocol, metric) for line in mine]
    if mine:
      data.append({
          'type': 'scatter', 'mode': 'markers', 'name': kind,
          'x': [m.mean for m in means if m],
          'y': [html.escape(line.label) for line in mine],
          'marker': {'size': 9, 'color': f'var(--{colour})'},
          'error_x': {
              'type': 'data', 'symmetric': True, 'color': f'var(--{colour})',
              'thickness': 1.5, 'width': 4,
              'array': [0 if m.high is None else m.high - m.mean
                        for m in means if m]},
          'customdata': [format_interval(m) for m in means],
          'hovertemplate': '%{y}: %{customdata}'})
  dots = [(value, line, seed) for line in shown
          for seed, value in line.values[protocol, metric].items()
          if len(line.wall_s) > 1]
  if dots:
    data.append({
        'type': 'scatter', 'mode': 'markers', 'name': 'single seeds',
        'x': [value for value, _, _ in dots],
        'y': [html.escape(line.label) for _, line, _ in dots],
        'marker': {'size': 4, 'color': 'var(--muted)'},
        'customdata': [seed for _, _, seed in dots],
        'hovertemplate': '%{y}, seed %{customdata}: %{x:.4f}<extra></extra>'})
  if not data:
    return None
  return {
      'data': data,
      'layout': {
          'title': {'text': title},
          'xaxis': {'rangemode': 'tozero'},
          'yaxis': {'type': 'category', 'ticksuffix': '  ',
                    'categoryorder': 'array',
                    'categoryarray': [html.escape(name) for name in order]}},
  }


def against_cost(
    lines: Sequence[Line], dataset: str, cost: str
) -> Figure | None:
  """NDCG@10 of the full ranking against wall_s or bytes, on a log axis."""
  data = []
  for kind, colour in _KINDS.items():
    points = []
    for line in _of(lines, dataset):
      mean = line.over_seeds(FULL, MAIN)
      spent = interval(list(
          (line.wall_s if cost == 'wall_s' else line.num_bytes).values()))
      if (_kind(line) == kind and line.parameters != 'aggregated'
          and not line.leaks and mean and spent and spent.mean > 0):
        points.append((spent.mean, mean.mean, line.label))
    if points:
      data.append({
          'type': 'scatter', 'mode': 'markers+text', 'name': kind,
          'x': [p[0] for p in points], 'y': [p[1] for p in points],
          'text': [html.escape(p[2]) for p in points],
          'textposition': 'top center',
          'customdata': [
              f'{p[0]:.1f} s' if cost == 'wall_s' else format_bytes(p[0])
              for p in points],
          'marker': {'size': 9, 'color': f'var(--{colour})'},
          'hovertemplate': '%{text}: %{y:.4f}, %{customdata}<extra></extra>'})
  if not data:
    return None
  axis = {'type': 'log', 'title': {'text': 'seconds of a run'}}
  if cost != 'wall_s':
    axis = {'type': 'log', 'title': {'text': 'bytes, up and down'},
            'ticksuffix': 'B', 'tickformat': '~s'}
  what = 'time' if cost == 'wall_s' else 'traffic'
  return {'data': data, 'layout': {
      'title': {'text': f'NDCG@10 against {what}'}, 'xaxis': axis,
      'yaxis': {'rangemode': 'tozero'}}}


def popularity(lines: Sequence[Line], dataset: str) -> Figure | None:
  """Recall@10 by the popularity of the test item: a row a method."""
  groups = item_columns(lines, dataset)
  rows = []
  for line in _of(lines, dataset):
    if line.is_reference or line.parameters != 'aggregated':
      means = [line.over_seeds(FULL, metric) for metric in groups.values()]
      if any(means):
        rows.append((html.escape(line.label),
                     [mean and mean.mean for mean in means]))
  if not rows:
    return None
  rows = rows[::-1]
  return {
      'data': [{
          'type': 'heatmap', 'z': [found for _, found in rows],
          'y': [label for label, _ in rows],
          'x': [html.escape(name) for name in groups],
          'colorscale': 'Blues', 'reversescale': True,
          'texttemplate': '%{z:.3f}', 'xgap': 1, 'ygap': 1,
          'hovertemplate': '%{y}, %{x}: %{z:.4f}<extra></extra>'}],
      'layout': {
          'title': {'text': 'Recall@10 of test items by their training '
                            'interactions'},
          'xaxis': {'type': 'category', 'showgrid': False},
          'yaxis': {'type': 'category', 'ticksuffix': '  '}},
  }
