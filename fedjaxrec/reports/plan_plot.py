"""The plot of a privacy plan: noise against what was varied, as SVG or a page.

One line a mechanism (and number of bands); of epsilon, rounds and bands the one
that has more than one value is the axis, and the others, where they vary too,
make more lines. On the page the error of the model stands beside the noise.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedjaxrec.reports.figures import Figure
from fedjaxrec.reports.page import escape, plot, render_page, section
from fedjaxrec.reports.sweep_html import render_table

Line = tuple[str, list[tuple[float, float]]]

# What can be an axis, in the order of preference.
_AXES = ('epsilon', 'rounds', 'bands')
NOISE, ERROR = 'noise_multiplier', 'prefix_rmse'
_LABELS = {NOISE: 'noise multiplier',
           ERROR: 'error of the sum of all rounds, in clip norms'}
_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 200, 52, 60
_COLORS = ('#3b5bdb', '#d9480f', '#2b8a3e', '#ae3ec9', '#1c2330', '#0c8599',
           '#c2255c', '#866118')


def axis_of(rows: Sequence[Mapping[str, Any]]) -> str:
  """The first of epsilon, rounds and bands with several values, or epsilon."""
  return next((axis for axis in _AXES if len(_values(rows, axis)) > 1),
              _AXES[0])


def lines_of(
    rows: Sequence[Mapping[str, Any]], quantity: str = NOISE
) -> list[Line]:
  """What is drawn: (name, points by the axis); refused rows have no point.

  Args:
    rows: Of `privacy.planning.plan_rows`.
    quantity: noise_multiplier or prefix_rmse.
  """
  axis = axis_of(rows)
  others = [name for name in _AXES if name != axis
            and len(_values(rows, name)) > 1]
  lines: dict[str, list[tuple[float, float]]] = {}
  for row in rows:
    if row[NOISE] is None:
      continue
    name = ', '.join([row['mechanism'], *(
        f'{other} {row[other]:g}' for other in others
        if row[other] is not None)])
    # What has no bands is as good with any.
    for x in [row[axis]] if row[axis] is not None else _values(rows, axis):
      lines.setdefault(name, []).append((x, row[quantity]))
  return [(name, sorted(points)) for name, points in lines.items()]


def _values(rows, axis):
  return {row[axis] for row in rows if row[axis] is not None}


def _title(rows) -> str:
  fixed = [f'{next(iter(_values(rows, axis))):,g} {word}'
           for axis, word in (('epsilon', 'epsilon'), ('rounds', 'rounds'))
           if axis != axis_of(rows) and len(_values(rows, axis)) == 1]
  return ', '.join(
      ['Noise against ' + axis_of(rows), *fixed,
       f'delta = {rows[0]["delta"]:.3g}, unit client'])


def render_svg(rows: Sequence[Mapping[str, Any]]) -> str:
  """Draws the noise multiplier against the axis; a dot a row.

  Args:
    rows: Of `privacy.planning.plan_rows`, at least one.
  """
  lines = lines_of(rows)
  parts = [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} '
      f'{_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" font-family="system-ui, '
      'sans-serif" font-size="12">',
      f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
      f'<text x="16" y="26" font-size="14" font-weight="600" fill="#1c2330">'
      f'{html.escape(_title(rows))}</text>']
  if lines:
    parts += _draw(axis_of(rows), lines)
  else:
    parts.append('<text x="16" y="60" fill="#5d6778">No mechanism can be had: '
                 'see the table.</text>')
  parts.append(
      f'<text x="16" y="{_HEIGHT - 8}" fill="#5d6778">Mechanisms with '
      'different neighbours make different promises.</text>')
  return '\n'.join([*parts, '</svg>', ''])


def _scale(values, low, high):
  """(value -> place, values that get a tick): by logarithms."""
  first, last = min(values), max(values)
  if last <= first * 1.0001:
    first, last = first / 2, last * 2

  def place(value):
    share = math.log(value / first) / math.log(last / first)
    return low + share * (high - low)

  return place, first, last


def _ticks(first, last):
  """One, two and five times powers of ten, between the ends."""
  powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
  return [m * 10.0**p for p in powers for m in (1, 2, 5)
          if first <= m * 10.0**p <= last]


def _draw(axis, lines) -> list[str]:
  points = [point for _, some in lines for point in some]
  right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
  across, *_ = _scale([x for x, _ in points], _LEFT + 16, right - 16)
  up, low, high = _scale([y for _, y in points], bottom - 12, _TOP + 12)
  parts = []
  for tick in _ticks(low, high) or [low, high]:
    y = up(tick)
    parts.append(
        f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" '
        f'stroke="#e1e5ec"/><text x="{_LEFT - 8}" y="{y + 4:.1f}" '
        f'text-anchor="end" fill="#5d6778">{tick:.3g}</text>')
  for x in sorted({x for x, _ in points}):
    parts.append(
        f'<text x="{across(x):.1f}" y="{bottom + 18}" text-anchor="middle" '
        f'fill="#5d6778">{x:g}</text>')
  parts.append(f'<text x="{(_LEFT + right) / 2:.0f}" y="{bottom + 36}" '
               f'text-anchor="middle" fill="#1c2330">{axis}</text>')
  parts.append(f'<text x="{_LEFT - 48}" y="{_TOP - 6}" fill="#1c2330">'
               f'{_LABELS[NOISE]}</text>')
  for index, (name, some) in enumerate(lines):
    color = _COLORS[index % len(_COLORS)]
    places = ' '.join(f'{across(x):.1f},{up(y):.1f}' for x, y in some)
    parts.append(f'<polyline points="{places}" fill="none" stroke="{color}" '
                 'stroke-width="2"/>')
    for x, y in some:
      parts.append(
          f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="4" '
          f'fill="{color}"><title>{html.escape(name)}: {axis} {x:g}, '
          f'{y:.4g}</title></circle>')
    y = _TOP + 16 + 18 * index
    parts.append(
        f'<circle cx="{right + 16}" cy="{y - 4}" r="4" fill="{color}"/>'
        f'<text x="{right + 26}" y="{y}" fill="#1c2330">'
        f'{html.escape(name)}</text>')
  return parts


def make_figure(
    rows: Sequence[Mapping[str, Any]], quantity: str
) -> Figure | None:
  """The same of one quantity as a Plotly figure; None without a point."""
  lines = lines_of(rows, quantity)
  if not lines:
    return None
  xs = sorted({x for _, points in lines for x, _ in points})
  return {
      'data': [{
          'type': 'scatter', 'mode': 'lines+markers', 'name': html.escape(name),
          'x': [x for x, _ in points], 'y': [y for _, y in points],
          'line': {'width': 2}, 'marker': {'size': 7},
          'hovertemplate': '%{x}: %{y:.4g}'} for name, points in lines],
      'layout': {
          'title': {'text': _LABELS[quantity].capitalize()},
          'showlegend': len(lines) > 1,
          'xaxis': {'title': {'text': axis_of(rows)}, 'type': 'log',
                    'tickvals': xs, 'ticktext': [f'{x:g}' for x in xs]},
          'yaxis': {'type': 'log'}},
  }


def render_plan(
    rows: Sequence[Mapping[str, Any]], words: Mapping[str, str]
) -> str:
  """The page of a plan: both plots, the table, what the mechanisms are.

  Args:
    rows: Of `privacy.planning.plan_rows`, at least one.
    words: Mechanism -> what it is.
  """
  plots: dict[str, Figure] = {}
  missing = 'No mechanism can be had: see the table.'
  charts = ''.join(
      plot(plots, quantity, make_figure(rows, quantity), missing, size='tall')
      for quantity in (NOISE, ERROR))
  table = render_table(
      ['rounds', 'epsilon', 'mechanism', 'bands', 'noise multiplier', 'by RDP',
       'neighbours', 'error of the model', 'accountant'], [_cells(row)
                                                           for row in rows])
  named = ''.join(
      f'<dt>{escape(name)}</dt><dd>{escape(words[name])}</dd>\n'
      for name in dict.fromkeys(row['mechanism'] for row in rows))
  body = (
      f'<header>\n<p class="overline">fedjaxrec privacy plan</p>\n'
      f'<h1>{escape(_title(rows))}</h1>\n</header>\n'
      + section('Plot', f'<div class="grid">\n{charts}</div>\n')
      + section('Table', table)
      + section('Mechanisms', f'<div class="card"><dl>\n{named}</dl></div>\n',
                '<p>Mechanisms with different neighbours make different '
                'promises.</p>\n'))
  return render_page('Privacy plan - fedjaxrec', body, plots)


def _cells(row) -> list[str]:
  head = [f'{row["rounds"]:,}', f'{row["epsilon"]:g}', row['mechanism'],
          str(row['bands'] or '-')]
  if row[NOISE] is None:
    return [*head, '-', '-', '-', row['refused'], '-']
  cross = row['cross_check']['noise_multiplier']
  return [*head, f'{row[NOISE]:.4g}', '-' if cross is None else f'{cross:.4g}',
          row['neighboring'], f'{row[ERROR]:.4g}', row['accountant']]
