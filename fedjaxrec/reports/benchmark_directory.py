"""What a benchmark leaves behind: one folder, and in it one for each run.

  benchmark.json                   data sets, protocols, and the runs there are
  runs/ncf/fedavg/0/               config.json, metrics.jsonl, summary.json
  trials/ncf/fedavg/003.json       a setting that was tried, when tuning
  chosen/ncf/fedavg.flags          and what was chosen
  benchmark.csv, benchmark.md, benchmark.html

A run is done when its summary.json is there, which is written last: a benchmark
that is killed at any moment loses no run that was done.
"""

import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjaxrec.reports import run_directory

BENCHMARK = 'benchmark.json'
RUNS = 'runs'
TRIALS = 'trials'
CHOSEN = 'chosen'
FAILED = 'failed.json'
TABLE = 'benchmark.csv'
MARKDOWN = 'benchmark.md'
PAGE = 'benchmark.html'
TUNING_TABLE = 'tuning.csv'
_KEYS = {'command', 'datasets', 'protocols', 'runs', 'tune'}


class Outcome(NamedTuple):
  """One run, as its files say.

  Attributes:
    dataset: The data set's name.
    method: The method's.
    seed: Its seed.
    counterpart: The method that this one is compared with, or empty.
    is_reference: Whether it is outside the federation.
    status: done, diverged, refused, failed or unfinished.
    summary: The content of summary.json; empty where it is not done.
    message: What was said when it diverged, was refused or failed.
  """
  dataset: str
  method: str
  seed: int
  counterpart: str
  is_reference: bool
  status: str
  summary: dict[str, Any]
  message: str = ''


def slug(name: str) -> str:
  """A name as a folder."""
  return re.sub(r'[^A-Za-z0-9._-]+', '-', name)


def run_folder(
    workdir: str | os.PathLike[str], dataset: str, method: str, seed: int
) -> pathlib.Path:
  """Where a run's files are."""
  return pathlib.Path(workdir) / RUNS / slug(dataset) / method / str(seed)


def trial_path(
    workdir: str | os.PathLike[str], dataset: str, method: str, trial: int
) -> pathlib.Path:
  """Where a tried setting's result is."""
  return (pathlib.Path(workdir) / TRIALS / slug(dataset) / method
          / f'{trial:03d}.json')


def chosen_path(
    workdir: str | os.PathLike[str], dataset: str, method: str
) -> pathlib.Path:
  """Where the flags are that were chosen."""
  return pathlib.Path(workdir) / CHOSEN / slug(dataset) / f'{method}.flags'


def is_benchmark(workdir: str | os.PathLike[str]) -> bool:
  """Whether a directory holds the benchmark.json of a benchmark."""
  try:
    return _KEYS <= run_directory.read_json(
        pathlib.Path(workdir) / BENCHMARK).keys()
  except (FileNotFoundError, ValueError):
    return False


def check_workdir(
    workdir: str | os.PathLike[str], *, resume: bool, overwrite: bool
) -> bool:
  """Checks that a benchmark may use a directory; changes nothing.

  Args:
    workdir: The benchmark's directory.
    resume: Continue the benchmark that is there; where there is none, begin it.
    overwrite: Replace it.

  Returns:
    Whether there is a benchmark that is to be continued.

  Raises:
    ValueError: If something else is there, or a benchmark and neither `resume`
      nor `overwrite` is asked for.
  """
  return run_directory.check_workdir(
      workdir, resume=resume, overwrite=overwrite, is_ours=is_benchmark,
      what='benchmark')


def prepare_workdir(workdir: str | os.PathLike[str]) -> None:
  """Makes a directory ready for a new benchmark; removes what an old one left.

  benchmark.json goes last: an interrupted removal is known as a benchmark.
  """
  workdir = pathlib.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(
        f'workdir={str(workdir)!r} cannot be made ({error.strerror}); choose '
        'another --workdir.') from error
  if is_benchmark(workdir):
    for name in (RUNS, TRIALS, CHOSEN):
      shutil.rmtree(workdir / name, ignore_errors=True)
    for name in (TABLE, MARKDOWN, PAGE, TUNING_TABLE, BENCHMARK):
      (workdir / name).unlink(missing_ok=True)


def read_benchmark(workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads benchmark.json.

  Raises:
    FileNotFoundError, ValueError: If it is missing or damaged.
  """
  return run_directory.read_json(pathlib.Path(workdir) / BENCHMARK)


def status_of(folder: pathlib.Path) -> str:
  """Whether a run is done, diverged, refused, failed or unfinished."""
  if (folder / run_directory.SUMMARY).is_file():
    return 'done'
  if (folder / FAILED).is_file():
    return run_directory.read_json(folder / FAILED)['status']
  return 'unfinished'


def has_results(
    workdir: str | os.PathLike[str], run: Mapping[str, Any]) -> bool:
  """Whether a run of benchmark.json is over, or a setting of it was tried."""
  where = run['dataset'], run['method']
  return trial_path(workdir, *where, 0).is_file() or status_of(
      run_folder(workdir, *where, run['seed'])) in ('done', 'diverged')


def read_outcomes(
    workdir: str | os.PathLike[str], benchmark: Mapping[str, Any]
) -> list[Outcome]:
  """Reads what every run left, in the order of the benchmark."""
  outcomes = []
  for run in benchmark['runs']:
    folder = run_folder(workdir, run['dataset'], run['method'], run['seed'])
    status = status_of(folder)
    outcomes.append(Outcome(
        run['dataset'], run['method'], run['seed'], run['counterpart'],
        'benchmark.reference' in run['fields'], status,
        run_directory.read_json(folder / run_directory.SUMMARY)
        if status == 'done' else {},
        run_directory.read_json(folder / FAILED)['message']
        if status in ('diverged', 'refused', 'failed') else ''))
  return outcomes
