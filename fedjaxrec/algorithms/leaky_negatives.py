"""The published comparison's leak, kept to reproduce its figures.

The released code of PFedRec and its relatives draws a client's training
negatives from all items but ALL items of the client, those held out for
validation and test included. A held-out item is then the only unseen item that
is never pushed down, and a client with a table of its own finds it: without any
federation nearly always. What is measured under this protocol says nothing
about a recommender, and everything that prints it says so.
"""

import jax.numpy as jnp
import numpy as np

from fedjaxrec.algorithms.whole_table import draw_whole
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config


def draw_from_pool(
    algorithm: Algorithm, config: Config, held_out: np.ndarray | None,
    num_items: int
) -> Algorithm:
  """The algorithm with the negatives that objective.negative_pool asks for.

  Args:
    algorithm: Draws by `draw_whole`, without held-out items.
    config: The whole config; the sound pool returns the algorithm as it is.
    held_out: int32 [num_clients, n]: each client's held-out items, num_items
      where it has fewer.
    num_items: Items in the catalogue.

  Raises:
    ValueError: If the pool leaks and there are no held-out items to leak: a
      result must not be labelled as what it is not.

  References:
    Zhang et al., 2023, `PFedRec <https://arxiv.org/abs/2301.08143>`_, released
    code.
  """
  objective = config.objective
  if not objective.leaks:
    return algorithm
  if held_out is None:
    raise ValueError(
        f'objective.negative_pool={objective.negative_pool} without the held-'
        'out items, which it spares: only `fedjaxrec train` hands them over; '
        'use that, or objective.negative_pool=unseen.')
  spared = jnp.asarray(held_out, jnp.int32)
  return algorithm._replace(
      draw=lambda client, key: draw_whole(
          client, key, num_items, objective.drawn_negatives,
          spared=spared.at[client.client_id].get(
              mode='fill', fill_value=num_items)))


def held_out_items(
    offsets_and_items: list[tuple[np.ndarray, np.ndarray]], num_items: int
) -> np.ndarray:
  """Puts each client's held-out items side by side.

  Args:
    offsets_and_items: Of each held-out part: int64 [num_clients + 1] and int32
      [n].
    num_items: Fills the places of clients with fewer.

  Returns:
    int32 [num_clients, most held-out items].
  """
  columns = []
  for offsets, items in offsets_and_items:
    counts = np.diff(offsets)
    most = max(1, int(counts.max()))
    part = np.full((len(counts), most), num_items, np.int32)
    user = np.repeat(np.arange(len(counts)), counts)
    part[user, np.arange(len(items)) - offsets[user]] = items
    columns.append(part)
  return np.concatenate(columns, 1)
