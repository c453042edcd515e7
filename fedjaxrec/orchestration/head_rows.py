"""The rows that travel where not all do: the most popular items."""

from collections.abc import Callable

import numpy as np


def top_rows(
    field: str, wanted: int, num_items: int,
    count: Callable[[], np.ndarray]
) -> np.ndarray | None:
  """Chooses the most popular rows; of equal ones those with the lower ids.

  Args:
    field: The flag that asks for them.
    wanted: How many; 0: all.
    num_items: Items in the catalogue.
    count: () -> popularity [num_items], larger is more popular. Called only
      where rows are chosen, for it may compile.

  Returns:
    bool [num_items]: the rows that travel; None: all.

  Raises:
    ValueError: If there are no more items than that; before counting.
  """
  if not wanted:
    return None
  if wanted >= num_items:
    raise ValueError(
        f'{field}={wanted} of {num_items} items: there is nothing to choose; '
        'use fewer, or 0 for all rows.')
  open_rows = np.zeros(num_items, np.bool_)
  open_rows[np.argsort(-count(), kind='stable')[:wanted]] = True
  return open_rows
