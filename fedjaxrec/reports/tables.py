"""The table of results: what the model is worth, beside the controls."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import rich.console
import rich.table
import rich.text

from fedjaxrec.reports import privacy as privacy_lib
from fedjaxrec.reports import secure as secure_lib
from fedjaxrec.reports import travels

METRICS = {
    'hit_rate@10': 'HR@10',
    'ndcg@10': 'NDCG@10',
    'mrr': 'MRR',
    'recall@20': 'Recall@20',
}


# Whom a model serves, and with what.
REACH = {
    'worst_decile_ndcg@10': 'Worst decile, NDCG@10',
    'coverage@10': 'Coverage@10',
    'gini@10': 'Gini@10',
}
REACH_CAPTION = (
    'Worst decile: the tenth of the users, by activity, that is served worst. '
    'Coverage: the share of the items that somebody is shown among the first '
    '10. Gini: how unequally they are shown, 0 all alike.')
ITEMS_CAPTION = (
    'Items of a-b: recall@10 of the test items with so many training '
    'interactions, the least popular first.')
_ERRORS = {'rmse': 'RMSE', 'mae': 'MAE'}
_RATED = {'global_mean': 'Mean of all ratings', 'user_mean': "Users' means"}
# How a protocol is labelled whose training is told of the test items.
LEAKING = 'LEAKING PROTOCOL'


class Row(NamedTuple):
  """One compared model."""
  key: str  # popularity, local_only, aggregated or personalised.
  label: str
  meaning: str
  metrics: Mapping[str, Any]


_ROWS = (
    ('controls', 'popularity', 'Popularity',
     'Every user gets the items with the most training interactions. What a '
     'recommender must beat.'),
    ('controls', 'local_only', 'Local only',
     'Federation off: every client trains by itself, from the same start. On '
     'a sound protocol it is near chance; if it does well, the evaluation '
     'leaks.'),
    ('test', 'aggregated', 'Federated (aggregated)',
     "The server's model with the average of the personal parameters: what a "
     'user without parameters of their own would get.'),
    ('test', 'personalised', 'Federated (personalised)',
     "The server's model with each client's own personal parameters"),
    ('test', 'finetuned', 'Federated (fine-tuned)',
     'Each client after personalization.finetune_steps more steps on its own '
     'copy of the model.'),
)


def comparison_rows(summary: Mapping[str, Any]) -> list[Row]:
  """Returns the models that a summary compares, the weakest claim first."""
  rows = []
  for section, key, label, meaning in _ROWS:
    metrics = (summary.get(section) or {}).get(key)
    if key == 'personalised':
      where = travels.words_of(summary).personal
      meaning += f', which {where}.' if where else '.'
    if metrics:
      rows.append(Row(key, label, meaning, metrics))
  return rows


def notes(summary: Mapping[str, Any]) -> list[str]:
  """Returns why a row is missing, and what else a reader must know."""
  note = (summary.get('controls') or {}).get('local_only_note')
  return [f'No local only: {note}'] if note else []


def number(value: Any) -> float | None:
  """Returns a finite number as it is, and anything else as None."""
  if isinstance(value, (int, float)) and math.isfinite(value):
    return float(value)
  return None


def interval(metrics: Mapping[str, Any], name: str) -> list[float] | None:
  """Returns a metric's 95 % interval, or None where it has none."""
  ends = (metrics.get('ci95') or {}).get(name)
  if ends and len(ends) == 2 and None not in map(number, ends):
    return ends
  return None


def format_metric(metrics: Mapping[str, Any], name: str) -> str:
  """Returns a metric as `0.0712 [0.061, 0.082]`; a dash where it is missing."""
  value = number(metrics.get(name))
  if value is None:
    return '-'
  ends = interval(metrics, name)
  return f'{value:.4f}' + (
      f' [{ends[0]:.3f}, {ends[1]:.3f}]' if ends else '')


def num_users(summary: Mapping[str, Any]) -> int | None:
  """Returns the number of users that the test metrics are a mean over."""
  for row in reversed(comparison_rows(summary)):
    if row.metrics.get('num_users'):
      return row.metrics['num_users']
  return None


def describe_protocol(protocol: str | None) -> str:
  """Returns a protocol in words."""
  leak, colon, rest = (protocol or '').rpartition(': ')
  if colon:
    return (f'{LEAKING} ({leak}: training spares the held-out items), '
            f'{describe_protocol(rest)}')
  if protocol == 'full':
    return 'full ranking'
  if protocol and protocol.startswith('sampled-'):
    return f'sampled ranking, {protocol.split("-")[1]} negatives'
  return protocol or 'unknown protocol'


def comparison_title(summary: Mapping[str, Any]) -> str:
  """Returns the table's title: data, split, protocol, number of users."""
  data = summary.get('data') or {}
  parts = [data.get('name', 'unknown data'),
           f'split {data.get("split", "unknown")}',
           describe_protocol((summary.get('test') or {}).get('protocol'))]
  users = num_users(summary)
  if users is not None:
    parts.append(f'{users:,} test users')
  return ' · '.join(parts)


def comparison_table(summary: Mapping[str, Any]) -> rich.table.Table:
  """Builds the table of results from a summary.

  Rows: popularity, local only, federated (aggregated), federated
  (personalised). Columns: HR@10, NDCG@10, MRR, Recall@20, each with its 95 %
  interval over users.

  Args:
    summary: The content of summary.json.
  """
  table = rich.table.Table(
      title=rich.text.Text(comparison_title(summary)),
      caption='test set, ties count against the model; in brackets the 95 % '
              'bootstrap interval over users' + ''.join(
                  f'\n{note}' for note in notes(summary)))
  table.add_column('Model', no_wrap=True)
  for label in METRICS.values():
    table.add_column(label, justify='right', no_wrap=True)
  for row in comparison_rows(summary):
    table.add_row(
        row.label, *(format_metric(row.metrics, name) for name in METRICS),
        style='bold' if row.key == 'personalised' else None)
  return table


def reach_cells(summary: Mapping[str, Any]) -> list[list[str]]:
  """Whom each compared model serves: the head, and a row a model, or nothing.

  Beside worst decile, coverage and Gini the recall of test items by their
  popularity, where a model has it.

  Args:
    summary: The content of summary.json.
  """
  groups = summary.get('item_groups') or []
  body = []
  for row in comparison_rows(summary):
    cells = [format_metric(row.metrics, name) for name in REACH]
    cells += [format_metric(group.get(row.key) or {}, 'recall@10')
              for group in groups]
    if set(cells) != {'-'}:
      body.append([row.label, *cells])
  if not body:
    return []
  return [['Model', *REACH.values(), *(
      f'Items of {str(group.get("label", "?")).partition(" ")[0]}'
      for group in groups)], *body]


def rating_cells(summary: Mapping[str, Any]) -> list[list[str]]:
  """How far predicted ratings are off; nothing where none are predicted.

  Args:
    summary: The content of summary.json.
  """
  ratings = summary.get('ratings') or {}
  labels = _RATED | {row.key: row.label for row in comparison_rows(summary)}
  rows = [[label, *(format_metric(ratings[key], name) for name in _ERRORS)]
          for key, label in labels.items() if ratings.get(key)]
  return [['Ratings', *_ERRORS.values()], *rows] if rows else []


def markdown_rows(rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns the lines of a Markdown table, of which the first row is the head.

  Args:
    rows: Cells; a | in one is escaped.
  """
  head, *body = rows
  return ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |'
          for row in (head, ['---'] * len(head), *body)]


def open_console(width: int = 160) -> rich.console.Console:
  """Opens the standard output, of a width of its own where it is a file."""
  console = rich.console.Console()
  return console if console.is_terminal else rich.console.Console(width=width)


def cell_table(
    rows: Sequence[Sequence[str]], *, title: str | None = None,
    caption: str | None = None, left: int = 0, bold: int | None = None
) -> rich.table.Table:
  """Builds a table for the console from cells as they are.

  Args:
    rows: Cells, the head first. Nothing in them is markup: `[x]` is `[x]`.
    title: What stands above.
    caption: What stands below.
    left: Columns of words, which stand first, to the left.
    bold: The place among the rows below the head of the one that stands out.
  """
  head, *body = rows
  table = rich.table.Table(
      title=title and rich.text.Text(title),
      caption=caption and rich.text.Text(caption))
  for index, name in enumerate(head):
    table.add_column(
        rich.text.Text(name), justify='left' if index < left else 'right')
  for index, row in enumerate(body):
    table.add_row(
        *map(rich.text.Text, row), style='bold' if index == bold else None)
  return table


def _place(
    cells: Sequence[Sequence[str]], summary: Mapping[str, Any]) -> int | None:
  """The place of the personalised model's row below the head."""
  label = [row.label for row in comparison_rows(summary)
           if row.key == 'personalised']
  places = [i for i, row in enumerate(cells[1:]) if row[0] in label]
  return places[0] if places else None


def print_comparison(
    summary: Mapping[str, Any], console: rich.console.Console | None = None
) -> None:
  """Prints the table of results; in full width where output is a file."""
  console = console or open_console(140)
  console.print(comparison_table(summary))
  reach, ratings = reach_cells(summary), rating_cells(summary)
  if reach:
    caption = REACH_CAPTION
    if summary.get('item_groups'):
      caption += f' {ITEMS_CAPTION}'
    console.print(cell_table(
        reach, title='Fairness and reach', caption=caption, left=1,
        bold=_place(reach, summary)))
  if ratings:
    console.print(cell_table(
        ratings, title='Predicted ratings', left=1,
        caption='errors over the held-out ratings of the test set',
        bold=_place(ratings, summary)))
  secure = summary.get('secure')
  if secure:
    lines = rich.table.Table(
        box=None, show_header=False, title='Secure sums', title_justify='left')
    lines.add_column(style='bold', no_wrap=True)
    lines.add_column(overflow='fold')
    for name, value in secure_lib.secure_facts(secure).items():
      lines.add_row(name, rich.text.Text(str(value)))
    console.print(lines)
  privacy = summary.get('privacy')
  if privacy:
    lines = rich.table.Table(
        box=None, show_header=False, title='Privacy', title_justify='left')
    lines.add_column(style='bold', no_wrap=True)
    lines.add_column(overflow='fold')
    for name, words in privacy_lib.facts(privacy):
      lines.add_row(name, rich.text.Text(words))
    for words in privacy_lib.not_covered(privacy):
      lines.add_row('Not covered', rich.text.Text(words))
    console.print(lines)
