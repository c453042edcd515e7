"""What a run's recommendations are worth, and what of it survives."""

import dataclasses
from typing import Any

from fedjaxrec.config.rules import at_least, check_types, one_of

PROTOCOLS = ('full', 'sampled-99')
SELECTIONS = ('best', 'last')
SELECT_BY = ('ndcg@10', 'rmse')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """What the recommendations are worth, and on what.

  Attributes:
    protocol: full (rank all items) or sampled-99 (the published comparison's).
    ks: Cut-offs of the ranking metrics; 10 and 20 are always among them.
    every: Rounds between two looks at the validation set; 0: only at the end.
    selection: best (on validation, by select_by) or last: the round that is
      tested.
    select_by: ndcg@10 or, where scores predict ratings (objective.name=
      squared_error, algorithm.name=fedmf), rmse: what the best round is best
      by. The best round for predicting ratings ranks badly, and the other way
      round.
    batch_size: Users ranked at once.
    bootstrap_samples: Resamples of the users for the 95 % intervals.
    num_groups: User-activity groups in the report.
    local_only: Whether to train the control without federation.
    local_only_rounds: Rounds of that control; 0: as many as a client gets in
      the federated run, up to 20.
    fold_in_rounds: Rounds that fit a held-out user's own parameters.
    adaptation_counts: Interactions that new users are fitted to: 1,3,5,10. They
      are test users who never trained, each number is a point of a curve; for
      split.name=user_holdout. Empty: no curve.
  """
  protocol: str = 'full'
  ks: tuple[int, ...] = (5, 10, 20)
  every: int = 25
  selection: str = 'best'
  select_by: str = 'ndcg@10'
  batch_size: int = 512
  bootstrap_samples: int = 1000
  num_groups: int = 5
  local_only: bool = True
  local_only_rounds: int = 0
  fold_in_rounds: int = 20
  adaptation_counts: tuple[int, ...] = ()

  def __post_init__(self):
    check_types(self, 'evaluation')
    one_of('evaluation.protocol', self.protocol, PROTOCOLS)
    one_of('evaluation.selection', self.selection, SELECTIONS)
    one_of('evaluation.select_by', self.select_by, SELECT_BY)
    if self.selection == 'last' and self.select_by != 'ndcg@10':
      raise ValueError(
          f'evaluation.select_by={self.select_by} with '
          'evaluation.selection=last: nothing is selected; use '
          'evaluation.selection=best, or drop it.')
    if not self.ks or min(self.ks) < 1 or len(set(self.ks)) < len(self.ks):
      raise ValueError(
          f'evaluation.ks={self.ks} needs distinct cut-offs of at least 1.')
    at_least('evaluation.every', self.every, 0)
    at_least('evaluation.batch_size', self.batch_size, 1)
    at_least('evaluation.bootstrap_samples', self.bootstrap_samples, 100)
    at_least('evaluation.num_groups', self.num_groups, 1)
    at_least('evaluation.local_only_rounds', self.local_only_rounds, 0)
    at_least('evaluation.fold_in_rounds', self.fold_in_rounds, 1)
    counts = self.adaptation_counts
    if counts and (min(counts) < 1 or len(set(counts)) < len(counts)):
      raise ValueError(
          f'evaluation.adaptation_counts={counts} needs distinct numbers of '
          'interactions of at least 1, for example 1,3,5,10; or none.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """What survives an interruption.

  Attributes:
    every: Rounds between two checkpoints; 0: only at the end.
    keep: Checkpoints kept.
  """
  every: int = 100
  keep: int = 2

  def __post_init__(self):
    check_types(self, 'checkpoint')
    at_least('checkpoint.every', self.every, 0)
    at_least('checkpoint.keep', self.keep, 1)


def check_evaluation(config: Any) -> None:
  """Refuses what a whole config's evaluation cannot be combined with.

  Raises:
    ValueError: For a curve of users who never trained, where all do; or for a
      choice by errors of ratings that nothing predicts.
  """
  if config.evaluation.select_by == 'rmse' and not config.predicts_ratings:
    raise ValueError(
        f'evaluation.select_by=rmse with objective.name={config.objective.name}'
        f' and algorithm.name={config.algorithm.name}, whose scores predict no '
        'ratings; use objective.name=squared_error, algorithm.name=fedmf, or '
        'evaluation.select_by=ndcg@10.')
  counts = config.evaluation.adaptation_counts
  if counts and config.split.name != 'user_holdout':
    raise ValueError(
        f'evaluation.adaptation_counts={counts} with split.name='
        f'{config.split.name}, in which every test user trains; use '
        '--split.name=user_holdout, or no counts.')
