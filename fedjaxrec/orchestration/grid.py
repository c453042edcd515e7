"""What a sweep varies: fields and their values, read and checked. Host side.

Everything that can be wrong with a sweep is said here, before data are read or
anything compiles: a field that does not exist, a value of the wrong type, a
combination that the config refuses.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fedjaxrec.config import Config
from fedjaxrec.config.unread import drop_unread
from fedjaxrec.flags import Field, config_fields
from fedjaxrec.reports.sweep_table import show
from fedjaxrec.study_fields import read_field

# These change where and how fast a run goes, never what comes out of it.
_NOT_SWEPT = ('parallel', 'checkpoint')
_NOUNS = {int: 'a whole number', float: 'a number', bool: 'true or false',
          tuple: 'a list of whole numbers'}


class Axis(NamedTuple):
  """Fields that change together, and what they change to.

  Attributes:
    fields: Dotted names, as of the flags.
    settings: One tuple of values, in the fields' order, for each step.
  """
  fields: tuple[str, ...]
  settings: tuple[tuple[Any, ...], ...]


class Member(NamedTuple):
  """One run of a sweep.

  Attributes:
    place: Its place; members of one setting are neighbours.
    values: The swept fields' values, without the seed.
    config: The whole config of the run, validated.
  """
  place: int
  values: dict[str, Any]
  config: Config


def parse_axes(
    texts: Sequence[str], config_class: type = Config
) -> tuple[Axis, ...]:
  """Reads `FIELD=VALUE,VALUE,...`; several fields with `;` between them.

  Fields joined by `/` change together, and so do their values:
  `server.optimizer/server.learning_rate=sgd/1,adam/0.03`. Where a value has
  commas itself (a list), `|` separates values: `model.hidden=64,32|32,16`.

  Args:
    texts: The values of --sweep.grid, in order.
    config_class: Whose fields they are.

  Raises:
    ValueError: With what is wrong and what to write instead.
  """
  fields = {field.name: field for field in config_fields(config_class)}
  axes = []
  for part in (p.strip() for text in texts for p in text.split(';')):
    if part:
      axes.append(_parse_axis(part, fields))
  names = [name for axis in axes for name in axis.fields]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(
          f'sweep.grid: {name} stands there twice; give all its values at one '
          f'place, as in {name}=VALUE,VALUE.')
  return tuple(axes)


def _parse_axis(part: str, fields: Mapping[str, Field]) -> Axis:
  left, equals, right = part.partition('=')
  names = tuple(name.strip().removeprefix('--') for name in left.split('/'))
  for name in names:
    _check_field(name, fields)
  texts = [t.strip() for t in right.split('|' if '|' in right else ',')]
  if not equals or not any(texts):
    raise ValueError(
        f'sweep.grid={part!r} has no values; write {names[0]}=VALUE,VALUE.')
  settings: list[tuple[Any, ...]] = []
  for text in texts:
    # A single field's value may have a slash in it.
    values = text.split('/') if len(names) > 1 else [text]
    if len(values) != len(names):
      raise ValueError(
          f'sweep.grid: {text!r} has {len(values)} of the {len(names)} values '
          f'that {"/".join(names)} needs; write one for each field, with '
          'slashes between them.')
    setting = tuple(
        _parse_value(fields[name], value.strip())
        for name, value in zip(names, values))
    if setting in settings:
      raise ValueError(
          f'sweep.grid: {"/".join(names)} has the value {text} twice; a run '
          'is not made better by being made again. Drop one, or give more '
          '--sweep.seeds.')
    settings.append(setting)
  return Axis(names, tuple(settings))


def _check_field(name: str, fields: Mapping[str, Field]) -> None:
  if name == 'seed':
    raise ValueError(
        'sweep.grid: the seed is no setting to compare; write --sweep.seeds='
        '0,1,2 instead.')
  if name not in fields:
    near = [other for other in fields if other.rpartition('.')[2] == name]
    near += difflib.get_close_matches(name, fields, n=3, cutoff=0.6)
    hint = (f' Did you mean {" or ".join(dict.fromkeys(near))}?' if near else
            ' Any flag of `fedjaxrec train` that has a dot is one.')
    raise ValueError(
        f'sweep.grid: {name!r} is not a field of the config.{hint}')
  if name.partition('.')[0] in _NOT_SWEPT:
    raise ValueError(
        f'sweep.grid: {name} does not change what a run learns; give it once, '
        f'as --{name}=VALUE.')


def _parse_value(field: Field, text: str) -> Any:
  try:
    if field.kind is bool:
      return {'true': True, 'false': False}[text.lower()]
    if field.kind is tuple:
      return tuple(int(entry) for entry in text.split(','))
    return field.kind(text)
  except (ValueError, KeyError):
    raise ValueError(
        f'sweep.grid: {field.name}={text!r} is not {_NOUNS[field.kind]}; the '
        f'default, for example, is {show(field.default)}.') from None


def parse_seeds(text: str, flag: str = 'sweep.seeds') -> tuple[int, ...]:
  """Reads `0,1,2` or `0-7`, or both with commas between them.

  Args:
    text: The flag's value.
    flag: Its name, for the message.

  Raises:
    ValueError: For anything else, for none, and for a seed that is there twice.
  """
  seeds: list[int] = []
  for part in (p.strip() for p in text.split(',')):
    first, dash, last = part.partition('-')
    try:
      seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
      raise ValueError(
          f'{flag}={text!r}: {part!r} is no seed; write whole numbers, as '
          'in 0,1,2 or 0-7.') from None
  twice = [seed for seed in seeds if seeds.count(seed) > 1]
  if twice:
    raise ValueError(
        f'{flag}={text!r} has {twice[0]} twice; the same seed gives the '
        'same run.')
  if not seeds:
    raise ValueError(
        f'{flag}={text!r} holds no seed; write, for example, 0-7.')
  return tuple(seeds)


def replace_fields(
    config: Any, values: Mapping[str, Any],
    spared: Collection[str] | None = ()
) -> Any:
  """The config with other values, by dotted name; validated as a whole.

  Args:
    config: A config.
    values: Dotted name -> value.
    spared: Dotted names of fields that are not refused where nobody would read
      them: there they get their default. None: all.
  """
  sections: dict[str, dict[str, Any]] = {}
  for name, value in values.items():
    section, _, field = name.rpartition('.')
    sections.setdefault(section, {})[field] = value
  own = sections.pop('', {})
  for section, fields in sections.items():
    own[section] = dataclasses.replace(getattr(config, section), **fields)
  if spared is None or spared:
    own = drop_unread(vars(config) | own, spared)
  return dataclasses.replace(config, **own)


def make_members(
    base: Config, axes: Sequence[Axis], seeds: Sequence[int]
) -> list[Member]:
  """Every combination of the axes' settings, with every seed.

  A setting that nothing would read is refused, as in a single run; but of those
  that are not swept, and of fields that change together, it is enough if some
  members read them. The others have them at their defaults, in their configs.

  Args:
    base: What is not swept.
    axes: From `parse_axes`.
    seeds: From `parse_seeds`.

  Raises:
    ValueError: For a combination that the config refuses, for a setting that no
      member reads, and where there is nothing to vary.
  """
  if not axes and len(seeds) < 2:
    raise ValueError(
        'sweep.grid is empty and sweep.seeds has one seed: there is nothing to '
        'vary. Write --sweep.grid=FIELD=VALUE,VALUE or --sweep.seeds=0-7, or '
        'use `fedjaxrec train` for a single run.')
  members = list(_members(base, axes, seeds))
  for field in config_fields(type(base)):
    values = [member.values.get(field.name, read_field(base, field.name))
              for member in members]
    if field.name != 'seed' and all(
        read_field(member.config, field.name) != value
        for member, value in zip(members, values)):
      raise ValueError(
          f'{field.name}={show(values[0])} would be without effect in every '
          'run of the sweep; leave it out, or sweep what it is read with.')
  return members


def _members(
    base: Config, axes: Sequence[Axis], seeds: Sequence[int]
) -> Iterator[Member]:
  place = itertools.count()
  alone = {axis.fields[0] for axis in axes if len(axis.fields) == 1}
  spared = {field.name for field in config_fields(type(base))} - alone
  for settings in itertools.product(*(axis.settings for axis in axes)):
    values = {
        name: value for axis, setting in zip(axes, settings)
        for name, value in zip(axis.fields, setting)}
    for seed in seeds:
      try:
        config = replace_fields(base, {**values, 'seed': seed}, spared)
      except ValueError as error:
        where = describe({**values, 'seed': seed})
        raise ValueError(f'sweep member {where}: {error}') from None
      yield Member(next(place), values, config)


def describe(values: Mapping[str, Any]) -> str:
  """Returns swept values as `client.learning_rate=3, seed=0`."""
  return ', '.join(f'{name}={show(value)}' for name, value in values.items())
