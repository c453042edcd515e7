"""What noise for what epsilon, before a run: mechanisms side by side.

Everything is in units of the clip norm. `noise_multiplier` is what reaches the
accountant; what reaches the model depends on how the noise is correlated, so
the figure to compare is `prefix_rmse`: the root mean squared error, over the
rounds, of one entry of the sum of all rounds so far.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedjaxrec.participation import samplers
from fedjaxrec.privacy import calibration, plan, schedules, strategies

# Name -> (mechanism of the config, sampler, in words).
MECHANISMS = {
    'poisson': ('gaussian', 'poisson', 'independent noise, Poisson cohorts'),
    'fixed': ('gaussian', 'uniform', 'independent noise, fixed-size cohorts'),
    'shuffled': ('gaussian', 'shuffled', 'independent noise, every client once '
                                         'an epoch'),
    'banded': ('banded', 'cyclic_poisson', 'banded matrix factorisation, '
                                           'Poisson cohorts in turn'),
    'blt': ('blt', 'shuffled', 'DP-FTRL, every client once an epoch, in one '
                               'order'),
}


def plan_rows(
    population: int,
    cohort: int,
    rounds: Sequence[int],
    delta: float,
    epsilons: Sequence[float],
    *,
    mechanisms: Sequence[str] = tuple(MECHANISMS),
    bands: Sequence[int] = (8,),
    verify: bool = True,
) -> Iterator[dict[str, Any]]:
  """Yields one row for each number of rounds, epsilon, mechanism and band.

  The error of banded is that of an optimised Toeplitz strategy; that of blt is
  an estimate from above, of the square root cut at an epoch.

  Cost: 1 to 5 s a row; nothing for shuffled and blt.

  Args:
    population: Clients.
    cohort: Clients in a round, on average.
    rounds: Numbers of rounds.
    delta: Of the guarantee; 0: population^-1.1.
    epsilons: Budgets.
    mechanisms: Names of MECHANISMS.
    bands: Of banded.
    verify: Whether to compute each epsilon again on the fine grid.

  Raises:
    ValueError: For a value that makes no sense, before the first row.
  """
  for name, values in (('rounds', rounds), ('epsilons', epsilons),
                       ('mechanisms', mechanisms), ('bands', bands)):
    if not values:
      raise ValueError(f'{name} is empty; give at least one value.')
  for name in mechanisms:
    if name not in MECHANISMS:
      raise ValueError(f'mechanisms={name!r} is not known; choose from '
                       f'{", ".join(MECHANISMS)}.')
  if population < 2:
    raise ValueError(f'population={population} must be at least 2.')
  if not 1 <= cohort <= population:
    raise ValueError(f'cohort={cohort} must lie between 1 and population='
                     f'{population}.')
  for name, values in (('rounds', rounds), ('bands', bands)):
    if min(values) < 1:
      raise ValueError(f'{name}={min(values)} must be at least 1.')
  delta = delta or plan.default_delta(population)
  for epsilon in epsilons:
    calibration.check_budget(epsilon, delta)
  return _rows(population, cohort, rounds, delta, epsilons, mechanisms, bands,
               verify)


def _rows(population, cohort, rounds, delta, epsilons, mechanisms, bands,
          verify):
  for total in rounds:
    for epsilon in epsilons:
      for name in mechanisms:
        for width in (bands if name == 'banded' else (1,)):
          yield _row(population, cohort, total, delta, epsilon, name, width,
                     verify)


def _row(population, cohort, rounds, delta, epsilon, name, bands, verify):
  mechanism, sampler, _ = MECHANISMS[name]
  cap = (samplers.poisson_cap(population, cohort)
         if sampler.endswith('poisson') else 0)
  epoch = -(-population // cohort)
  row: dict[str, Any] = {
      'rounds': rounds, 'epsilon': epsilon, 'delta': delta, 'mechanism': name,
      'bands': bands if name == 'banded' else None}
  try:
    schedule = schedules.make_schedule(
        mechanism, population, schedules.Cohort(
            cohort, sampler, cap, epoch if name == 'blt' else 0),
        rounds, delta, bands=bands)
  except ValueError as error:  # This one cannot be had; the others can.
    return {**row, 'noise_multiplier': None, 'refused': str(error)}
  found = calibration.calibrate(
      lambda z: [schedule.make_release(z).for_rounds(0, rounds - 1)],
      epsilon, delta, neighboring=schedule.neighboring, verify=verify,
      # Fixed cohorts by RDP take ten times as long; its epsilon tells enough.
      cross_check=name != 'fixed')
  release = schedule.make_release(found.noise_multiplier)
  z = found.noise_multiplier
  return {
      **row, 'noise_multiplier': z, 'sampling': schedule.sampling,
      'sampling_prob': schedule.sampling_prob,
      'neighboring': schedule.neighboring,
      'cohort_cap': cap or None,
      'delta_spent_on_cap': release.for_rounds(
          0, rounds - 1).times * release.tail_probability,
      'epsilon_verified': found.epsilon, 'accountant': found.accountant,
      'cross_check': {
          'accountant': found.cross_accountant,
          'epsilon': _finite(found.cross_epsilon),
          'noise_multiplier': _finite(found.cross_noise_multiplier)},
      'prefix_rmse': z * _prefix_rmse(name, rounds, bands, epoch),
  }


def _prefix_rmse(name, rounds, bands, epoch):
  """Error of the prefix sums for a noise multiplier of one."""
  if name == 'banded':
    strategy = strategies.banded_coefficients(rounds, bands)
    return (strategies.prefix_sum_rmse(strategy)
            * float(np.linalg.norm(strategy)))
  if name == 'blt':
    # Noise that reaches over an epoch, and not further, is best or nearly so.
    strategy = strategies.square_root_coefficients(rounds, min(epoch, rounds))
    return (strategies.prefix_sum_rmse(strategy)
            * strategies.min_separation_sensitivity(
                strategy, epoch, -(-rounds // epoch)))
  return math.sqrt((rounds + 1) / 2)


def _finite(value):
  return value if math.isfinite(value) else None
