"""The command line: `fedjaxrec COMMAND [flags]`.

Only this file knows the commands. It reads the flags, imports what the command
needs (JAX takes seconds, `--help` must not) and turns a refusal into one line
on the standard error and exit code 2. What is no refusal keeps its traceback.
"""

import datetime
import difflib
import json
import os
import pathlib
import re
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

import fedjaxrec
from fedjaxrec import benchmark_cli, sweep_cli
from fedjaxrec import config as config_lib
from fedjaxrec.config.sections import OF_ALGORITHMS, SECTIONS, UNFOLDED
from fedjaxrec.flags import (
  define_bool,
  define_flags,
  format_flags,
  read_config,
)

_HELP_FLAGS = {'-h': False, '--help': False, '-help': False,
               '--helpshort': False, '-helpshort': False,
               '--helpfull': True, '-helpfull': True}


class UsageError(Exception):
  """The command line asks for something that does not exist."""


class Command(NamedTuple):
  """One command: what it says about itself, its flags, and what it runs."""
  usage: str
  summary: str
  sections: Sequence[str]
  define: Callable[[flags.FlagValues], None]
  run: Callable[[flags.FlagValues, list[str]], int]


def _run_train(values: flags.FlagValues, arguments: list[str]) -> int:
  _refuse_arguments(arguments)
  base = config_lib.Config()
  if values.resume:
    if not values.workdir:
      raise UsageError('--resume needs --workdir, the run to continue.')
    # Where no run was begun, it begins: a job that is restarted whenever it is
    # killed need not know how far it came.
    if (pathlib.Path(values.workdir) / 'config.json').exists():
      base = _read_run_config(pathlib.Path(values.workdir))
  config = read_config(values, base)
  idle = [name for name in values if name.startswith('synthetic.')
          and values[name].present]
  if idle and config.data.source != 'synthetic':
    raise UsageError(
        f'--{idle[0]} with --data.source={config.data.source}, which does not '
        'read it; use --data.source=synthetic, or drop it.')
  if config.parallel.coordinator and not values.workdir:
    raise UsageError(
        f'--parallel.coordinator={config.parallel.coordinator} needs --workdir,'
        ' the same folder for all processes.')
  workdir = pathlib.Path(values.workdir or _new_workdir(config.data.source))
  from fedjaxrec.orchestration import experiment, hosts
  try:
    result = experiment.train(
        config, workdir, resume=values.resume, overwrite=values.overwrite,
        progress=values.progress)
  except KeyboardInterrupt:
    print(f'\nInterrupted. Continue with: fedjaxrec train --resume '
          f'--workdir={workdir}', file=sys.stderr)
    return 130
  if hosts.is_first():
    print(f'Report: {result.workdir / "report.html"}')
  return 0


def _run_sweep(values: flags.FlagValues, arguments: list[str]) -> int:
  _refuse_arguments(arguments)
  if values.resume and not values.workdir:
    raise UsageError('--resume needs --workdir, the sweep to continue.')
  return sweep_cli.run(
      values, pathlib.Path(values.workdir or _new_workdir('sweep')))


def _run_benchmark(values: flags.FlagValues, arguments: list[str]) -> int:
  _refuse_arguments(arguments)
  if values.resume and not values.workdir:
    raise UsageError('--resume needs --workdir, the benchmark to continue.')
  return benchmark_cli.run(
      values, pathlib.Path(values.workdir or _new_workdir('benchmark')))


def _run_evaluate(values: flags.FlagValues, arguments: list[str]) -> int:
  workdir = _run_directory(values, arguments)
  config = read_config(values, _read_run_config(workdir))
  from fedjaxrec.orchestration import experiment
  print(json.dumps(experiment.evaluate(workdir, config.evaluation), indent=2))
  return 0


def _run_report(values: flags.FlagValues, arguments: list[str]) -> int:
  workdir = _run_directory(values, arguments)
  from fedjaxrec.reports import html
  html.write_report(workdir)
  print(f'Report: {workdir / "report.html"}')
  return 0


def _run_datasets(values: flags.FlagValues, arguments: list[str]) -> int:
  from fedjaxrec.data import listing, sources
  if not arguments:
    _refuse_idle_flags(values)
    print(listing.sources_table(values['data.cache_dir'].value or ''))
    return 0
  _refuse_arguments(arguments[1:])
  given = values['data.source']
  if given.present and given.value != arguments[0]:
    raise UsageError(f'--data.source={given.value} and {arguments[0]} name two '
                     'data sets; give one.')
  has_split = arguments[0] in config_lib.PUBLISHED_SPLITS
  split_name = 'published' if has_split else 'leave_one_out'
  config = read_config(values, config_lib.Config(
      data=config_lib.DataConfig(source=arguments[0]),
      split=config_lib.SplitConfig(name=split_name)))
  interactions = sources.load_interactions(
      config.data, config.synthetic, config.seed)
  facts = {
    'name': config.data.source,
    'num_users': interactions.num_users,
    'num_items': interactions.num_items,
    'num_interactions': interactions.num_interactions,
    'fingerprint': interactions.fingerprint(),
  }
  print(json.dumps(facts, indent=2))
  return 0


def _run_privacy(values: flags.FlagValues, arguments: list[str]) -> int:
  from fedjaxrec import privacy_cli
  return privacy_cli.run(values, arguments)


def _run_version(values: flags.FlagValues, arguments: list[str]) -> int:
  del values
  _refuse_arguments(arguments)
  print(f'fedjaxrec {fedjaxrec.__version__}')
  return 0


def _define_workdir(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', '', 'The run directory.', flag_values=values)


def _define_train(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
      'workdir', '', 'The run directory; empty: runs/DATE-TIME-SOURCE.',
      flag_values=values)
  define_bool('resume', False,
              'Continue the run in --workdir, with its own config.', values)
  define_bool('overwrite', False, 'Replace the run in --workdir.', values)
  define_bool('progress', True, 'Show a progress bar.', values)
  define_flags(flag_values=values)


def _define_evaluate(values: flags.FlagValues) -> None:
  _define_workdir(values)
  define_flags(flag_values=values, only=['evaluation'])


def _define_datasets(values: flags.FlagValues) -> None:
  define_flags(flag_values=values, only=['seed', 'data', 'synthetic'])


def _define_privacy(values: flags.FlagValues) -> None:
  from fedjaxrec import privacy_cli
  privacy_cli.define(values)


COMMANDS = {
  'train': Command(
      'fedjaxrec train [flags]',
      'Trains a federated recommender; writes a run folder and a report.',
      tuple(SECTIONS), _define_train, _run_train),
  'sweep': Command(
      sweep_cli.USAGE, sweep_cli.SUMMARY, ('', 'sweep', *tuple(SECTIONS)[1:]),
      sweep_cli.define, _run_sweep),
  'benchmark': Command(
      benchmark_cli.USAGE, benchmark_cli.SUMMARY, benchmark_cli.SECTIONS,
      benchmark_cli.define, _run_benchmark),
  'evaluate': Command(
      'fedjaxrec evaluate RUN_DIRECTORY [flags]',
      'Evaluates a finished run again, for example by another protocol.',
      ('', 'evaluation'), _define_evaluate, _run_evaluate),
  'report': Command(
      'fedjaxrec report RUN_DIRECTORY',
      "Writes a run's report.html again.",
      ('',), _define_workdir, _run_report),
  'datasets': Command(
      'fedjaxrec datasets [NAME] [flags]',
      'Lists the data sets; with a name, loads one and prints its facts.',
      ('', 'data', 'synthetic'), _define_datasets, _run_datasets),
  'privacy': Command(
      'fedjaxrec privacy plan|explain [RUN_DIRECTORY] [flags]',
      'Plans the noise for a budget; explains what a run has spent.',
      ('',), _define_privacy, _run_privacy),
  'version': Command(
      'fedjaxrec version', 'Prints the version.',
      (), lambda values: None, _run_version),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line.

  Args:
    argv: The program's name and its arguments; None: those of the process.

  Returns:
    The exit code: 0, 1 when training diverged, 2 when the command line, the
    config or the data is refused, 130 when interrupted, 141 when nobody reads
    the output any more.
  """
  argv = list(sys.argv if argv is None else argv)
  try:
    code = _dispatch(argv[1:])
    sys.stdout.flush()
    return code
  except UsageError as error:
    return _refuse(str(error))
  except BrokenPipeError:  # The reader, `head` for one, has seen enough.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except (ValueError, OSError) as error:
    if not _raised_here(error):
      raise
    return _refuse(str(error))
  except FloatingPointError as error:  # Training has diverged.
    if not _raised_here(error):
      raise
    return _refuse(str(error), 1)
  except KeyboardInterrupt:
    return _refuse('interrupted.', 130)


def _dispatch(arguments: list[str]) -> int:
  if arguments and arguments[0] == '--version':
    arguments = ['version']
  if arguments and arguments[0] == 'help':
    arguments = [*arguments[1:], '--help']
  if not arguments or arguments[0] in _HELP_FLAGS:
    print(_overview())
    if arguments and _HELP_FLAGS[arguments[0]]:
      print('\n' + _command_help('train', full=True))
    return 0
  name, *rest = arguments
  if name not in COMMANDS:
    raise UsageError(_unknown_command(name))
  for argument in rest:
    if argument in _HELP_FLAGS:
      asked = [other for other in rest if other in COMMANDS[name].sections]
      print(_command_help(name, _HELP_FLAGS[argument], asked))
      return 0
  values = _flag_values(name)
  try:
    positional = values([f'fedjaxrec {name}', *rest])[1:]
  except flags.UnrecognizedFlagError as error:
    raise UsageError(_unknown_flag(error.flagname, name, values)) from None
  except flags.Error as error:
    text = re.sub(r'^(flag |ERROR:: )', '', str(error))
    raise UsageError(f'{text.rstrip(".")}.') from None
  return COMMANDS[name].run(values, positional)


def _flag_values(name: str) -> flags.FlagValues:
  values = flags.FlagValues()
  values.set_gnu_getopt(True)  # Flags may follow arguments.
  COMMANDS[name].define(values)
  return values


def _overview() -> str:
  width = max(map(len, COMMANDS)) + 2
  commands = '\n'.join(f'  {name:<{width}}{command.summary}'
                       for name, command in COMMANDS.items())
  return f"""\
Simulates privacy-preserving federated recommender systems on JAX.

Usage: fedjaxrec COMMAND [flags]

{commands}

Examples:
  fedjaxrec train
  fedjaxrec train --data.source=synthetic --rounds=50 --workdir=runs/first
  fedjaxrec train --resume --workdir=runs/first
  fedjaxrec evaluate runs/first --evaluation.protocol=sampled-99

`fedjaxrec COMMAND --help` lists a command's flags, --helpfull explains them;
--flagfile=FILE reads flags from a file, one a line."""


def _command_help(
    name: str, full: bool, asked: Sequence[str] = ()
) -> str:
  """What a command does, with its flags, or those of the sections asked for."""
  command = COMMANDS[name]
  parts = [f'{command.summary}\n\nUsage: {command.usage}']
  own = {'sweep': sweep_cli.TITLE, 'benchmark': benchmark_cli.TITLE}
  titles = {section: own.get(section) or SECTIONS[section]
            for section in command.sections}
  folded = [] if full or asked else [
      section for section in titles if section not in {*UNFOLDED, *own}]
  shown = {section: title for section, title in titles.items()
           if section not in folded and (not asked or section in asked)}
  values = _flag_values(name)
  groups = format_flags(values, shown, full)
  if groups:
    parts.append(groups)
  if folded:
    parts.append('\n'.join(
        [f'More, by fedjaxrec {name} --help SECTION',
         *(f'  {section:<16}{titles[section]}' for section in folded
           if section not in OF_ALGORITHMS)]))
    own_settings = [section for section in folded if section in OF_ALGORITHMS]
    if own_settings:
      parts.append(textwrap.fill(
          f"An algorithm's own settings, likewise: {', '.join(own_settings)}",
          80))
  if groups:
    parts.append('--flagfile=FILE reads flags from a file, one a line.')
    if not full:
      parts[-1] += f'\nMore about each flag: fedjaxrec {name} --helpfull'
  return '\n\n'.join(parts)


def _unknown_command(name: str) -> str:
  if name.startswith('-'):
    return (f'{name} comes before the command; write, for example, '
            f'fedjaxrec train {name}.')
  return (f'{name!r} is not a command.'
          + _did_you_mean('', difflib.get_close_matches(name, COMMANDS))
          + f' Commands: {", ".join(COMMANDS)}.')


def _unknown_flag(flag: str, name: str, values: flags.FlagValues) -> str:
  others = [other for other in COMMANDS
            if other != name and flag in _flag_values(other)]
  if others:
    return (f'--{flag} is no flag of `fedjaxrec {name}`, which does not use '
            f'it; `fedjaxrec {others[0]}` does.')
  known = list(values)
  matches = [other for other in known if other.rpartition('.')[2] == flag]
  matches += difflib.get_close_matches(flag, known, n=3, cutoff=0.7)
  if not matches and '.' in flag:
    section = flag.partition('.')[0] + '.'
    matches = [other for other in known if other.startswith(section)]
  return (f'--{flag} is not a flag of `fedjaxrec {name}`.'
          + _did_you_mean('--', list(dict.fromkeys(matches))[:6])
          + f' All flags: fedjaxrec {name} --help')


def _did_you_mean(prefix: str, matches: Sequence[str]) -> str:
  if not matches:
    return ''
  return f' Did you mean {" or ".join(prefix + match for match in matches)}?'


def _refuse_arguments(arguments: list[str]) -> None:
  if arguments:
    raise UsageError(f'{arguments[0]!r} was not expected here; a flag starts '
                     f'with --, as in --{arguments[0]}.')


def _refuse_idle_flags(values: flags.FlagValues) -> None:
  for name in values:
    if name != 'data.cache_dir' and values[name].present:
      raise UsageError(f'--{name} needs the name of a data set: fedjaxrec '
                       f'datasets NAME --{name}={values[name].value}.')


def _run_directory(
    values: flags.FlagValues, arguments: list[str]
) -> pathlib.Path:
  _refuse_arguments(arguments[1:])
  given = [*arguments, *([values.workdir] if values.workdir else [])]
  if len(set(given)) != 1:
    raise UsageError(
        'no run directory was given; write it as the argument or as --workdir.'
        if not given else
        f'{given[0]} and --workdir={given[1]} are two run directories; give '
        'one.')
  return pathlib.Path(given[0])


def _new_workdir(source: str) -> pathlib.Path:
  name = re.sub(r'[^A-Za-z0-9.]+', '-', source).strip('-.')[-60:]
  stamp = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  folder = pathlib.Path('runs') / f'{stamp}-{name}'
  number = 2
  while folder.exists():
    folder = pathlib.Path('runs') / f'{stamp}-{name}-{number}'
    number += 1
  return folder


def _read_run_config(workdir: pathlib.Path) -> Any:
  path = workdir / 'config.json'
  if not path.is_file():
    raise FileNotFoundError(
        f'--workdir={workdir} holds no config.json, so it is no run directory; '
        'give the --workdir of an earlier `fedjaxrec train`.')
  try:
    return config_lib.from_dict(json.loads(path.read_text()))
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(
        f'{path} is damaged or of another version ({error}); the run cannot be '
        'continued: start it again with --overwrite.') from error


def _raised_here(error: BaseException) -> bool:
  """Whether this package raised the error, and no library that it calls."""
  frame: types.TracebackType | None = error.__traceback__
  name = ''
  while frame is not None:
    name = frame.tb_frame.f_globals.get('__name__', '')
    frame = frame.tb_next
  return name.partition('.')[0] == 'fedjaxrec'


def _refuse(message: str, code: int = 2) -> int:
  print(f'fedjaxrec: {message}', file=sys.stderr)
  return code
