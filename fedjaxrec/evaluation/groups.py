"""Metrics by user activity. Host side."""

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
