"""The two-tower model's settings, and who may use side features."""

import dataclasses
from typing import Any

from fedjaxrec.config.rules import at_least, check_types

# Whose clients train it: one model, by gradient steps on slots.
TWO_TOWER_ALGORITHMS = ('fedavg', 'fedper')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
  """The model of `--model.name=two_tower`.

  Attributes:
    user_hidden: Widths of the hidden layers on a user's features; empty: a
      linear map.
    item_hidden: Widths of the hidden layers on an item's features, likewise.
    personal_vector: Whether a client also has a vector and a bias of its own,
      which never travel; without, features say all about a user.
    spreadout: Weight of the spreadout term, the mean square of the scalar
      products of an interaction's item and its negatives; 0: none.
    context: Whether the moment of asking is read: time of day and of the week,
      and how long ago the client's last interaction was.
    start: Run directory of a trained two_tower that this run grows from: what
      it knows by the same ids and columns is taken over, and rows of new items
      and weights of new columns begin at zero; empty: a new model.
    frozen: With start: only new rows and new weights train.
  """
  user_hidden: tuple[int, ...] = ()
  item_hidden: tuple[int, ...] = ()
  personal_vector: bool = True
  spreadout: float = 0.0
  context: bool = False
  start: str = ''
  frozen: bool = False

  def __post_init__(self):
    check_types(self, 'two_tower')
    at_least('two_tower.spreadout', self.spreadout, 0)
    if self.frozen and not self.start:
      raise ValueError(
          'two_tower.frozen=True without two_tower.start: nothing is trained '
          'yet that could rest; give --two_tower.start=RUN, or drop it.')
    for field in ('user_hidden', 'item_hidden'):
      widths = getattr(self, field)
      if widths and min(widths) < 1:
        raise ValueError(
            f'two_tower.{field}={widths}: every width must be at least 1; '
            'leave it empty for a linear map.')


def check_side_features(config: Any) -> None:
  """Refuses features that no model uses, and a two_tower that has none.

  Args:
    config: The whole config.
  """
  asked = [f'data.{field}={getattr(config.data, field)}'
           for field in ('user_features', 'item_features')
           if getattr(config.data, field)]
  if config.model.name != 'two_tower':
    if config.two_tower.start:
      raise ValueError(
          f'two_tower.start={config.two_tower.start!r} with model.name='
          f'{config.model.name}: only a two_tower can grow; use '
          '--model.name=two_tower, or leave it empty.')
    for field in dataclasses.fields(TwoTowerConfig):
      value = getattr(config.two_tower, field.name)
      if value != field.default:
        raise ValueError(
            f'two_tower.{field.name}={value} with model.name='
            f'{config.model.name}, which does not read it; use '
            f'--model.name=two_tower, or leave it at {field.default}.')
    if asked:
      raise ValueError(
          f'{" and ".join(asked)} with model.name={config.model.name}, which '
          'reads no features; use --model.name=two_tower, or leave '
          '--data.user_features and --data.item_features empty.')
    return
  settings = config.two_tower
  if not asked:
    raise ValueError(
        'model.name=two_tower without a table of features: give '
        '--data.item_features or --data.user_features (published, or a file), '
        'or use model.name=mf, which needs none.')
  for role in ('user', 'item'):
    widths = getattr(settings, f'{role}_hidden')
    if widths and not getattr(config.data, f'{role}_features'):
      raise ValueError(
          f'two_tower.{role}_hidden={widths} without data.{role}_features: '
          f'there is no tower of {role}s; give --data.{role}_features, or '
          'leave it empty.')
  if not settings.personal_vector and not config.data.user_features:
    raise ValueError(
        'two_tower.personal_vector=False without data.user_features: all users '
        'would be alike; give --data.user_features, or keep the vector.')
  if config.algorithm.name not in TWO_TOWER_ALGORITHMS:
    raise ValueError(
        f'algorithm.name={config.algorithm.name} with model.name=two_tower: '
        'its clients do not know which item a row is of, and so not its '
        f'features; use algorithm.name={" or ".join(TWO_TOWER_ALGORITHMS)}, or '
        'model.name=mf without features.')
  if config.personalization.finetune_steps:
    raise ValueError(
        'personalization.finetune_steps='
        f'{config.personalization.finetune_steps} with model.name=two_tower: a '
        'copy of the rows does not know their features; use 0, or '
        'model.name=mf.')
  if settings.spreadout and not config.objective.drawn_negatives:
    raise ValueError(
        f'two_tower.spreadout={settings.spreadout} with objective.name='
        f'{config.objective.name}: it spreads an item and its negatives, and '
        'there are none; use 0, or objective.name=bce.')
  if settings.context and config.objective.name == 'squared_error':
    raise ValueError(
        'two_tower.context=True with objective.name=squared_error: the moment '
        'of an interaction stands where its rating would; use '
        'objective.name=bce, or no context.')
  if settings.context and config.evaluation.adaptation_counts:
    raise ValueError(
        'two_tower.context=True with evaluation.adaptation_counts='
        f'{config.evaluation.adaptation_counts}: the moments of the first few '
        'interactions are not kept apart; leave it empty, or use no context.')
  if config.secure.on_host or config.secure.noise != 'none':
    raise ValueError(
        f'secure.level={config.secure.level} and secure.noise='
        f'{config.secure.noise} with model.name=two_tower: how long a message '
        'is must be known before features are read; use secure.level=ideal '
        'without distributed noise, which has the same sums, or model.name=mf.')
