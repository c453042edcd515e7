"""A name that the config allows is one that its room knows, and none more."""

import pytest

from fedjaxrec import config
from fedjaxrec.algorithms.registry import ALGORITHMS
from fedjaxrec.data import sources
from fedjaxrec.models.registry import MODELS
from fedjaxrec.objectives import OBJECTIVES
from fedjaxrec.optimizers import build_optimizer


@pytest.mark.parametrize(('table', 'names'), [
    (ALGORITHMS, config.ALGORITHMS),
    (MODELS, config.MODELS),
    (OBJECTIVES, config.OBJECTIVES),
])
def test_a_table_and_its_names_agree(table, names):
  assert set(table) == set(names)


def test_every_source_has_a_loader():
  for name in config.SOURCES:
    # The made-up population has no file to load: it takes the seed instead.
    if name != 'synthetic':
      assert callable(sources._find_loader(name))


@pytest.mark.parametrize('name', config.OPTIMIZERS)
def test_every_optimizer_can_be_built(name):
  assert build_optimizer(config.ServerConfig(optimizer=name), 1.0).init
  assert build_optimizer(config.ClientConfig(optimizer=name), 1.0).init
