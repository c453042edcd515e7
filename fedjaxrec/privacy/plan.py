"""What a run with central differential privacy will do and guarantee.

`make_privacy_plan` is what training asks: it refuses what cannot be private,
calibrates the noise, and says in which units it is to be added. The unit of
privacy is the client, the adversary sees the shared model after every round.

A small simulation of a large deployment (`deployment_cohort` = M, a simulated
cohort of m out of N): the deployment draws M out of N M / m clients, so each
with the same probability as here, and adds noise of stddev z C to the sum of M
deltas; that is z C / M on their mean. The simulation divides by m, so it adds z
C m / M to its sum: the utility is that of the deployment. So is the epsilon: it
holds for the deployment's clients, while those of the simulation are protected
by M / m times less noise than it asks for (pfl-research does the same by its
`noise_cohort_size`). The default delta is that of the deployment's population.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from fedjaxrec.config import Config, PrivacyConfig
from fedjaxrec.participation import samplers
from fedjaxrec.privacy import accounting, calibration
from fedjaxrec.privacy.accounting import Release
from fedjaxrec.privacy.schedules import Cohort, Schedule, make_schedule
from fedjaxrec.privacy.scope import refuse_unsound, what_is_uncovered

FIDELITY = ('trusted server; float32 Gaussian noise from a seeded generator: '
            'the figures hold for ideal noise')


class PrivacyPlan(NamedTuple):
  """The privacy of a run, settled before it starts.

  Stddevs are those that the simulation adds; they hold the factor cohort /
  deployment cohort.

  Attributes:
    config: The section `privacy` of the config.
    num_clients: Clients of the population that the guarantee is about.
    cohort: Their cohort.
    rounds: Rounds that the noise is calibrated for.
    delta: Of the guarantee.
    schedule: The mechanism under the sampler.
    calibration: The noise multiplier that is accounted for, and by whom.
    noise_multiplier: The same for the deltas alone, larger where a round
      releases more than them; noise stddev on the sum, in clip norms.
    noise_scale: Simulated cohort over deployment cohort; 1 without one.
    noise_stddev_items: On every entry of the item table's sum; for correlated
      noise to be multiplied by the sensitivity of the strategy. With adaptive
      clipping at the initial clip norm; it is proportional to it.
    noise_stddev_shared: The same for the shared parameters.
    bit_noise_stddev: On the number of clients below the clip norm, whose bits
      are -1/2 and 1/2; 0 without adaptive clipping.
    count_noise_stddev: On every item's number of contributors, the clients' 0/1
      vectors being scaled down to count_clip_norm; 0 if not released.
    head_noise_multiplier: Of the one release of item popularity, each client's
      0/1 vector being scaled down to norm 1; 0 if not released.
    warnings: For the user, before the run.
    uncovered: What the epsilon says nothing about.
  """
  config: PrivacyConfig
  num_clients: int
  cohort: Cohort
  rounds: int
  delta: float
  schedule: Schedule
  calibration: calibration.Calibration
  noise_multiplier: float
  noise_scale: float
  noise_stddev_items: float
  noise_stddev_shared: float
  bit_noise_stddev: float
  count_noise_stddev: float
  head_noise_multiplier: float
  warnings: tuple[str, ...]
  uncovered: tuple[str, ...]

  @property
  def round_release(self) -> Release:
    """What a round releases; `for_rounds` of it is what rounds release."""
    return self.schedule.make_release(self.calibration.noise_multiplier)

  @property
  def initial_releases(self) -> tuple[Release, ...]:
    """What is released once, before the first round."""
    return _head_releases(self.head_noise_multiplier)

  @property
  def divisor(self) -> int:
    """What the noisy sum is divided by: the expected cohort, which is public.

    The clients that came are not: their number must not be used.
    """
    return round(self.cohort.size * self.noise_scale)

  @property
  def l2_clip_norm(self) -> float:
    """L2 bound of one client's whole delta; the initial one if adaptive."""
    return _l2_bound(self.config)

  def calibrated(self, config: Config) -> Config:
    """The config with the noise in place of the budget, for the simulation.

    Of its section `privacy` the noise multiplier is what the deltas and the
    bits of adaptive clipping share, in units of the deployment. A private
    choice of head items has been made by then, and is not asked for again.
    """
    multiplier = self.calibration.noise_multiplier
    if self.config.release_counts:
      multiplier /= math.sqrt(1 - self.config.count_share)
    return dataclasses.replace(config, privacy=dataclasses.replace(
        self.config, epsilon=0.0, noise_multiplier=multiplier,
        bit_noise_stddev=self.bit_noise_stddev / self.noise_scale,
        head_source='public'))

  def epsilon(self, rounds: int | None = None, *, accountant: str | None = None,
              interval: float = accounting.COARSE) -> float:
    """Epsilon after some rounds; None: after all of them."""
    rounds = self.rounds if rounds is None else rounds
    releases = [*self.initial_releases,
                self.round_release.for_rounds(0, rounds - 1)]
    return accounting.epsilon(
        releases, self.delta, accountant=accountant or self.config.accountant,
        neighboring=self.schedule.neighboring, interval=interval)

  def guarantee(self) -> str:
    """The guarantee in one sentence, with its unit and its relation."""
    place = ''
    if self.config.deployment_cohort:
      place = (f' in the simulated deployment of {self.num_clients:,} clients '
               f'with cohorts of {self.cohort.size:,}, not for the clients of '
               'this simulation')
    return (f'epsilon = {self.calibration.epsilon:.4g} at delta = '
            f'{self.delta:.3g}, unit client, neighbouring relation '
            f'{self.schedule.neighboring}, {self.schedule.sampling}, by '
            f'{self.calibration.accountant}{place}')

  def summary(self) -> dict[str, Any]:
    """The section `privacy` of summary.json, for the planned rounds."""
    found, config = self.calibration, self.config
    return {
        'unit': 'client', 'neighboring': self.schedule.neighboring,
        'epsilon': found.epsilon, 'delta': self.delta,
        'noise_multiplier': found.noise_multiplier,
        'l2_clip_norm': self.l2_clip_norm,
        'row_clip_norm': config.row_clip_norm or None,
        'sampling_prob': self.schedule.sampling_prob,
        'accountant': found.accountant, 'fidelity': FIDELITY,
        'guarantee': self.guarantee(), 'sampling': self.schedule.sampling,
        'mechanism': config.mechanism, 'rounds': self.rounds,
        'num_clients': self.num_clients, 'cohort': self.cohort.size,
        'cohort_cap': self.cohort.cap,
        'epsilon_budget': config.epsilon or None,
        'cross_check': {
            'accountant': found.cross_accountant,
            'epsilon': _finite(found.cross_epsilon),
            'noise_multiplier': _finite(found.cross_noise_multiplier)},
        'delta_spent_on_cap': (
            self.round_release.for_rounds(0, self.rounds - 1).times
            * self.round_release.tail_probability),
        'clipping': config.clipping,
        'delta_noise_multiplier': self.noise_multiplier,
        'noise_stddev_items': self.noise_stddev_items,
        'noise_stddev_shared': self.noise_stddev_shared,
        'bit_noise_stddev': self.bit_noise_stddev,
        'count_noise_stddev': self.count_noise_stddev,
        'count_clip_norm': (
            config.count_clip_norm if config.release_counts else None),
        'head_items': config.head_items,
        'head_source': config.head_source if config.head_items else None,
        'head_noise_multiplier': self.head_noise_multiplier,
        'deployment_cohort': config.deployment_cohort or None,
        'noise_scale': self.noise_scale,
        'warnings': list(self.warnings), 'uncovered': list(self.uncovered),
    }


def check_delta(
    delta: float, num_clients: int, name: str = 'privacy.delta'
) -> list[str]:
  """Warns where delta lets a whole client's data leak."""
  if delta * num_clients < 1:
    return []
  return [f'{name}={delta:.3g} is not below 1 / {num_clients:,} '
          f'(N = {num_clients:,} clients): publishing one client whole would '
          f'pass for private; use at most {default_delta(num_clients):.2g}.']


def default_delta(num_clients: int) -> float:
  """N^-1.1, the delta of a run that names none."""
  return num_clients**-1.1


def make_privacy_plan(
    config: Config,
    num_clients: int,
    cohort: Cohort,
    rounds: int | None = None,
    *,
    verify: bool = True,
    cross_check: bool = False,
) -> PrivacyPlan:
  """Settles the privacy of a run, or refuses it.

  Formal guarantee: a run that clips, samples and adds noise as the plan says is
  (epsilon, delta)-DP for its shared parameters after every round, unit client,
  under the plan's neighbouring relation, for ideal noise; `uncovered` says what
  that leaves out.

  Cost: 1 to 5 s for Poisson and fixed cohorts, nothing for blt.

  Args:
    config: The run's, with a budget in its section `privacy`.
    num_clients: Clients that can be drawn.
    cohort: Who is in a round of the simulation.
    rounds: None: config.rounds.
    verify: Whether to compute epsilon again on the fine grid.
    cross_check: Whether the other accountant calibrates as well.

  Raises:
    ValueError: For what would not be private, each with the way out.
  """
  privacy = config.privacy
  rounds = config.rounds if rounds is None else rounds
  refuse_unsound(config)
  if num_clients < 2:
    raise ValueError(f'num_clients={num_clients}: nobody can hide in a '
                     'population of one; use more clients.')
  scale, simulated = 1.0, num_clients
  if privacy.deployment_cohort:
    num_clients, cohort, scale = _deployment(
        privacy.deployment_cohort, num_clients, cohort)
  delta = privacy.delta or default_delta(num_clients)
  schedule = make_schedule(
      privacy.mechanism, num_clients, cohort, rounds, delta,
      bands=privacy.bands, min_separation=privacy.min_separation)

  head = 0.0
  if privacy.head_source == 'private':
    head = calibration.search(
        _head_releases, privacy.head_epsilon_share * privacy.epsilon, delta,
        accountant=privacy.accountant, neighboring=schedule.neighboring)

  def make_releases(z):
    return [*_head_releases(head),
            schedule.make_release(z).for_rounds(0, rounds - 1)]

  options: dict[str, Any] = {
      'accountant': privacy.accountant, 'neighboring': schedule.neighboring,
      'verify': verify}
  if privacy.epsilon:
    found = calibration.calibrate(
        make_releases, privacy.epsilon, delta, cross_check=cross_check,
        **options)
  else:
    found = calibration.evaluate(
        make_releases, privacy.noise_multiplier, delta, **options)

  z, others = found.noise_multiplier, []
  bits = counts = 0.0
  if privacy.clipping == 'adaptive':
    # A cohort so small that its twentieth would spend everything gets more.
    bits = privacy.bit_noise_stddev or max(cohort.size / 20, z)
    others.append(2 * bits)  # A bit is -1/2 or 1/2.
  if privacy.release_counts:
    others.append(z / math.sqrt(privacy.count_share))
    counts = others[-1] * privacy.count_clip_norm
  try:
    of_deltas = accounting.split_noise_multiplier(z, *others)
  except ValueError as error:
    raise ValueError(
        f'privacy.bit_noise_stddev={bits:.4g} with a noise multiplier of '
        f'{z:.4g}: {error}') from error
  if privacy.clips_groups:  # Two releases, each with half of 1 / z^2.
    norms = (privacy.item_clip_norm, privacy.shared_clip_norm)
    stddevs = [math.sqrt(2) * of_deltas * norm * scale for norm in norms]
  else:
    stddevs = [of_deltas * privacy.l2_clip_norm * scale] * 2
  warnings = check_delta(delta, num_clients)
  if schedule.cap_note:
    warnings.append(schedule.cap_note)
  if schedule.participation and schedule.participation.min_separation == 1:
    warnings.append(
        'the sampler shuffles afresh in every epoch, so a client can come in '
        'two rounds in a row, and correlated noise must allow for it; a '
        'sampler that keeps the order needs far less.')
  return PrivacyPlan(
      privacy, num_clients, cohort, rounds, delta, schedule, found, of_deltas,
      scale, stddevs[0], stddevs[1], bits * scale, counts * scale, head,
      tuple(warnings), tuple(what_is_uncovered(config, simulated)))


def _head_releases(noise_multiplier: float) -> tuple[Release, ...]:
  if not noise_multiplier:
    return ()
  return (Release(accounting.gaussian(noise_multiplier),
                  label='item popularity'),)


def _l2_bound(config: PrivacyConfig) -> float:
  if config.clips_groups:
    return math.hypot(config.item_clip_norm, config.shared_clip_norm)
  return config.l2_clip_norm


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def _deployment(size, num_clients, cohort):
  """The deployment's (clients, cohort), and the factor on the noise."""
  if size < cohort.size:
    raise ValueError(
        f'privacy.deployment_cohort={size} is smaller than the simulated '
        f'cohort of {cohort.size}: the simulation would have less noise than '
        'the deployment; use at least that, or 0.')
  population = num_clients * size // cohort.size
  cap = cohort.cap and samplers.poisson_cap(population, size)
  return population, cohort._replace(size=size, cap=cap), cohort.size / size
