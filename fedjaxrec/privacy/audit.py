"""Attacks that measure: a lower bound on epsilon, and who touched which item.

An accountant says what a mechanism may lose at most; an auditor attacks what is
really released and says what it loses at least. A bound above the claim refutes
the claim; a bound below it proves nothing, so no audit is worth anything
without its positive control: the same attack with the noise off, which must be
above the claim, and cannot be if there are too few canaries (`ceiling`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjaxrec import jax_privacy_bridge

# (deltas float32 [num_canaries, dim], seed) -> what is released, of that shape.
ReleaseFn = Callable[[np.ndarray, int], np.ndarray]


class AuditResult(NamedTuple):
  """What the attack on the canaries found.

  Attributes:
    lower_bound: On epsilon: the larger of the two below, and above the truth
      with a chance of at most `significance`, which both share.
    epsilon_one_run: From the shares of right guesses.
    epsilon_one_run_fdp: Against the whole trade-off curve of a Gaussian
      mechanism; 0 where the mechanism is none.
    claimed_epsilon: As given.
    refuted: Whether lower_bound is above the claim.
    ceiling: lower_bound if no canary were misjudged: claims at or above it
      cannot be refuted by so few canaries.
    auc: Chance that a canary that took part has a higher score than one that
      did not.
    num_canaries: All of them, over all trials.
    significance: Chance of a false alarm.
  """
  lower_bound: float
  epsilon_one_run: float
  epsilon_one_run_fdp: float
  claimed_epsilon: float
  refuted: bool
  ceiling: float
  auc: float
  num_canaries: int
  significance: float


def audit(
    release_fn: ReleaseFn,
    num_canaries: int,
    num_trials: int,
    claimed_epsilon: float,
    delta_dp: float,
    seed: int,
    *,
    canary_norm: float = 1.0,
    dim: int = 1,
    significance: float = 0.05,
    assume_gaussian: bool = True,
) -> AuditResult:
  """Attacks a mechanism with clients of one item row each.

  Canary i is a client whose whole delta is canary_norm in the first entry of
  item row i: canaries are orthogonal, so each one's trace in the sum is read
  off its row. In each trial every canary takes part with probability a half;
  its score is the entry it could have changed. Trials have canaries of their
  own, so the trials together are one release about num_canaries * num_trials
  clients with the epsilon of one.

  Formal guarantee: if the mechanism is (claimed_epsilon, delta_dp)-DP under
  adding or removing one client (and, with assume_gaussian, at least as private
  as the Gaussian mechanism of these), `refuted` is true with a chance of at
  most significance. Unit of privacy: the client. The two bounds are made at
  half of the significance each.

  Args:
    release_fn: The mechanism, everything included that a client's delta passes
      on its way into what is released: clipping, weights, other clients, all
      rounds of a run. Gets float32 [num_canaries, dim], the delta of canary i
      in row i (zeros: absent), and a seed of its own for each trial; returns
      the released sum of the canaries' rows, of that shape.
    num_canaries: Of one trial, at least 2.
    num_trials: Releases, at least 1.
    claimed_epsilon: What the accountant says of one release; above 0.
    delta_dp: Of the claim, in (0, 1).
    seed: Of who takes part, and of the releases.
    canary_norm: A canary's L2 norm before clipping: the clip norm or more.
    dim: Entries of an item row.
    significance: Chance of a false alarm, in (0, 1).
    assume_gaussian: Whether the claim is that of a Gaussian mechanism. Not for
      Laplace noise, PrivUnit or randomized response: of one epsilon they tell
      more than a Gaussian, within their claim.

  Returns:
    The result. About a second for thousands of canaries, the releases not
    counted.

  Raises:
    ValueError: For parameters out of range, or a release of another shape.

  References:
    Steinke, Nasr and Jagielski, 2023, `Privacy Auditing with One (1) Training
    Run <https://arxiv.org/abs/2305.08846>`_. Mahloujifar, Melis and Chaudhuri,
    2024, `Auditing f-Differential Privacy in One Run
    <https://arxiv.org/abs/2410.22235>`_.
  """
  _check(num_canaries, num_trials, claimed_epsilon, delta_dp, significance)
  rng = np.random.default_rng(seed)
  in_scores, out_scores = [], []
  for _ in range(num_trials):
    takes_part = rng.random(num_canaries) < 0.5
    deltas = np.zeros((num_canaries, dim), np.float32)
    deltas[takes_part, 0] = canary_norm
    released = np.asarray(release_fn(deltas, int(rng.integers(2**31))))
    if released.shape != deltas.shape:
      raise ValueError(
          f'release_fn returned an array of shape {released.shape} for deltas '
          f"of shape {deltas.shape}; it must return the sum of the canaries' "
          'rows, item row i in row i.')
    in_scores.append(released[takes_part, 0])
    out_scores.append(released[~takes_part, 0])
  in_all, out_all = np.concatenate(in_scores), np.concatenate(out_scores)
  if not (len(in_all) and len(out_all)):
    raise ValueError(
        f'num_canaries={num_canaries} and num_trials={num_trials}: all '
        'canaries fell on one side; take more.')

  epsilons = lambda in_scores, out_scores: _lower_bounds(
      in_scores, out_scores, significance, delta_dp, seed, assume_gaussian)
  one_run, by_fdp = epsilons(in_all, out_all)
  bound = max(one_run, by_fdp)
  return AuditResult(
      bound, one_run, by_fdp, claimed_epsilon, bound > claimed_epsilon,
      max(epsilons(np.ones(len(in_all)), np.zeros(len(out_all)))),
      area_under_curve(
          np.concatenate([in_all, out_all]),
          np.repeat([True, False], [len(in_all), len(out_all)])),
      len(in_all) + len(out_all), significance)


def audit_ceiling(
    num_canaries: int, delta_dp: float, significance: float = 0.05,
    assume_gaussian: bool = True,
) -> float:
  """The largest epsilon that an audit can give: if no canary is misjudged.

  For delta_dp 6.9e-5, 5 % and a Gaussian mechanism 4.5 with 200 canaries, 7.1
  with 1,000 and 9.4 with 5,000; without the Gaussian claim 2.8, 4.3 and 5.5.
  (With as many canaries in as out; chance moves it by some hundredths.)

  Args:
    num_canaries: All of them, over all trials.
    delta_dp: Of the claim.
    significance: Chance of a false alarm.
    assume_gaussian: As for `audit`.
  """
  half = num_canaries // 2
  return max(_lower_bounds(
      np.ones(half), np.zeros(num_canaries - half), significance, delta_dp, 0,
      assume_gaussian))


class ItemLeak(NamedTuple):
  """How well a view tells which items a client touched, over clients.

  Attributes:
    auc: Mean over clients of the chance that a touched item has a higher score
      than one that was not touched; a half is guessing.
    auc_interval: (low, high): 95 %, of the mean, by bootstrap over clients.
    tpr: Mean share of the touched items above the best 1 % of the others.
    popularity_auc: The same for the guess by popularity, which needs no view:
      what is at or below it tells nothing new.
  """
  auc: float
  auc_interval: tuple[float, float]
  tpr: float
  popularity_auc: float


def measure_item_leak(
    scores: np.ndarray, touched: np.ndarray, popularity: np.ndarray, seed: int,
    *, false_positive_rate: float = 0.01, num_resamples: int = 1000,
) -> ItemLeak:
  """Attacks "which items did client u touch" with scores of the items.

  Args:
    scores: float [clients, items], or [items] if all clients share the view:
      for example the L2 norm of each row of what the server sees.
    touched: bool [clients, items]: the truth. A client who touched no item, or
      all of them, does not count.
    popularity: float [items]: the guess without a view.
    seed: Of the bootstrap.
    false_positive_rate: At which the true positives are counted.
    num_resamples: Of the bootstrap.

  Raises:
    ValueError: For shapes that do not fit, or no client that counts.
  """
  touched = np.asarray(touched, bool)
  scores = np.broadcast_to(np.asarray(scores, float), touched.shape)
  usable = touched.any(1) & ~touched.all(1)
  if not usable.any():
    raise ValueError(
        f'touched of shape {touched.shape} has no client with both touched and '
        'untouched items; there is nothing to tell apart.')
  by_view, by_popularity, found = [], [], []
  for score, is_in in zip(scores[usable], touched[usable]):
    by_view.append(area_under_curve(score, is_in))
    by_popularity.append(area_under_curve(popularity, is_in))
    threshold = np.quantile(
        score[~is_in], 1 - false_positive_rate, method='higher')
    found.append((score[is_in] > threshold).mean())
  rng = np.random.default_rng(seed)
  resampled = np.array(by_view)[
      rng.integers(len(by_view), size=(num_resamples, len(by_view)))].mean(1)
  low, high = np.quantile(resampled, [0.025, 0.975])
  return ItemLeak(
      float(np.mean(by_view)), (float(low), float(high)),
      float(np.mean(found)), float(np.mean(by_popularity)))


def area_under_curve(scores: np.ndarray, is_in: np.ndarray) -> float:
  """P(a score of those in is higher than one of the others), ties for a half.

  Args:
    scores: float [n].
    is_in: bool [n], neither all nor none.
  """
  _, inverse, counts = np.unique(
      scores, return_inverse=True, return_counts=True)
  # The mean rank of equal scores, from 1.
  rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
  num_in = is_in.sum()
  return float((rank[is_in].sum() - num_in * (num_in + 1) / 2)
               / (num_in * (len(scores) - num_in)))


def _lower_bounds(
    in_scores, out_scores, significance, delta_dp, seed, assume_gaussian):
  """Two bounds, of which the larger counts: each at half the significance."""
  return jax_privacy_bridge.epsilons_of_one_run(
      in_scores, out_scores, significance / (2 if assume_gaussian else 1),
      delta_dp, split_seed=seed, assume_gaussian=assume_gaussian)


def _check(num_canaries, num_trials, claimed_epsilon, delta_dp, significance):
  if num_canaries < 2 or num_trials < 1:
    raise ValueError(
        f'num_canaries={num_canaries} and num_trials={num_trials}: at least '
        'two canaries and one trial are needed to compare.')
  if not claimed_epsilon > 0:
    raise ValueError(
        f'claimed_epsilon={claimed_epsilon} must be above 0: what the '
        'accountant says.')
  for name, value in (('delta_dp', delta_dp), ('significance', significance)):
    if not 0 < value < 1:
      raise ValueError(f'{name}={value} must lie strictly between 0 and 1.')
