"""The results of a sweep in rows: the tidy table, and settings with intervals.

The interval over seeds is Student's t interval: mean -+ t s / sqrt(n), where s
is the standard deviation of the n seeds' values (n - 1 degrees of freedom) and
t the 97.5 % point of Student's distribution. It covers what another seed would
change (initial values, cohorts, negatives; for a made-up population the data as
well), if the seeds' values are about normal; it does not cover other users.
"""

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import rich.console

from fedjaxrec.reports.sweep_directory import Outcome
from fedjaxrec.reports.tables import (
  METRICS,
  REACH,
  cell_table,
  markdown_rows,
  number,
  open_console,
)

# Dotted paths into a member's summary, and their names for people. Settings are
# compared by validation; the test set is shown beside it.
VALIDATION = 'validation.ndcg@10'
SHOWN = {VALIDATION: 'validation NDCG@10'} | {
    f'test.personalised.{name}': f'test {label}'
    for name, label in METRICS.items()}
# Means alone, where members have them: whom a setting serves, and how far its
# predicted ratings are off.
_BESIDE = {f'test.personalised.{name}': label
           for name, label in REACH.items()} | {
    'validation.rmse': 'validation RMSE', 'ratings.personalised.rmse': 'RMSE',
    'ratings.personalised.mae': 'MAE'}
_SECTIONS = ('test', 'ratings', 'controls', 'communication', 'privacy')


class Interval(NamedTuple):
  """A mean over seeds; low and high are None with a single seed."""
  mean: float
  low: float | None
  high: float | None
  n: int


class Setting(NamedTuple):
  """The members that differ in their seed alone."""
  values: dict[str, Any]
  members: list[Outcome]

  @property
  def label(self) -> str:
    """The swept values in words: `learning_rate=3, eps=0.01`.

    With whole names where two fields end alike.
    """
    ends = [name.rpartition('.')[2] for name in self.values]
    return ', '.join(
        f'{end if ends.count(end) == 1 else name}={show(value)}'
        for end, (name, value) in zip(ends, self.values.items())) or 'all seeds'


def student_quantile(degrees: int) -> float:
  """The 97.5 % point of Student's t distribution.

  By bisection of the distribution's closed form for whole degrees of freedom.

  Args:
    degrees: Degrees of freedom, at least 1.

  References:
    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3-26.7.4.
  """
  def central(t):
    """P(|T| <= t)."""
    theta = math.atan(t / math.sqrt(degrees))
    cos2 = math.cos(theta) ** 2
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 if odd else 1, degrees - 1, 2):
      term *= cos2 * k / (k + 1)
      total += term
    total *= math.sin(theta)
    return 2 / math.pi * (theta + total) if odd else total

  low, high = 0.0, 20.0
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if central(middle) < 0.95 else (low, middle)
  return (low + high) / 2


def interval(values: Sequence[float]) -> Interval | None:
  """The mean of finite values with its 95 % t interval; None of none."""
  if not values:
    return None
  mean, n = statistics.fmean(values), len(values)
  if n < 2:
    return Interval(mean, None, None, n)
  half = student_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
  return Interval(mean, mean - half, mean + half, n)


def show(value: Any) -> str:
  """A field's value as its flag takes it: read back, it is the same value."""
  if isinstance(value, (list, tuple)):
    return ','.join(map(str, value))
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float):
    short = f'{value:g}'
    return short if float(short) == value else repr(value)
  return str(value)


def metrics_of(outcome: Outcome) -> dict[str, float]:
  """Every number of a done member, by its path into the summary.

  `validation.*` is the validation set's, at the round that was selected.
  """
  found: dict[str, float] = {}

  def walk(prefix, value):
    if isinstance(value, Mapping):
      for name, inner in value.items():
        if name != 'ci95':
          walk(f'{prefix}.{name}', inner)
    elif number(value) is not None and not isinstance(value, bool):
      found[prefix] = float(value)

  for line in outcome.lines:
    if line['round'] == outcome.summary.get('selected_round'):
      walk('validation', line.get('validation'))
  for section in _SECTIONS:
    walk(section, outcome.summary.get(section))
  return found


def _ends(outcome: Outcome, path: str) -> Sequence[Any]:
  section, _, rest = path.partition('.')
  model, _, name = rest.partition('.')
  inner = (outcome.summary.get(section) or {}).get(model)
  ends = (inner.get('ci95') or {}).get(name) if isinstance(
      inner, Mapping) else None
  return ends or ('', '')


def tidy_csv(outcomes: Sequence[Outcome], fields: Sequence[str]) -> str:
  """One row a member and metric; one without a metric where it is not done.

  Columns: member, program, the swept fields, seed, status, metric (a dotted
  path into summary.json), value, ci95_low and ci95_high (over the member's
  users), selected_round, train_s, wall_s.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['member', 'program', *fields, 'seed', 'status', 'metric',
                   'value', 'ci95_low', 'ci95_high', 'selected_round',
                   'train_s', 'wall_s'])
  for outcome in outcomes:
    head = [outcome.name, outcome.program,
            *(show(outcome.values[field]) for field in fields), outcome.seed,
            outcome.status]
    tail = [outcome.summary.get(key, '')
            for key in ('selected_round', 'train_s', 'wall_s')]
    rows = [[path, value, *_ends(outcome, path)]
            for path, value in metrics_of(outcome).items()]
    for row in rows or [['', '', '', '']]:
      writer.writerow([*head, *row, *tail])
  return text.getvalue()


def settings_of(outcomes: Sequence[Outcome]) -> list[Setting]:
  """Groups members by their values, in the order of the sweep."""
  settings: list[Setting] = []
  for outcome in outcomes:
    for setting in settings:
      if setting.values == outcome.values:
        setting.members.append(outcome)
        break
    else:
      settings.append(Setting(outcome.values, [outcome]))
  return settings


def over_seeds(setting: Setting, path: str) -> Interval | None:
  """One metric of a setting over its seeds."""
  values = [metrics_of(member).get(path) for member in setting.members]
  return interval([value for value in values if value is not None])


def best_setting(settings: Sequence[Setting]) -> int | None:
  """The place of the best one by mean validation NDCG@10; None without any."""
  means = [over_seeds(setting, VALIDATION) for setting in settings]
  known = [i for i, mean in enumerate(means) if mean is not None]
  return max(known, key=lambda i: means[i].mean, default=None)  # type: ignore


def format_interval(value: Interval | None) -> str:
  """Returns `0.0712 ± 0.0031`; a dash where there is nothing."""
  if value is None:
    return '-'
  if value.high is None:
    return f'{value.mean:.4f}'
  return f'{value.mean:.4f} ± {value.high - value.mean:.4f}'


def cells(
    settings: Sequence[Setting], fields: Sequence[str]
) -> Iterator[list[str]]:
  """Yields the head and a row a setting: fields, seeds, metrics, seconds."""
  shown = [path for path in SHOWN
           if any(over_seeds(setting, path) for setting in settings)]
  beside = [path for path in _BESIDE
            if any(over_seeds(setting, path) for setting in settings)]
  yield [*fields, 'seeds', *(SHOWN[path] for path in shown),
         *(_BESIDE[path] for path in beside), 'train_s']
  for setting in settings:
    done = [m for m in setting.members if m.status == 'done']
    seconds = [number(m.summary.get('train_s')) or 0.0 for m in done]
    seeds = str(len(done))
    for status in ('diverged', 'unfinished'):
      others = sum(m.status == status for m in setting.members)
      seeds += f', {others} {status}' if others else ''
    yield [*(show(setting.values[field]) for field in fields), seeds,
           *(format_interval(over_seeds(setting, path)) for path in shown),
           *(f'{mean.mean:.4f}' if (mean := over_seeds(setting, path)) else '-'
             for path in beside),
           f'{statistics.fmean(seconds):.2f}' if done else '-']


def deployment_note(settings: Sequence[Setting]) -> str:
  """Whose the epsilons are, in a sentence; empty for the simulation's own.

  It stands wherever a sweep shows an epsilon: with privacy.deployment_cohort
  the simulation's clients see a fraction of the noise that it asks for.
  """
  cohorts = set()
  for setting in settings:
    for member in setting.members:
      private = member.summary.get('privacy') or {}
      cohorts.add(private.get('deployment_cohort') or setting.values.get(
          'privacy.deployment_cohort'))
  known = sorted(filter(None, cohorts))
  if not known:
    return ''
  return ('Every epsilon is that of a simulated deployment with cohorts of '
          f'{" or ".join(f"{size:,}" for size in known)}, not of this '
          'simulation, whose clients see less noise.' if len(cohorts) == 1 else
          'The epsilons with a deployment cohort '
          f'({", ".join(f"{size:,}" for size in known)}) are those of a '
          'simulated deployment, not of this simulation, whose clients see '
          'less noise.')


def caption(settings: Sequence[Setting]) -> str:
  """What the numbers of the table are, in one sentence each."""
  text = ('Mean over seeds ± half of its 95 % t interval (n - 1 degrees of '
          'freedom): what another seed would change, not other users. train_s: '
          "a member's share of its program's seconds.")
  best = best_setting(settings)
  if best is not None and len(settings) > 1:
    text += f' Best on the validation set: {settings[best].label}.'
  return ' '.join(filter(None, (text, deployment_note(settings))))


def markdown(outcomes: Sequence[Outcome], fields: Sequence[str]) -> str:
  """The settings as a Markdown table; the best on validation is bold."""
  settings = settings_of(outcomes)
  head, *rows = cells(settings, fields)
  best = best_setting(settings) if len(settings) > 1 else None
  lines = markdown_rows([head, *(
      [f'**{cell}**' for cell in row] if index == best else row
      for index, row in enumerate(rows))])
  return '\n'.join([*lines, '', caption(settings), ''])


def print_settings(
    outcomes: Sequence[Outcome], fields: Sequence[str],
    console: rich.console.Console | None = None
) -> None:
  """Prints the settings as a table; in full width where output is a file."""
  console = console or open_console()
  settings = settings_of(outcomes)
  console.print(cell_table(
      list(cells(settings, fields)), caption=caption(settings),
      left=len(fields),
      bold=best_setting(settings) if len(settings) > 1 else None))
