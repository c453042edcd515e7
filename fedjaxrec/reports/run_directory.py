"""The run directory: files that are whole or absent, and whose they are.

A JSON file is the old one or the new one, whenever a process is killed (see
`whole_file`). `metrics.jsonl` grows by whole lines; a half-written last line is
dropped when it is read. What is said of a run's directory holds for those of a
sweep and a benchmark (`Kind`).
"""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from fedjaxrec.data.whole_file import TEMPORARY_PREFIX, write_text

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
SUMMARY = 'summary.json'
REPORT = 'report.html'
CHECKPOINTS = 'checkpoints'
PRIVACY_LEDGER = 'privacy_ledger.jsonl'
EVENTS_PREFIX = 'events.out.tfevents.'


class Kind(NamedTuple):
  """A kind of directory that a command leaves behind.

  Attributes:
    what: What it is called.
    marker: The JSON file by which it is known.
    keys: What the marker has, whatever else is added to it.
    files: Files and folders that are its own, beside the marker.
    prefixes: What the names of other files of its own begin with.
  """
  what: str
  marker: str
  keys: frozenset[str]
  files: frozenset[str]
  prefixes: tuple[str, ...] = ()


RUN = Kind(
    'run', CONFIG, frozenset({'seed', 'rounds', 'data', 'model'}),
    frozenset({METRICS, SUMMARY, REPORT, CHECKPOINTS, PRIVACY_LEDGER}),
    (EVENTS_PREFIX,))


def to_plain(value: Any) -> Any:
  """Returns a value as JSON has it: NumPy unwrapped, NaN and infinity null."""
  if isinstance(value, Mapping):
    return {str(key): to_plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_plain(item) for item in value]
  if isinstance(value, np.ndarray) or hasattr(value, '__array__'):
    return to_plain(np.asarray(value).tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  return value


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes a JSON file as a whole, or not at all.

  NumPy scalars and arrays become numbers and lists; NaN and infinity, which
  JSON does not have, become null.

  Raises:
    TypeError: If the value holds what JSON has no word for.
  """
  text = json.dumps(to_plain(value), indent=2, allow_nan=False)
  write_text(path, text + '\n')


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file is damaged or holds no object.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
        f'path={str(path)!r} does not exist; is {str(path.parent)!r} a run '
        'directory?')
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(
        f'path={str(path)!r} is damaged ({error}); restore it from a copy, or '
        'run again with --overwrite.') from error
  if not isinstance(value, dict):
    raise ValueError(
        f'path={str(path)!r} holds a {type(value).__name__}, not a JSON '
        'object; restore it from a copy, or run again with --overwrite.')
  return value


def is_whole(path: str | os.PathLike[str]) -> bool:
  """Whether there is a JSON object: a file that is missing or torn is none."""
  try:
    read_json(path)
  except (FileNotFoundError, ValueError):
    return False
  return True


def say_damaged(path: str | os.PathLike[str]) -> None:
  """Warns of a file that is there but not whole, whose work is done again."""
  if os.path.exists(path) and not is_whole(path):
    logging.warning(
        'path=%r is damaged; what it told of is done again.', os.fspath(path))


def holds(workdir: str | os.PathLike[str], kind: Kind = RUN) -> bool:
  """Whether a directory is of a kind, by its marker."""
  try:
    return kind.keys <= read_json(pathlib.Path(workdir) / kind.marker).keys()
  except (FileNotFoundError, ValueError):
    return False


class MetricsLog:
  """Appends lines to metrics.jsonl; use it in a `with` statement."""

  def __init__(self, path: str | os.PathLike[str]):
    self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115

  def append(self, line: Mapping[str, Any]) -> None:
    """Writes one line; it is out of the process's hands when this returns."""
    self._file.write(json.dumps(to_plain(line), allow_nan=False) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def __enter__(self) -> 'MetricsLog':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def open_metrics(workdir: str | os.PathLike[str]) -> MetricsLog:
  """Opens the run's metrics.jsonl for appending."""
  return MetricsLog(pathlib.Path(workdir) / METRICS)


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads metrics.jsonl; a half-written last line is left out.

  Returns:
    One dict a logged round; none where there is no file.

  Raises:
    ValueError: If a line before the last is damaged.
  """
  path = pathlib.Path(workdir) / METRICS
  if not path.is_file():
    return []
  rows = path.read_text(encoding='utf-8', errors='replace').splitlines()
  result = []
  for number, row in enumerate(rows, 1):
    try:
      line = json.loads(row)
      line['round'] = int(line['round'])
    except (ValueError, KeyError, TypeError) as error:
      if number == len(rows):
        break
      raise ValueError(
          f'path={str(path)!r}, line {number}: damaged ({error!r}); delete the '
          'line, or run again with --overwrite.') from error
    result.append(line)
  return result


def truncate_metrics(
    workdir: str | os.PathLike[str], last_round: int
) -> None:
  """Drops the lines of rounds after `last_round`, which will be run again.

  A half-written last line goes as well, whatever its round.
  """
  path = pathlib.Path(workdir) / METRICS
  if path.is_file():
    kept = [line for line in read_metrics(workdir)
            if line['round'] <= last_round]
    write_text(path, ''.join(json.dumps(line) + '\n' for line in kept))


def check_workdir(
    workdir: str | os.PathLike[str], *, resume: bool, overwrite: bool,
    kind: Kind = RUN
) -> bool:
  """Checks that a run may use a directory; changes nothing.

  A new or empty directory may be used. One that holds a run needs `resume` or
  `overwrite`. One that holds anything else is refused, with `overwrite` too.
  `resume` where no run was begun is a new run, so that a command which is
  restarted whenever it is killed need not know how far it came.

  Args:
    workdir: The run directory.
    resume: Whether to continue the run that is there.
    overwrite: Whether to replace it.
    kind: What kind of directory it is to be.

  Returns:
    Whether there is a run that is to be continued.

  Raises:
    ValueError: As said above, with the way out.
  """
  workdir = pathlib.Path(workdir)
  name = f'workdir={str(workdir)!r}'
  if resume and overwrite:
    raise ValueError(
        'resume=True and overwrite=True contradict each other; continue the '
        f'{kind.what} with --resume or replace it with --overwrite.')
  for parent in (workdir, *workdir.parents):
    if parent.exists():
      if not parent.is_dir():
        raise ValueError(
            f'{name}: {str(parent)!r} is a file, not a directory; choose '
            'another --workdir.')
      if not os.access(parent, os.W_OK):
        raise ValueError(
            f'{name}: {str(parent)!r} may not be written to; choose another '
            '--workdir.')
      break
  if not workdir.exists():
    return False
  if not holds(workdir, kind):
    # A run that was killed while it began has left temporary files only.
    others = sorted(path.name for path in workdir.iterdir()
                    if not path.name.startswith(TEMPORARY_PREFIX))
    if kind.marker in others:
      raise ValueError(
          f'{name} is not a {kind.what} directory: its {kind.marker} is '
          f'damaged, or none that a {kind.what} wrote; nothing of it will be '
          f'touched: restore {kind.marker} from a copy, or choose a new or '
          'empty --workdir.')
    if others:
      raise ValueError(
          f'{name} is not a {kind.what} directory, and holds '
          f'{others[0]!r}{" and more" if len(others) > 1 else ""}; nothing of '
          'it will be touched: choose a new or empty --workdir.')
    return False
  if not resume and not overwrite:
    raise ValueError(
        f'{name} already holds a {kind.what}; continue it with --resume, '
        'replace it with --overwrite, or choose another --workdir.')
  return resume


def prepare_workdir(
    workdir: str | os.PathLike[str], *, resume: bool, overwrite: bool
) -> bool:
  """Makes a directory ready for a run, or refuses as `check_workdir` does.

  Args:
    workdir: The run directory; it and its parents are made.
    resume: Whether to continue the run that is there.
    overwrite: Whether to replace it, see `make_workdir`.

  Returns:
    Whether there is a run that is to be continued.

  Raises:
    ValueError: See `check_workdir` and `make_workdir`.
  """
  resuming = check_workdir(workdir, resume=resume, overwrite=overwrite)
  if not resuming:
    make_workdir(workdir)
  return resuming


def make_workdir(
    workdir: str | os.PathLike[str], kind: Kind = RUN
) -> None:
  """Makes a directory, and removes from it what an old run left.

  Its files are removed by name, links and not what they point to, and every
  other file is left alone; the marker goes last, so that an interrupted removal
  is still known for what it is. Write the marker first into a directory that
  was made, for the same reason. Of a directory that is not of this kind, only
  what was never finished is removed.

  Raises:
    ValueError: If the directory cannot be made, or an old file not be removed.
  """
  workdir = pathlib.Path(workdir)
  name = f'workdir={str(workdir)!r}'
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(
        f'{name} cannot be made ({error.strerror}); choose another '
        '--workdir.') from error
  is_ours = holds(workdir, kind)

  def remove(matches: Callable[[str], bool]) -> None:
    for path in list(workdir.iterdir()):
      if matches(path.name):
        if path.is_dir() and not path.is_symlink():
          shutil.rmtree(path)
        else:
          path.unlink()

  try:
    remove(lambda name: name.startswith(TEMPORARY_PREFIX))
    if is_ours:
      remove(lambda name: name in kind.files or name.startswith(kind.prefixes))
      remove(lambda name: name == kind.marker)
  except OSError as error:
    raise ValueError(
        f'{name}: {str(error.filename)!r} of the old {kind.what} cannot be '
        f'removed ({error.strerror}); choose another --workdir.') from error
