"""A sweep's plots as plain Plotly figures; see `figures`."""

import html
from collections.abc import Sequence
from typing import Any

from fedjaxrec.reports.figures import Figure
from fedjaxrec.reports.sweep_table import (
    SHOWN,
    Interval,
    Setting,
    format_interval,
    metrics_of,
    over_seeds,
)
from fedjaxrec.reports.tables import number

# More curves than these are no longer told apart.
_MAX_CURVES = 12


def _known(
    settings: Sequence[Setting], path: str
) -> list[tuple[Setting, Interval]]:
  pairs = [(setting, over_seeds(setting, path)) for setting in settings]
  return [(setting, mean) for setting, mean in pairs if mean is not None]


def _bars(means: Sequence[Interval]) -> dict[str, Any]:
  return {
      'type': 'data', 'symmetric': True, 'color': 'var(--text)',
      'thickness': 1.5, 'width': 5,
      'array': [0 if m.high is None else m.high - m.mean for m in means]}


def _seeds(setting: Setting, path: str) -> list[tuple[int, float]]:
  found = ((m.seed, metrics_of(m).get(path)) for m in setting.members)
  return [(seed, value) for seed, value in found if value is not None]


def numeric_field(settings: Sequence[Setting]) -> str | None:
  """The one field that is swept, if its values are numbers."""
  names = {name for setting in settings for name in setting.values}
  if len(names) != 1 or len(settings) < 2:
    return None
  name, = names
  values = [number(setting.values[name]) for setting in settings]
  is_number = all(value is not None for value in values) and not any(
      isinstance(setting.values[name], bool) for setting in settings)
  return name if is_number else None


def by_value(
    settings: Sequence[Setting], path: str
) -> Figure | None:
  """One metric against the one numeric field that is swept."""
  name = numeric_field(settings)
  known = _known(settings, path)
  if name is None or not known:
    return None
  known.sort(key=lambda pair: pair[0].values[name])
  x = [float(setting.values[name]) for setting, _ in known]
  dots = [(setting.values[name], seed, value) for setting, _ in known
          for seed, value in _seeds(setting, path)]
  is_wide = min(x) > 0 and max(x) > 8 * min(x)
  return {
      'data': [
          {'type': 'scatter', 'mode': 'markers', 'name': 'seeds',
           'x': [d[0] for d in dots], 'y': [d[2] for d in dots],
           'marker': {'size': 5, 'color': 'var(--popularity)'},
           'customdata': [d[1] for d in dots],
           'hovertemplate': 'seed %{customdata}: %{y:.4f}<extra></extra>'},
          {'type': 'scatter', 'mode': 'lines+markers', 'name': 'mean',
           'x': x, 'y': [mean.mean for _, mean in known],
           'line': {'color': 'var(--personalised)', 'width': 2},
           'marker': {'size': 8, 'color': 'var(--personalised)'},
           'error_y': _bars([mean for _, mean in known]),
           'customdata': [format_interval(mean) for _, mean in known],
           'hovertemplate': '%{x}: %{customdata}<extra></extra>'}],
      'layout': {
          'title': {'text': SHOWN.get(path, path)}, 'showlegend': False,
          'xaxis': {'title': {'text': html.escape(name)},
                    'type': 'log' if is_wide else 'linear',
                    'tickvals': x, 'ticktext': [f'{v:g}' for v in x]}},
  }


def by_setting(
    settings: Sequence[Setting], path: str
) -> Figure | None:
  """One metric of every setting, the first on top."""
  known = _known(settings, path)[::-1]
  if not known:
    return None
  labels = [html.escape(setting.label) for setting, _ in known]
  dots = [(label, seed, value)
          for label, (setting, _) in zip(labels, known)
          for seed, value in _seeds(setting, path)]
  return {
      'data': [
          {'type': 'scatter', 'mode': 'markers',
           'x': [d[2] for d in dots], 'y': [d[0] for d in dots],
           'marker': {'size': 5, 'color': 'var(--popularity)'},
           'customdata': [d[1] for d in dots],
           'hovertemplate': 'seed %{customdata}: %{x:.4f}<extra></extra>'},
          {'type': 'scatter', 'mode': 'markers',
           'x': [mean.mean for _, mean in known], 'y': labels,
           'marker': {'size': 9, 'color': 'var(--personalised)'},
           'error_x': _bars([mean for _, mean in known]),
           'customdata': [format_interval(mean) for _, mean in known],
           'hovertemplate': '%{y}: %{customdata}<extra></extra>'}],
      'layout': {
          'title': {'text': SHOWN.get(path, path)}, 'showlegend': False,
          'yaxis': {'type': 'category', 'ticksuffix': '  '}},
  }


def curves(settings: Sequence[Setting]) -> Figure | None:
  """Validation NDCG@10 over the rounds, the mean over a setting's seeds."""
  data = []
  for setting in settings[:_MAX_CURVES]:
    rounds: dict[int, list[float]] = {}
    for member in setting.members:
      for line in member.lines:
        value = number((line.get('validation') or {}).get('ndcg@10'))
        if value is not None:
          rounds.setdefault(line['round'], []).append(value)
    # Where a member is missing, the mean would be one of others.
    most = max(map(len, rounds.values()), default=0)
    whole = sorted(r for r, values in rounds.items() if len(values) == most)
    if whole:
      data.append({
          'type': 'scatter', 'mode': 'lines+markers', 'x': whole,
          'y': [sum(rounds[r]) / most for r in whole],
          'name': html.escape(setting.label), 'line': {'width': 2},
          'marker': {'size': 4},
          'hovertemplate': 'round %{x}: %{y:.4f}'})
  if not data:
    return None
  return {
      'data': data,
      'layout': {
          'title': {'text': 'Validation NDCG@10, mean over seeds'},
          'showlegend': len(data) > 1,
          'xaxis': {'title': {'text': 'round'}},
          'yaxis': {'rangemode': 'tozero'}},
  }
