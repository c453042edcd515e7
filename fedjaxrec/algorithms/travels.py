"""What is personal and what travels, in words: a line an algorithm.

The report of a run and its guarantee say what these lines say. They are of
uploads in the clear; `with_the_server` knows what a secure sum, or noise on the
device, changes. The docstring of an algorithm says more.
"""

from typing import NamedTuple

TOUCHED, OWN, ALL = 'touched rows', "rows of the client's items", 'all rows'


class Travels(NamedTuple):
  """What travels between a client and the server in a round.

  Attributes:
    rows: TOUCHED (the client's items, and what it drew beside them), OWN or
      ALL: the rows of the item table that a message is about.
    moves: What the client receives and sends, a sentence without its end.
    reaches: How personal parameters come to the server, after `they` or
      `which`; empty where they stay on the client.
  """
  rows: str
  moves: str
  reaches: str = ''


_ROWS = 'A client receives the rows of the item table that its examples touch'
_OWN = 'A client receives the rows of its items and the Gram matrix of all'
_IN_UPLOADS = 'reach the server in every upload'
_TO_THE_SERVER = 'are with the server, all but the score layer'

_DELTAS = Travels(
    TOUCHED, f'{_ROWS}, and sends by how much its training moves them')
_START = Travels(
    TOUCHED, f'{_ROWS} and the start of the personal part, and sends by how '
    'much its training moves both',
    f'{_IN_UPLOADS}, less the start')

TRAVELS = {
    'fedavg': _DELTAS,
    'fedper': _DELTAS,
    'fedrep': _DELTAS,
    'fedrecon': _DELTAS,
    'fedrap': _DELTAS,
    'ditto': _DELTAS,
    'apfl': _DELTAS,
    'sequential': _DELTAS,
    'fedpergnn': _DELTAS._replace(
        moves=f'{_DELTAS.moves}, those of its pseudo-items among them'),
    'reptile': _START,
    'fomaml': _START,
    'perfedavg': _START,
    'metamf': Travels(
        TOUCHED, 'A client receives the vectors that the server generates from '
        'its user vector, of the rows that its examples touch, and sends the '
        'gradient of its loss by them',
        'are with the server, which keeps the vector of every user'),
    'ials': Travels(
        OWN, f"{_OWN}, and sends for each of these rows a statistic that holds "
        "the client's vector", _IN_UPLOADS),
    'dpals': Travels(
        OWN, f"{_OWN}, and sends for these rows, or some of them, a statistic "
        "that holds the client's vector, clipped; noise comes to their sum",
        f'{_IN_UPLOADS}, clipped and before the noise'),
    'fcf': Travels(
        ALL, 'A client receives the whole item table, and sends the gradient '
        'of its loss by all of it', f'{_IN_UPLOADS}, up to their scale'),
    'fedmf': Travels(
        OWN, 'A client receives the rows of its items, and sends their '
        'gradients',
        'can be solved for by a server that sees two uploads of the client'),
    'fedease': Travels(
        OWN, 'A client sends, once, how often each of its items occurs with '
        'each other one, and receives the entries of the model between its '
        'items', _IN_UPLOADS),
    'pfedrec': Travels(
        ALL, 'A client receives the whole item table, and sends by how much '
        'its training moves it, which is its own table',
        f'{_IN_UPLOADS}, all but the score layer'),
    'gpfedrec': Travels(
        ALL, "A client receives the global item table and the mean of its "
        "neighbours', and sends its own whole table", _TO_THE_SERVER),
    'cofedrec': Travels(
        ALL, 'A client receives the clusters of the items and a whole item '
        'table, and sends its own whole table', _TO_THE_SERVER),
}


def with_the_server(
    name: str, *, secure: bool = False, randomised: bool = False
) -> str:
  """How a run's personal parameters come to the server; empty: they do not.

  Args:
    name: The algorithm.
    secure: Whether the server opens sums alone.
    randomised: Whether an upload is made noisy on the device.

  Returns:
    What stands after `personal parameters, which`.
  """
  return '' if secure or randomised else TRAVELS[name].reaches
