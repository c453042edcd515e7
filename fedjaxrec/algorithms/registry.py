"""The algorithms by name. A new algorithm is one file and one line here."""

from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.config import Config
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.rounds import Algorithm

ALGORITHMS = {
    'fedavg': make_fedavg,
}


def build_algorithm(
    config: Config, recommender: Recommender, num_items: int
) -> Algorithm:
  """Returns the algorithm that `config.algorithm.name` names."""
  return ALGORITHMS[config.algorithm.name](config, recommender, num_items)
