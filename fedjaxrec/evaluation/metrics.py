"""Ranking metrics as pure functions of ranks, and their intervals. Host side.

A metric never sees a score: everything is computed from `Ranks`, in which ties
already count against the recommender. All metrics lie in [0, 1], and for all
but `gini@k` (concentration of the recommendations) more is better.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Entries of the bootstrap's count matrix held at once (8 bytes each).
_BOOTSTRAP_ENTRIES = 4_000_000


class Ranks(NamedTuple):
  """Where every evaluated user's relevant items were ranked.

  One row a (user, relevant item) pair, sorted by user, then rank. A rank counts
  the items placed above: non-relevant candidates with a score at least as high
  (ties are pessimistic), and the user's own relevant items with a higher score.
  """
  user: np.ndarray  # int32 [P]
  rank: np.ndarray  # int32 [P]; 0 is best; increases strictly within a user.
  num_candidates: np.ndarray  # int32 [P]; the user's non-relevant candidates.
  top: np.ndarray | None = None  # int32 [U, top_k]; -1 where items ran out.
  item: np.ndarray | None = None  # int32 [P]; the relevant item of the pair.


def check_ks(ks: Sequence[int], num_items: int) -> None:
  """Refuses cut-offs that no list over the catalogue can have.

  Raises:
    ValueError: If a cut-off is below 1 or above `num_items`.
  """
  for k in ks:
    if k < 1:
      raise ValueError(
          f'evaluation.ks={k} must be at least 1; a list holds an item.')
    if k > num_items:
      raise ValueError(
          f'evaluation.ks={k} is larger than the catalogue of {num_items} '
          f'items: every item would be a hit; use cut-offs up to {num_items}.')


def evaluated_users(ranks: Ranks) -> np.ndarray:
  """Returns the users with a relevant item, ascending: int32 [U].

  The rows of `per_user_metrics` and of `ranks.top` are in this order.
  """
  return ranks.user[_starts(ranks.user)]


def _starts(user: np.ndarray) -> np.ndarray:
  """Returns the first row of every user: int64 [U]."""
  return np.flatnonzero(np.diff(user, prepend=-1))


def per_user_metrics(
    ranks: Ranks, ks: Sequence[int]
) -> dict[str, np.ndarray]:
  """Computes every per-user metric at every cut-off.

  With a user's relevant items at ranks r_0 < r_1 < ... < r_(n-1), counted from
  0, and N non-relevant candidates:
    hit_rate@k: 1 if r_0 < k.
    precision@k, recall@k, recall_min@k: Hits in the first k, over k, over n,
      over min(k, n).
    ndcg@k: Sum of 1 / log2(r_j + 2) over the hits, divided by the same sum for
      the ranks 0 .. min(k, n) - 1.
    map@k: Sum of (j + 1) / (r_j + 1) over the hits, divided by min(k, n).
    mrr: 1 / (r_0 + 1), without a cut-off.
    auc: Mean over j of 1 - (r_j - j) / N: the share of (relevant, non-relevant)
      pairs in the right order. A tied pair counts as wrong, not as one half. A
      user without a non-relevant candidate has 0.5.

  Cost: a few passes over the pairs for each cut-off; no loop over users.

  Args:
    ranks: Pairs sorted by user, then rank.
    ks: Cut-offs, each at least 1.

  Returns:
    name -> float64 [num evaluated users], in the order of `evaluated_users`.

  Raises:
    ValueError: If there is no pair, or the pairs are not in order.
  """
  user, rank = np.asarray(ranks.user), np.asarray(ranks.rank, np.int64)
  if not user.size:
    raise ValueError(
        'ranks.user=[] has no pair of a user and a relevant item, so no metric '
        'has a value; check that the split leaves a test set.')
  check_ks(ks, max(ks))
  same_user = user[1:] == user[:-1]
  if (user[1:] < user[:-1]).any() or (
      same_user & (rank[1:] <= rank[:-1])).any() or rank.min() < 0:
    raise ValueError(
        'ranks must be sorted by user and increase strictly within a user; '
        'sort the pairs, and give every relevant item a place of its own.')
  starts = _starts(user)
  relevant = np.diff(starts, append=user.size)  # int64 [U]
  place = np.arange(user.size) - np.repeat(starts, relevant)  # j of a pair.

  def total(values):
    return np.add.reduceat(np.asarray(values, np.float64), starts)

  discount = 1 / np.log2(rank + 2)
  average = (place + 1) / (rank + 1)
  metrics = {}
  for k in ks:
    hit = rank < k
    hits = total(hit)
    ceiling = np.minimum(k, relevant)
    ideal = np.cumsum(1 / np.log2(np.arange(ceiling.max()) + 2))
    metrics[f'hit_rate@{k}'] = (hits > 0).astype(np.float64)
    metrics[f'ndcg@{k}'] = total(discount * hit) / ideal[ceiling - 1]
    metrics[f'recall@{k}'] = hits / relevant
    metrics[f'recall_min@{k}'] = hits / ceiling
    metrics[f'precision@{k}'] = hits / k
    metrics[f'map@{k}'] = total(average * hit) / ceiling
  metrics['mrr'] = 1 / (rank[starts] + 1)
  candidates = np.asarray(ranks.num_candidates, np.int64)
  lost = np.where(
      candidates > 0, (rank - place) / np.maximum(candidates, 1), 0.5)
  metrics['auc'] = 1 - total(lost) / relevant
  return metrics


def catalogue_metrics(
    top: np.ndarray, ks: Sequence[int], num_items: int
) -> dict[str, float]:
  """Computes how the recommendations spread over the catalogue.

  coverage@k is the share of the catalogue that stands in somebody's first k;
  gini@k is the Gini coefficient of the number of lists an item stands in, over
  all items: 0 if all are shown equally often, towards 1 if few are shown.

  Args:
    top: int32 [U, at least max(ks)] recommended items; -1 is no item.
    ks: Cut-offs.
    num_items: Size of the catalogue.

  Raises:
    ValueError: If the lists are shorter than a cut-off.
  """
  check_ks(ks, num_items)
  if top.shape[1] < max(ks):
    raise ValueError(
        f'top.shape={top.shape} has lists of {top.shape[1]} items, shorter '
        f'than the cut-off {max(ks)}; ask make_ranker for top_k={max(ks)}.')
  metrics = {}
  for k in ks:
    shown = top[:, :k]
    exposure = np.sort(np.bincount(shown[shown >= 0], minlength=num_items))
    place = np.arange(1, num_items + 1)
    gini = (2 * (place @ exposure) / (num_items * max(exposure.sum(), 1))
            - (num_items + 1) / num_items)
    metrics[f'coverage@{k}'] = float((exposure > 0).mean())
    metrics[f'gini@{k}'] = float(gini) if exposure.any() else 0.0
  return metrics


def summarise(
    per_user: Mapping[str, np.ndarray], *, bootstrap_samples: int, seed: int
) -> dict[str, Any]:
  """Averages over users, with 95 % intervals.

  The interval of a mean is the 2.5 % and 97.5 % quantile of the means of
  `bootstrap_samples` resamples of the users with replacement (percentile
  bootstrap; Efron, 1979). All metrics share the resamples. It covers the choice
  of the users, not the randomness of training.

  Cost: O(bootstrap_samples * users) time; at most some 100 MB whatever the
  number of users, up to four million of them.

  Args:
    per_user: name -> float [num users].
    bootstrap_samples: Resamples, at least 1.
    seed: Seed of the resamples.

  Returns:
    {name: mean, ..., 'num_users': n, 'ci95': {name: [low, high], ...}}.

  Raises:
    ValueError: If there is no user or no resample.
  """
  names = list(per_user)
  values = np.stack([per_user[name] for name in names], 1).astype(np.float64)
  num_users = values.shape[0]
  if not num_users:
    raise ValueError(
        'per_user has 0 users: a mean over nobody has no value; check that '
        'the split leaves a test set.')
  if bootstrap_samples < 1:
    raise ValueError(
        f'evaluation.bootstrap_samples={bootstrap_samples} must be at least 1.')
  generator = np.random.default_rng(seed)
  chunk = max(1, _BOOTSTRAP_ENTRIES // num_users)
  means = []
  for start in range(0, bootstrap_samples, chunk):
    rows = min(chunk, bootstrap_samples - start)
    drawn = generator.integers(num_users, size=(rows, num_users))
    drawn += np.arange(rows)[:, None] * num_users
    times = np.bincount(drawn.ravel(), minlength=rows * num_users)
    means.append(times.reshape(rows, num_users) @ values / num_users)
  low, high = np.quantile(np.concatenate(means), [0.025, 0.975], axis=0)
  summary: dict[str, Any] = dict(
      zip(names, values.mean(0).tolist(), strict=True))
  summary['num_users'] = num_users
  summary['ci95'] = {
      name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}
  return summary


def summarise_ranks(
    ranks: Ranks,
    ks: Sequence[int],
    num_items: int,
    *,
    bootstrap_samples: int,
    seed: int,
) -> dict[str, Any]:
  """Computes all metrics of a set of ranks, ready for summary.json.

  Coverage and Gini are there if the ranks carry recommendation lists; being
  properties of all lists together, they have no interval.

  Raises:
    ValueError: See `per_user_metrics`, `catalogue_metrics`, `summarise`.
  """
  check_ks(ks, num_items)
  summary = summarise(per_user_metrics(ranks, ks),
                      bootstrap_samples=bootstrap_samples, seed=seed)
  if ranks.top is not None:
    summary |= catalogue_metrics(ranks.top, ks, num_items)
  return summary
