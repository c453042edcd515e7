"""The rules that fields keep; an error names the field and its value."""

import dataclasses
import math
from typing import Any


def one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
  """Refuses a value that is not among the choices."""
  if value not in choices:
    raise ValueError(
        f'{field}={value!r} is not known; choose one of {", ".join(choices)}.')


def at_least(field: str, value: float, bound: float) -> None:
  """Refuses a value that is not finite or below the bound."""
  if not (math.isfinite(value) and value >= bound):
    raise ValueError(
        f'{field}={value} must be a finite number of at least {bound}.')


def above(field: str, value: float, bound: float) -> None:
  """Refuses a value that is not finite or not above the bound."""
  if not (math.isfinite(value) and value > bound):
    raise ValueError(f'{field}={value} must be a finite number above {bound}.')


def fraction(field: str, value: float) -> None:
  """Refuses a value that is no proper share."""
  if not 0 < value < 1:
    raise ValueError(
        f'{field}={value} must lie strictly between 0 and 1; it is the share '
        'of the interactions (or users) set aside.')


def check_types(config: Any, section: str = '') -> None:
  """Refuses a field whose value is of another type than it is declared.

  A whole number stands for a float; a list of whole numbers becomes the tuple
  that is meant. Call it first in `__post_init__`.

  Args:
    config: A frozen config dataclass.
    section: Its name, for the message; empty for the whole config.
  """
  words: dict[Any, str] = {
      int: 'a whole number', float: 'a number', bool: 'true or false',
      str: 'a text'}
  for field in dataclasses.fields(config):
    value, kind = getattr(config, field.name), field.type
    name = f'{section}.{field.name}' if section else field.name
    if kind == tuple[int, ...]:
      if not isinstance(value, (list, tuple)) or not all(
          type(entry) is int for entry in value):
        raise ValueError(f'{name}={value!r} must be a tuple of whole numbers.')
      object.__setattr__(config, field.name, tuple(value))
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
      if not isinstance(value, kind):
        raise ValueError(f'{name}={value!r} must be a {kind.__name__}.')
    elif type(value) is not kind and not (
        kind is float and type(value) is int):
      raise ValueError(f'{name}={value!r} must be {words[kind]}.')
