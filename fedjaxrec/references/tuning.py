"""Choosing a reference's hyper-parameters on validation, and nothing else.

What is chosen is fitted on `train`, judged by NDCG@10 of the full ranking of
`validation`; the test part is never read. The search spaces stand here: grids,
from which a budget of configurations is drawn without replacement, the same
number for whoever is compared.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjaxrec.config.references import (
    EaseConfig,
    IALSConfig,
    ReferenceConfig,
)
from fedjaxrec.data.splits import Split
from fedjaxrec.evaluation import metrics
from fedjaxrec.evaluation.ranking import make_ranker
from fedjaxrec.references.registry import CONFIGS, fit_reference

_STREAM = 0x7E5E
_BATCH_SIZE = 512

SEARCH_SPACES: Mapping[str, Mapping[str, Sequence]] = {
    'popularity': {},
    'item_knn': {
        'num_neighbors': (20, 50, 100, 200, 400),
        'shrinkage': (0.0, 5.0, 10.0, 20.0, 50.0, 100.0),
    },
    'ease': {'l2': (30.0, 60.0, 100.0, 200.0, 300.0, 500.0, 1000.0, 2000.0)},
    'ials': {
        'dim': (32, 64, 128),
        'regularization': (1e-3, 3e-3, 1e-2, 3e-2, 0.1),
        'unobserved_weight': (0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
        'frequency_exponent': (0.5, 0.75, 1.0),
    },
    'mf': {
        'dim': (16, 32, 64),
        'num_negatives': (4, 8),
        'epochs': (10, 20, 40),
        'batch_size': (256, 1024),
        'learning_rate': (0.001, 0.003, 0.01),
        'l2': (0.0, 0.001, 0.003, 0.01),
    },
    'sequential': {
        'dim': (32, 48),
        'num_negatives': (4, 8),
        'epochs': (20, 40, 80),
        'learning_rate': (0.001, 0.003),
    },
}

# What a search on validation has found, where it is not the defaults. The NCF
# files: of ials the better of two at 64 dimensions and 12 sweeps, of ease of
# 100, 300 and 1000, on the last training row of every user.
_TUNED: Mapping[tuple[str, str], ReferenceConfig] = {
    ('ials', 'ncf'): IALSConfig(
        dim=64, regularization=0.01, unobserved_weight=0.8,
        frequency_exponent=0.75),
    ('ease', 'ncf'): EaseConfig(l2=1000.0),
}


def tuned_config(name: str, source: str) -> ReferenceConfig:
  """The configuration found for a data set; for others, the defaults.

  Args:
    name: The reference.
    source: The data set, as `data.source`.
  """
  return _TUNED.get((name, source), CONFIGS[name]())


class Trial(NamedTuple):
  """One configuration and what it was worth on validation."""
  config: ReferenceConfig
  hit_rate: float  # HR@10, full ranking.
  ndcg: float  # NDCG@10, full ranking.


def sample_configs(
    name: str, budget: int, seed: int = 0) -> list[ReferenceConfig]:
  """Draws configurations of a reference's grid, the defaults first.

  Args:
    name: The reference.
    budget: Configurations, at least 1; a smaller grid is taken whole.
    seed: Seed of the draw.
  """
  if budget < 1:
    raise ValueError(f'budget={budget} must be at least 1 configuration.')
  space = SEARCH_SPACES[name]
  grid = [CONFIGS[name](**dict(zip(space, values)))
          for values in itertools.product(*space.values())]
  order = np.random.default_rng([_STREAM, seed]).permutation(len(grid))
  default = CONFIGS[name]()
  others = [grid[i] for i in order if grid[i] != default]
  return [default, *others[:budget - 1]]


def carve_validation(split: Split) -> Split:
  """Takes each user's last training row as validation, for tuning only.

  For splits that have none of their own (the NCF files). Users with fewer than
  two training rows keep them. What is tuned so is then fitted on the whole.
  """
  train = split.train
  last = np.zeros(train.num_interactions, np.bool_)
  last[train.offsets[1:][train.counts >= 2] - 1] = True
  return dataclasses.replace(
      split, train=train.take(~last), validation=train.take(last))


def try_configs(
    name: str, split: Split, configs: Iterable[ReferenceConfig], seed: int = 0
) -> Iterator[Trial]:
  """Fits each configuration on train and judges it on validation.

  Args:
    name: The reference.
    split: Train, validation and fold-in are read, and not the test.
    configs: What to try.
    seed: Seed of the fits.

  Yields:
    A Trial for each configuration, as soon as it is known.

  Raises:
    ValueError: If the split has no validation part.
  """
  if not split.validation.num_interactions:
    raise ValueError(
        f'split.name={split.name} has no validation interaction to choose by; '
        'carve_validation takes one from every user.')
  for config in configs:
    fitted = fit_reference(name, split.train, config, split.fold_in, seed)
    ranks = make_ranker(
        fitted.score, split.validation, [split.train, split.fold_in],
        split.num_items, protocol='full', batch_size=_BATCH_SIZE, seed=seed,
        candidates=split.validation_candidates)(*fitted.parameters)
    worth = metrics.per_user_metrics(ranks, (10,))
    yield Trial(config, float(worth['hit_rate@10'].mean()),
                float(worth['ndcg@10'].mean()))


def best(trials: Iterable[Trial]) -> Trial:
  """The trial with the highest NDCG@10; of equal ones the first."""
  return max(trials, key=lambda trial: trial.ndcg)
