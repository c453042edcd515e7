"""What a sweep leaves behind: one folder, and a run directory for each member.

  sweep.json                       what is varied, and which members there are
  members/007/                     config.json, metrics.jsonl, summary.json, ...
  programs/0/                      checkpoints of members that are not done
  sweep.csv, sweep.md, sweep.svg, sweep.html

A member is done when its summary.json is there, which is written last. So a
sweep that is killed at any moment loses no member that was done.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjaxrec.reports import run_directory

SWEEP = 'sweep.json'
MEMBERS = 'members'
PROGRAMS = 'programs'
DIVERGED = 'diverged.json'
TABLE = 'sweep.csv'
MARKDOWN = 'sweep.md'
PLOT = 'sweep.svg'
PAGE = 'sweep.html'
KIND = run_directory.Kind(
    'sweep', SWEEP,
    frozenset({'config', 'grid', 'fields', 'members', 'programs'}),
    frozenset({MEMBERS, PROGRAMS, TABLE, MARKDOWN, PLOT, PAGE}))


class Outcome(NamedTuple):
  """One member, as its files say.

  Attributes:
    name: Its folder under members/.
    program: The compiled program that it was part of.
    values: Swept fields and their values, without the seed.
    seed: Its seed.
    status: done, diverged or unfinished.
    summary: The content of summary.json; empty where it is not done.
    lines: The lines of metrics.jsonl.
    message: What was said when it diverged.
  """
  name: str
  program: int
  values: dict[str, Any]
  seed: int
  status: str
  summary: dict[str, Any]
  lines: list[dict[str, Any]]
  message: str = ''


def member_name(index: int) -> str:
  """The folder of a member: `007`."""
  return f'{index:03d}'


def member_folder(
    workdir: str | os.PathLike[str], index: int
) -> pathlib.Path:
  """Where a member's files are."""
  return pathlib.Path(workdir) / MEMBERS / member_name(index)


def is_sweep(workdir: str | os.PathLike[str]) -> bool:
  """Whether a directory holds the sweep.json of a sweep."""
  return run_directory.holds(workdir, KIND)


def read_sweep(workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads sweep.json.

  Raises:
    FileNotFoundError, ValueError: If it is missing or damaged.
  """
  return run_directory.read_json(pathlib.Path(workdir) / SWEEP)


def status_of(folder: pathlib.Path) -> str:
  """Whether a member is done, diverged or unfinished.

  By files that are whole: a torn one is as good as none.
  """
  if run_directory.is_whole(folder / run_directory.SUMMARY):
    return 'done'
  return 'diverged' if run_directory.is_whole(
      folder / DIVERGED) else 'unfinished'


def read_outcomes(
    workdir: str | os.PathLike[str], sweep: Mapping[str, Any]
) -> list[Outcome]:
  """Reads what every member left, in the order of the sweep."""
  program_of = {member: index for index, members in enumerate(sweep['programs'])
                for member in members}
  outcomes = []
  for index, member in enumerate(sweep['members']):
    folder = member_folder(workdir, index)
    status = status_of(folder)
    outcomes.append(Outcome(
        member_name(index), program_of[index], member['values'],
        member['seed'], status,
        run_directory.read_json(folder / run_directory.SUMMARY)
        if status == 'done' else {},
        run_directory.read_metrics(folder),
        run_directory.read_json(folder / DIVERGED)['message']
        if status == 'diverged' else ''))
  return outcomes
