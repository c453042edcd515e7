"""The table of sources, and the two functions that load from it.

A new source is one file with a loader and one line in `_LOADERS` (a name, or a
prefix that ends in a colon); `config.SOURCES` names it for the flags.
"""

from collections.abc import Callable

from fedjaxrec import config as config_lib
from fedjaxrec.data import citeulike, fetch, licences, movielens, ncf, splits
from fedjaxrec.data import interactions as interactions_lib
from fedjaxrec.data import synthetic as synthetic_lib
from fedjaxrec.data import tfds as tfds_lib

Interactions = interactions_lib.Interactions


def load_interactions(
    config: config_lib.DataConfig,
    synthetic: config_lib.SyntheticConfig | None = None,
    seed: int = 0,
) -> Interactions:
  """Loads a source's interactions and applies the config's filters.

  Args:
    config: Source, path, cache, filters, columns.
    synthetic: The made-up population (source `synthetic` only).
    seed: Seed of the made-up population that has none of its own.

  Raises:
    FileNotFoundError: If a file is not there, or a data set is to be had from
      no place.
    ValueError: If a file or its content cannot be used.
  """
  if config.source == 'synthetic':
    synthetic = synthetic or config_lib.SyntheticConfig()
    interactions = synthetic_lib.load(
        synthetic, seed if synthetic.seed < 0 else synthetic.seed)
  else:
    interactions = _find_loader(config.source)(config)
  return interactions_lib.filter_interactions(
      interactions, config.min_rating, config.min_user_interactions,
      config.min_item_interactions)


def load_split(config: config_lib.Config) -> splits.Split:
  """Loads, filters and splits what a run's config asks for.

  Raises:
    FileNotFoundError: See `load_interactions`.
    ValueError: See `load_interactions` and `splits.make_split`.
  """
  if config.data.source in _SPLIT_LOADERS:
    _refuse_filters(config.data)
    return _SPLIT_LOADERS[config.data.source](config.data.path)
  interactions = load_interactions(config.data, config.synthetic, config.seed)
  return splits.make_split(interactions, config.split)


def require_times(config: config_lib.Config, split: splits.Split) -> None:
  """Refuses sequences of a source that does not know the order of time.

  Raises:
    ValueError: For algorithm.name=sequential, or fedease with a window or
      recency, without timestamps.
  """
  if split.train.has_timestamps:
    return
  if config.algorithm.name == 'fedease' and config.fedease.reads_order:
    raise ValueError(
        f'fedease.window={config.fedease.window} and fedease.recency='
        f'{config.fedease.recency} with data.source={config.data.source}: '
        'they read the order of interactions, and this source has no times '
        'that can be trusted (has_timestamps=False); use a source with times '
        '(a MovieLens set, or a table with --data.timestamp_column), or 0 for '
        'both.')
  if config.algorithm.name == 'sequential':
    raise ValueError(
        f'algorithm.name=sequential with data.source={config.data.source}: '
        'sequences need the time of every interaction, and this source has '
        'none that can be trusted (has_timestamps=False); use a source with '
        'times (a MovieLens set, or a table with --data.timestamp_column), or '
        'a model without sequences: algorithm.name=fedavg with model.name=mf.')


def _load_movielens(config: config_lib.DataConfig) -> Interactions:
  if not config.path:
    return fetch.load_published(config.source, config.cache_dir)
  result = movielens.load_path(config.source, config.path)
  licences.licence_notice(config.source)
  return result


def _load_table(config: config_lib.DataConfig) -> Interactions:
  # pyarrow takes a tenth of a second to import, and a cached run needs none.
  from fedjaxrec.data import tabular  # pylint: disable=g-import-not-at-top
  kind, _, path = config.source.partition(':')
  return tabular.load(
      kind, path, config.user_column, config.item_column, config.rating_column,
      config.timestamp_column)


def _load_tfds(config: config_lib.DataConfig) -> Interactions:
  defaults = config_lib.DataConfig()
  columns = []
  for role, usual in zip(('user', 'item', 'rating', 'timestamp'),
                         tfds_lib.COLUMNS):
    named = getattr(config, f'{role}_column')
    is_default = named == getattr(defaults, f'{role}_column')
    columns.append(usual if is_default else (named,) if named else ())
  return tfds_lib.load(
      config.source.removeprefix('tfds:'), config.path, config.cache_dir,
      tuple(columns))


def _refuse_split(config: config_lib.DataConfig) -> Interactions:
  raise ValueError(
      f'data.source={config.source} is a split, not plain interactions; load '
      'it with load_split and split.name=published.')


_LOADERS: dict[str, Callable[[config_lib.DataConfig], Interactions]] = {
    **{source: _load_movielens for source in movielens.EDITIONS},
    'ncf': _refuse_split,
    'citeulike-a': _refuse_split,
    'csv:': _load_table,
    'parquet:': _load_table,
    'tfds:': _load_tfds,
}

_SPLIT_LOADERS: dict[str, Callable[[str], splits.Split]] = {
    'ncf': ncf.load,
    'citeulike-a': citeulike.load,
}


def _find_loader(
    source: str) -> Callable[[config_lib.DataConfig], Interactions]:
  for name, loader in _LOADERS.items():
    if source == name or (name.endswith(':') and source.startswith(name)):
      return loader
  raise ValueError(
      f'data.source={source!r} has no loader; choose one of '
      f'{", ".join([*_LOADERS, "synthetic"])}.')


def _refuse_filters(config: config_lib.DataConfig) -> None:
  """The published split is what it is: filtering would make it another."""
  defaults = config_lib.DataConfig()
  for field in ('min_rating', 'min_user_interactions', 'min_item_interactions'):
    if getattr(config, field) != getattr(defaults, field):
      raise ValueError(
          f'data.{field}={getattr(config, field)} with data.source='
          f'{config.source}: the published split is used as it is; leave the '
          'filters at their defaults.')
