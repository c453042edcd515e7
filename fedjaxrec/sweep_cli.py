"""`fedjaxrec sweep`: its flags, and what it makes of them."""

import pathlib
import sys
from typing import Any

from absl import flags

from fedjaxrec import config as config_lib
from fedjaxrec.flags import define_bool, define_flags, read_config

USAGE = 'fedjaxrec sweep --sweep.grid=FIELD=VALUE,VALUE --sweep.seeds=0-7'
SUMMARY = 'Runs a grid of settings times seeds, many in one program.'
TITLE = 'What is varied'


def define(values: flags.FlagValues) -> None:
  """Defines the flags of `fedjaxrec sweep`: its own, and those of a run."""
  flags.DEFINE_string(
      'workdir', '', "The sweep's directory; empty: runs/DATE-TIME-sweep.",
      flag_values=values)
  define_bool('resume', False, 'Continue the sweep in --workdir.', values)
  define_bool('overwrite', False, 'Replace the sweep in --workdir.', values)
  define_bool('progress', True, 'Show a progress bar.', values)
  flags.DEFINE_multi_string(
      'sweep.grid', [], 'FIELD=VALUE,VALUE,...: every combination is run. '
      'Several fields: the flag again, or ; between them. Fields joined by / '
      'change together: server.optimizer/server.learning_rate=sgd/1,adam/0.03. '
      'Where a value has commas itself, | separates values.',
      flag_values=values)
  flags.DEFINE_string(
      'sweep.seeds', '0', 'The seeds of every setting, 0,1,2 or 0-7. Intervals '
      'need at least two.', flag_values=values)
  flags.DEFINE_integer(
      'sweep.members_per_program', 0, 'Most runs side by side in one compiled '
      'program; memory grows with it. 0: as many as fit.', lower_bound=0,
      flag_values=values)
  define_bool(
      'sweep.checkpoints', False, 'Keep a checkpoint of every member, so that '
      '`fedjaxrec evaluate WORKDIR/members/000` can rank it again.', values)
  define_bool(
      'sweep.reports', False, 'Write a report.html for every member (5 MB '
      'each); `fedjaxrec report` writes it later.', values)
  define_flags(flag_values=values)


def run(values: flags.FlagValues, workdir: pathlib.Path) -> int:
  """Runs the sweep that the flags ask for; returns the exit code.

  Args:
    values: Parsed flags, of `define`.
    workdir: The sweep's directory.

  Raises:
    ValueError: For anything wrong with them, before JAX is imported.
  """
  from fedjaxrec.orchestration import grid
  from fedjaxrec.reports import run_directory, sweep_directory
  # What is wrong with the directory is said before what is wrong with flags
  # that a sweep there would have given, and before the seconds that JAX takes.
  run_directory.check_workdir(
      workdir, resume=values.resume, overwrite=values.overwrite,
      kind=sweep_directory.KIND)
  base = config_lib.Config()
  given: dict[str, Any] = {name: values[name].value for name in values}
  texts: Any = given['sweep.grid']
  seeds: Any = given['sweep.seeds']
  if values.resume and sweep_directory.is_sweep(workdir):
    old = sweep_directory.read_sweep(workdir)
    base = config_lib.from_dict(old['config'])
    texts = texts or old['grid']
    if not values['sweep.seeds'].present:
      seeds = old['seeds']
  if values['seed'].present:
    raise ValueError(
        f'--seed={values.seed} with a sweep, whose seeds are --sweep.seeds; '
        f'write --sweep.seeds={values.seed}.')
  config = read_config(values, base)
  axes = grid.parse_axes(texts)
  # What is wrong with a member is said before the seconds that JAX takes.
  members = grid.make_members(config, axes, grid.parse_seeds(seeds))
  idle = [name for name in values if name.startswith('synthetic.')
          and values[name].present]
  if idle and all(m.config.data.source != 'synthetic' for m in members):
    raise ValueError(
        f'--{idle[0]} with --data.source={config.data.source}, which does not '
        'read it; use --data.source=synthetic, or drop it.')
  from fedjaxrec.orchestration import study_runs, sweep
  try:
    sweep.run_sweep(
        config, texts, seeds, workdir, resume=values.resume,
        overwrite=values.overwrite,
        members_per_program=given['sweep.members_per_program'],
        options=study_runs.Options(
            keep_checkpoints=given['sweep.checkpoints'],
            write_reports=given['sweep.reports'],
            show_progress=values.progress))
  except KeyboardInterrupt:
    print(f'\nInterrupted. Continue with: fedjaxrec sweep --resume '
          f'--workdir={workdir}', file=sys.stderr)
    return 130
  for name in (sweep_directory.TABLE, sweep_directory.PLOT,
               sweep_directory.PAGE):
    print(f'Sweep: {workdir / name}')
  return 0
