"""What a benchmark compares, read from files of flags. Host side.

  scripts/benchmark/
    movielens-100k.flags, ncf.flags  a data set each: which, and how it is split
    default/fedavg.flags, ...        a method each, on any data set
    ncf/fedavg.flags, ...            the same with settings for one data set
    search_space.txt                 what a method may be tuned by, a line each

A method is one such file: flags of `fedjaxrec train`; or, outside the
federation, `--benchmark.reference=NAME` and that reference's own flags, such as
`--ease.l2=100`. `--benchmark.counterpart=METHOD` names what it is compared
with: the same model trained where all the data lies, or the nearest that there
is. Whatever is wrong with a file, a name or a value is said here, before JAX is
imported.
"""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from fedjaxrec import config as config_lib
from fedjaxrec.config import Config
from fedjaxrec.config.references import REFERENCE_CONFIGS
from fedjaxrec.flags import config_fields, define_flags, read_config
from fedjaxrec.orchestration import grid

DEFAULT = 'default'
SPACE = 'search_space.txt'
PROTOCOLS = ('full', 'sampled-99')
# Where these point, and how fast a run goes, changes no result.
_FREE = ('engine', 'parallel', 'checkpoint')
# Read by a model, and not by what splits the interactions.
_METHOD_DATA = ('data.user_features', 'data.item_features')
_FREE_FIELDS = ('data.path', 'data.cache_dir')
_UNREADABLE = 'this is no text, or cannot be read; give lines of --FIELD=VALUE'
_FILE_PREFIXES = ('csv:', 'parquet:')


class Dataset(NamedTuple):
  """A data set of the benchmark.

  Attributes:
    name: Its name in the tables.
    arguments: The flags that say what it is.
    config: What they make of the defaults.
  """
  name: str
  arguments: tuple[str, ...]
  config: Config


class Method(NamedTuple):
  """A method on a data set.

  Attributes:
    name: The name of its file.
    path: The file.
    config: A federated method's whole config; a reference's data, split and
      evaluation.
    reference: The reference's name; empty for a federated method.
    settings: The reference's settings: one section, named as it is; or None.
    counterpart: The method that it is compared with, or empty.
  """
  name: str
  path: pathlib.Path
  config: Config
  reference: str
  settings: Any
  counterpart: str

  def with_seed(self, seed: int) -> 'Method':
    """The method with another seed."""
    return self._replace(config=dataclasses.replace(self.config, seed=seed))

  def with_values(self, values: Mapping[str, Any]) -> 'Method':
    """The method with other settings, by dotted name; validated.

    Raises:
      ValueError: If they are refused.
    """
    if self.reference:
      return self._replace(
          settings=grid.replace_fields(self.settings, values))
    return self._replace(config=grid.replace_fields(self.config, values))

  def fields(self) -> dict[str, Any]:
    """All that its results depend on, by dotted name, as JSON has it."""
    values = config_lib.to_dict(self.config)
    kept = (('data', 'synthetic', 'split', 'evaluation', 'seed')
            if self.reference else values.keys() - set(_FREE))
    found = {name: value for section in sorted(kept)
             for name, value in _flat(section, values[section])
             if name not in _FREE_FIELDS}
    if self.reference:
      found['benchmark.reference'] = self.reference
      found |= dict(_flat('', config_lib.to_dict(self.settings)))
    return found


class Presets(NamedTuple):
  """A folder of data sets and methods."""
  folder: pathlib.Path

  def datasets(self) -> list[str]:
    """The names of its data sets."""
    return sorted(path.stem for path in self.folder.glob('*.flags'))

  def methods(self, dataset: Dataset) -> dict[str, pathlib.Path]:
    """Every method of a data set, and the file with its settings there."""
    found: dict[str, pathlib.Path] = {}
    for name in (DEFAULT, dataset.config.data.source, dataset.name):
      if '/' not in name:
        for path in sorted((self.folder / name).glob('*.flags')):
          found[path.stem] = path
    return dict(sorted(found.items()))


def parse_protocols(names: Sequence[str]) -> tuple[str, ...]:
  """Checks how every run is ranked; the full ranking comes first.

  Raises:
    ValueError: For others than PROTOCOLS, and without the full ranking, by
      which rounds and settings are chosen.
  """
  if set(names) - set(PROTOCOLS) or PROTOCOLS[0] not in names:
    raise ValueError(
        f'benchmark.protocols={",".join(names)} must be '
        f'{",".join(PROTOCOLS)}, or {PROTOCOLS[0]} alone (for catalogues in '
        'which 99 negatives are not to be had).')
  return tuple(name for name in PROTOCOLS if name in names)


def open_presets(folder: str) -> Presets:
  """Finds the folder of presets.

  Args:
    folder: As it was given; a relative one is looked for where the command runs
      and in the checkout of the project.

  Raises:
    FileNotFoundError: If it is not there, or holds no method.
  """
  checkout = pathlib.Path(__file__).resolve().parents[2]
  for place in (pathlib.Path(folder), checkout / folder):
    if any((place / DEFAULT).glob('*.flags')):
      return Presets(place)
  raise FileNotFoundError(
      f'benchmark.presets={folder!r} holds no {DEFAULT}/*.flags, the methods; '
      "give the folder scripts/benchmark of the project's checkout.")


def read_dataset(
    presets: Presets, name: str, overrides: flags.FlagValues
) -> Dataset:
  """Reads a data set.

  Args:
    presets: The folder.
    name: Of a preset, or a file of flags of one's own, or csv:FILE.
    overrides: Parsed flags of the command line, which come last.

  Raises:
    ValueError, FileNotFoundError: If there is no such data set, or its flags
      are refused.
  """
  if name.startswith(_FILE_PREFIXES):
    kind, _, path = name.partition(':')
    label, arguments = f'{kind}:{pathlib.Path(path).name}', (
        f'--data.source={name}',)
  elif name in presets.datasets():
    label, arguments = name, (f'--flagfile={presets.folder / name}.flags',)
  elif name.endswith('.flags'):
    if not pathlib.Path(name).is_file():
      raise FileNotFoundError(
          f'benchmark.datasets={name}: there is no such file; give a file of '
          f'flags, csv:FILE, or one of {", ".join(presets.datasets())}.')
    label, arguments = pathlib.Path(name).stem, (f'--flagfile={name}',)
  else:
    raise ValueError(
        f'benchmark.datasets={name!r} is not known; choose of '
        f'{", ".join(presets.datasets())}, or give csv:FILE, parquet:FILE, or '
        'a .flags file with --data.source and --split.name.')
  config = read_config(overrides, read_config(_parse(name, Config, arguments)))
  if config.evaluation.protocol != PROTOCOLS[0]:
    raise ValueError(
        f'{name}: evaluation.protocol={config.evaluation.protocol} with a '
        'benchmark, which ranks by --benchmark.protocols; drop it.')
  return Dataset(label, arguments, config)


def read_method(
    presets: Presets, dataset: Dataset, name: str, overrides: flags.FlagValues
) -> Method:
  """Reads a method with its settings for a data set.

  Args:
    presets: The folder.
    dataset: The data set.
    name: The method.
    overrides: Parsed flags of the command line, which come last.

  Raises:
    ValueError: If it or its counterpart is not known, or a flag of its file is
      refused.
  """
  known = presets.methods(dataset)
  if name not in known:
    raise ValueError(
        f'benchmark.methods: {name!r} is not known.{_hint(name, known)} '
        f'Methods: {", ".join(known)}. A new one is a file, '
        f'{presets.folder / DEFAULT}/{name}.flags.')
  path = known[name]
  reference = _value_in(path, '--benchmark.reference')
  if reference and reference not in REFERENCE_CONFIGS:
    raise ValueError(
        f'{path}: benchmark.reference={reference!r} is not known; choose one '
        f'of {", ".join(REFERENCE_CONFIGS)}.')
  wanted = _wrap(reference) if reference else Config
  arguments: tuple[str, ...] = (f'--flagfile={path}',)
  if not reference:
    arguments = (*dataset.arguments, *arguments)
  try:
    values = _parse(str(path), wanted, arguments)
    made = read_config(values, wanted())
    config = dataset.config if reference else read_config(overrides, made)
    if not reference:
      _check_same_data(made, read_config(
          _parse(dataset.name, Config, dataset.arguments)))
  except ValueError as error:
    text = str(error)
    raise ValueError(
        text if text.startswith(str(path)) else f'{path}: {text}') from None
  config = dataclasses.replace(config, evaluation=dataclasses.replace(
      config.evaluation, protocol=PROTOCOLS[0]))
  counterpart: Any = values['benchmark.counterpart'].value
  if counterpart and counterpart not in known:
    raise ValueError(
        f'{path}: benchmark.counterpart={counterpart!r} is no method.'
        f'{_hint(counterpart, known)} Methods: {", ".join(known)}.')
  return Method(
      name, path, config, reference, made if reference else None, counterpart)


def check_split(method: Method) -> None:
  """Refuses a method that knows nothing of a split's cold items.

  Users who did not train (user_holdout) are every method's matter: a reference
  and a federated one are fitted to what they show.

  Raises:
    ValueError: On item_holdout and citeulike-a, for all but popularity (the
      control that knows nothing) and models of the items' features.
  """
  data, split = method.config.data, method.config.split.name
  is_cold = split == 'item_holdout' or data.source == 'citeulike-a'
  if not is_cold or method.reference == 'popularity':
    return
  if (method.reference or method.config.model.name != 'two_tower'
      or not data.item_features):
    raise ValueError(
        f'split.name={split} of data.source={data.source} with method '
        f'{method.name}: nobody who trained has had the items that are asked '
        'for, and it reads no features of them; use two_tower, with '
        'data.item_features, or other data.')


def _check_same_data(config: Config, dataset: Config) -> None:
  """Refuses a flag in a method's file that says what the data set says.

  Every method of a data set is trained on one split of it, with the seeds of
  the benchmark, and ranked by its protocols: such a flag would do nothing.

  Args:
    config: Of the data set's flags and the method's.
    dataset: Of the data set's alone.
  """
  mine, its = (
      dict(_flat('', config_lib.to_dict(c))) for c in (config, dataset))
  for field in mine:
    section = field.partition('.')[0]
    if mine[field] == its[field] or field in _METHOD_DATA:
      continue
    if section in ('data', 'synthetic', 'split'):
      raise ValueError(
          f'{field}={mine[field]} in the file of a method, whose data set has '
          f'{its[field]}: all methods share its split; move the flag to the '
          "data set's file.")
    if field in ('seed', 'evaluation.protocol'):
      raise ValueError(
          f'{field}={mine[field]} in the file of a method: '
          '--benchmark.seeds and --benchmark.protocols say so for all; drop '
          'it.')


def write_header(
    name: str, dataset: str, tried: int, budget: int, result: str
) -> list[str]:
  """The first lines of a file of settings that a search has chosen."""
  return [
      f'# {name} on {dataset}: the best of {tried} settings (budget {budget}),',
      '# those of the stored file and drawn ones, by validation NDCG@10, '
      f'{result}.']


def describe_settings(path: pathlib.Path, dataset: str) -> dict[str, str]:
  """What a method's file says of how its settings were chosen.

  Args:
    path: The file.
    dataset: The data set that it is used on.

  Returns:
    settings: `best of N` with the header of a search on this data set,
    otherwise `stored`; file: its name and folder; about: its comments.
  """
  about = ' '.join(
      line.lstrip('# ').strip() for line in path.read_text().splitlines()
      if line.startswith('#'))
  found = re.match(
      rf'\S+ on {re.escape(dataset)}: the best of (\d+) settings ', about)
  return {'settings': f'best of {found[1]}' if found else 'stored',
          'file': f'{path.parent.name}/{path.name}', 'about': about}


def read_space(
    presets: Presets, method: Method
) -> tuple[grid.Axis, ...]:
  """Reads what a method may be tuned by: its line of the search space.

  Raises:
    ValueError: If it has none, or the line names a field or value that the
      method does not have.
  """
  path = presets.folder / SPACE
  lines = _read_lines(path) if path.is_file() else []
  for line in lines:
    name, colon, text = line.partition(':')
    if colon and not line.startswith('#') and name.strip() == method.name:
      break
  else:
    raise ValueError(
        f'benchmark.tune: {path} has no line for {method.name}; add one, as '
        f'in {method.name}: client.learning_rate=1,3,10; objective.l2=0,1e-4')
  try:
    return grid.parse_axes(
        [text], _wrap(method.reference) if method.reference else Config)
  except ValueError as error:
    message = str(error).replace('sweep.grid', f'{path}, {method.name}')
    raise ValueError(message) from None


def _wrap(reference: str) -> type:
  """A config class with one section, the reference's."""
  kind = REFERENCE_CONFIGS[reference]
  return dataclasses.make_dataclass(
      reference, [(reference, kind, kind())], frozen=True, kw_only=True)


def _parse(
    what: str, config_class: type, arguments: Sequence[str]
) -> flags.FlagValues:
  """Parses flags of files: those of a config, and what a method says of itself.

  Raises:
    ValueError: For a flag that does not exist, or a value that is none.
  """
  values = flags.FlagValues()
  define_flags(config_class, values)
  for name in ('reference', 'counterpart'):
    flags.DEFINE_string(f'benchmark.{name}', '', '', flag_values=values)
  try:
    rest = values(['', *arguments])[1:]
  except flags.UnrecognizedFlagError as error:
    known = [field.name for field in config_fields(config_class)]
    raise ValueError(
        f'{what}: --{error.flagname} is no flag here.'
        f'{_hint(error.flagname, known, "--")}') from None
  except flags.Error as error:
    text = str(error).removeprefix('ERROR:: ').rstrip('.')
    raise ValueError(f'{what}: {text}.') from None
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{what}: {_UNREADABLE} ({error}).') from None
  if rest:
    raise ValueError(
        f'{what}: {rest[0]!r} is no flag; a line is --FIELD=VALUE, or a '
        'comment that starts with #.')
  return values


def _hint(name: str, known: Iterable[str], prefix: str = '') -> str:
  near = [prefix + other
          for other in difflib.get_close_matches(name, list(known), n=3)]
  return f' Did you mean {" or ".join(near)}?' if near else ''


def _read_lines(path: pathlib.Path) -> list[str]:
  try:
    return path.read_text().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: {_UNREADABLE} ({error}).') from None


def _value_in(path: pathlib.Path, flag: str) -> str:
  for line in _read_lines(path):
    name, equals, value = line.strip().partition('=')
    if name == flag and equals:
      return value.strip()
  return ''


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
  if not isinstance(value, dict):
    return [(prefix, value)]
  return [pair for name, inner in value.items()
          for pair in _flat(f'{prefix}.{name}' if prefix else name, inner)]
