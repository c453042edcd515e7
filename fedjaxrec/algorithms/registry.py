"""The algorithms by name. A new algorithm is one file, one line here,
and its name in `ALGORITHMS` of `config/learning.py`.
"""

from typing import Any

from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.models.recommender import Recommender

ALGORITHMS = {
    'fedavg': make_fedavg,
}


def build_algorithm(
    config: Config, recommender: Recommender, num_items: int, **server: Any
) -> Algorithm:
  """Returns the algorithm that `config.algorithm.name` names.

  Args:
    config: The whole config.
    recommender: The model.
    num_items: Items in the catalogue.
    **server: server_transform and expected_cohort, see `make_server`.
  """
  return ALGORITHMS[config.algorithm.name](
      config, recommender, num_items, **server)
