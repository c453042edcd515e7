"""What a run whose clients add the noise will do and guarantee.

The counterpart of `plan` for noise inside a secure sum: the same ledger, the
same report, the same questions answered. The adversary is the server itself,
and everybody who sees the sums.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedjaxrec.config import Config, PrivacyConfig
from fedjaxrec.privacy import accounting
from fedjaxrec.privacy.accounting import DistributedNoiseDpEvent, Release
from fedjaxrec.privacy.calibration import Calibration
from fedjaxrec.privacy.integer_noise import DistributedNoise
from fedjaxrec.privacy.plan import check_delta
from fedjaxrec.privacy.schedules import Schedule
from fedjaxrec.privacy.scope import refuse_unsound, what_is_uncovered

LABEL = 'sums with the busiest client'
HEAD_LABEL = 'item popularity, from a secure sum over all clients'
FIDELITY = (
    'no trusted server at the levels with cryptography; noise from a seeded '
    'generator, known to the operator of the simulation: the figures hold for '
    'ideal noise, for clients that keep their share to themselves, and for the '
    'fewest survivors whose sum is opened')
# By RDP alone is this noise accounted for, whatever privacy.accountant says.
_ACCOUNTANT = 'rdp'


class DistributedPlan(NamedTuple):
  """The privacy of a run with secure.noise, settled before it starts.

  Attributes:
    config: The section `privacy` of the config, with the accountant that knows
      this noise.
    noise: Of one sum, in the integers of the run's ring.
    num_clients: Clients of the population that the guarantee is about.
    cohort: Clients expected in a round.
    rounds: Rounds that the noise is calibrated for.
    totals: Sums up to each round that hold the client that is in most of them.
    delta: Of the guarantee.
    warnings: For the user, before the run.
    uncovered: What the epsilon says nothing about.
    head: Of the one sum of the items' popularity, before the first round, by
      which the rows that travel are chosen; None where they are public.
  """
  config: PrivacyConfig
  noise: DistributedNoise
  num_clients: int
  cohort: int
  rounds: int
  totals: tuple[int, ...]
  delta: float
  warnings: tuple[str, ...]
  uncovered: tuple[str, ...]
  head: DistributedNoise | None = None

  @property
  def round_release(self) -> Release:
    """What rounds release; they cost what the busiest client is in."""
    return Release(
        DistributedNoiseDpEvent(self.noise), label=LABEL, totals=self.totals)

  @property
  def initial_releases(self) -> tuple[Release, ...]:
    """What is released once, before the first round."""
    if self.head is None:
      return ()
    return (Release(DistributedNoiseDpEvent(self.head), label=HEAD_LABEL),)

  @property
  def l2_clip_norm(self) -> float:
    """L2 bound of one client's delta, before it is rounded."""
    return self.noise.l2_clip_norm

  @property
  def schedule(self) -> Schedule:
    """The mechanism under the sampler, without amplification."""
    return Schedule(
        lambda z: self.round_release, 'replace_special', 1.0,
        f'no amplification by sampling: the server invites the clients and '
        f'knows them; the busiest one is in {self.totals[-1]:,} of '
        f'{self.rounds:,} rounds, which is what is composed')

  @property
  def calibration(self) -> Calibration:
    """The noise that is accounted for; nobody else can cross-check it."""
    return Calibration(
        self.noise.noise_multiplier, self.epsilon(),
        accounting.accountant_name(_ACCOUNTANT), math.nan, math.nan,
        accounting.accountant_name('pld'))

  def epsilon(self, rounds: int | None = None) -> float:
    """Epsilon after some rounds; None: after all of them."""
    rounds = self.rounds if rounds is None else rounds
    releases = list(self.initial_releases)
    if rounds:
      releases.append(self.round_release.for_rounds(0, rounds - 1))
    if not releases:
      return 0.0
    return accounting.epsilon(
        releases, self.delta, accountant=_ACCOUNTANT,
        neighboring='replace_special')

  def guarantee(self) -> str:
    """The guarantee in one sentence, with its unit and its relation."""
    return (f'epsilon = {self.epsilon():.4g} at delta = {self.delta:.3g}, unit '
            'client, neighbouring relation replace_special, against the server '
            f'and everybody who sees the sums; {self.schedule.sampling}; by '
            f'{accounting.accountant_name(_ACCOUNTANT)}')

  def summary(self) -> dict[str, Any]:
    """The section `privacy` of summary.json, for the planned rounds."""
    noise = self.noise
    return {
        'unit': 'client', 'neighboring': 'replace_special',
        'epsilon': self.epsilon(), 'delta': self.delta,
        'noise_multiplier': noise.noise_multiplier,
        'l2_clip_norm': noise.l2_clip_norm,
        'row_clip_norm': self.config.row_clip_norm or None,
        'sampling_prob': 1.0,
        'accountant': accounting.accountant_name(_ACCOUNTANT),
        'fidelity': FIDELITY, 'guarantee': self.guarantee(),
        'sampling': self.schedule.sampling, 'mechanism': noise.mechanism,
        'epsilon_budget': self.config.epsilon or None, 'rounds': self.rounds,
        'sums_of_the_busiest_client': self.totals[-1],
        'num_clients': self.num_clients, 'cohort': self.cohort,
        'cross_check': {
            'accountant': accounting.accountant_name('pld'), 'epsilon': None,
            'noise_multiplier': None},
        'min_survivors': noise.min_survivors,
        'share_stddev_integers': noise.share_stddev,
        'l2_sensitivity_integers': noise.l2_sensitivity,
        'head_items': self.config.head_items,
        'head_source': (
            self.config.head_source if self.config.head_items else None),
        'head_noise_multiplier': (
            self.head.noise_multiplier if self.head else 0.0),
        'head_min_survivors': self.head.min_survivors if self.head else None,
        'deployment_cohort': None,
        'warnings': list(self.warnings), 'uncovered': list(self.uncovered),
    }


def make_distributed_plan(
    config: Config, noise: DistributedNoise, num_clients: int, cohort: int,
    totals: Sequence[int], delta: float, head: DistributedNoise | None = None
) -> DistributedPlan:
  """Settles the privacy of a run with secure.noise, or refuses it.

  Formal guarantee: the sums of all rounds, and the one that chooses the rows,
  are together (epsilon, delta)-DP, unit client, under replace_special, for
  ideal noise and at least the fewest survivors; `uncovered` says what that
  leaves out.

  Args:
    config: The run's, as it was given.
    noise: Of one of its sums, calibrated.
    num_clients: Clients that can take part.
    cohort: Clients expected in a round.
    totals: See `DistributedPlan`; for each round.
    delta: Of the guarantee.
    head: Of the sum that chooses rows; None where the choice is public.

  Raises:
    ValueError: For what would not be private.
  """
  refuse_unsound(config)
  if num_clients < 2:
    raise ValueError(f'num_clients={num_clients}: nobody can hide in a '
                     'population of one; use more clients.')
  uncovered = [
      # Its line on seeds is about float noise.
      *(line for line in what_is_uncovered(config, num_clients)
        if not line.startswith('Seeds:')),
      'Seeds: the noise is drawn by a seeded generator, so whoever knows the '
      "run's seed can take it off; a release to others needs another one.",
      'Participation: who was invited, who survived, which rounds were '
      'aborted and how many clients a sum holds are known to the server.',
      'Company: clients that work with the server know their own shares of '
      'the noise; epsilon counts the shares of the '
      f'{noise.min_survivors:,} fewest survivors as unknown to it.',
  ]
  if config.secure.level == 'ideal':
    uncovered.append(
        'secure.level=ideal: the sum is taken without cryptography; whoever '
        'takes it sees the updates as they are.')
  return DistributedPlan(
      dataclasses.replace(config.privacy, accountant=_ACCOUNTANT), noise,
      num_clients, cohort, config.rounds,
      tuple(int(n) for n in totals), delta,
      tuple(check_delta(delta, num_clients)), tuple(uncovered), head)
