"""Grids of privacy losses that no memory holds: refused beforehand."""

import math
from collections.abc import Iterable
from typing import Any

# Places of a grid that are made: some gigabytes, and up to a minute.
_MOST_PLACES = 1e7


def refuse_endless(
    releases: Iterable[Any], accountant: str, neighboring: str, interval: float
) -> None:
  """Refuses noise so small that PLD's grid of privacy losses has no end.

  A Gaussian's losses lie about 1 / (2 z^2), and T rounds of cohorts that hold a
  share q of the clients add up to some q T / (2 z^2): an estimate of the grid,
  not of epsilon. Where it is refused, epsilon is in the hundreds or above.

  Args:
    releases: `accounting.Release`s.
    accountant: Only pld has a grid.
    neighboring: A key of `accounting.NEIGHBORING`; under replace_one two
      contributions are twice as far apart.
    interval: Grid of the losses.

  Raises:
    ValueError: With the noise multiplier, and ways out.
  """
  if accountant != 'pld':
    return
  distance = 2 if neighboring == 'replace_one' else 1
  for release in releases:
    z, share = _gaussian(release.event)
    if not z or not release.times:  # No noise is infinite without a grid.
      continue
    losses = (distance / z)**2 / 2 * (1 + share * release.times)
    if losses > _MOST_PLACES * interval:
      raise ValueError(
          f'noise_multiplier={z:.4g} in {release.times:,} releases of '
          f'{release.label}: epsilon would be in the hundreds or above, which '
          "guarantees nothing, and fills the PLD accountant's grid beyond the "
          'memory; give more noise (about 1 is usual), or use '
          'privacy.accountant=rdp; or to clip without noise leave out '
          'privacy.noise_multiplier and privacy.epsilon.')


def _gaussian(event: Any) -> tuple[float, float]:
  """(noise multiplier, share of the clients in a round) of an event.

  What is no Gaussian has infinite noise here: its grid is not looked at.
  """
  share = 1.0
  while True:
    if hasattr(event, 'sampling_probability'):
      share *= event.sampling_probability
    elif hasattr(event, 'source_dataset_size'):
      share *= event.sample_size / event.source_dataset_size
    if hasattr(event, 'noise_multiplier'):
      return float(event.noise_multiplier), share
    if not hasattr(event, 'event'):
      return math.inf, share
    event = event.event
