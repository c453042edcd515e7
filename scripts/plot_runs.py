"""Draws the test NDCG@10 of finished runs of `train`, as a sweep's plot does.

  python scripts/plot_runs.py runs/mechanism/* --out=mechanism.svg

A run's row is its folder's name up to the last hyphen; what follows it tells
the seeds of one row apart (`banded-0`, `banded-1`).
"""

import argparse
import pathlib
from collections.abc import Sequence

from fedjaxrec.data.whole_file import write_text
from fedjaxrec.reports import run_directory
from fedjaxrec.reports.sweep_directory import Outcome
from fedjaxrec.reports.sweep_plot import render_svg


def read_outcome(folder: pathlib.Path) -> Outcome:
  """A run as a member of a sweep over the names of folders.

  Raises:
    ValueError: Where no finished run is.
  """
  path = folder / 'summary.json'
  if not run_directory.is_whole(path):
    raise ValueError(
        f'folder={str(folder)!r} has no whole summary.json, so no run has '
        'ended there; finish it by `fedjaxrec train --resume`.')
  summary = run_directory.read_json(path)
  return Outcome(
      folder.name, 0, {'run': folder.name.rpartition('-')[0] or folder.name},
      summary['seed'], 'done', summary, [])


def main(args: Sequence[str] | None = None) -> None:
  """Reads the runs that are named, and writes the plot."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folders', nargs='+', type=pathlib.Path)
  parser.add_argument('--out', required=True, type=pathlib.Path)
  found = parser.parse_args(args)
  write_text(found.out, render_svg([
      read_outcome(folder) for folder in sorted(found.folders)]))


if __name__ == '__main__':
  main()
