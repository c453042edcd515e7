"""Metrics by user activity and by item popularity. Host side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjaxrec.evaluation import metrics as metrics_lib
from fedjaxrec.evaluation.metrics import Ranks


class Groups(NamedTuple):
  """Users by activity, the least active first."""
  labels: list[str]  # For example '20-35 interactions'.
  group_of: np.ndarray  # int64 [num users].


def activity_groups(counts: np.ndarray, num_groups: int) -> Groups:
  """Groups users at the quantiles of their number of interactions.

  Users with equally many interactions share a group, so groups differ in size
  and there are fewer than `num_groups` where many users are equally active. No
  group is empty.

  Args:
    counts: int [num users] interactions of each user.
    num_groups: Groups, at least 1.

  Raises:
    ValueError: If there is no user or no group.
  """
  counts = np.asarray(counts)
  if num_groups < 1:
    raise ValueError(
        f'evaluation.num_groups={num_groups} must be at least 1.')
  if not counts.size:
    raise ValueError(
        'counts=[] has no user to group; check that the split leaves a test '
        'set.')
  shares = np.arange(1, num_groups) / num_groups
  edges = np.unique(np.quantile(counts, shares, method='inverted_cdf'))
  edges = edges[edges < counts.max()]  # Each edge is its group's largest count.
  index = np.searchsorted(edges, counts)
  labels = []
  for group in range(edges.size + 1):
    low, high = counts[index == group].min(), counts[index == group].max()
    plural = '' if high == 1 else 's'
    span = f'{low:,}' if low == high else f'{low:,}-{high:,}'
    labels.append(f'{span} interaction{plural}')
  return Groups(labels, index)


def worst_group(
    ranks: Ranks, counts: np.ndarray, ks: Sequence[int], num_groups: int = 10
) -> dict[str, float]:
  """Finds what the activity group that is served worst gets.

  The worst group is the one with the lowest mean; each metric has its own.

  Args:
    ranks: Of one model.
    counts: int [num_users] training interactions of all users, by user id.
    ks: Cut-offs.
    num_groups: Groups at the quantiles of activity: deciles.

  Returns:
    'worst_decile_hit_rate@k' and 'worst_decile_ndcg@k' for each cut-off.
  """
  groups = activity_groups(
      counts[metrics_lib.evaluated_users(ranks)], num_groups)
  sizes = np.bincount(groups.group_of)
  per_user = metrics_lib.per_user_metrics(ranks, ks)
  return {
      f'worst_decile_{name}@{k}': float(
          (np.bincount(groups.group_of, per_user[f'{name}@{k}']) / sizes).min())
      for k in ks for name in ('hit_rate', 'ndcg')}


def popularity_groups(
    ranks: Mapping[str, Ranks],
    popularity: np.ndarray,
    ks: Sequence[int],
    num_groups: int = 5,
) -> list[dict[str, Any]]:
  """Averages over the relevant items, grouped by their popularity.

  Groups are cut at the quantiles of the popularity of what is asked for, so
  each holds about as many (user, relevant item) pairs; pairs of equal
  popularity share a group. recall@k is the share of the pairs that stand in the
  first k places, gain@k the mean of 1 / log2(rank + 2) of those, 0 of others.

  Args:
    ranks: Name of a model -> its ranks with `item`; all of the same targets.
    popularity: [num_items] training interactions of each item.
    ks: Cut-offs.
    num_groups: Groups: quintiles.

  Returns:
    One dict a group, the least popular first: {'label', 'num_pairs',
    'num_items', and for each model name its means}.

  Raises:
    ValueError: If ranks do not say their items, or are of different targets.
  """
  first: np.ndarray | None = None
  ranks_of: dict[str, np.ndarray] = {}  # In the order of (user, item).
  for name, other in ranks.items():
    if other.item is None:
      raise ValueError(
          f'ranks[{name!r}].item=None: popularity groups need to know whose '
          'rank it is; use the ranks that make_ranker returns.')
    pairs = np.stack([other.user, other.item])
    order = np.lexsort(pairs[::-1])
    pairs = pairs[:, order]
    ranks_of[name] = other.rank[order].astype(np.int64)
    if first is None:
      first = pairs
    if not np.array_equal(first, pairs):
      raise ValueError(
          f'ranks[{name!r}] has other targets than ranks['
          f'{next(iter(ranks))!r}]: groups compare models on the same pairs.')
  assert first is not None
  asked = np.asarray(popularity)[first[1]].astype(np.int64)
  labels, group_of = activity_groups(asked, num_groups)
  result: list[dict[str, Any]] = []
  for group, label in enumerate(labels):
    members = group_of == group
    result.append({
        'label': label, 'num_pairs': int(members.sum()),
        'num_items': len(np.unique(first[1][members]))})
  for name, rank in ranks_of.items():
    for group, entry in enumerate(result):
      mine = rank[group_of == group]
      entry[name] = {}
      for k in ks:
        hit = mine < k
        entry[name][f'recall@{k}'] = float(hit.mean())
        entry[name][f'gain@{k}'] = float((hit / np.log2(mine + 2)).mean())
  return result


def group_metrics(
    ranks: Mapping[str, Ranks],
    counts: np.ndarray,
    ks: Sequence[int],
    *,
    num_groups: int,
    bootstrap_samples: int,
    seed: int,
) -> list[dict[str, Any]]:
  """Averages every metric within every activity group.

  Args:
    ranks: Name of a model -> its ranks; all of the same users.
    counts: int [num_users] training interactions of all users, by user id.
    ks: Cut-offs.
    num_groups: Groups of about equal size.
    bootstrap_samples: Resamples within a group for its intervals.
    seed: Seed of the resamples.

  Returns:
    One dict a group, the least active first: {'label', 'num_users', and for
    each model name its means with 'ci95' (see `metrics.summarise`)}.

  Raises:
    ValueError: If the models ranked different users, or as `activity_groups`.
  """
  users = [metrics_lib.evaluated_users(r) for r in ranks.values()]
  for name, other in zip(ranks, users):
    if not np.array_equal(other, users[0]):
      raise ValueError(
          f'ranks[{name!r}] has other users than ranks[{next(iter(ranks))!r}]: '
          'groups compare models on the same users; rank the same targets.')
  groups = activity_groups(counts[users[0]], num_groups)
  per_user = {name: metrics_lib.per_user_metrics(r, ks)
              for name, r in ranks.items()}
  result = []
  for group, label in enumerate(groups.labels):
    members = groups.group_of == group
    entry: dict[str, Any] = {'label': label, 'num_users': int(members.sum())}
    for name, values in per_user.items():
      entry[name] = metrics_lib.summarise(
          {metric: value[members] for metric, value in values.items()},
          bootstrap_samples=bootstrap_samples, seed=seed)
    result.append(entry)
  return result
