"""A name that the config allows is one that its room knows, and none more."""

import pytest

from fedjaxrec import config
from fedjaxrec.algorithms.registry import ALGORITHMS, build_algorithm
from fedjaxrec.data import sources
from fedjaxrec.models.registry import MODELS, build_recommender
from fedjaxrec.objectives import OBJECTIVES
from fedjaxrec.optimizers import build_optimizer


@pytest.mark.parametrize(('table', 'names'), [
    (ALGORITHMS, config.ALGORITHMS),
    (MODELS, config.MODELS),
    (OBJECTIVES, config.OBJECTIVES),
])
def test_a_table_and_its_names_agree(table, names):
  assert set(table) == set(names)


def _build(name, **client):
  return build_algorithm(
      config.Config(
          algorithm=config.AlgorithmConfig(name=name),
          client=config.ClientConfig(**client),
          model=config.ModelConfig(
              name='sasrec' if name == 'sequential' else 'mf'),
          objective=config.ObjectiveConfig(name='bce')),
      build_recommender(config.ModelConfig(
          name='sasrec' if name == 'sequential' else 'mf'), 12), 12)


@pytest.mark.parametrize('name', ['ials', 'fcf', 'fedmf', 'fedrep', 'ditto'])
def test_who_reads_no_item_optimizer_refuses_it(name):
  with pytest.raises(ValueError, match='client.item_optimizer=adagrad with'):
    _build(name, item_optimizer='adagrad')


@pytest.mark.parametrize('name', ['fedavg', 'fedper', 'sequential'])
def test_who_reads_an_item_optimizer_takes_it(name):
  assert _build(name, item_optimizer='adagrad').client_update


def test_every_source_has_a_loader():
  for name in config.SOURCES:
    # The made-up population has no file to load: it takes the seed instead.
    if name != 'synthetic':
      assert callable(sources._find_loader(name))


@pytest.mark.parametrize('name', config.OPTIMIZERS)
def test_every_optimizer_can_be_built(name):
  assert build_optimizer(config.ServerConfig(optimizer=name), 1.0).init
  assert build_optimizer(config.ClientConfig(optimizer=name), 1.0).init
