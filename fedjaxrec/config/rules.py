"""The rules that fields keep; an error names the field and its value."""

import math


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
