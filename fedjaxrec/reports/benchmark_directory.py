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
KIND = run_directory.Kind(
    'benchmark', BENCHMARK,
    frozenset({'command', 'datasets', 'protocols', 'runs', 'tune'}),
    frozenset({RUNS, TRIALS, CHOSEN, TABLE, MARKDOWN, PAGE, TUNING_TABLE}))


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
    settings: How its settings were chosen, `best of 12` by a search or
      `stored`; empty where benchmark.json does not say.
  """
  dataset: str
  method: str
  seed: int
  counterpart: str
  is_reference: bool
  status: str
  summary: dict[str, Any]
  message: str = ''
  settings: str = ''


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


def read_benchmark(workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads benchmark.json.

  Raises:
    FileNotFoundError, ValueError: If it is missing or damaged.
  """
  return run_directory.read_json(pathlib.Path(workdir) / BENCHMARK)


def status_of(folder: pathlib.Path) -> str:
  """Whether a run is done, diverged, refused, failed or unfinished.

  By files that are whole: a torn one is as good as none.
  """
  if run_directory.is_whole(folder / run_directory.SUMMARY):
    return 'done'
  if run_directory.is_whole(folder / FAILED):
    return run_directory.read_json(folder / FAILED)['status']
  return 'unfinished'


def has_results(
    workdir: str | os.PathLike[str], run: Mapping[str, Any]) -> bool:
  """Whether a run of benchmark.json is over, or a setting of it was tried."""
  where = run['dataset'], run['method']
  return run_directory.is_whole(trial_path(workdir, *where, 0)) or status_of(
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
        if status in ('diverged', 'refused', 'failed') else '',
        run.get('settings', '')))
  return outcomes
