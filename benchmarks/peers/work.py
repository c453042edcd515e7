"""The work that every peer does, and the clock: NumPy alone.

The model: the prediction is the inner product of an item's row and one shared
vector; both are trained, by every client, and averaged by the server. A worker
is run in its peer's environment as `python NAME_worker.py FOLDER`; the folder
has the work, and takes the result.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Work(NamedTuple):
  """What is the same for every peer.

  Attributes:
    items: int32 [clients, history], distinct within a client.
    ratings: float32 [clients, history].
    table: float32 [num_items, dim], at the start.
    vector: float32 [dim], at the start.
    cohort: Clients in a round.
    batch: Ratings in a batch; a client visits its ratings once a round.
    learning_rate: Of a client's SGD; the server's is 1.
    warm_up: Rounds after the first that are not timed.
    rounds: Timed rounds.
  """
  items: np.ndarray
  ratings: np.ndarray
  table: np.ndarray
  vector: np.ndarray
  cohort: int
  batch: int
  learning_rate: float
  warm_up: int
  rounds: int

  @property
  def all_rounds(self) -> int:
    """The first round, the warm-up and the timed ones."""
    return 1 + self.warm_up + self.rounds


def save(work: Work, folder: pathlib.Path) -> None:
  """Writes the work for a worker to load."""
  arrays = {k: v for k, v in work._asdict().items()
            if isinstance(v, np.ndarray)}
  for name, array in arrays.items():
    np.save(folder / f'{name}.npy', array)
  (folder / 'work.json').write_text(json.dumps(
      {k: v for k, v in work._asdict().items() if k not in arrays}))


@functools.cache
def load(folder: str = '') -> Work:
  """Reads the work, once in a process; the default folder is the argument."""
  path = pathlib.Path(folder or sys.argv[1])
  arrays = {name: np.load(path / f'{name}.npy')
            for name in ('items', 'ratings', 'table', 'vector')}
  return Work(**arrays, **json.loads((path / 'work.json').read_text()))


def loss(work: Work, table: np.ndarray, vector: np.ndarray) -> float:
  """Mean squared error over every client's ratings."""
  return float(np.mean(np.square(
      (np.asarray(table) @ np.asarray(vector))[work.items] - work.ratings)))


class Clock:
  """Wall and CPU seconds of every round, and what the round did.

  The model is judged between two rounds, while the clock stands still.
  """

  def __init__(
      self, work: Work, cpu_seconds: Callable[[], float] = time.process_time):
    self._work = work
    self._cpu_seconds = cpu_seconds
    self._rounds: list[dict[str, float]] = []
    self._losses = [loss(work, work.table, work.vector)]
    self.begin()

  def begin(self) -> None:
    """Starts the next round's time."""
    self._cpu, self._wall = self._cpu_seconds(), time.perf_counter()

  def end(self, num_examples: int, table: Any, vector: Any) -> None:
    """Ends a round; num_examples were trained on, the model is now this."""
    wall_s = time.perf_counter() - self._wall
    cpu_s = self._cpu_seconds() - self._cpu
    expected = self._work.cohort * self._work.items.shape[1]
    if num_examples != expected:
      raise RuntimeError(
          f'num_examples={num_examples} of a round is not {expected}; the '
          'round did not do the work.')
    self._losses.append(loss(self._work, table, vector))
    if not self._losses[-1] < self._losses[-2]:
      raise RuntimeError(f'losses={self._losses}: a round did not lower it.')
    self._rounds.append({'wall_s': wall_s, 'cpu_s': cpu_s})
    self.begin()

  def report(self, *distributions: str) -> None:
    """Writes the result next to the work.

    Args:
      *distributions: The installed packages whose versions are the result's:
        the peer, then what it computes with.
    """
    if len(self._rounds) != self._work.all_rounds:
      raise RuntimeError(
          f'rounds={len(self._rounds)} were run, not {self._work.all_rounds}.')
    (pathlib.Path(sys.argv[1]) / 'result.json').write_text(json.dumps({
        'versions': {d: importlib.metadata.version(d) for d in distributions},
        'rounds': self._rounds, 'losses': self._losses}))


def tree_cpu_seconds() -> float:
  """CPU seconds of this process and its descendants, the ended ones' too.

  Reads /proc, so it is Linux's alone; elsewhere, this process's.
  """
  parents, seconds = {}, {}
  for entry in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      # The name, in parentheses, may have spaces; fields are counted after it.
      fields = (entry / 'stat').read_text().rpartition(')')[2].split()
    except OSError:
      continue
    pid = int(entry.name)
    parents[pid] = int(fields[1])
    seconds[pid] = sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')
  if os.getpid() not in parents:
    return time.process_time()

  def is_ours(pid):
    while pid in parents and pid != os.getpid():
      pid = parents[pid]
    return pid == os.getpid()

  return sum(value for pid, value in seconds.items() if is_ours(pid))
