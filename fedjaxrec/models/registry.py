"""The models by name. A new model is one file, one line here,
and its name in `MODELS` of `config/learning.py`.
"""

from fedjaxrec.config import ModelConfig
from fedjaxrec.models.matrix_factorization import MatrixFactorization
from fedjaxrec.models.neumf import NeuMF
from fedjaxrec.models.pfedrec import PFedRec
from fedjaxrec.models.recommender import Recommender, make_recommender

MODELS = {
    'mf': MatrixFactorization,
    'neumf': NeuMF,
    'pfedrec': PFedRec,
}


def build_recommender(config: ModelConfig, num_items: int) -> Recommender:
  """Returns the recommender that `config.name` names.

  Args:
    config: The model's config.
    num_items: Items in the catalogue: rows of the item table.
  """
  model = MODELS[config.name]
  return make_recommender(lambda key: model(config, num_items, key))
