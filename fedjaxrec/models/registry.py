"""The models by name. A new model is one file, one line here,
and its name in `MODELS` of `config/learning.py`.
"""

from fedjaxrec.config import ModelConfig, TwoTowerConfig
from fedjaxrec.models.gmf import GMF
from fedjaxrec.models.gru4rec import GRU4Rec
from fedjaxrec.models.matrix_factorization import MatrixFactorization
from fedjaxrec.models.metamf import MetaMF
from fedjaxrec.models.mlp import MLP
from fedjaxrec.models.neumf import NeuMF
from fedjaxrec.models.pfedrec import PFedRec
from fedjaxrec.models.recommender import Recommender, make_recommender
from fedjaxrec.models.sasrec import SASRec
from fedjaxrec.models.two_tower import (
    SideInputs,
    TwoTower,
    make_two_tower,
)

MODELS = {
    'mf': MatrixFactorization,
    'gmf': GMF,
    'mlp': MLP,
    'neumf': NeuMF,
    'pfedrec': PFedRec,
    'metamf': MetaMF,
    'sasrec': SASRec,
    'gru4rec': GRU4Rec,
    'two_tower': TwoTower,
}


def build_recommender(
    config: ModelConfig, num_items: int,
    towers: tuple[TwoTowerConfig, SideInputs] | None = None
) -> Recommender:
  """Returns the recommender that `config.name` names.

  Args:
    config: The model's config.
    num_items: Items in the catalogue: rows of the item table.
    towers: What two_tower needs beside these; no other model reads it.

  Raises:
    ValueError: For a two_tower without it.
  """
  if config.name == 'two_tower':
    if towers is None:
      raise ValueError(
          'model.name=two_tower without side features, here where none are '
          'read: `fedjaxrec train` and `make_simulation(side=...)` take them; '
          'use one of these, or model.name=mf.')
    return make_two_tower(config, *towers, num_items)
  model = MODELS[config.name]
  return make_recommender(lambda key: model(config, num_items, key))
