"""The references by name.

A new reference is one file, one config and its lines in `config/references.py`,
and one line in the table here.
"""

from collections.abc import Callable, Mapping

import numpy as np

from fedjaxrec.config.references import REFERENCE_CONFIGS, ReferenceConfig
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.evaluation import controls
from fedjaxrec.references import (
    ease,
    ials,
    item_knn,
    matrix_factorization,
    sequential,
)
from fedjaxrec.references.reference import Reference

CONFIGS = REFERENCE_CONFIGS

_FITTERS: Mapping[str, Callable[..., Reference]] = {
    'popularity': lambda train, config, fold_in, seed: Reference(
        controls.score_popularity, (), controls.popularity(train), ()),
    'item_knn': lambda train, config, fold_in, seed: item_knn.fit(
        train, config, fold_in),
    'ease': lambda train, config, fold_in, seed: ease.fit(
        train, config, fold_in),
    'ials': lambda train, config, fold_in, seed: ials.fit(
        train, config, fold_in, seed),
    'mf': lambda train, config, fold_in, seed: matrix_factorization.fit(
        train, config, fold_in, seed),
    'sequential': lambda train, config, fold_in, seed: sequential.fit(
        train, config, fold_in, seed),
}


def fit_reference(
    name: str,
    train: Interactions,
    config: ReferenceConfig | None = None,
    fold_in: Interactions | None = None,
    seed: int = 0,
) -> Reference:
  """Fits a reference on all the training data, outside the federation.

  Args:
    name: popularity, item_knn, ease, ials, mf or sequential.
    train: The training interactions.
    config: The reference's config; None: its defaults.
    fold_in: What held-out users show before they are asked (user_holdout).
    seed: Seed of what is drawn (ials, mf, sequential).

  Returns:
    The fitted model: `make_ranker(fitted.score, ...)(*fitted.parameters)`.

  Raises:
    ValueError: For an unknown name, another reference's config, no training
      interaction, ids that do not fit, or a model above its memory limit.
  """
  if name not in CONFIGS:
    raise ValueError(
        f'reference={name!r} is not known; choose one of {", ".join(CONFIGS)}.')
  kind = CONFIGS[name]
  config = kind() if config is None else config
  if not isinstance(config, kind):
    raise ValueError(
        f'reference={name} with config={type(config).__name__}: it takes a '
        f'{kind.__name__}.')
  if not train.num_interactions:
    raise ValueError(
        f'reference={name}: train.num_interactions=0; there is nothing to fit; '
        'check --split.name and its fractions.')
  if fold_in is not None:
    _check_fold_in(train, fold_in)
  return _FITTERS[name](train, config, fold_in, seed)


def _check_fold_in(train: Interactions, fold_in: Interactions) -> None:
  if (train.num_users, train.num_items) != (
      fold_in.num_users, fold_in.num_items):
    raise ValueError(
        f'fold_in.num_users={fold_in.num_users}, num_items={fold_in.num_items} '
        f'but train has {train.num_users} and {train.num_items}; all parts of '
        'a split share one id space.')
  both = np.flatnonzero((train.counts > 0) & (fold_in.counts > 0))
  if len(both):
    raise ValueError(
        f'fold_in has {len(both)} users who are in train too, the first being '
        f'user={both[0]}; who is held out trains nothing.')
