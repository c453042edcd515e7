"""The sweep's plot as a file: settings, seeds and intervals in one SVG."""

import html
import math
import textwrap
from collections.abc import Sequence

from fedjaxrec.reports.sweep_directory import Outcome
from fedjaxrec.reports.sweep_table import (
    SHOWN,
    VALIDATION,
    Setting,
    deployment_note,
    metrics_of,
    over_seeds,
    settings_of,
)

_TEST = 'test.personalised.ndcg@10'
_WIDTH, _ROW, _TOP, _BOTTOM = 760, 34, 52, 44
# What a character of the labels takes, about.
_CHARACTER = 6.6


def render_svg(outcomes: Sequence[Outcome]) -> str:
  """Draws NDCG@10 of every setting: a dot a seed, mean and 95 % t interval.

  The test set's, personalised; the validation set's where there is no test.

  Args:
    outcomes: The members; settings without a result are named without dots.
  """
  settings = settings_of(outcomes)
  path = next((p for p in (_TEST, VALIDATION)
               if any(over_seeds(s, p) for s in settings)), _TEST)
  left = 24 + _CHARACTER * min(46, max(len(s.label) for s in settings))
  note = textwrap.wrap(
      deployment_note(settings), int((_WIDTH - 32) / _CHARACTER))
  bottom = _BOTTOM + 16 * len(note)
  right, height = _WIDTH - 28, _TOP + _ROW * len(settings) + bottom
  values = [v for s in settings for v in _values(s, path)]
  ticks = _ticks(min(values), max(values)) if values else []

  def place(value):
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return left + share * (right - left)

  parts = [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} '
      f'{height}" width="{_WIDTH}" height="{height}" font-family="system-ui, '
      'sans-serif" font-size="12">',
      f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
      f'<text x="16" y="26" font-size="14" font-weight="600" fill="#1c2330">'
      f'{html.escape(SHOWN[path])}: mean over seeds, 95 % t interval</text>']
  for tick in ticks:
    x = place(tick)
    parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" '
        f'y2="{height - bottom}" stroke="#e1e5ec"/>'
        f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle" '
        f'fill="#5d6778">{tick:.6g}</text>')
  for row, setting in enumerate(settings):
    parts += _row(setting, path, _TOP + _ROW * (row + 0.5), left, place)
  said = ['The interval is over seeds of training, not over users.', *note]
  parts += [
      f'<text x="16" y="{height - 8 - 16 * place}" fill="#5d6778">'
      f'{html.escape(line)}</text>'
      for place, line in enumerate(reversed(said))]
  return '\n'.join([*parts, '</svg>', ''])


def _values(setting: Setting, path: str) -> list[float]:
  """All that a setting draws: its seeds, and the ends of its interval."""
  seeds = [metrics_of(member).get(path) for member in setting.members]
  mean = over_seeds(setting, path)
  ends = [] if mean is None else [mean.mean, mean.low, mean.high]
  return [value for value in [*seeds, *ends] if value is not None]


def _row(setting, path, y, left, place) -> list[str]:
  label = setting.label
  if len(label) > 46:
    label = label[:45] + '…'
  parts = [f'<text x="{left - 14:.1f}" y="{y + 4:.1f}" text-anchor="end" '
           f'fill="#1c2330">{html.escape(label)}</text>']
  mean = over_seeds(setting, path)
  if mean is None:
    return [*parts, f'<text x="{left:.1f}" y="{y + 4:.1f}" fill="#5d6778">'
            'no result</text>']
  if mean.low is not None:
    low, high = place(mean.low), place(mean.high)
    parts.append(
        f'<path d="M{low:.1f} {y - 5:.1f}v10M{low:.1f} {y:.1f}H{high:.1f}'
        f'M{high:.1f} {y - 5:.1f}v10" stroke="#1c2330" stroke-width="1.5" '
        'fill="none"/>')
  for member in setting.members:
    value = metrics_of(member).get(path)
    if value is not None:
      parts.append(
          f'<circle cx="{place(value):.1f}" cy="{y:.1f}" r="3" fill="#8b95a5" '
          f'fill-opacity="0.7"><title>seed {member.seed}: {value:.4f}</title>'
          '</circle>')
  parts.append(f'<circle cx="{place(mean.mean):.1f}" cy="{y:.1f}" r="5.5" '
               'fill="#3b5bdb"/>')
  return parts


def _ticks(low: float, high: float) -> list[float]:
  """Four to nine round numbers that enclose what is drawn."""
  span = high - low or max(abs(high), 1e-6) * 0.1
  power = 10.0 ** math.floor(math.log10(span / 4))
  step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 6)
  first, last = math.floor(low / step), math.ceil(high / step)
  return [step * i for i in range(first, max(last, first + 1) + 1)]
