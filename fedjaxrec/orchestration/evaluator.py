"""What a model is worth: validation on the way; test, controls at the end."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjaxrec.algorithms.sequential import label_interactions
from fedjaxrec.config import Config
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.data.sources import require_times
from fedjaxrec.data.splits import Split
from fedjaxrec.evaluation import (
  controls,
  corrected,
  groups,
  metrics,
  ratings,
)
from fedjaxrec.evaluation.adaptation import make_adaptation_curve
from fedjaxrec.evaluation.candidates import sample_negatives
from fedjaxrec.evaluation.metrics import Ranks
from fedjaxrec.evaluation.ranking import make_ranker
from fedjaxrec.orchestration.summary import make_traffic
from fedjaxrec.personalization.finetuning import make_finetuning
from fedjaxrec.personalization.fold_in import make_fold_in
from fedjaxrec.population import Numbered, at_moment, is_known
from fedjaxrec.simulation import Simulation

PyTree = Any
Metrics = dict[str, Any]

# The control without federation is a look at the protocol, not a contender: a
# sample of the clients says enough, and its cost stays bounded.
_LOCAL_ONLY_CLIENTS = 1000
_LOCAL_ONLY_ROUNDS = 20
_STREAM = 0x10CA1
# Scores held at once, users times items: half a gigabyte.
_MAX_SCORES = 2**27
# Selection reads NDCG@10, and the table of results HR@10 and Recall@20.
ALWAYS_KS = (10, 20)


class Evaluator(NamedTuple):
  """Rankings of one run's data.

  Attributes:
    validate: (personal, item_table, shared) -> mean metrics on the validation
      set, with rmse and mae where ratings are predicted; None where the split
      has none.
    test: (personal, item_table, shared) -> the sections `test`, `controls`,
      `groups` (of users by activity) and `item_groups` (of what is asked for,
      by popularity) of summary.json, `ratings` (RMSE and MAE) where ratings
      are predicted, and `adaptation` where evaluation.adaptation_counts asks
      for it; the one reader of the test set.
    traffic: (first_round, num_rounds) -> int64 [num_rounds, 2]: bytes up and
      down of each round; None where it is not known before the run.
  """
  validate: Callable[[PyTree, PyTree, PyTree], Metrics] | None
  test: Callable[[PyTree, PyTree, PyTree], dict[str, Any]]
  traffic: Callable[[int, int], np.ndarray] | None = None


def cutoffs(config: Config) -> tuple[int, ...]:
  """The cut-offs asked for, with those that the table and selection need."""
  return tuple(sorted({*config.evaluation.ks, *ALWAYS_KS}))


def make_evaluator(
    config: Config, split: Split, simulation: Simulation,
    trained_alone: dict[str, np.ndarray] | None = None,
    is_fitted: bool = False
) -> Evaluator:
  """Builds the evaluator of a run.

  Personalised: every client is scored with its own personal parameters.
  Aggregated: with the mean of the training clients' in their place: one model
  for all. A held-out user (user_holdout) has parameters fitted to the fold-in
  part.

  Args:
    config: The run's config.
    split: The run's data.
    simulation: The run's simulation.
    trained_alone: Where the scores of clients that trained alone are kept:
      evaluators of one run by several protocols share it, and train them once.
    is_fitted: Whether held-out users' parameters come fitted already.

  Raises:
    ValueError: If a part of the split cannot be ranked, see `make_ranker`; for
      sequences without timestamps; or for a choice by errors of ratings where
      all ratings are the same.
  """
  require_times(config, split)
  _require_ratings(config, split)
  evaluation = config.evaluation
  ks, num_items = cutoffs(config), split.num_items
  trained = split.train.counts > 0
  kept = {} if trained_alone is None else trained_alone
  fold_in = (lambda personal, *_: personal) if is_fitted else make_fold_in(
      config, split.fold_in, simulation.side)
  score = simulation.algorithm.score
  batch_size = min(
      evaluation.batch_size, max(1, _MAX_SCORES // num_items))

  known = (split.train, split.validation, split.fold_in)
  negatives = split.negatives
  if evaluation.protocol != 'full' and negatives is None:
    # Drawn once: every row of the table is asked about the same candidates.
    asked = np.flatnonzero(split.test.counts)
    drawn = sample_negatives(
        [split.test, *known], asked, num_items,
        int(evaluation.protocol.split('-')[1]), config.seed,
        split.test_candidates)
    negatives = np.zeros((split.num_users, drawn.shape[1]), np.int32)
    negatives[asked] = drawn

  def make_test_ranker(score_fn, users=None):
    def part(interactions):
      return interactions if users is None else select_users(
          interactions, users)
    return make_ranker(
        score_fn, part(split.test), [part(p) for p in known], num_items,
        protocol=evaluation.protocol, batch_size=batch_size, seed=config.seed,
        negatives=negatives if users is None or negatives is None
        else negatives[users], top_k=max(ks),
        candidates=split.test_candidates)

  activity = split.train.counts + split.fold_in.counts

  full_candidates = corrected.count_candidates(
      split.test, known, split.test_candidates)
  estimates_full = (
      evaluation.protocol != 'full' and split.test.counts.max() == 1)

  def summarise(ranks: Ranks, users: np.ndarray | None = None) -> Metrics:
    counts, candidates = (
        x if users is None else x[users] for x in (activity, full_candidates))
    summary = metrics.summarise_ranks(
        ranks, ks, num_items, bootstrap_samples=evaluation.bootstrap_samples,
        seed=config.seed)
    summary |= groups.worst_group(ranks, counts, ks)
    if estimates_full:
      estimates = corrected.corrected_metrics(
          ranks, candidates[metrics.evaluated_users(ranks)], ks)
      summary |= {name: float(x.mean()) for name, x in estimates.items()}
    return summary

  def mean_of_trained(personal):
    # Features are no parameters: everybody keeps their own.
    return jax.tree.map(
        lambda x: x if is_known(x) else np.broadcast_to(
            x[trained].mean(0), x.shape), personal, is_leaf=is_known)

  def moments(part):
    # None where no model asks when something happened.
    return simulation.side and getattr(simulation.side, f'{part}_moments')

  def number(item_table):
    if not simulation.algorithm.numbered:
      return item_table
    return Numbered(item_table, np.arange(num_items, dtype=np.int32))

  def local_only() -> tuple[Metrics, Ranks] | None:
    """Clients with a test item, or a sample of them, trained alone.

    Their metrics, and their ranks by user id. None where nobody who is asked
    has anything to train on, or where training alone is not defined.
    """
    if simulation.algorithm.not_alone:
      return None
    own = split.fold_in if split.fold_in.num_interactions else split.train
    users = np.flatnonzero((split.test.counts > 0) & (own.counts > 0))
    if not len(users):
      return None
    most = min(_LOCAL_ONLY_CLIENTS, max(1, _MAX_SCORES // num_items))
    if len(users) > most:
      users = np.sort(np.random.default_rng([_STREAM, config.seed]).choice(
          users, most, replace=False))
    cohort = config.cohort.size or trained.sum()
    rounds = evaluation.local_only_rounds or min(
        _LOCAL_ONLY_ROUNDS, -(-config.rounds * cohort // trained.sum()))
    if 'scores' not in kept:
      state = simulation.init()
      personal = jax.tree.map(
          lambda x: x[users], simulation.personal_by_client(state))
      kept['scores'] = controls.train_local_only(
          simulation.algorithm, jax.tree.map(np.asarray, state.server),
          personal, own, users, int(rounds), config.client.batch_size,
          simulation.key,
          moments('fold_in' if own is split.fold_in else 'train')
          if moments('train') is not None
          else label_interactions(config, own.offsets, own.ratings))
    scores = kept['scores']
    ranks = make_test_ranker(controls.score_from_matrix, users)(
        scores, np.arange(num_items, dtype=np.int32), ())
    return (summarise(ranks, users),
            ranks._replace(user=users[np.asarray(ranks.user)]))

  def after_finetuning(personal, item_table, shared):
    if finetuning is None:
      return {}
    tuned = finetuning[1](personal, item_table, shared)
    rank_tuned = make_test_ranker(finetuning[0])
    return {'finetuned': rank_tuned(tuned, item_table, shared)}

  def test(personal, item_table, shared):
    personal = fold_in(personal, item_table, shared)
    personal = at_moment(personal, moments('test'))
    item_table = number(item_table)
    personalised = rank_test(personal, item_table, shared)
    aggregated = rank_aggregated(mean_of_trained(personal), item_table, shared)
    popularity = controls.popularity(split.train)
    popular = make_test_ranker(controls.score_popularity)((), popularity, ())
    compared = {'personalised': personalised, 'popularity': popular}
    tuned = after_finetuning(personal, item_table, shared)
    alone = local_only() if evaluation.local_only else None
    by_item = {**compared, 'aggregated': aggregated, **tuned}
    # A sample of the clients is asked for other items than all of them.
    if alone and len(alone[1].rank) == len(personalised.rank):
      by_item['local_only'] = alone[1]
    return {
        'test': {
            'protocol': (
                f'{config.objective.negative_pool}: {evaluation.protocol}'
                if config.objective.leaks else evaluation.protocol),
            'personalised': summarise(personalised),
            'aggregated': summarise(aggregated),
            **{name: summarise(ranks) for name, ranks in tuned.items()},
        },
        'controls': {
            'popularity': summarise(popular),
            'local_only': alone and alone[0],
            **({'local_only_note': simulation.algorithm.not_alone}
               if simulation.algorithm.not_alone else {}),
        },
        'groups': groups.group_metrics(
            compared, activity, ks, num_groups=evaluation.num_groups,
            bootstrap_samples=evaluation.bootstrap_samples, seed=config.seed),
        'item_groups': groups.popularity_groups(by_item, popularity, ks),
        **({'ratings': rate(personal, item_table, shared)}
           if predicts_ratings else {}),
        **({'adaptation': adaptation_curve(
            personal, mean_of_trained(personal), item_table, shared)}
           if adaptation_curve else {}),
    }

  def rate(personal, item_table, shared):
    return {
        'personalised': ratings.errors(
            predict(personal, item_table, shared), split.test.ratings),
        'aggregated': ratings.errors(
            predict(mean_of_trained(personal), item_table, shared),
            split.test.ratings),
        **ratings.constants(split.train, split.test)}

  predicts_ratings = config.predicts_ratings
  predict = ratings.make_predictor(score, split.test)
  # Made now, so that a test set that cannot be ranked is refused before hours
  # of training.
  rank_test = make_test_ranker(score)
  aggregated_score = simulation.algorithm.aggregated_score
  rank_aggregated = rank_test if aggregated_score is None else make_test_ranker(
      aggregated_score)
  finetuning = make_finetuning(config, split.train, simulation)
  adaptation_curve = make_adaptation_curve(
      config, split, simulation, make_test_ranker, summarise)
  traffic = make_traffic(config, split, simulation.algorithm)
  if not split.validation.num_interactions:
    return Evaluator(None, test, traffic)

  rank_validation = make_ranker(
      score, split.validation, [split.train, split.fold_in], num_items,
      protocol=evaluation.protocol, batch_size=batch_size,
      seed=config.seed + 1, candidates=split.validation_candidates)

  predict_validation = ratings.make_predictor(score, split.validation)

  def validate(personal, item_table, shared):
    parameters = (
        at_moment(fold_in(personal, item_table, shared), moments('validation')),
        number(item_table), shared)
    found = {name: float(values.mean()) for name, values in
             metrics.per_user_metrics(rank_validation(*parameters), ks).items()}
    if predicts_ratings:
      found |= ratings.errors(
          predict_validation(*parameters), split.validation.ratings)
    return found

  return Evaluator(validate, test, traffic)


def _require_ratings(config: Config, split: Split) -> None:
  """Refuses a choice of the round by errors of ratings that are all alike."""
  if config.evaluation.select_by != 'rmse':
    return
  found = split.train.ratings
  if not len(found) or found.min() == found.max():
    raise ValueError(
        'evaluation.select_by=rmse on data without ratings (all are '
        f'{float(found[0]) if len(found) else 1.0:g}): there is nothing to '
        'predict; use evaluation.select_by=ndcg@10, or data with ratings.')


def select_users(interactions: Interactions, users: np.ndarray) -> Interactions:
  """The rows of some users, who get the ids 0, 1, ... in the order given."""
  counts = interactions.counts[users]
  offsets = np.concatenate([[0], np.cumsum(counts)])
  rows = np.repeat(interactions.offsets[users] - offsets[:-1], counts)
  rows = rows + np.arange(offsets[-1])
  return Interactions(
      offsets, interactions.items[rows], interactions.ratings[rows],
      interactions.timestamps[rows], interactions.user_ids[users],
      interactions.item_ids, interactions.has_timestamps)
