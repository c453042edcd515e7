"""The page of a sweep: one HTML file that opens offline; see `page`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedjaxrec.reports import figures, sweep_figures, sweep_table
from fedjaxrec.reports.page import escape, plot, render_page, section
from fedjaxrec.reports.sweep_directory import Outcome
from fedjaxrec.reports.sweep_table import SHOWN, Setting, show
from fedjaxrec.reports.tables import describe_protocol, number


def render_sweep(
    sweep: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> str:
  """Renders the page of a sweep.

  Args:
    sweep: The content of sweep.json.
    outcomes: Its members.
  """
  plots: dict[str, figures.Figure] = {}
  settings = sweep_table.settings_of(outcomes)
  name = sweep['config']['data']['source']
  body = ''.join((
      _header(name, settings, outcomes),
      _results(sweep, settings, plots),
      section('Training', plot(
          plots, 'curves', sweep_figures.curves(settings),
          'No member logged a validation result.', size='tall')),
      _members(sweep, outcomes),
      _notes(sweep, outcomes)))
  return render_page(f'{name} - fedjaxrec sweep', body, plots)


def headline(settings: Sequence[Setting]) -> str:
  """Returns the sweep's result in one sentence."""
  best = sweep_table.best_setting(settings)
  test = 'test.personalised.ndcg@10'
  if best is None:
    return 'This sweep has no validation result to compare settings by.'
  value = sweep_table.format_interval(
      sweep_table.over_seeds(settings[best], test))
  if len(settings) == 1:
    return f'Test NDCG@10 {value} over {len(settings[0].members)} seeds'
  return (f'Best of {len(settings)} settings on the validation set: '
          f'{settings[best].label}; test NDCG@10 {value}')


def _header(
    name: str, settings: Sequence[Setting], outcomes: Sequence[Outcome]
) -> str:
  counts = ', '.join(
      f'{n} {status}' for status in ('done', 'diverged', 'unfinished')
      if (n := sum(o.status == status for o in outcomes)))
  protocols = {o.summary['test']['protocol'] for o in outcomes if o.summary}
  words = ', '.join(describe_protocol(p) for p in sorted(protocols))
  note = sweep_table.deployment_note(settings)
  return (f'<header>\n<p class="overline">fedjaxrec sweep</p>\n'
          f'<h1>{escape(headline(settings))}</h1>\n'
          f'<p>{escape(name)}{f" · {escape(words)}" if words else ""} · '
          f'members: {escape(counts)}</p>\n'
          + (f'<p>{escape(note)}</p>\n' if note else '') + '</header>\n')


def render_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], bold: int | None = None
) -> str:
  """A table of texts on a card; `bold` is the place of the row to stress."""
  cells = ''.join(f'<th>{escape(name)}</th>' for name in head)
  body = ''.join(
      f'<tr{" class=personalised" if index == bold else ""}>'
      + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>\n'
      for index, row in enumerate(rows))
  return (f'<div class="card scroll"><table><thead><tr>{cells}</tr></thead>'
          f'<tbody>\n{body}</tbody></table></div>\n')


def _results(
    sweep: Mapping[str, Any], settings: Sequence[Setting],
    plots: dict[str, figures.Figure]
) -> str:
  head, *rows = sweep_table.cells(settings, sweep['fields'])
  best = sweep_table.best_setting(settings) if len(settings) > 1 else None
  is_curve = sweep_figures.numeric_field(settings) is not None
  draw = sweep_figures.by_value if is_curve else sweep_figures.by_setting
  height = 0 if is_curve else 110 + 34 * len(settings)
  charts = ''.join(
      plot(plots, f'metric-{index}', draw(settings, path),
           f'This sweep has no {label}.', height=height)
      for index, (path, label) in enumerate(SHOWN.items()))
  return section(
      'Settings', f'<p>{escape(sweep_table.caption(settings))}</p>\n',
      render_table(head, rows, best), f'<div class="grid">\n{charts}</div>\n')


def _members(
    sweep: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> str:
  rows = []
  for o in outcomes:
    found = sweep_table.metrics_of(o)
    rows.append([
        o.name, *(show(o.values[field]) for field in sweep['fields']),
        str(o.seed), o.status, str(o.summary.get('selected_round', '-')),
        *(f'{found[path]:.4f}' if path in found else '-' for path in SHOWN),
        *('-' if (s := number(o.summary.get(key))) is None else f'{s:.2f}'
          for key in ('train_s', 'wall_s')), str(o.program)])
  head = ['member', *sweep['fields'], 'seed', 'status', 'round',
          *SHOWN.values(), 'train_s', 'wall_s', 'program']
  return section(
      'Members', '<details class="card"><summary>'
      f'{len(outcomes)} members</summary>', render_table(head, rows),
      '</details>\n')


def _notes(sweep: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
  notes = {
      'Interval': 'Student t, 95 %, over seeds. The dots are the seeds. With '
                  'few seeds it is wide, and it rests on their values being '
                  'about normal.',
      'Selection': 'Settings are compared on the validation set; the test set '
                   'is shown beside it. Whoever picks a setting by its test '
                   'figures has no test set any more.',
      'Many settings': 'No correction for comparing many of them is made.',
      'Times': "A member's train_s and wall_s are its share of its program, "
               'so that they sum to what was spent.'}
  for outcome in outcomes:
    if outcome.message:
      notes[f'Member {outcome.name}'] = outcome.message
  rows = ''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n'
                 for name, text in notes.items())
  text = escape(json.dumps(sweep['config'], indent=2))
  return section(
      'Notes', f'<div class="card"><dl>\n{rows}</dl></div>\n',
      '<details class="card"><summary>What was not swept</summary>\n'
      f'<pre>{text}</pre></details>\n')
