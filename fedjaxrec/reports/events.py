"""TensorBoard events of a run."""

import os
from collections.abc import Mapping
from typing import Any


class Events:
  """Writes a logged round's numbers; use it in a `with` statement."""

  def __init__(self, writer: Any):
    self._writer = writer

  def write(self, line: Mapping[str, Any]) -> None:
    """Writes one line of metrics.jsonl as scalars at its round.

    Args:
      line: `round`, and numbers by name; a dict of numbers is a group, shown
        as `group/name`. What is not a number is left out.
    """
    for name, value in line.items():
      if isinstance(value, Mapping):
        for inner, number in value.items():
          self._add(f'{name}/{inner}', number, line['round'])
      elif name != 'round':
        self._add(name, value, line['round'])

  def _add(self, name: str, value: Any, step: int) -> None:
    # '@' is not among the characters that TensorBoard allows in a name.
    if isinstance(value, (int, float)):
      self._writer.add_scalar(
          name.replace('@', '_at_'), value, int(step))

  def __enter__(self) -> 'Events':
    return self

  def __exit__(self, *error: object) -> None:
    self._writer.close()


def open_events(
    workdir: str | os.PathLike[str], first_round: int = 0
) -> Events:
  """Opens a new events file in the run directory.

  Args:
    workdir: The run directory.
    first_round: Rounds already done. TensorBoard is told to forget the events
      of later rounds, which an interrupted run may have left.
  """
  # Its protocol buffers take a while to import; only a run needs them.
  from tensorboardX import SummaryWriter  # pylint: disable=g-import-not-at-top
  return Events(SummaryWriter(
      os.fspath(workdir), purge_step=first_round + 1 if first_round else None))
