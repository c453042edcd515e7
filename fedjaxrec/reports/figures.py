"""The report's plots as plain Plotly figures: dicts of JSON types.

Colours are CSS variables (`var(--name)`), which the page resolves, so that a
figure fits a light and a dark page. Figures carry no fonts and no sizes either.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from fedjaxrec.reports import tables

Figure = dict[str, Any]

# A curve of more points than a screen has columns only makes the file larger.
_MAX_POINTS = 2000


def _text(value: Any) -> str:
  """Plotly reads tags in labels; what comes from a run is text."""
  return html.escape(str(value))


def _error_bars(
    values: Sequence[float], ends: Sequence[Sequence[float] | None]
) -> dict[str, Any]:
  """Asymmetric error bars; none (a bar of no length) without an interval."""
  return {
      'type': 'data', 'symmetric': False, 'color': 'var(--text)',
      'thickness': 1.5, 'width': 4,
      'array': [e[1] - v if e else 0 for v, e in zip(values, ends)],
      'arrayminus': [v - e[0] if e else 0 for v, e in zip(values, ends)],
  }


def comparison(summary: Mapping[str, Any], name: str) -> Figure | None:
  """One metric of every compared model, with 95 % intervals."""
  rows = [row for row in reversed(tables.comparison_rows(summary))
          if tables.number(row.metrics.get(name)) is not None]
  if not rows:
    return None
  values = [float(row.metrics[name]) for row in rows]
  ends = [tables.interval(row.metrics, name) for row in rows]
  tips = [e[1] if e else v for v, e in zip(values, ends)]
  labels = [row.label for row in rows]
  return {
      'data': [{
          'type': 'bar', 'orientation': 'h', 'x': values, 'y': labels,
          'marker': {'color': [f'var(--{row.key})' for row in rows]},
          'error_x': _error_bars(values, ends),
          'customdata': [tables.format_metric(row.metrics, name)
                         for row in rows],
          'hovertemplate': '%{y}: %{customdata}<extra></extra>',
      }],
      'layout': {
          'title': {'text': tables.METRICS.get(name, name)},
          'xaxis': {'range': [0, max(1e-6, max(tips)) * 1.22]},
          'yaxis': {'showgrid': False, 'ticksuffix': '  '},
          'bargap': 0.35, 'showlegend': False,
          # Beyond the end of the interval, so that no line crosses a digit.
          'annotations': [
              {'x': tip, 'y': label, 'text': f'{value:.4f}', 'xanchor': 'left',
               'xshift': 6, 'showarrow': False}
              for tip, label, value in zip(tips, labels, values)],
      },
  }


def _curve(points: Sequence[tuple[int, Any]]) -> tuple[list, list]:
  step = -(-len(points) // _MAX_POINTS) if points else 1
  # Counted from the end, so that the last round is always there.
  kept = points[::-1][::step][::-1]
  return ([r for r, _ in kept], [tables.number(value) for _, value in kept])


def training_loss(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
  """Training loss over rounds; a gap where it was not a number."""
  rounds, values = _curve(
      [(line['round'], line.get('loss')) for line in lines])
  if all(value is None for value in values):
    return None
  return {
      'data': [{
          'type': 'scatter', 'mode': 'lines', 'x': rounds, 'y': values,
          'line': {'color': 'var(--personalised)', 'width': 2},
          'hovertemplate': 'round %{x}: %{y:.4f}<extra></extra>',
      }],
      'layout': {
          'title': {'text': 'Training loss'}, 'showlegend': False,
          'xaxis': {'title': {'text': 'round'}},
      },
  }


def validation(
    lines: Sequence[Mapping[str, Any]], selected_round: int | None
) -> Figure | None:
  """NDCG@10 and HR@10 on the validation set, with the selected round."""
  return _validation(lines, selected_round, tuple(
      (name, tables.METRICS[name], colour) for name, colour in (
          ('ndcg@10', 'personalised'), ('hit_rate@10', 'local_only'))),
                     'Validation')


def _validation(
    lines: Sequence[Mapping[str, Any]], selected_round: int | None,
    metrics: Sequence[tuple[str, str, str]], title: str
) -> Figure | None:
  """Metrics, (name, label, colour) each, of the validation set over rounds."""
  data = []
  for name, label, colour in metrics:
    rounds, values = _curve(
        [(line['round'], line['validation'].get(name)) for line in lines
         if line.get('validation')])
    if any(value is not None for value in values):
      data.append({
          'type': 'scatter', 'mode': 'lines+markers', 'x': rounds, 'y': values,
          'name': label,
          'line': {'color': f'var(--{colour})', 'width': 2},
          'marker': {'size': 5},
          'hovertemplate': 'round %{x}: %{y:.4f}',
      })
  if not data:
    return None
  layout: dict[str, Any] = {
      'title': {'text': title},
      'xaxis': {'title': {'text': 'round'}},
      'yaxis': {'rangemode': 'tozero'},
  }
  if selected_round is not None:
    layout['shapes'] = [{
        'type': 'line', 'x0': selected_round, 'x1': selected_round,
        'yref': 'paper', 'y0': 0, 'y1': 1,
        'line': {'color': 'var(--muted)', 'width': 1.5, 'dash': 'dot'}}]
    # On the side where there is room for it.
    late = selected_round > max(data[0]['x']) / 2
    layout['annotations'] = [{
        'x': selected_round, 'yref': 'paper', 'y': 0.04, 'showarrow': False,
        'xanchor': 'right' if late else 'left', 'xshift': -6 if late else 6,
        'text': f'selected: round {selected_round}'}]
  return {'data': data, 'layout': layout}


def activity_groups(
    groups: Sequence[Mapping[str, Any]], name: str = 'ndcg@10'
) -> Figure | None:
  """One metric by user activity, the model beside popularity."""
  data = []
  for key, label in (('popularity', 'Popularity'),
                     ('personalised', 'Federated (personalised)')):
    shown = [g for g in groups
             if tables.number((g.get(key) or {}).get(name)) is not None]
    if not shown:
      continue
    values = [float(g[key][name]) for g in shown]
    ends = [tables.interval(g[key], name) for g in shown]
    data.append({
        'type': 'bar', 'name': label, 'y': values,
        'x': [_text(g.get('label', '')).replace(' interaction', '<br>'
                                                'interaction')
              + f'<br>{_text(g.get("num_users", "?"))} users' for g in shown],
        'marker': {'color': f'var(--{key})'},
        'error_y': _error_bars(values, ends),
        'customdata': [tables.format_metric(g[key], name) for g in shown],
        'hovertemplate': '%{x}<br>%{customdata}',
    })
  if not data:
    return None
  return {
      'data': data,
      'layout': {
          'title': {'text': f'{tables.METRICS[name]} by training interactions '
                            'of the user'},
          'barmode': 'group', 'bargap': 0.3, 'bargroupgap': 0.08,
          'yaxis': {'rangemode': 'tozero'},
      },
  }


_ITEM_MODELS = {'popularity': 'Popularity',
                'aggregated': 'Federated (aggregated)',
                'personalised': 'Federated (personalised)'}


def item_groups(
    groups: Sequence[Mapping[str, Any]], name: str = 'recall@10'
) -> Figure | None:
  """One metric by the popularity of what is asked for, of each model."""
  data = []
  for key, label in _ITEM_MODELS.items():
    values = [tables.number((g.get(key) or {}).get(name)) for g in groups]
    if any(value is not None for value in values):
      data.append({
          'type': 'bar', 'name': label, 'y': values,
          'x': [f'{_text(g.get("label", ""))}<br>{g.get("num_pairs", "?")} '
                'test items' for g in groups],
          'marker': {'color': f'var(--{key})'},
          'hovertemplate': '%{x}<br>%{y:.4f}'})
  if not data:
    return None
  return {
      'data': data,
      'layout': {
          'title': {'text': 'Recall@10 by training interactions of the test '
                            'item'},
          'barmode': 'group', 'bargap': 0.3, 'bargroupgap': 0.08,
          'yaxis': {'rangemode': 'tozero'}, 'xaxis': {'type': 'category'}},
  }


def rating_errors(
    lines: Sequence[Mapping[str, Any]], selected_round: int | None
) -> Figure | None:
  """RMSE and MAE of predicted ratings on the validation set."""
  return _validation(
      lines, selected_round, (('rmse', 'RMSE', 'personalised'),
                              ('mae', 'MAE', 'local_only')),
      'Validation: errors of predicted ratings')


def format_bytes(value: Any) -> str:
  """Returns a size as `12.3 kB` (powers of 1000); a dash where unknown."""
  size = tables.number(value)
  if size is None:
    return '-'
  for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
    if abs(size) < 1000 or unit == 'TB':
      break
    size /= 1000
  return f'{size:.0f} {unit}' if unit == 'B' else f'{size:.3g} {unit}'


def communication(traffic: Mapping[str, Any], rows: str = '') -> Figure | None:
  """What a client sends and receives a round, and what a dense upload costs.

  Args:
    traffic: The section `communication` of summary.json.
    rows: What the messages are about; see `travels`.
  """
  about = f', {rows}' if rows else ''
  packed = (', compressed'
            if 'uncompressed_uplink_bytes_per_client' in traffic else '')
  bars = [
      (label, tables.number(traffic.get(key)), colour)
      for label, key, colour in (
          ('Upload of the whole table', 'dense_uplink_bytes_per_client',
           'popularity'),
          (f'Download{about}', 'downlink_bytes_per_client', 'aggregated'),
          (f'Upload{about}{packed}', 'uplink_bytes_per_client',
           'personalised'))]
  bars = [bar for bar in bars if bar[1] is not None]
  if not bars:
    return None
  labels, values, colours = zip(*bars)
  words = [format_bytes(value) for value in values]
  return {
      'data': [{
          'type': 'bar', 'orientation': 'h', 'x': list(values),
          'y': list(labels), 'customdata': words,
          'marker': {'color': [f'var(--{colour})' for colour in colours]},
          'hovertemplate': '%{y}: %{customdata}<extra></extra>',
      }],
      'layout': {
          'title': {'text': 'Bytes a client and round'}, 'showlegend': False,
          'xaxis': {'range': [0, max(1.0, max(values)) * 1.18],
                    'ticksuffix': 'B', 'tickformat': '~s'},
          'yaxis': {'showgrid': False, 'ticksuffix': '  '}, 'bargap': 0.35,
          'annotations': [
              {'x': value, 'y': label, 'text': word, 'xanchor': 'left',
               'xshift': 6, 'showarrow': False}
              for label, value, word in zip(labels, values, words)],
      },
  }
