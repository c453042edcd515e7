"""Which fields of a config may differ within one program, and how they are put.

A scalar that only enters arithmetic can be a traced number of the compiled run;
everything else (shapes, names, what is switched on) makes another program.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any

from fedjaxrec.config import Config, to_dict

# Scalars that only enter arithmetic, so that one program serves all their
# values. Zero is another program where zero switches something off.
TRACEABLE = (
    'client.final_fraction', 'client.item_learning_rate',
    'client.learning_rate', 'client.momentum', 'client.proximal_mu',
    'fcf.alpha', 'fcf.regularization', 'ials.frequency_exponent',
    'ials.regularization', 'ials.unobserved_weight',
    'objective.l2', 'server.b1', 'server.b2', 'server.eps',
    'server.final_fraction', 'server.learning_rate', 'server.momentum',
)
# The same where noise is plain Gaussian noise on a sum of floats.
TRACEABLE_PRIVACY = (
    'privacy.delta', 'privacy.epsilon', 'privacy.item_clip_norm',
    'privacy.l2_clip_norm', 'privacy.noise_multiplier',
    'privacy.row_clip_norm', 'privacy.shared_clip_norm',
)


def read_field(config: Config, name: str) -> Any:
  """The value of a dotted name."""
  return functools.reduce(getattr, name.split('.'), config)


def traceable(config: Config) -> tuple[str, ...]:
  """The fields of a config that may differ within a program."""
  is_plain = (config.privacy.mechanism == 'gaussian'
              and config.privacy.clipping == 'fixed'
              and not config.secure.is_on)
  return TRACEABLE + TRACEABLE_PRIVACY if is_plain else TRACEABLE


def program_key(config: Config) -> str:
  """What separates programs: configs with one key can share one.

  Everything but the seed and the scalars that are `traceable`; of those,
  whether they are 0.
  """
  values = to_dict(config)
  values.pop('seed')
  for name in traceable(config):
    section, field = name.split('.')
    values[section][field] = bool(values[section][field])
  return repr(values)


def trace_fields(config: Config, values: Mapping[str, Any]) -> Config:
  """A copy of a config with other values, which are not validated.

  Args:
    config: A valid config.
    values: Dotted name -> value, a traced scalar for example; each was valid as
      a number in a config of its own.
  """
  result = copy.copy(config)
  for name, value in values.items():
    section, _, field = name.rpartition('.')
    owner = result
    if section:
      owner = getattr(result, section)
      if owner is getattr(config, section):
        owner = _copy_with_switches(owner)
        object.__setattr__(result, section, owner)
    object.__setattr__(owner, field, value)
  return result


def _copy_with_switches(section: Any) -> Any:
  """A copy whose true-or-false properties stay what they are.

  They say what is switched on, of scalars that may be traced in the copy; the
  members of a program have the same switched on.
  """
  cls = type(section)
  switches = {
      name: getattr(section, name) for name, member in vars(cls).items()
      if isinstance(member, property)
      and isinstance(getattr(section, name), bool)}
  result = copy.copy(section)
  object.__setattr__(
      result, '__class__', type(cls.__name__, (cls,), switches))
  return result
