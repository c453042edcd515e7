"""From a budget to the noise: the search, its check, its cross-check."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import scipy.optimize

from fedjaxrec.privacy import accounting

# No simulation wants more or less noise than this, in units of the clip norm.
_SMALLEST, _LARGEST = 0.02, 1e6
MakeReleases = Callable[[float], Sequence[accounting.Release]]


class Calibration(NamedTuple):
  """A noise multiplier, and by whom it was found sufficient.

  Attributes:
    noise_multiplier: What the releases were made with.
    epsilon: Of the releases, by the accountant, at the fine interval where it
      was verified and at the coarse one elsewhere.
    accountant: Its name and version.
    cross_epsilon: Of the same releases by the other accountant; NaN where it
      cannot take them.
    cross_noise_multiplier: What the other accountant would have asked for; NaN
      where it was not asked.
    cross_accountant: Its name and version.
  """
  noise_multiplier: float
  epsilon: float
  accountant: str
  cross_epsilon: float
  cross_noise_multiplier: float
  cross_accountant: str


def check_budget(epsilon: float, delta: float) -> None:
  """Refuses a budget that is none."""
  if not (math.isfinite(epsilon) and epsilon > 0):
    raise ValueError(
        f'epsilon={epsilon} must be a finite number above 0; a usual budget '
        'lies between 1 and 10.')
  if not (math.isfinite(delta) and 0 < delta < 1):
    raise ValueError(
        f'delta={delta} must lie strictly between 0 and 1, far below one over '
        'the number of clients.')


def search(
    make_releases: MakeReleases,
    epsilon: float,
    delta: float,
    *,
    accountant: str = 'pld',
    neighboring: str = 'add_or_remove_one',
    tolerance: float = 1e-4,
    guess: float = 1.0,
) -> float:
  """Returns about the smallest noise multiplier that keeps to the budget.

  The result keeps to it; the smallest one is at most `tolerance`, relatively,
  below. A grid ten times as coarse finds the bracket.

  Args:
    make_releases: noise multiplier -> everything that the run releases; its
      epsilon must fall where the multiplier grows.
    epsilon: The budget.
    delta: Its probability of failure.
    accountant: pld or rdp.
    neighboring: A key of `accounting.NEIGHBORING`.
    tolerance: Relative.
    guess: Where to start.

  Raises:
    ValueError: For a budget that is none, or that no noise keeps to.
  """
  check_budget(epsilon, delta)

  def gap(log_z, interval=accounting.COARSE):
    spent = accounting.epsilon(
        make_releases(math.exp(log_z)), delta, accountant=accountant,
        neighboring=neighboring, interval=interval)
    return min(spent, 1e3 * epsilon) - epsilon  # Infinity stops the search.

  def coarse(log_z):
    return gap(log_z, 10 * accounting.COARSE)

  step = math.log(1.5)
  high = math.log(guess)
  while coarse(high) > 0:
    high += step
    if high > math.log(_LARGEST):
      raise ValueError(
          f'epsilon={epsilon} at delta={delta} cannot be kept by any noise '
          f'multiplier up to {_LARGEST:g}; the releases that it does not touch '
          'spend it already, or delta does not cover the cap of the cohorts.')
  low = high - step
  while coarse(low) <= 0:
    high, low = low, low - step
    if low < math.log(_SMALLEST):
      return _SMALLEST  # More than enough for such a budget.
  if accountant == 'pld':  # The coarse grid asks for a little too much.
    high = scipy.optimize.brentq(coarse, low, high, xtol=1e-3)
    while gap(high) > 0:
      high += 0.01
    low, width = high - 0.02, 0.02
    while gap(low) <= 0:
      high, low, width = low, low - 2 * width, 2 * width
  root = scipy.optimize.brentq(gap, low, high, xtol=tolerance / 2)
  while gap(root) > 0:
    root += tolerance / 2
  return math.exp(root)


def calibrate(
    make_releases: MakeReleases,
    epsilon: float,
    delta: float,
    *,
    accountant: str = 'pld',
    neighboring: str = 'add_or_remove_one',
    tolerance: float = 1e-4,
    verify: bool = True,
    cross_check: bool = True,
) -> Calibration:
  """Finds the noise for a budget, and lets a second accountant look at it.

  Formal guarantee: the releases with the returned noise multiplier are
  (epsilon, delta)-DP, as far as `accounting.epsilon` says.

  Cost, N=6,040, cohort 100, 2,000 rounds: a second or two; verifying another
  second.

  Args:
    make_releases: See `search`.
    epsilon: The budget.
    delta: Its probability of failure.
    accountant: pld or rdp.
    neighboring: A key of `accounting.NEIGHBORING`.
    tolerance: Relative, of the noise multiplier.
    verify: Whether to compute the epsilon again on the fine grid (pld).
    cross_check: Whether to ask the other accountant for its noise multiplier;
      without, it gives its epsilon only.

  Raises:
    ValueError: See `search`.
  """
  options: dict[str, Any] = {
      'accountant': accountant, 'neighboring': neighboring}
  z = search(make_releases, epsilon, delta, tolerance=tolerance, **options)
  spent, interval = _verify(
      make_releases, z, delta, verify and accountant == 'pld', **options)
  while spent > epsilon:  # The fine grid is the judge.
    z *= 1 + tolerance
    spent, interval = _verify(
        make_releases, z, delta, interval == accounting.FINE, **options)
  other: dict[str, Any] = {
      'accountant': 'rdp' if accountant == 'pld' else 'pld',
      'neighboring': neighboring}
  try:
    cross_epsilon = accounting.epsilon(make_releases(z), delta, **other)
    cross_z = search(
        make_releases, epsilon, delta, tolerance=10 * tolerance, guess=z,
        **other
    ) if cross_check else math.nan
  except ValueError:
    cross_epsilon = cross_z = math.nan
  return Calibration(
      z, spent, accounting.accountant_name(accountant, interval),
      cross_epsilon, cross_z, accounting.accountant_name(other['accountant']))


def evaluate(
    make_releases: MakeReleases,
    noise_multiplier: float,
    delta: float,
    *,
    accountant: str = 'pld',
    neighboring: str = 'add_or_remove_one',
    verify: bool = True,
) -> Calibration:
  """The same record for a noise multiplier that is given.

  Raises:
    ValueError: For an accountant that cannot take the releases.
  """
  options: dict[str, Any] = {
      'accountant': accountant, 'neighboring': neighboring}
  spent, interval = _verify(make_releases, noise_multiplier, delta,
                            verify and accountant == 'pld', **options)
  other = 'rdp' if accountant == 'pld' else 'pld'
  try:
    cross = accounting.epsilon(make_releases(noise_multiplier), delta,
                               accountant=other, neighboring=neighboring)
  except ValueError:
    cross = math.nan
  return Calibration(
      noise_multiplier, spent,
      accounting.accountant_name(accountant, interval), cross, math.nan,
      accounting.accountant_name(other))


def _verify(make_releases, z, delta, fine, **options) -> tuple[float, float]:
  interval = accounting.FINE if fine else accounting.COARSE
  return accounting.epsilon(
      make_releases(z), delta, interval=interval, **options), interval
