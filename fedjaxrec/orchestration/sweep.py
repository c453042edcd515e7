"""A sweep: a grid of configs times seeds, in as few programs as can be.

Members whose configs differ in their seed and in scalars alone run side by side
in one compiled program (`study`); others in programs one after another. What is
done is on disk as soon as it is done, and `resume` does the rest.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
from absl import logging

from fedjaxrec import config as config_lib
from fedjaxrec import study
from fedjaxrec.config import Config
from fedjaxrec.data import whole_file
from fedjaxrec.data.splits import Split
from fedjaxrec.flags import config_fields
from fedjaxrec.orchestration import experiment, private_runs, study_runs
from fedjaxrec.orchestration.devices import available_bytes
from fedjaxrec.orchestration.grid import (
    Member,
    describe,
    make_members,
    parse_axes,
    parse_seeds,
    replace_fields,
)
from fedjaxrec.orchestration.study_runs import DEFAULTS, Options
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.reports import (
    run_directory,
    sweep_directory,
    sweep_html,
    sweep_plot,
    sweep_table,
)
from fedjaxrec.study_fields import program_key, read_field

# Of a device's memory, what a program's members may need by our estimate.
_MEMORY_SHARE = 0.4


def run_sweep(
    base: Config,
    grid: Sequence[str],
    seeds: str,
    workdir: pathlib.Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    members_per_program: int = 0,
    options: Options = DEFAULTS,
) -> list[sweep_directory.Outcome]:
  """Runs every member that is not done, and writes the tables and the page.

  Args:
    base: What is not swept.
    grid: What is, as `grid.parse_axes` reads it.
    seeds: Each setting runs with each of them; see `grid.parse_seeds`.
    workdir: The sweep's directory, see `sweep_directory`.
    resume: Continue the sweep that is there; where there is none, begin it.
    overwrite: Replace it.
    members_per_program: Most members of one program; 0: as many as fit the
      devices by `study.member_bytes`.
    options: How programs are run.

  Returns:
    The outcome of every member.

  Raises:
    ValueError, FileNotFoundError: For whatever is wrong with a member's config,
      the data or the directory; before anything compiles.
    FloatingPointError: If the training of every member diverged.
  """
  axes = parse_axes(grid)
  members = make_members(base, axes, parse_seeds(seeds))
  resuming = run_directory.check_workdir(
      workdir, resume=resume, overwrite=overwrite, kind=sweep_directory.KIND)
  old = sweep_directory.read_sweep(workdir) if resuming else None
  if old is not None:
    _check_same_sweep(old, members, workdir)
  splits, fingerprints = _load_splits(members)
  # A sweep of an earlier version does not say what its data were.
  if old is not None and old.get('data', fingerprints) != fingerprints:
    raise ValueError(
        f'workdir={str(workdir)!r} holds a sweep on other data: the '
        'interactions or their split have changed since; restore them, or use '
        'another --workdir.')
  programs = old['programs'] if old is not None else _make_programs(
      members, splits, members_per_program)
  folders = [sweep_directory.member_folder(workdir, member.place)
             for member in members]
  # Of all programs that are to run, for one's refusal must not come after the
  # hours of another.
  jobs = {
      number: [study_runs.make_job(members[i].config, splits[i], folders[i])
               for i in indices]
      for number, indices in enumerate(programs) if old is None or any(
          sweep_directory.status_of(folders[i]) == 'unfinished'
          for i in indices)}
  for warning in dict.fromkeys(
      warning for program in jobs.values() for job in program
      if job.private is not None for warning in job.private.plan.warnings):
    logging.warning('%s', warning)
  if old is None:
    run_directory.make_workdir(workdir, sweep_directory.KIND)
  sweep: dict[str, Any] = {
      'command': 'sweep', 'config': config_lib.to_dict(base),
      'fields': [name for axis in axes for name in axis.fields],
      'grid': list(grid), 'seeds': seeds,
      'members': [{'values': member.values, 'seed': member.config.seed}
                  for member in members],
      'programs': programs, 'data': fingerprints}
  run_directory.write_json(workdir / sweep_directory.SWEEP, sweep)
  console = rich.console.Console(quiet=not options.show_progress)
  for number, program in jobs.items():
    first = members[programs[number][0]]
    console.print(
        f'Program {number + 1} of {len(programs)}: {len(program)} members, '
        f'{describe(first.values) or "seeds"}'
        f'{", ..." if len(program) > 1 else ""}', highlight=False, markup=False)
    study_runs.run_program(
        program, workdir / sweep_directory.PROGRAMS / str(number), options)
    write_results(workdir)
  outcomes = write_results(workdir)
  if options.show_progress:
    sweep_table.print_settings(outcomes, sweep['fields'])
  if all(outcome.status == 'diverged' for outcome in outcomes):
    raise FloatingPointError(
        f'every member of the sweep has diverged; the first: '
        f'{outcomes[0].message}')
  return outcomes


def write_results(workdir: pathlib.Path) -> list[sweep_directory.Outcome]:
  """Writes sweep.csv, .md, .svg and .html from what the members left."""
  sweep = sweep_directory.read_sweep(workdir)
  outcomes = sweep_directory.read_outcomes(workdir, sweep)
  fields = sweep['fields']
  for name, text in (
      (sweep_directory.TABLE, sweep_table.tidy_csv(outcomes, fields)),
      (sweep_directory.MARKDOWN, sweep_table.markdown(outcomes, fields)),
      (sweep_directory.PLOT, sweep_plot.render_svg(outcomes)),
      (sweep_directory.PAGE, sweep_html.render_sweep(sweep, outcomes))):
    whole_file.write_text(workdir / name, text)
  return outcomes


def _plain(values: Any) -> Any:
  """As JSON reads it again: tuples are lists."""
  return json.loads(json.dumps(values))


def _check_same_sweep(
    old: dict[str, Any], members: Sequence[Member], workdir: pathlib.Path
) -> None:
  """Refuses members other than those of the sweep in workdir."""
  name = f'workdir={str(workdir)!r}'
  if [(_plain(m.values), m.config.seed) for m in members] != [
      (m['values'], m['seed']) for m in old['members']]:
    raise ValueError(
        f'{name} holds a sweep of other settings or seeds; it is continued '
        'with its own --sweep.grid and --sweep.seeds (leave them out to take '
        'them from it), or use another --workdir.')
  first = members[0]
  before = replace_fields(
      config_lib.from_dict(old['config']),
      {**first.values, 'seed': first.config.seed}, None)
  for field in config_fields():
    was, now = (read_field(c, field.name) for c in (before, first.config))
    if was != now and field.section not in (
        'engine', 'parallel', 'checkpoint'):
      raise ValueError(
          f'{field.name}={now} differs from the sweep in {name}, which has '
          f'{was}; a sweep is continued with its own config (engine, parallel '
          'and checkpoint are free). Use another --workdir.')


def _load_splits(
    members: Sequence[Member]) -> tuple[list[Split], list[str]]:
  """Each member's data, loaded once for all that ask for the same.

  Returns:
    The splits, and the fingerprints of the different ones.
  """
  loaded: dict[str, Split] = {}
  splits = []
  for member in members:
    values = config_lib.to_dict(member.config)
    made_up = (member.config.data.source == 'synthetic'
               and member.config.synthetic.seed < 0)
    key = repr([values['data'], values['synthetic'], values['split'],
                made_up and member.config.seed])
    if key not in loaded:
      loaded[key] = experiment.load_data(member.config)
    splits.append(loaded[key])
    # What the data do not allow is refused before the first program compiles.
    build_sampler(
        member.config.cohort, loaded[key].train.counts, member.config.seed)
  return splits, [split.split_fingerprint() for split in loaded.values()]


def _make_programs(
    members: Sequence[Member], splits: Sequence[Split], most: int
) -> list[list[int]]:
  """Which members run side by side: those that can, as many as fit."""
  groups: dict[tuple, list[int]] = {}
  for member, split in zip(members, splits):
    key = (program_key(member.config), split.num_users, split.num_items,
           np.count_nonzero(split.train.counts))
    groups.setdefault(key, []).append(member.place)
  programs = []
  for group in groups.values():
    fit = _members_that_fit(members[group[0]].config, splits[group[0]])
    size = most or fit
    # Programs of equal size share the last one's loss.
    count = -(-len(group) // size)
    size = -(-len(group) // count)
    programs += [group[i:i + size] for i in range(0, len(group), size)]
  return programs


def _members_that_fit(config: Config, split: Split) -> int:
  placement = study.choose_devices(config, None, 2**31)
  budget = _MEMORY_SHARE * available_bytes(placement.devices[0])
  each = study.member_bytes(
      private_runs.with_some_noise(config), split.train.counts, split.num_items)
  lanes = 1 if placement.devices[0].platform == 'cpu' else len(
      placement.devices)  # Devices of a CPU share its memory.
  return max(1, int(budget / max(each, 1))) * lanes
