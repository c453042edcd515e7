"""Adaptation curves: what users who never trained get of their first items."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.data.splits import Split
from fedjaxrec.evaluation import ratings
from fedjaxrec.evaluation.metrics import Ranks
from fedjaxrec.personalization.finetuning import make_finetuning
from fedjaxrec.personalization.fold_in import make_fold_in
from fedjaxrec.population import places_of
from fedjaxrec.simulation import Simulation

PyTree = Any
Metrics = dict[str, Any]


def first_interactions(
    interactions: Interactions, users: np.ndarray, count: int
) -> Interactions:
  """The earliest interactions of some users, in the id space of all.

  Args:
    interactions: Of everybody; a user's rows are in order of time.
    users: int [n]; the others get nothing.
    count: Rows of each, at most.
  """
  place = places_of(interactions.offsets)
  asked = np.zeros(interactions.num_users, np.bool_)
  asked[users] = True
  return interactions.take(
      (place < count) & np.repeat(asked, interactions.counts))


def cold_users(split: Split, count: int) -> np.ndarray:
  """Test users who show at least `count` interactions: int [n].

  The curve is over these at every point, so that it does not compare users who
  show much with users who show little.

  Raises:
    ValueError: If there are none.
  """
  users = np.flatnonzero(
      (split.test.counts > 0) & (split.fold_in.counts >= count))
  if not len(users):
    most = int(split.fold_in.counts[split.test.counts > 0].max(initial=0))
    raise ValueError(
        f'evaluation.adaptation_counts up to {count}: no held-out test user '
        f'shows that many interactions, the most is {most}; use smaller counts '
        'or a larger split.fold_in_fraction.')
  return users


def check_adapts(config: Config, algorithm: Algorithm) -> None:
  """Refuses an algorithm whose clients cannot be fitted by themselves.

  Raises:
    ValueError: If a client's model needs what the server makes of all clients'.
  """
  if algorithm.refit is None and algorithm.mix_clients is not None:
    raise ValueError(
        'evaluation.adaptation_counts with algorithm.name='
        f"{config.algorithm.name}: its clients' models are mixed at the "
        'server, and nobody can adapt one alone; leave it empty, or use, for '
        'example, algorithm.name=fedavg, fedrecon, reptile, fomaml, perfedavg '
        'or pfedrec.')


def make_adaptation_curve(
    config: Config, split: Split, simulation: Simulation,
    make_ranker_of: Callable[
        [Callable, np.ndarray], Callable[[PyTree, PyTree, PyTree], Ranks]],
    summarise: Callable[[Ranks, np.ndarray], Metrics],
) -> Callable[[PyTree, PyTree, PyTree, PyTree], Metrics] | None:
  """Builds curve(personal, aggregated, item_table, shared).

  At each of evaluation.adaptation_counts, test users who never trained are
  fitted to their earliest so many interactions, as fold-in does (the
  algorithm's own refit, or rounds with the server held still), and with
  personalization.finetune_steps also by fine-tuning a copy of the whole model.
  At all points the same users are asked for the same items among the same
  candidates: what they show beyond the count is not used, and not asked for
  either. Point 0 is the one model for all.

  Cost: a fit and a ranking a point; each compiles its own fit.

  Args:
    config: The run's config.
    split: The run's data.
    simulation: The run's.
    make_ranker_of: (score, users) -> rank, whose personal leaves are [users,
      ...].
    summarise: (ranks, users) -> metrics.

  Returns:
    None where none are asked for. Otherwise curve -> num_users, and points,
    each with interactions, metrics, and where they apply ratings (RMSE and MAE
    of the users' test ratings) and finetuned (the same after fine-tuning).

  Raises:
    ValueError: If nobody shows enough, or if the algorithm cannot adapt.
  """
  counts = sorted(config.evaluation.adaptation_counts)
  if not counts:
    return None
  algorithm = simulation.algorithm
  check_adapts(config, algorithm)
  users = cold_users(split, counts[-1])
  asked = split.test.take(np.isin(split.test.users, users))

  def make_point(score):
    rank = make_ranker_of(score, users)
    predict = ratings.make_predictor(score, asked)

    def point(personal, item_table, shared):
      ranks = rank(
          jax.tree.map(lambda x: x[users], personal), item_table, shared)
      result: Metrics = {'metrics': summarise(ranks, users)}
      if config.predicts_ratings:
        result['ratings'] = ratings.errors(
            predict(personal, item_table, shared), asked.ratings)
      return result

    return point

  adapted = make_point(algorithm.score)
  unadapted = adapted if algorithm.aggregated_score is None else make_point(
      algorithm.aggregated_score)
  shown = [first_interactions(split.fold_in, users, count) for count in counts]
  fits = [make_fold_in(config, part, simulation.side) for part in shown]
  tunings = [make_finetuning(config, part, simulation) for part in shown]
  tuned = None if tunings[0] is None else make_point(tunings[0][0])

  def curve(personal, aggregated, item_table, shared):
    points = [{'interactions': 0,
               **unadapted(aggregated, item_table, shared)}]
    for count, fit, tuning in zip(counts, fits, tunings, strict=True):
      own = fit(personal, item_table, shared)
      point = {'interactions': count, **adapted(own, item_table, shared)}
      if tuned is not None and tuning is not None:
        point['finetuned'] = tuned(
            tuning[1](own, item_table, shared), item_table, shared)
      points.append(point)
    return {'num_users': len(users), 'points': points}

  return curve
