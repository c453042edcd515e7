"""The report of a run: one HTML file that opens offline.

Everything is in the file: styles, plotly.js, the numbers. It reads config.json,
metrics.jsonl and summary.json of the run directory and nothing else, so it can
be written again at any time. A piece that the run does not have is left out.
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedjaxrec.data import whole_file
from fedjaxrec.reports import adaptation as adaptation_lib
from fedjaxrec.reports import figures, run_directory, tables, travels
from fedjaxrec.reports import privacy as privacy_lib
from fedjaxrec.reports import secure as secure_lib
from fedjaxrec.reports.page import escape as _escape
from fedjaxrec.reports.page import plot as _plot
from fedjaxrec.reports.page import render_page
from fedjaxrec.reports.page import section as _section

_MODELS = {'mf': 'matrix factorisation', 'neumf': 'NeuMF'}
_METRIC_WORDS = {
    'hit_rate': 'HR', 'ndcg': 'NDCG', 'recall': 'Recall',
    'recall_min': 'Recall/min(k, n)', 'precision': 'Precision', 'map': 'MAP',
    'mrr': 'MRR', 'auc': 'AUC', 'coverage': 'Coverage', 'gini': 'Gini',
}


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes report.html into a run directory.

  Args:
    workdir: A run directory with config.json and summary.json; without
      metrics.jsonl the curves are missing.

  Returns:
    The path of the report, some 5 MB, most of it plotly.js.

  Raises:
    FileNotFoundError: If config.json or summary.json is missing.
    ValueError: If one of the three files is damaged.
  """
  workdir = pathlib.Path(workdir)
  page = render_report(
      run_directory.read_json(workdir / run_directory.CONFIG),
      run_directory.read_metrics(workdir),
      run_directory.read_json(workdir / run_directory.SUMMARY))
  path = workdir / run_directory.REPORT
  whole_file.write_text(path, page)
  return path


def render_report(
    config: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> str:
  """Renders the report.

  Args:
    config: The content of config.json.
    lines: The lines of metrics.jsonl.
    summary: The content of summary.json.
  """
  plots: dict[str, figures.Figure] = {}
  body = ''.join((
      _header(summary),
      _comparison(summary, plots),
      _privacy(summary),
      _training(summary, lines, plots),
      _groups(summary, plots),
      _adaptation(summary, plots),
      _traffic(summary, config, plots),
      _secure(summary),
      _facts(summary),
      _notes(summary, config),
      _configuration(config, summary),
  ))
  name = (summary.get('data') or {}).get('name', 'run')
  return render_page(f'{name} - fedjaxrec report', body, plots)


def headline(summary: Mapping[str, Any]) -> str:
  """Returns the run's result in one sentence."""
  test = summary.get('test') or {}
  ours = test.get('personalised') or {}
  data = (summary.get('data') or {}).get('name', 'the data')
  model = (summary.get('model') or {}).get('name', 'training')
  value = tables.number(ours.get('ndcg@10'))
  what = f'Federated {_MODELS.get(model, model)} on {data}'
  if value is None:
    return f'{what}: this run has no test result.'
  ratings = summary.get('ratings') or {}
  rmse, user_mean = (tables.number((ratings.get(key) or {}).get('rmse'))
                     for key in ('personalised', 'user_mean'))
  if rmse is not None and user_mean is not None:
    what += (f' predicts ratings with an RMSE of {rmse:.4f}, the mean of each '
             f'user with {user_mean:.4f}; as a ranking it')
  sentence = f'{what} reaches NDCG@10 {tables.format_metric(ours, "ndcg@10")}'
  popular = (summary.get('controls') or {}).get('popularity') or {}
  base = tables.number(popular.get('ndcg@10'))
  if not base:
    return f'{sentence}.'
  sentence += f', {value / base:.2f} times the {base:.4f} of popularity'
  own, other = (tables.interval(m, 'ndcg@10') for m in (ours, popular))
  if value <= base:
    sentence += ': it does not beat popularity'
  elif own and other and own[0] <= other[1]:
    sentence += ', with 95 % intervals that overlap'
  return f'{sentence}.'


def _seconds(value: Any) -> str:
  seconds = tables.number(value)
  if seconds is None:
    return '-'
  if seconds < 120:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s'


def _plain(value: Any) -> str:
  """Returns any JSON value in words."""
  if isinstance(value, Mapping):
    return ', '.join(f'{key} {_plain(item)}' for key, item in value.items())
  if isinstance(value, (list, tuple)):
    return ', '.join(map(_plain, value))
  if isinstance(value, bool) or value is None:
    return '-' if value is None else str(value).lower()
  if isinstance(value, int):
    return f'{value:,}'
  if isinstance(value, float):
    if not math.isfinite(value):
      return '-'
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
  return str(value)


def _metric_words(name: str) -> str:
  word, at, k = name.partition('@')
  return f'{_METRIC_WORDS.get(word, word)}{at}{k}'


def _header(summary: Mapping[str, Any]) -> str:
  test = summary.get('test') or {}
  ours = test.get('personalised') or {}
  traffic = summary.get('communication') or {}
  cards = []

  def card(name, value, note=''):
    if value not in (None, '-'):
      cards.append(
          f'<div class="card"><div class="name">{_escape(name)}</div>'
          f'<div class="value">{_escape(value)}</div>'
          f'<div class="note">{_escape(note)}</div></div>\n')

  for name in ('ndcg@10', 'hit_rate@10'):
    value, _, ends = tables.format_metric(ours, name).partition(' ')
    card(tables.METRICS[name], value, f'95 %: {ends}' if ends else '')
  uplink = tables.number(traffic.get('uplink_bytes_per_client'))
  dense = tables.number(traffic.get('dense_uplink_bytes_per_client'))
  card('Upload a client, round', figures.format_bytes(uplink),
       f'{uplink / dense:.0%} of the whole table' if uplink and dense else '')
  speed = tables.number(summary.get('clients_per_s'))
  card('Clients a second', '-' if speed is None else f'{speed:,.0f}',
       _plain(summary.get('device')))
  card('Wall time', _seconds(summary.get('wall_s')),
       f'training {_seconds(summary.get("train_s"))}')
  # An interval stays on one line.
  sentence = re.sub(
      r'(\[[\d., ]+\])', r'<span>\1</span>', _escape(headline(summary)))
  return (f'<header>\n<p class="overline">fedjaxrec report</p>\n'
          f'<h1>{sentence}</h1>\n'
          f'<p>Test set, {_escape(tables.comparison_title(summary))}</p>\n'
          f'<div class="cards">\n{"".join(cards)}</div>\n</header>\n')


def _value_cell(metrics: Mapping[str, Any], name: str) -> str:
  value, _, ends = tables.format_metric(metrics, name).partition(' ')
  return f'<td>{value}{f" <span>{ends}</span>" if ends else ""}</td>'


def _comparison(
    summary: Mapping[str, Any], plots: dict[str, figures.Figure]
) -> str:
  rows = tables.comparison_rows(summary)
  if not rows:
    return ''
  head = ''.join(f'<th>{label}</th>' for label in tables.METRICS.values())
  body = ''.join(
      f'<tr class="{row.key}"><th><span class="swatch" style="background:'
      f'var(--{row.key})"></span>{row.label}</th>'
      f'{"".join(_value_cell(row.metrics, name) for name in tables.METRICS)}'
      '</tr>\n' for row in rows)
  names = list(dict.fromkeys(
      name for row in rows for name, value in row.metrics.items()
      if name != 'num_users' and tables.number(value) is not None))
  everything = ''.join(
      f'<tr><th>{_escape(_metric_words(name))}</th>'
      f'{"".join(_value_cell(row.metrics, name) for row in rows)}</tr>\n'
      for name in names)
  models = ''.join(f'<th>{row.label}</th>' for row in rows)
  charts = ''.join(
      _plot(plots, f'comparison-{index}', figures.comparison(summary, name),
            f'This run has no {label}.', size='short')
      for index, (name, label) in enumerate(tables.METRICS.items()))
  return _section(
      'What it is worth',
      '<p>Test set; ties count against the model. Lines and brackets: 95 % '
      'bootstrap interval over users. It does not cover another seed of '
      'training.</p>\n',
      ''.join(f'<p>{_escape(note)}</p>\n' for note in tables.notes(summary)),
      f'<div class="card scroll"><table><thead><tr><th>Model</th>{head}</tr>'
      f'</thead><tbody>\n{body}</tbody></table></div>\n',
      _ratings(summary),
      f'<div class="grid">\n{charts}</div>\n',
      '<details class="card"><summary>All metrics</summary>'
      f'<div class="scroll"><table><thead><tr><th>Metric</th>{models}</tr>'
      f'</thead><tbody>\n{everything}</tbody></table></div></details>\n')


def _ratings(summary: Mapping[str, Any]) -> str:
  """How far predicted ratings are off; nothing where none are predicted."""
  cells = tables.rating_cells(summary)
  if not cells:
    return ''
  return ('<h3>Predicted ratings: errors over the held-out ratings</h3>\n'
          + _cell_table(cells, summary))


def _cell_table(
    cells: Sequence[Sequence[str]], summary: Mapping[str, Any]
) -> str:
  """A table of texts, a row a model, each in its colour."""
  keys = {row.label: row.key for row in tables.comparison_rows(summary)}
  head = ''.join(f'<th>{_escape(cell)}</th>' for cell in cells[0])
  body = ''
  for label, *values in cells[1:]:
    key = keys.get(label, 'popularity')
    body += (f'<tr class="{key}"><th><span class="swatch" style="background:'
             f'var(--{key})"></span>{_escape(label)}</th>'
             + ''.join(f'<td>{_escape(value)}</td>' for value in values)
             + '</tr>\n')
  return (f'<div class="card scroll"><table><thead><tr>{head}</tr></thead>'
          f'<tbody>\n{body}</tbody></table></div>\n')


def _training(
    summary: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    plots: dict[str, figures.Figure],
) -> str:
  selected = summary.get('selected_round')
  errors = figures.rating_errors(lines, selected)
  note = '' if selected is None else (
      f'<p>The test set was ranked with the parameters of round '
      f'{_escape(selected)}.</p>\n')
  return _section(
      'Training', note, '<div class="grid">\n',
      _plot(plots, 'loss', figures.training_loss(lines),
            'This run logged no training loss.'),
      _plot(plots, 'validation', figures.validation(lines, selected),
            'This run logged no validation result.'),
      _plot(plots, 'errors', errors, '') if errors else '', '</div>\n')


def _groups(
    summary: Mapping[str, Any], plots: dict[str, figures.Figure]
) -> str:
  figure = figures.activity_groups(summary.get('groups') or [])
  by_user = _section('By user activity', _plot(
      plots, 'groups', figure, 'This run has no groups of users.',
      size='tall'))
  items = summary.get('item_groups') or []
  cells = tables.reach_cells(summary)
  if not cells:
    return by_user
  return by_user + _section(
      'Fairness and reach', f'<p>{tables.REACH_CAPTION}'
      f'{f" {tables.ITEMS_CAPTION}" if items else ""}</p>\n',
      _cell_table(cells, summary),
      _plot(plots, 'items', figures.item_groups(items),
            'This run has no groups of items.', size='tall') if items else '')


def _adaptation(
    summary: Mapping[str, Any], plots: dict[str, figures.Figure]
) -> str:
  """The curve of users who never trained; nothing without one."""
  head, *rows = adaptation_lib.curve_rows(summary) or [[]]
  if not rows:
    return ''
  cells = ''.join(f'<th>{_escape(cell)}</th>' for cell in head)
  body = ''.join(
      f'<tr><th>{_escape(first)}</th>'
      f'{"".join(f"<td>{_escape(cell)}</td>" for cell in rest)}</tr>\n'
      for first, *rest in rows)
  return _section(
      'New users',
      f'<p>{_escape(adaptation_lib.curve_title(summary))}.</p>\n',
      f'<div class="card scroll"><table><thead><tr>{cells}</tr></thead>'
      f'<tbody>\n{body}</tbody></table></div>\n',
      _plot(plots, 'adaptation', adaptation_lib.curve_figure(summary),
            'This run has no curve.'))


def _traffic(
    summary: Mapping[str, Any], config: Mapping[str, Any],
    plots: dict[str, figures.Figure]
) -> str:
  traffic = summary.get('communication') or {}
  total = figures.format_bytes(traffic.get('total_bytes'))
  words = travels.words_of(summary, config)
  personal = (f' Its personal parameters {words.personal}.'
              if words.personal else '')
  return _section(
      'What travels',
      f'<p>{_escape(words.moves + personal)} Bytes moved by the whole run: '
      f'{total}.</p>\n',
      _plot(plots, 'traffic', figures.communication(traffic, words.rows),
            'This run did not count bytes.', size='short'))


def _secure(summary: Mapping[str, Any]) -> str:
  secure = summary.get('secure')
  if not secure:
    return ''
  rows = ''.join(
      f'<dt>{_escape(name)}</dt><dd>{_escape(_plain(value))}</dd>\n'
      for name, value in secure_lib.secure_facts(secure).items())
  return _section(
      'Secure sums', f'<div class="card"><dl>\n{rows}</dl></div>\n')


def _facts(summary: Mapping[str, Any]) -> str:
  data = summary.get('data') or {}
  counts = [f'{_plain(data[key])} {word}' for key, word in (
      ('num_users', 'users'), ('num_items', 'items'),
      ('num_interactions', 'interactions')) if key in data]
  selected = summary.get('selected_round')
  facts = {
      'Data': f'{data.get("name", "-")}: {", ".join(counts)}',
      'Split': data.get('split'),
      'Fingerprint': data.get('fingerprint'),
      'Protocol': tables.describe_protocol(
          (summary.get('test') or {}).get('protocol')),
      'Model': ', '.join(
          [_MODELS.get(value, _plain(value)) if key == 'name'
           else f'{key} {_plain(value)}'
           for key, value in (summary.get('model') or {}).items()]),
      'Rounds': f'{_plain(summary.get("rounds"))}' + (
          '' if selected is None else f'; tested: round {_plain(selected)}'),
      'Seed': None if summary.get('seed') is None else str(summary['seed']),
      'Device': summary.get('device'),
      'Wall time': f'{_seconds(summary.get("wall_s"))} (compiling '
                   f'{_seconds(summary.get("compile_s"))}, training '
                   f'{_seconds(summary.get("train_s"))})',
      'Training speed': f'{_plain(summary.get("clients_per_s"))} clients/s, '
                        f'{_plain(summary.get("examples_per_s"))} examples/s',
      'Versions': summary.get('versions'),
  }
  rows = ''.join(
      f'<dt>{name}</dt><dd>{_escape(_plain(value))}</dd>\n'
      for name, value in facts.items() if value)
  return _section('Facts', f'<div class="card"><dl>\n{rows}</dl></div>\n')


def _privacy(summary: Mapping[str, Any]) -> str:
  """The guarantee, and what it leaves out; nothing without one."""
  privacy = summary.get('privacy')
  if not privacy:
    return ''
  rows = ''.join(f'<dt>{_escape(name)}</dt><dd>{_escape(words)}</dd>\n'
                 for name, words in privacy_lib.facts(privacy))
  uncovered = ''.join(f'<li>{_escape(words)}</li>\n'
                      for words in privacy_lib.not_covered(privacy))
  if uncovered:
    rows += ('<dt>What the epsilon does not cover</dt>'
             f'<dd><ul>\n{uncovered}</ul></dd>\n')
  return _section('Privacy', f'<div class="card"><dl>\n{rows}</dl></div>\n')


def _notes(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
  privacy = summary.get('privacy')
  if privacy is None:
    reveals = ('the rows that it uploads are those of its items'
               if travels.words_of(summary, config).names_items
               else 'what it uploads can reveal them')
    guarantee = ('Privacy: none. No noise was added and no guarantee is '
                 'claimed; the list of interactions stays on the client, but '
                 f'{reveals}.')
  else:
    guarantee = 'Privacy: see the section Privacy above.'
  meanings = ''.join(f'<dt>{row.label}</dt><dd>{_escape(row.meaning)}</dd>\n'
                     for row in tables.comparison_rows(summary))
  return _section(
      'Notes', f'<div class="card"><dl>\n{meanings}'
      f'<dt>Privacy</dt><dd>{_escape(guarantee)}</dd>\n'
      '<dt>Selection</dt><dd>Nothing is selected on the test set; rounds are '
      'compared on the validation set only.</dd>\n</dl></div>\n')


def _configuration(
    config: Mapping[str, Any], summary: Mapping[str, Any]
) -> str:
  command = summary.get('command')
  if isinstance(command, (list, tuple)):
    command = ' '.join(map(str, command))
  shown = (f'<h3>Command</h3>\n<pre>{_escape(command)}</pre>\n'
           if command else '')
  text = _escape(json.dumps(config, indent=2))
  return (f'<details class="card"><summary>Command and configuration</summary>'
          f'\n{shown}<h3>config.json</h3>\n<pre>{text}</pre></details>\n')
