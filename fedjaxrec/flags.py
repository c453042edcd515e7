"""One dotted absl flag for every field of the config, and the way back.

`define_flags` walks the frozen dataclasses of `fedjaxrec/config/`: the field
`cohort.size` becomes `--cohort.size`, its default the flag's default, its line
in the class's `Attributes:` section the flag's help. `read_config` rebuilds the
config by `dataclasses.replace`, so every value is validated again. Presets are
files of flags: `--flagfile=scripts/NAME.flags`.
"""

import dataclasses
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from absl import flags

from fedjaxrec.config import Config

_ATTRIBUTE = re.compile(r'  (\w+): (.*)')


class Field(NamedTuple):
  """One field of a config: `section` is empty for the config's own."""
  name: str
  section: str
  kind: Any
  default: Any
  help: str


class _NumberParser(flags.ArgumentParser):
  """Reads one int or float, and says by example what it expected."""

  def __init__(self, kind: type, example: Any):
    super().__init__()
    self._kind = kind
    self._example = example

  def parse(self, argument: Any) -> Any:
    try:
      return self._kind(str(argument))
    except ValueError:
      noun = 'a whole number' if self._kind is int else 'a number'
      raise ValueError(f'not {noun}; write one, for example '
                       f'{self._example}.') from None

  def flag_type(self) -> str:
    return self._kind.__name__


class _BooleanParser(flags.BooleanParser):
  """Reads true or false, in any of absl's spellings."""

  def parse(self, argument: Any) -> bool:
    try:
      return super().parse(argument)
    except (TypeError, ValueError):
      raise ValueError('neither true nor false; write one of them.') from None


class _IntTupleParser(flags.ArgumentParser):
  """Reads `64,32,16` as the tuple (64, 32, 16)."""

  def parse(self, argument: Any) -> tuple[int, ...]:
    if isinstance(argument, tuple):
      return argument
    try:
      return tuple(int(part) for part in argument.split(',') if part.strip())
    except ValueError:
      raise ValueError('not a list of whole numbers; write them with commas '
                       'between, for example 5,10,20.') from None

  def flag_type(self) -> str:
    return 'comma-separated ints'


class _IntTupleSerializer(flags.ArgumentSerializer):
  """Writes the tuple (64, 32, 16) as `64,32,16`."""

  def serialize(self, value: tuple[int, ...]) -> str:
    return ','.join(map(str, value))


def attribute_help(config_class: type) -> dict[str, str]:
  """Returns field name -> text of the class's `Attributes:` section."""
  _, _, section = inspect.cleandoc(config_class.__doc__ or '').partition(
      'Attributes:\n')
  texts: dict[str, list[str]] = {}
  current: list[str] = []
  for line in section.splitlines():
    attribute = _ATTRIBUTE.fullmatch(line)
    if attribute:
      current = texts.setdefault(attribute.group(1), [])
      line = attribute.group(2)
    current.append(line.strip())
  return {name: ' '.join(lines).strip() for name, lines in texts.items()}


def config_fields(config_class: type = Config) -> Iterator[Field]:
  """Yields every leaf of a config class in order, its own fields first.

  Raises:
    TypeError: For a field of a type that no flag can hold.
  """
  sections = []
  texts = attribute_help(config_class)
  for field in dataclasses.fields(config_class):
    if dataclasses.is_dataclass(field.type):
      sections.append(field)
      continue
    is_int_tuple = typing.get_args(field.type) == (int, Ellipsis)
    if field.type not in (int, float, bool, str) and not is_int_tuple:
      raise TypeError(
          f'{config_class.__name__}.{field.name} has type {field.type}; a flag '
          'holds an int, a float, a bool, a str or a tuple of ints.')
    yield Field(field.name, '', tuple if is_int_tuple else field.type,
                field.default, texts.get(field.name, ''))
  for section in sections:
    for inner in config_fields(section.type):  # type: ignore[arg-type]
      yield inner._replace(name=f'{section.name}.{inner.name}',
                           section=section.name)


def define_bool(
    name: str, default: bool, text: str, flag_values: flags.FlagValues
) -> None:
  """Defines `--name`, `--noname` and `--name=true`, with a clear refusal."""
  flag = flags.BooleanFlag(name, default, text)
  flag.parser = _BooleanParser()
  flags.DEFINE_flag(flag, flag_values)


def define_flags(
    config_class: type = Config,
    flag_values: flags.FlagValues = flags.FLAGS,
    only: Iterable[str] | None = None,
) -> None:
  """Defines one dotted flag for every field of a config class.

  Args:
    config_class: A dataclass of fields and of dataclasses.
    flag_values: Where to define them.
    only: Names of the sections and of the fields to define; None: all of them.
  """
  wanted = None if only is None else set(only)
  for name, section, kind, default, text in config_fields(config_class):
    if wanted is not None and not wanted & {section, name}:
      continue
    if kind is bool:
      define_bool(name, default, text, flag_values)
    elif kind is str:
      flags.DEFINE_string(name, default, text, flag_values=flag_values)
    elif kind is tuple:
      flags.DEFINE(_IntTupleParser(), name, default, text,
                   flag_values=flag_values, serializer=_IntTupleSerializer())
    else:
      flags.DEFINE(_NumberParser(kind, default), name, default, text,
                   flag_values=flag_values)


def read_config(
    flag_values: flags.FlagValues = flags.FLAGS, base: Any = None
) -> Any:
  """Returns the config that the parsed flags ask for.

  Args:
    flag_values: Parsed flags; a field without a flag keeps the base's value.
    base: What the flags that nobody gave stand for; None: `Config()`.

  Raises:
    ValueError: When a value, or values together, are refused.
  """
  base = Config() if base is None else base
  changes: dict[str, dict[str, Any]] = {}
  for name, section, *_ in config_fields(type(base)):
    if name in flag_values and not flag_values[name].using_default_value:
      field = name.removeprefix(f'{section}.')
      changes.setdefault(section, {})[field] = flag_values[name].value
  own = changes.pop('', {})
  for section, values in changes.items():
    own[section] = dataclasses.replace(getattr(base, section), **values)
  return dataclasses.replace(base, **own)


def format_flags(
    flag_values: flags.FlagValues,
    titles: dict[str, str],
    full: bool = False,
) -> str:
  """Returns the flags in groups, each with its default, for a person to read.

  Args:
    flag_values: The flags of one command.
    titles: Prefix before the dot -> title of its group, in the order wanted;
      '' is the group of the names without a dot.
    full: Whether to give the whole help of each flag, or one line a flag.
  """
  width = min(shutil.get_terminal_size().columns, 100)
  groups: dict[str, list[str]] = {prefix: [] for prefix in titles}
  for name in flag_values:
    prefix = name.rpartition('.')[0]
    if prefix in groups:
      groups[prefix].append(_format_flag(flag_values[name], width, full))
  return '\n\n'.join(
      '\n'.join([titles[prefix], *lines])
      for prefix, lines in groups.items() if lines)


def _format_flag(flag: flags.Flag, width: int, full: bool) -> str:
  default = (flag.default_as_str or '').strip("'")
  left = f'  --{flag.name}={default}'
  if full:
    indent = ' ' * 6
    return left + '\n' + textwrap.fill(
        flag.help, width, initial_indent=indent, subsequent_indent=indent)
  column = 38
  sentence = re.sub(r' \([^)]* [^)]*\)', '', flag.help.split('. ')[0])
  text = sentence.split('; ')[0].rstrip('.')
  return textwrap.fill(text, width, initial_indent=f'{left:<{column - 1}} ',
                       subsequent_indent=' ' * column)
