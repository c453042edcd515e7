"""The table of sources, and the two functions that load from it.

A new source is one file with a loader and one line in `_LOADERS`.
"""

from collections.abc import Callable

from fedjaxrec import config as config_lib
from fedjaxrec.data import fetch, movielens, splits
from fedjaxrec.data import interactions as interactions_lib

Interactions = interactions_lib.Interactions


def load_interactions(
    config: config_lib.DataConfig,
    synthetic: config_lib.SyntheticConfig,
    seed: int,
) -> Interactions:
  """Loads a source's interactions and applies the config's filters.

  Args:
    config: Source, path, cache, filters, columns.
    synthetic: The made-up population (source `synthetic` only).
    seed: Seed of the made-up population.

  Raises:
    FileNotFoundError: If a file is not there.
    ValueError: If a file or its content cannot be used.
  """
  loader = _find_loader(config.source)
  interactions = loader(config, synthetic, seed)
  return interactions_lib.filter_interactions(
      interactions, config.min_rating, config.min_user_interactions,
      config.min_item_interactions)


def load_split(config: config_lib.Config) -> splits.Split:
  """Loads, filters and splits what a run's config asks for."""
  interactions = load_interactions(config.data, config.synthetic, config.seed)
  return splits.make_split(interactions, config.split)


def _load_movielens(config, synthetic, seed) -> Interactions:
  del synthetic, seed
  if not config.path:
    return fetch.load_published(config.source, config.cache_dir)
  fetch.licence_notice(config.source)
  return movielens.load_path(config.source, config.path)


_LOADERS: dict[str, Callable[..., Interactions]] = {
    **{source: _load_movielens for source in movielens.EDITIONS},
}


def _find_loader(source: str) -> Callable[..., Interactions]:
  return _LOADERS[source]
