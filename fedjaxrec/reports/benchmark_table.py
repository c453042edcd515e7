"""The results of a benchmark in rows: the tidy table, and means over seeds.

An interval is Student's t interval over seeds, see `sweep_table`. What stands
beside a method as a control has a name of its own: METHOD:local_only (its
clients trained alone: federation off), METHOD:permuted (the same parameters,
each user asked for another user's test items), METHOD:finetuned. Methods with
their personal parameters stand in one table, with the mean of them in another.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import rich.console

from fedjaxrec.reports.benchmark_directory import Outcome
from fedjaxrec.reports.figures import format_bytes
from fedjaxrec.reports.sweep_table import Interval, format_interval, interval
from fedjaxrec.reports.tables import (
  LEAKING,
  cell_table,
  markdown_rows,
  number,
  open_console,
)

COLUMNS = ('dataset', 'protocol', 'method', 'parameters', 'seed', 'metric',
           'value', 'wall_s', 'bytes')
FULL, SAMPLED = 'full', 'sampled-99'
MAIN, MAIN_LABEL = 'ndcg@10', 'NDCG@10'
CONTROLS = ('local_only', 'permuted')
_SHOWN = {
    MAIN_LABEL: (FULL, MAIN), 'HR@10': (FULL, 'hit_rate@10'),
    'NDCG@10, 99 sampled': (SAMPLED, MAIN),
    'HR@10, 99 sampled': (SAMPLED, 'hit_rate@10')}
_REACH = {
    'worst decile': 'worst_decile_ndcg@10',
    'coverage@10': 'coverage@10', 'Gini@10': 'gini@10'}
# Of methods that predict ratings.
_ERRORS = {'RMSE': 'rmse', 'MAE': 'mae'}
_QUINTILES = 5
_GAPS = ('gap to best central', 'gap to own central')


class Row(NamedTuple):
  """A row of benchmark.csv, without wall_s and bytes of its run."""
  protocol: str
  method: str
  parameters: str
  metric: str
  value: float


class Line(NamedTuple):
  """A method on a data set, over its seeds.

  Attributes:
    dataset: The data set.
    method: The method, or METHOD:CONTROL.
    parameters: personalised or aggregated.
    is_reference: Whether it is outside the federation.
    counterpart: The method that it is compared with, or empty.
    leaks: Whether training was told of the held-out items.
    values: (protocol, metric) -> seed -> value.
    settings: Where its settings are from, see `Outcome`.
    wall_s: Of each seed's run.
    num_bytes: Likewise.
    item_groups: Of each seed's run, what its groups of test items are called,
      the least popular first.
  """
  dataset: str
  method: str
  parameters: str
  is_reference: bool
  counterpart: str
  leaks: bool
  values: dict[tuple[str, str], dict[int, float]]
  settings: str
  wall_s: dict[int, float]
  num_bytes: dict[int, float]
  item_groups: dict[int, tuple[str, ...]]

  @property
  def label(self) -> str:
    """The method, and a warning where its protocol leaks."""
    return f'{self.method} ({LEAKING})' if self.leaks else self.method

  def over_seeds(self, protocol: str, metric: str) -> Interval | None:
    """A metric's mean with its interval; None where there is no value."""
    return interval(list(self.values.get((protocol, metric), {}).values()))

  @property
  def is_control(self) -> bool:
    """Whether it is a control and no contender."""
    return self.method.rpartition(':')[2] in CONTROLS and ':' in self.method


def rows_of(outcome: Outcome) -> Iterator[Row]:
  """Yields every number of a run that is done."""
  summary = outcome.summary
  if not summary:
    return
  sections = [summary, *(summary.get('other_protocols') or {}).values()]
  own = ('aggregated' if summary.get('reference') == 'popularity'
         else 'personalised')
  for section in sections:
    test = section['test']
    name = test['protocol']
    owners = {'personalised': (outcome.method, own)}
    if not outcome.is_reference:
      owners |= {
          'aggregated': (outcome.method, 'aggregated'),
          'finetuned': (f'{outcome.method}:finetuned', 'personalised'),
          'local_only': (f'{outcome.method}:local_only', 'personalised')}
    found = {**test, 'local_only': (section.get('controls') or {}).get(
        'local_only')}
    for key, (method, parameters) in owners.items():
      for metric, value in _numbers(found.get(key)):
        yield Row(name, method, parameters, metric, value)
    ratings = section.get('ratings') or {}
    for key in owners:
      for metric, value in _numbers(ratings.get(key)):
        yield Row(name, *owners[key], metric, value)
    item_groups = section.get('item_groups') or ()
    for index, group in enumerate(item_groups):
      for key, (method, parameters) in owners.items():
        for metric, value in _numbers(group.get(key)):
          yield Row(name, method, parameters, item_metric(
              index, len(item_groups), metric), value)
  for section, metrics in zip(
      sections, (summary.get('permuted') or {}).values()):
    for metric, value in _numbers(metrics):
      yield Row(section['test']['protocol'], f'{outcome.method}:permuted', own,
                metric, value)


def item_metric(index: int, num_groups: int, metric: str) -> str:
  """What a metric of a group of test items is called in the tidy table.

  Quintiles, the least popular first; where popularity is tied there are fewer
  groups, and they are no quintiles.
  """
  if num_groups == _QUINTILES:
    return f'item_quintile_{index + 1}_{metric}'
  return f'item_group_{index + 1}_of_{num_groups}_{metric}'


def item_columns(lines: Sequence[Line], dataset: str) -> dict[str, str]:
  """The groups of a data set's test items: what each is, and its metric.

  Called by their popularity where that is the same in every run; a population
  that is made up anew with each seed has other items.
  """
  found = {names for line in lines if line.dataset == dataset
           for names in line.item_groups.values() if names}
  columns = {}
  for size in sorted({len(names) for names in found}):
    same = [names for names in found if len(names) == size]
    for index in range(size):
      label = f'items {same[0][index].partition(" ")[0]}'
      if len(found) > 1:
        label = f'items {index + 1} of {size}'
      columns[label] = item_metric(index, size, 'recall@10')
  return columns


def _numbers(metrics: Mapping[str, Any] | None) -> Iterator[tuple[str, float]]:
  for name, value in (metrics or {}).items():
    if number(value) is not None and not isinstance(value, bool):
      yield name, float(value)


def _cost(outcome: Outcome, method: str) -> tuple[float, float]:
  """Seconds of the run, and bytes that travelled in it, up and down."""
  traffic = outcome.summary.get('communication') or {}
  alone = method.endswith(':local_only')
  return (number(outcome.summary.get('wall_s')) or 0.0,
          0.0 if alone else number(traffic.get('total_bytes')) or 0.0)


def tidy_csv(outcomes: Sequence[Outcome]) -> str:
  """One row a number; see COLUMNS.

  wall_s and bytes are those of the run that the number comes from: from the
  data at hand to the last evaluation, compilation included; and what all its
  clients sent and received in all rounds (0 outside the federation).
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(COLUMNS)
  for outcome in outcomes:
    for row in rows_of(outcome):
      wall_s, num_bytes = _cost(outcome, row.method)
      writer.writerow([
          outcome.dataset, row.protocol, row.method, row.parameters,
          outcome.seed, row.metric, row.value, round(wall_s, 3),
          int(num_bytes)])
  return text.getvalue()


def lines_of(outcomes: Sequence[Outcome]) -> list[Line]:
  """The tidy rows by data set, method and parameters; the best line first.

  By NDCG@10 of the full ranking; leaking protocols and controls stand last.
  """
  lines: dict[tuple[str, str, str], Line] = {}
  datasets = list(dict.fromkeys(o.dataset for o in outcomes))
  for outcome in outcomes:
    for row in rows_of(outcome):
      leak, _, protocol = row.protocol.rpartition(': ')
      line = lines.setdefault(
          (outcome.dataset, row.method, row.parameters), Line(
              outcome.dataset, row.method, row.parameters,
              outcome.is_reference, outcome.counterpart, bool(leak), {},
              outcome.settings, {}, {}, {}))
      line.item_groups[outcome.seed] = tuple(
          group['label'] for group in outcome.summary.get('item_groups') or ())
      line.values.setdefault(
          (protocol, row.metric), {})[outcome.seed] = row.value
      line.wall_s[outcome.seed], line.num_bytes[outcome.seed] = _cost(
          outcome, row.method)

  def order(line):
    mean = line.over_seeds(FULL, MAIN)
    return (datasets.index(line.dataset), line.is_control, line.leaks,
            -mean.mean if mean else 0.0)

  return sorted(lines.values(), key=order)


def best_reference(lines: Sequence[Line], dataset: str) -> Line | None:
  """The reference with the highest mean NDCG@10; None without any."""
  found = [line for line in lines if line.dataset == dataset
           and line.is_reference and not line.is_control
           and line.over_seeds(FULL, MAIN)]
  return max(found, key=lambda line: _mean(line), default=None)


def _mean(line: Line) -> float:
  found = line.over_seeds(FULL, MAIN)
  return found.mean if found else float('nan')


def gap(line: Line, other: Line | None) -> str:
  """`-0.0018 (-2.5 %)`: NDCG@10 against another line's; a dash without one."""
  if (other is None or line.is_reference or line.is_control or line.leaks
      or not line.over_seeds(FULL, MAIN)):
    return '-'
  mine, its = _mean(line), _mean(other)
  share = f' ({100 * (mine / its - 1):+.1f} %)' if its > 0 else ''
  return f'{mine - its:+.4f}{share}'


def counterpart_of(lines: Sequence[Line], line: Line) -> Line | None:
  """The line that it is compared with, if it was run."""
  for other in lines:
    if other.dataset == line.dataset and other.method == line.counterpart:
      return other
  return None


def _rows_of_table(
    lines: Sequence[Line], dataset: str, aggregated: bool
) -> list[Line]:
  """The contenders; personalised or aggregated, references with the former."""
  return [line for line in lines
          if line.dataset == dataset and not line.is_control
          and aggregated == (
              line.parameters == 'aggregated' and not line.is_reference)]


def result_cells(
    lines: Sequence[Line], dataset: str, aggregated: bool = False
) -> list[list[str]]:
  """The head, and a row for each method: what it is worth, and what it costs.

  Args:
    lines: Of `lines_of`.
    dataset: The data set.
    aggregated: The methods with the mean of personal parameters, or those with
      their own and the references; no controls.
  """
  mine = _rows_of_table(lines, dataset, aggregated)
  errors = {label: metric for label, metric in _ERRORS.items()
            if any(line.dataset == dataset and line.over_seeds(FULL, metric)
                   for line in lines)}
  best = best_reference(lines, dataset)
  return [['method', 'seeds', *_SHOWN, *_GAPS, *errors, 'wall_s', 'bytes'], *(
      [line.label, str(len(line.wall_s)),
       *(format_interval(line.over_seeds(*where))
         for where in _SHOWN.values()),
       gap(line, best), gap(line, counterpart_of(lines, line)),
       *(format_interval(line.over_seeds(FULL, metric))
         for metric in errors.values()),
       *_costs(line)] for line in mine)]


def reach_cells(
    lines: Sequence[Line], dataset: str, aggregated: bool = False
) -> list[list[str]]:
  """The head, and a row for each method: whom it serves, and with what.

  Args: as in `result_cells`.
  """
  groups = item_columns(lines, dataset)
  return [['method', MAIN_LABEL, *_REACH, *groups, 'settings'], *(
      [line.label,
       *(_short(line, metric)
         for metric in (MAIN, *_REACH.values(), *groups.values())),
       line.settings or '-']
      for line in _rows_of_table(lines, dataset, aggregated))]


def control_cells(lines: Sequence[Line], dataset: str) -> list[list[str]]:
  """The head, and a row for each method: what its controls found."""
  rows = [['method', 'seeds', *(
      f'{what}: {label}' for what in ('federation off', 'permuted')
      for label in _SHOWN)]]
  by_name = {line.method: line for line in lines
             if line.dataset == dataset and line.is_control}
  names = dict.fromkeys(name.partition(':')[0] for name in by_name)
  for name in names:
    found = [by_name.get(f'{name}:{control}') for control in CONTROLS]
    rows.append([
        name, str(max(len(line.wall_s) for line in found if line)),
        *(format_interval(line.over_seeds(*where)) if line else '-'
          for line in found for where in _SHOWN.values())])
  return rows


def _short(line: Line, metric: str) -> str:
  found = line.over_seeds(FULL, metric)
  return '-' if found is None else f'{found.mean:.4f}'


def _costs(line: Line) -> tuple[str, str]:
  found = interval(list(line.wall_s.values()))
  size = interval(list(line.num_bytes.values()))
  return ('-' if found is None else f'{found.mean:.1f}',
          '-' if size is None or not size.mean else format_bytes(size.mean))


def caption(lines: Sequence[Line], dataset: str) -> str:
  """What the numbers of a data set's table are."""
  best = best_reference(lines, dataset)
  against = (f'the best centralised reference, {best.method}' if best else
             'the best centralised reference, of which none was run')
  return (
      'Test set; the full ranking but where 99 sampled is said. Mean over '
      'seeds ± half of the 95 % t interval over them: what another seed would '
      f'change, not other users. Gaps: NDCG@10 against {against}, and against '
      'the same model, or the nearest, trained centrally. '
      + ('RMSE and MAE: of the held-out ratings. ' if any(
          line.dataset == dataset and line.over_seeds(FULL, metric)
          for line in lines for metric in _ERRORS.values()) else '')
      + 'wall_s: a run with compilation and evaluation. bytes: all that '
      'clients sent and received.')


def reach_caption(lines: Sequence[Line], dataset: str) -> str:
  """What the numbers of a data set's second table are."""
  groups = list(item_columns(lines, dataset))
  return (
      'Full ranking, mean over seeds. Worst decile: NDCG@10 of the activity '
      'decile that is served worst. Coverage: items that somebody is shown '
      'among the first 10. Gini: how unequally they are shown, 0 all alike.'
      + (f' {groups[0]}, ...: recall@10 of the test items by their training '
         'interactions, the least popular first.' if groups else '')
      + ' settings: best of N settings by a search on validation, or stored: '
      'those of its file, whatever they were chosen by.')


def failures(outcomes: Sequence[Outcome]) -> list[str]:
  """A sentence for each run that has no numbers."""
  return [
      f'{o.dataset}, {o.method}, seed {o.seed}: {o.status}'
      + (f': {o.message}' if o.message else '.')
      for o in outcomes if o.status != 'done']


def markdown(outcomes: Sequence[Outcome]) -> str:
  """The tables of every data set, with their captions."""
  lines = lines_of(outcomes)
  parts = ['# Benchmark', '']
  for dataset in dict.fromkeys(o.dataset for o in outcomes):
    parts += [
        f'## {dataset}', '', *markdown_rows(result_cells(lines, dataset)), '',
        caption(lines, dataset), '', *markdown_rows(
            reach_cells(lines, dataset)), '', reach_caption(lines, dataset), '',
        '### Aggregated', '', AGGREGATED_CAPTION, '',
        *markdown_rows(result_cells(lines, dataset, aggregated=True)), '',
        *markdown_rows(reach_cells(lines, dataset, aggregated=True)), '',
        '### Controls', '', *markdown_rows(control_cells(lines, dataset)), '',
        CONTROLS_CAPTION, '']
  missing = failures(outcomes)
  if missing:
    parts += ['## Without numbers', '', *(f'- {text}' for text in missing), '']
  return '\n'.join(parts)


AGGREGATED_CAPTION = (
    "The server's model with the average of the personal parameters: what a "
    'user without any would get.')
CONTROLS_CAPTION = (
    'Federation off: every client trains alone; on a sound protocol near '
    'chance. Permuted: the same parameters, but each user is asked for the '
    'test items of another; what is left is what popularity finds.')


def print_results(
    outcomes: Sequence[Outcome], console: rich.console.Console | None = None
) -> None:
  """Prints each data set's tables; the aggregated rows below the others."""
  console = console or open_console()
  lines = lines_of(outcomes)
  for dataset in dict.fromkeys(o.dataset for o in outcomes):
    for make, words in ((result_cells, caption), (reach_cells, reach_caption)):
      console.print(cell_table(
          make(lines, dataset), title=dataset, caption=words(lines, dataset),
          left=1))
      below = make(lines, dataset, aggregated=True)
      if len(below) > 1:
        console.print(cell_table(
            below, title=f'{dataset}, aggregated', caption=AGGREGATED_CAPTION,
            left=1))
  for text in failures(outcomes):
    console.print(text, style='yellow', highlight=False, markup=False)
