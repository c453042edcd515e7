"""The progress of a run: a bar in a terminal, plain lines elsewhere."""

import time

import rich.console
import rich.progress

# Where output is a file, lines without a validation are at least so far apart.
_LINE_EVERY_S = 10.0


class Progress:
  """Shows how far a run came; use it in a `with` statement.

  In a terminal: a bar with rounds, loss, validation NDCG@10, clients/s and the
  time left. Elsewhere (a file, a pipe): one line for each new validation, one
  every ten seconds between them, and one for the last round.
  """

  def __init__(
      self,
      rounds: int,
      first_round: int,
      console: rich.console.Console | None,
  ):
    self._rounds = rounds
    self._first_round = first_round
    self._console = console
    self._bar: rich.progress.Progress | None = None
    self._start = self._last_line = time.monotonic()
    self._last_ndcg: float | None = None
    if console is not None and console.is_terminal:
      self._bar = rich.progress.Progress(
          rich.progress.TextColumn('[bold]Training'),
          rich.progress.BarColumn(bar_width=None),
          rich.progress.MofNCompleteColumn(),
          rich.progress.TextColumn('{task.fields[numbers]}'),
          rich.progress.TimeRemainingColumn(compact=True),
          console=console, expand=True)
      self._task = self._bar.add_task(
          'train', total=rounds, completed=first_round, numbers='compiling')

  def update(
      self,
      round_index: int,
      *,
      loss: float | None = None,
      validation_ndcg: float | None = None,
      clients_per_s: float | None = None,
  ) -> None:
    """Shows that `round_index` rounds are done.

    Args:
      round_index: Rounds done.
      loss: Training loss of the last round.
      validation_ndcg: The latest NDCG@10 on the validation set.
      clients_per_s: Clients trained a second.
    """
    numbers = []
    if loss is not None:
      numbers.append(f'loss {loss:.4f}')
    if validation_ndcg is not None:
      numbers.append(f'val NDCG@10 {validation_ndcg:.4f}')
    if clients_per_s is not None:
      numbers.append(f'{clients_per_s:,.0f} clients/s')
    if self._bar is not None:
      self._bar.update(self._task, completed=round_index,
                       numbers=' · '.join(numbers))
    elif self._console is not None:
      now = time.monotonic()
      if (now - self._last_line < _LINE_EVERY_S
          and round_index < self._rounds
          and validation_ndcg == self._last_ndcg):
        return
      self._last_line, self._last_ndcg = now, validation_ndcg
      done = max(1, round_index - self._first_round)
      left = (now - self._start) / done * (self._rounds - round_index)
      self._console.print(
          f'round {round_index}/{self._rounds}: '
          f'{", ".join([*numbers, f"{left:.0f} s left"])}',
          highlight=False, soft_wrap=True)

  def __enter__(self) -> 'Progress':
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *error: object) -> None:
    if self._bar is not None:
      self._bar.stop()


def open_progress(
    rounds: int,
    first_round: int = 0,
    show: bool = True,
    console: rich.console.Console | None = None,
) -> Progress:
  """Opens the progress display of a run.

  Args:
    rounds: Rounds of the whole run.
    first_round: Rounds already done, in a resumed run.
    show: False shows nothing.
    console: Where to show it; by default standard output.
  """
  if show and console is None:
    console = rich.console.Console()
  return Progress(rounds, first_round, console if show else None)
