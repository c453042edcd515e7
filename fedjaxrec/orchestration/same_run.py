"""Whether a config continues the run that a directory holds."""

import pathlib
from collections.abc import Iterator
from typing import Any

from fedjaxrec import config as config_lib
from fedjaxrec.config import Config
from fedjaxrec.reports import run_directory


def check_same_run(config: Config, workdir: pathlib.Path) -> None:
  """Refuses a config that would not continue the run in workdir.

  Args:
    config: As it is now.
    workdir: A run directory.

  Raises:
    ValueError: With the field, what it was, and what may be changed.
  """
  old, new = (
      dict(_fields(config_lib.to_dict(c))) for c in (
          config_lib.from_dict(
              run_directory.read_json(workdir / run_directory.CONFIG)),
          config))
  free = {'engine', 'parallel', 'checkpoint', 'data.path', 'data.cache_dir'}
  if config.privacy.enabled or config.local_privacy.is_on:
    if old['rounds'] != new['rounds']:
      raise ValueError(
          f'rounds={new["rounds"]} differs from the rounds={old["rounds"]} of '
          f'the run in {str(workdir)!r}: its noise was calibrated for these, '
          'and more would pass its privacy budget; begin a new run.')
  elif {config.client.schedule, config.server.schedule} == {'constant'}:
    free.add('rounds')
  for field, value in new.items():
    if not {field, field.partition('.')[0]} & free and old[field] != value:
      raise ValueError(
          f'{field}={value} differs from the run in {str(workdir)!r}, which '
          f'has {old[field]}; a run is continued with its own config '
          '(engine, parallel, checkpoint, where the data lies and, where '
          'client.schedule and server.schedule are constant, more rounds are '
          'free). Use another --workdir.')
  if new['rounds'] < old['rounds']:
    raise ValueError(
        f'rounds={new["rounds"]} is below the rounds={old["rounds"]} of the '
        f'run in {str(workdir)!r}; a run is continued to as many or more.')


def _fields(values: dict[str, Any], prefix: str = '') -> Iterator:
  """Yields (dotted name, value) of every field of a config's dict."""
  for name, value in values.items():
    if isinstance(value, dict):
      yield from _fields(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value
