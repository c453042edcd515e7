"""The table of data sets: how large they are, and which are cached."""

from fedjaxrec import config as config_lib
from fedjaxrec.data import cache, movielens


def sources_table(cache_dir: str) -> str:
  """Returns the table that `fedjaxrec datasets` prints.

  Args:
    cache_dir: The cache's folder; empty: the usual one.
  """
  folder = cache.cache_folder(cache_dir)
  rows = [('name', 'users', 'items', 'interactions', 'licence', 'cached')]
  for name in config_lib.SOURCES:
    edition = movielens.EDITIONS.get(name)
    if edition is not None:
      is_cached = cache.file_of(folder, name).exists()
      rows.append((
          name, f'{edition.num_users:,}', f'{edition.num_items:,}',
          f'{edition.num_interactions:,}', 'research only',
          'yes' if is_cached else 'no'))
  rows += [
    ('ncf', *3 * ('-',), 'see the files', 'needs --data.path'),
    ('citeulike-a', *3 * ('-',), 'see the files', 'needs --data.path'),
    ('synthetic', *3 * ('any',), 'none: made up', '-'),
    ('csv:FILE', *3 * ('-',), 'see the file', '-'),
    ('parquet:FILE', *3 * ('-',), 'see the file', '-'),
    ('tfds:NAME', *3 * ('-',), 'see the set', 'on first use'),
  ]
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ['  '.join(
      f'{cell:>{width}}' if 1 <= index <= 3 else f'{cell:<{width}}'
      for index, (cell, width) in enumerate(zip(row, widths))).rstrip()
           for row in rows]
  return '\n'.join([*lines, '', f'Cache: {folder}'])
