"""What a secure sum moves, in bytes, cryptography apart.

Up: the numbers of all rows that travel, b bits each; for the union of rows
also one word an item. Down: those rows and the shared parameters as they are.
What keys, shares and signatures weigh on top is measured where a protocol runs;
a sum without cryptography (secure.level=ideal) has nothing on top.
"""

from typing import NamedTuple

from fedjaxrec.aggregation.packing import packed_bytes
from fedjaxrec.aggregation.row_union import UNION_BITS

__all__ = ['SecureBytes', 'secure_bytes']
_PARAMETER_BYTES = 4


class SecureBytes(NamedTuple):
  """What each client of a round moves; the same for all of them.

  Attributes:
    up: Bytes to the server.
    down: Bytes from it.
    rows: Rows that travel.
  """
  up: int
  down: int
  rows: int


def secure_bytes(
    num_items: int, row_size: int, shared_size: int, bits: int,
    way: str = 'dense', rows: int | None = None
) -> SecureBytes:
  """Returns what a client sends and gets in one round.

  Nobody downloads only the rows that it touches: asking for them would say
  which they are. Everybody gets the rows that travel.

  Args:
    num_items: Items in the catalogue.
    row_size: Numbers in an item's row.
    shared_size: Numbers of the shared parameters.
    bits: Of the ring.
    way: dense, union or chosen.
    rows: Rows that travel, fake ones included; for union and chosen.

  Raises:
    ValueError: If it is not said how many rows travel.
  """
  if way == 'dense':
    rows = num_items
  if rows is None:
    raise ValueError(
        f'rows=None with way={way}: how many rows travel follows from the '
        'cohort, or from privacy.head_items; give it.')
  numbers = rows * row_size + shared_size
  up = packed_bytes(numbers, bits)
  if way == 'union':
    up += packed_bytes(num_items, UNION_BITS)
  return SecureBytes(up, numbers * _PARAMETER_BYTES, rows)
