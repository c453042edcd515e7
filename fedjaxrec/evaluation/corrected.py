"""What sampled ranks say of the full ranking: corrected metrics. Host side.

A sampled metric is another quantity than the full one and does not even keep
the order of two models. The rank among a sample still carries what is needed
for an estimate: a table over sampled ranks, chosen so that its expectation is
close to the full metric whatever the true rank, at a variance that is weighed
against the bias.

References:
  Krichene and Rendle, 2020, `On Sampled Metrics for Item Recommendation
  <https://dl.acm.org/doi/10.1145/3394486.3403226>`_, KDD; here for negatives
  drawn without replacement.
"""

from collections.abc import Sequence

import numpy as np

from fedjaxrec.data.interactions import Interactions
from fedjaxrec.evaluation.metrics import Ranks

# Groups of users by their number of candidates; a table is made for each.
_NUM_GROUPS = 8


def sampled_rank_probabilities(
    num_candidates: int, num_negatives: int) -> np.ndarray:
  """Chance of each sampled rank, given the rank among all candidates.

  Of a relevant item at rank r (0 is best) among N others, j of m sampled ones
  stand above with probability C(r, j) C(N - r, m - j) / C(N, m).

  Returns:
    float64 [N + 1, m + 1].
  """
  n, m = num_candidates, num_negatives
  log_factorial = np.concatenate([[0], np.cumsum(np.log(np.arange(1, n + 1)))])
  r, j = np.arange(n + 1)[:, None], np.arange(m + 1)[None, :]
  possible = (j <= r) & (m - j <= n - r)
  def log_choose(a, b):
    a, b = np.broadcast_arrays(a, b)
    a, b = np.where(possible, a, 0), np.where(possible, b, 0)
    return log_factorial[a] - log_factorial[b] - log_factorial[a - b]

  log_all = log_factorial[n] - log_factorial[m] - log_factorial[n - m]
  return np.where(
      possible,
      np.exp(log_choose(r, j) + log_choose(n - r, m - j) - log_all), 0)


def correct(
    gain: np.ndarray, num_negatives: int, variance_weight: float
) -> np.ndarray:
  """Chooses what each sampled rank is to count for.

  Minimises the mean over all true ranks of bias^2 + variance_weight * variance:
  f = ((1 - w) A'A + w diag(c))^-1 A'b, with A the probabilities over the square
  root of N + 1, b the gain over it, c the columns' mean probability.

  Args:
    gain: float [N + 1] or [N + 1, metrics], the full metric of a relevant item
      at each rank.
    num_negatives: m, below N.
    variance_weight: In [0, 1]; 0: least bias, and a variance without bound.

  Returns:
    float64 [m + 1] or [m + 1, metrics]; entries can lie outside the gain's
    range, for only the mean over users is an estimate.
  """
  if not 0 <= variance_weight <= 1:
    raise ValueError(
        f'variance_weight={variance_weight} must lie in [0, 1].')
  chance = sampled_rank_probabilities(len(gain) - 1, num_negatives)
  matrix = chance.T @ chance / len(gain)
  mean = np.diag(chance.mean(0))
  return np.linalg.lstsq(
      (1 - variance_weight) * matrix + variance_weight * mean,
      chance.T @ gain / len(gain), rcond=None)[0]


def count_candidates(
    targets: Interactions, excluded: Sequence[Interactions],
    candidates: np.ndarray | None = None) -> np.ndarray:
  """Counts what a full ranking ranks a user's relevant items against.

  Args:
    targets: The relevant items.
    excluded: Interactions that are no candidates.
    candidates: bool [num_items]; None: all items.

  Returns:
    int64 [num_users].
  """
  allowed = (np.ones(targets.num_items, np.bool_) if candidates is None
             else candidates)
  taken = sum(
      np.bincount(part.users[allowed[part.items]], minlength=part.num_users)
      for part in (targets, *excluded))
  return allowed.sum() - taken


def corrected_metrics(
    ranks: Ranks,
    num_candidates: np.ndarray,
    ks: Sequence[int],
    variance_weight: float = 0.1,
) -> dict[str, np.ndarray]:
  """Estimates full-ranking metrics from sampled ranks.

  Users are put into some eight groups by their number of candidates; a group's
  table is made for its mean number.

  Args:
    ranks: Of a sampled protocol, one relevant item a user.
    num_candidates: int [num evaluated users], the non-relevant candidates that
      a full ranking would have.
    ks: Cut-offs of the full ranking.
    variance_weight: See `correct`.

  Returns:
    'corrected_hit_rate@k' and 'corrected_ndcg@k' -> float64 [num evaluated
    users]; estimates in their mean only.

  Raises:
    ValueError: If a user has several relevant items.
  """
  if (ranks.user[1:] == ranks.user[:-1]).any():
    raise ValueError(
        'ranks has users with several relevant items: corrected metrics are '
        'for one a user (split.name=leave_one_out); use the full protocol.')
  if len(num_candidates) != len(ranks.user):
    raise ValueError(
        f'num_candidates has {len(num_candidates)} entries for '
        f'{len(ranks.user)} users; give one a user.')
  num_candidates = np.maximum(num_candidates, ranks.num_candidates)
  shares = np.arange(1, _NUM_GROUPS) / _NUM_GROUPS
  edges = np.unique(np.quantile(num_candidates, shares))
  group = np.searchsorted(edges, num_candidates)
  # Users whose own positive was among their negatives have one less.
  keys, index = np.unique(
      np.stack([group, ranks.num_candidates]), axis=1, return_inverse=True)
  result = {f'corrected_{name}@{k}': np.empty(len(group))
            for k in ks for name in ('hit_rate', 'ndcg')}
  for place, (_, num_negatives) in enumerate(keys.T):
    mine = index.ravel() == place
    total = int(round(num_candidates[mine].mean()))
    rank = np.arange(total + 1)
    # In the order of the result's names.
    gains = np.stack(
        [hit / discount for k in ks for hit in [rank < k]
         for discount in (np.ones(total + 1), np.log2(rank + 2))], axis=1)
    table = correct(gains, int(num_negatives), variance_weight)
    for column, values in enumerate(result.values()):
      values[mine] = table[ranks.rank[mine], column]
  return result
