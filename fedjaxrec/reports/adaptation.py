"""The adaptation curve of a summary, as rows and as a figure. Host side."""

from collections.abc import Mapping
from typing import Any

import rich.console
import rich.table

from fedjaxrec.reports import tables

_COLUMNS = ('hit_rate@10', 'ndcg@10', 'recall@20')


def curve_rows(summary: Mapping[str, Any]) -> list[list[str]]:
  """The table's head, and a row a point; empty without a curve.

  Args:
    summary: The content of summary.json.
  """
  points = (summary.get('adaptation') or {}).get('points') or []
  if not points:
    return []
  rates = 'ratings' in points[0]
  rows = [['Interactions', *(tables.METRICS[name] for name in _COLUMNS),
           *(['RMSE', 'MAE'] if rates else [])]]
  for point in points:
    for part, label in ((point, ''), (point.get('finetuned'), ', fine-tuned')):
      if part is None:
        continue
      row = [f'{point["interactions"]}{label}',
             *(tables.format_metric(part['metrics'], name)
               for name in _COLUMNS)]
      if rates:
        row += [f'{part["ratings"][name]:.4f}' for name in ('rmse', 'mae')]
      rows.append(row)
  return rows


def curve_title(summary: Mapping[str, Any]) -> str:
  """What the curve is of, in a sentence."""
  users = (summary.get('adaptation') or {}).get('num_users')
  return (f'{users:,} users who never trained, fitted to their earliest '
          'interactions; at 0 the one model for all')


def curve_figure(summary: Mapping[str, Any]) -> dict[str, Any] | None:
  """NDCG@10 by the number of interactions, as a plain Plotly figure."""
  points = (summary.get('adaptation') or {}).get('points') or []
  if not points:
    return None
  lines = [('adapted', points)]
  tuned = [{'interactions': p['interactions'], **p['finetuned']}
           for p in points if 'finetuned' in p]
  if tuned:
    lines.append(('fine-tuned', tuned))
  return {
      'data': [{
          'type': 'scatter', 'mode': 'lines+markers', 'name': name,
          'x': [p['interactions'] for p in line],
          'y': [tables.number(p['metrics'].get('ndcg@10')) for p in line],
          'line': {'color': f'var(--{color})'},
      } for (name, line), color in zip(
          lines, ('personalised', 'aggregated'), strict=False)],
      'layout': {
          'title': {'text': 'NDCG@10 of users who never trained'},
          'xaxis': {'title': {'text': 'interactions shown'}},
          'yaxis': {'rangemode': 'tozero'},
          'showlegend': len(lines) > 1,
      },
  }


def print_curve(summary: Mapping[str, Any]) -> None:
  """Prints the curve; nothing without one."""
  head, *rows = curve_rows(summary) or [[]]
  if not rows:
    return
  console = tables.open_console(140)
  table = rich.table.Table(title='New users', caption=curve_title(summary))
  for label in head:
    table.add_column(label, justify='right', no_wrap=True)
  for row in rows:
    table.add_row(*row)
  console.print(table)
