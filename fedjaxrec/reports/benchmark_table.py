"""The results of a benchmark in rows: the tidy table, and means over seeds.

An interval is Student's t interval over seeds, see `sweep_table`. What stands
beside a method as a control has a name of its own: METHOD:local_only (its
clients trained alone: federation off), METHOD:permuted (the same parameters,
each user asked for another user's test items), METHOD:finetuned.
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
MAIN = 'ndcg@10'
CONTROLS = ('local_only', 'permuted')
_SHOWN = {
    'NDCG@10': (FULL, MAIN), 'HR@10': (FULL, 'hit_rate@10'),
    'NDCG@10, 99 sampled': (SAMPLED, MAIN),
    'HR@10, 99 sampled': (SAMPLED, 'hit_rate@10')}
_REACH = {
    'worst decile': 'worst_decile_ndcg@10',
    'coverage@10': 'coverage@10', 'Gini@10': 'gini@10'}
QUINTILES = 5
_GAPS = ('gap to best central', 'gap to own central')
_WHO = ('method', 'parameters')
_ITEMS = tuple(f'quintile {n}' for n in range(1, QUINTILES + 1))
# The columns of the table, in two parts for where it is too wide.
RESULTS = (*_WHO, 'seeds', *_SHOWN, *_GAPS, 'wall_s', 'bytes')
REACH = (*_WHO, *_REACH, *_ITEMS)


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
    wall_s: Of each seed's run.
    num_bytes: Likewise.
  """
  dataset: str
  method: str
  parameters: str
  is_reference: bool
  counterpart: str
  leaks: bool
  values: dict[tuple[str, str], dict[int, float]]
  wall_s: dict[int, float]
  num_bytes: dict[int, float]

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
    found: list[tuple[str, str, Any]] = [
        (outcome.method, own, test['personalised'])]
    if not outcome.is_reference:
      found += [
          (outcome.method, 'aggregated', test['aggregated']),
          (f'{outcome.method}:finetuned', 'personalised',
           test.get('finetuned')),
          (f'{outcome.method}:local_only', 'personalised',
           (section.get('controls') or {}).get('local_only'))]
    for method, parameters, metrics in found:
      for metric, value in _numbers(metrics):
        yield Row(name, method, parameters, metric, value)
    for index, group in enumerate(section.get('item_groups') or (), 1):
      for metric, value in _numbers(group.get('personalised')):
        yield Row(name, outcome.method, own,
                  f'item_quintile_{index}_{metric}', value)
  for section, metrics in zip(
      sections, (summary.get('permuted') or {}).values()):
    for metric, value in _numbers(metrics):
      yield Row(section['test']['protocol'], f'{outcome.method}:permuted', own,
                metric, value)


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
              outcome.is_reference, outcome.counterpart, bool(leak),
              {}, {}, {}))
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


def cells(lines: Sequence[Line], dataset: str) -> list[list[str]]:
  """The head, and a row for each method of a data set; no controls."""
  best = best_reference(lines, dataset)
  head = [*_WHO, 'seeds', *_SHOWN, *_GAPS, *_REACH, *_ITEMS, 'wall_s', 'bytes']
  rows = [head]
  for line in lines:
    if line.dataset != dataset or line.is_control:
      continue
    rows.append([
        line.label, line.parameters, str(len(line.wall_s)),
        *(format_interval(line.over_seeds(*where))
          for where in _SHOWN.values()),
        gap(line, best), gap(line, counterpart_of(lines, line)),
        *(_short(line, metric) for metric in _REACH.values()),
        *(_short(line, f'item_quintile_{n}_recall@10')
          for n in range(1, QUINTILES + 1)),
        *_costs(line)])
  return rows


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
      'the same model, or the nearest, trained centrally. Worst decile: '
      'NDCG@10 of the activity decile that is served worst. Quintiles: '
      'recall@10 of test items by popularity, 1 the least popular. wall_s: a '
      'run with compilation and evaluation. bytes: all that clients sent and '
      'received.')


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
    parts += [f'## {dataset}', '', *markdown_rows(cells(lines, dataset)), '',
              caption(lines, dataset), '', '### Controls', '',
              *markdown_rows(control_cells(lines, dataset)), '',
              CONTROLS_CAPTION, '']
  missing = failures(outcomes)
  if missing:
    parts += ['## Without numbers', '', *(f'- {text}' for text in missing), '']
  return '\n'.join(parts)


CONTROLS_CAPTION = (
    'Federation off: every client trains alone; on a sound protocol near '
    'chance. Permuted: the same parameters, but each user is asked for the '
    'test items of another; what is left is what popularity finds.')


def print_results(
    outcomes: Sequence[Outcome], console: rich.console.Console | None = None
) -> None:
  """Prints each data set's table, the first columns of it."""
  console = console or open_console()
  lines = lines_of(outcomes)
  for dataset in dict.fromkeys(o.dataset for o in outcomes):
    rows = cells(lines, dataset)
    wanted = [rows[0].index(name) for name in RESULTS]
    console.print(cell_table(
        [[row[index] for index in wanted] for row in rows], title=dataset,
        caption=caption(lines, dataset), left=len(_WHO)))
  for text in failures(outcomes):
    console.print(text, style='yellow', highlight=False, markup=False)
