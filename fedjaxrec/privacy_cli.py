"""`fedjaxrec privacy plan` and `fedjaxrec privacy explain`."""

import json
import math
import pathlib
import sys
from typing import Any

import rich.bar
import rich.box
import rich.console
import rich.markup
import rich.table
from absl import flags

from fedjaxrec.data import whole_file
from fedjaxrec.flags import define_bool

_PLAN_FLAGS = ('population', 'cohort', 'rounds', 'delta', 'epsilons',
               'mechanisms', 'bands', 'output')
_EXPLAIN_FLAGS = ('workdir', 'head')
_RELATIONS = {'add_or_remove_one': 'add/remove', 'replace_one': 'replace',
              'replace_special': 'zero-out'}
_ACTIONS = {'plan': _PLAN_FLAGS, 'explain': _EXPLAIN_FLAGS}


def define(values: flags.FlagValues) -> None:
  """Defines the flags of both actions."""
  for name, default, text in (
      ('population', '6040', 'plan: clients of the population.'),
      ('cohort', '100', 'plan: clients in a round, on average.'),
      ('rounds', '2000', 'plan: numbers of rounds, with commas between.'),
      ('delta', '0', 'plan: delta of the guarantee; 0: population^-1.1.'),
      ('epsilons', '1,2,4,8', 'plan: budgets, with commas between.'),
      ('mechanisms', 'poisson,fixed,shuffled,banded,blt',
       'plan: what to compare.'),
      ('bands', '8', 'plan: numbers of bands of banded.'),
      ('output', '', 'plan: an .svg file for the plot of the noise, or an '
       '.html file for plots and the table.'),
      ('workdir', '', 'explain: the run directory.'),
      ('head', '', 'explain: SHA-256 of a line that the ledger must hold.'),
  ):
    flags.DEFINE_string(name, default, text, flag_values=values)
  define_bool('json', False, 'Print JSON.', values)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
  """Runs one action; its name is the first argument.

  Raises:
    ValueError: For what cannot be meant.
  """
  if not arguments or arguments[0] not in _ACTIONS:
    given = f'{arguments[0]!r} is' if arguments else 'none was given, which is'
    raise ValueError(
        f'{given} no action of `fedjaxrec privacy`; write `fedjaxrec privacy '
        'plan` or `fedjaxrec privacy explain RUN_DIRECTORY`.')
  action, *rest = arguments
  for name in values:
    if (values[name].present and name not in (*_ACTIONS[action], 'json')
        and any(name in names for names in _ACTIONS.values())):
      raise ValueError(f'--{name} is no flag of `fedjaxrec privacy {action}`; '
                       f'it takes {_flag_list(action)}.')
  return (_plan if action == 'plan' else _explain)(values, rest)


def _flag_list(action):
  return ', '.join(f'--{name}' for name in (*_ACTIONS[action], 'json'))


def _explain(values, arguments) -> int:
  given = [*arguments, *([values.workdir] if values.workdir else [])]
  if len(given) != 1:
    raise ValueError('give one run directory: fedjaxrec privacy explain '
                     f'RUN_DIRECTORY; there are {len(given)}.')
  from fedjaxrec.privacy import explain
  result = explain.explain(given[0], values.head)
  if values.json:
    print(json.dumps(result, indent=2, allow_nan=False))
  else:
    rich.console.Console(highlight=False).print(explain.render(result))
  return 0 if result['within_budget'] else 1


def _plan(values, arguments) -> int:
  if arguments:
    raise ValueError(f'{arguments[0]!r} was not expected here; the flags of '
                     f'plan are {_flag_list("plan")}.')
  rounds = _numbers('rounds', values.rounds, int)
  if values.output:
    _check_output(pathlib.Path(values.output))
  from fedjaxrec.privacy import planning
  rows = planning.plan_rows(
      _number('population', values.population, int),
      _number('cohort', values.cohort, int), rounds,
      _number('delta', values.delta, float),
      _numbers('epsilons', values.epsilons, float),
      mechanisms=[name.strip() for name in values.mechanisms.split(',')
                  if name.strip()],
      bands=_numbers('bands', values.bands, int))
  if values.json:
    found = list(rows)
  else:
    errors = rich.console.Console(stderr=True)
    found = []
    with errors.status('Calibrating'):  # Shown on a terminal only.
      for row in rows:
        found.append(row)
  if values.json:
    print(json.dumps(found, indent=2, allow_nan=False))
  else:
    for part in _page(found, planning.MECHANISMS):
      rich.console.Console(highlight=False).print(part)
  if values.output:
    from fedjaxrec.reports import plan_plot
    is_page = values.output.endswith('.html')
    whole_file.write_text(values.output, plan_plot.render_plan(found, {
        name: words for name, (_, _, words) in planning.MECHANISMS.items()
    }) if is_page else plan_plot.render_svg(found))
    print(f'{"Page" if is_page else "Plot"}: {values.output}', file=sys.stderr)
  return 0


def _check_output(path: pathlib.Path) -> None:
  if (path.suffix not in ('.svg', '.html') or path.is_dir()
      or not path.parent.is_dir()):
    raise ValueError(f'--output={path} must be an .svg or an .html file in a '
                     'folder that exists.')


def _page(rows, words) -> list[Any]:
  """The table and the bars of a plan."""
  parts: list[Any] = []
  for rounds in dict.fromkeys(row['rounds'] for row in rows):
    mine = [row for row in rows if row['rounds'] == rounds]
    table = rich.table.Table(
        'epsilon', 'mechanism', 'noise', 'by RDP',
        'neighbours', 'error of the model', box=rich.box.SIMPLE_HEAD,
        title=f'{rounds:,} rounds, delta = {mine[0]["delta"]:.3g}, unit client')
    for column in table.columns[2:4]:
      column.justify = 'right'
    largest = max([row['prefix_rmse'] for row in mine
                   if row['noise_multiplier'] is not None], default=1.0)
    last = None
    for row in mine:
      epsilon = f'{row["epsilon"]:g}' if row['epsilon'] != last else ''
      if epsilon and last is not None:
        table.add_section()
      last = row['epsilon']
      name = row['mechanism'] + (f' {row["bands"]}' if row['bands'] else '')
      if row['noise_multiplier'] is None:
        table.add_row(epsilon, name, '-', '-', '-',
                      rich.markup.escape(row['refused']))
        continue
      cross = row['cross_check']['noise_multiplier']
      bar = rich.table.Table.grid(padding=(0, 1))
      bar.add_column(width=7, justify='right')
      bar.add_column(width=14)
      bar.add_row(f'{row["prefix_rmse"]:.4g}', rich.bar.Bar(
          largest, 0, row['prefix_rmse'], width=14, color='blue'))
      table.add_row(
          epsilon, name, f'{row["noise_multiplier"]:.3f}',
          '-' if cross is None else f'{cross:.3f}',
          _RELATIONS[row['neighboring']], bar)
    parts.append(table)
  names = dict.fromkeys(row['mechanism'] for row in rows)
  parts.append('\n'.join(f'  {name:<9} {words[name][2]}' for name in names))
  used = next((row for row in rows if row['noise_multiplier'] is not None),
              None)
  if used is not None:
    parts.append(
        f'Noise: the noise multiplier, by {used["accountant"]}; beside it '
        'what RDP would ask for. Error: RMSE of one entry of the sum of all '
        'rounds so far, in clip norms. Different neighbours are different '
        'promises.')
  return parts


def _number(name: str, text: str, kind: type) -> Any:
  try:
    value = kind(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ValueError(f'--{name}={text!r} is no '
                     f'{"whole " if kind is int else ""}number.')
  return value


def _numbers(name: str, text: str, kind: type) -> list[Any]:
  return [_number(name, part, kind) for part in text.split(',')
          if part.strip()]
