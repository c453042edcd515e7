"""How long a client's message is where every row of the table travels."""

from typing import Any

import jax
import numpy as np

from fedjaxrec.algorithms.registry import build_algorithm
from fedjaxrec.config import Config
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.models.two_tower import SideInputs

PyTree = Any


def message_shapes(
    config: Config, num_items: int, side: SideInputs | None = None
) -> tuple[PyTree, PyTree]:
  """What a client sends when every row travels: (item leaves, shared).

  Args:
    config: The whole config.
    num_items: Items in the catalogue.
    side: The features that model.name=two_tower reads.
  """
  algorithm = build_algorithm(config, build_recommender(
      config.model, num_items, side and (config.two_tower, side)), num_items)
  return jax.eval_shape(
      lambda key: algorithm.empty_contribution(algorithm.init_server(key)),
      jax.random.key(0))


def message_size(
    config: Config, num_items: int, open_rows: Any = None,
    side: SideInputs | None = None
) -> int:
  """Numbers in it; with open_rows, of those rows alone."""
  table, shared = message_shapes(config, num_items, side)
  rows = num_items if open_rows is None else int(np.sum(open_rows))
  return (sum(x.size for x in jax.tree.leaves(table)) // num_items * rows
          + sum(x.size for x in jax.tree.leaves(shared)))
