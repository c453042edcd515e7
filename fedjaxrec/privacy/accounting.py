"""From what is released to epsilon; the only file that knows dp-accounting.

A release is described by a `DpEvent` of dp-accounting, by how often it happens
and by the probability that the description fails. The unit of privacy is the
client everywhere: its whole contribution has L2 norm at most 1 in the units of
the noise multiplier, and two neighbouring populations differ by

  add_or_remove_one: one client more or less (Poisson sampling);
  replace_special: one client's data replaced by none, "zero-out", with the
    number of clients public (schedules that are fixed before the run);
  replace_one: one client's data replaced by any other (cohorts of a fixed
    size). It implies replace_special.

Two traps of dp-accounting 0.6 are closed here. Its PLD accountant forgets the
count of a randomized response. And its RDP accountant takes a noise multiplier
as noise over *sensitivity*, which under replace_one is twice the clip norm,
while the events define it as noise over the clip norm: it is halved here.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import dp_accounting
import numpy as np
import scipy.special
import scipy.stats
from dp_accounting import dp_event, pld, rdp
from dp_accounting.pld import pld_pmf, privacy_loss_distribution

from fedjaxrec.privacy.grids import refuse_endless
from fedjaxrec.privacy.integer_noise import DistributedNoise, distributed_rdp

NEIGHBORING = {
    'add_or_remove_one': dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    'replace_special': dp_accounting.NeighboringRelation.REPLACE_SPECIAL,
    'replace_one': dp_accounting.NeighboringRelation.REPLACE_ONE,
}
COARSE = 1e-3  # Interval of the privacy losses for searching and for budgets.
FINE = 1e-4  # Interval for the epsilon that is reported.
# Whole orders: the fractional ones are numerically fragile, and no better here.
ORDERS = (*range(2, 33), *range(34, 65, 2), *range(72, 129, 8), 192, 256, 512)

DpEvent: TypeAlias = Any  # dp_event.DpEvent, which ships no types.


class Release(NamedTuple):
  """Something that everybody may see.

  Attributes:
    event: What dp-accounting calls it.
    times: How often.
    tail_probability: Probability, each time, that the event does not describe
      what happened; it is paid from delta (see `truncation_probability`).
    rounds_per_count: Rounds that are one event together: 1 for independent
      noise, all of them for correlated noise.
    label: Of what.
    totals: Events up to each round, that one included, where they are not
      counted in rounds: those of the client that is in most of them.
  """
  event: DpEvent
  times: int = 1
  tail_probability: float = 0.0
  rounds_per_count: int = 1
  label: str = 'rounds'
  totals: tuple[int, ...] = ()

  def for_rounds(self, first: int, last: int) -> 'Release':
    """The release of the rounds first to last, both included.

    Raises:
      ValueError: For rounds beyond those whose events are known.
    """
    if self.totals:
      if last >= len(self.totals):
        raise ValueError(
            f'last_round={last} lies beyond the {len(self.totals)} rounds that '
            'the noise is calibrated for; begin a new run.')
      return self._replace(times=self.totals[last] - (
          self.totals[first - 1] if first else 0))
    step = self.rounds_per_count
    return self._replace(times=-(-(last + 1) // step) - -(-first // step))


def gaussian(noise_multiplier: float) -> DpEvent:
  """Noise on a sum over everybody. Also DP-FTRL, for a whole run.

  Correlated noise C^-1 z adds up to one Gaussian mechanism on the strategy C
  times all the rounds' sums: one event, also for sums that depend on earlier
  ones (Denisov et al., 2022), if the stddev of z is noise_multiplier * clip
  norm * the sensitivity of C under the participations that the sampler allows.
  """
  return dp_event.GaussianDpEvent(float(noise_multiplier))


def poisson(noise_multiplier: float, sampling_prob: float) -> DpEvent:
  """Noise on the sum of a cohort that every client joins by its own coin."""
  return dp_event.PoissonSampledDpEvent(
      float(sampling_prob), gaussian(noise_multiplier))


def truncated_poisson(
    noise_multiplier: float, sampling_prob: float, num_clients: int, cap: int
) -> DpEvent:
  """The same, where a larger cohort is cut to a uniform subset of `cap`.

  Exact also where the cap binds often; there it costs much (Ganesh, 2025,
  Tighter privacy analysis for truncated Poisson sampling).
  """
  return dp_event.TruncatedSubsampledGaussianDpEvent(
      dataset_size=num_clients, sampling_probability=float(sampling_prob),
      truncated_batch_size=cap, noise_multiplier=float(noise_multiplier))


def fixed_size(
    noise_multiplier: float, num_clients: int, cohort: int
) -> DpEvent:
  """Noise on the sum of `cohort` clients drawn without replacement.

  Only under replace_one. By PLD: `without_replacement_pld`; by RDP: Wang, Balle
  and Kasiviswanathan, 2019.
  """
  return dp_event.SampledWithoutReplacementDpEvent(
      source_dataset_size=num_clients, sample_size=cohort,
      event=gaussian(noise_multiplier))


def randomized_response(
    noise_parameter: float, num_buckets: int, times: int = 1
) -> Release:
  """Local DP: a client's answer, random with probability noise_parameter.

  Under replace_one or replace_special, between two clients' values; the unit is
  one client's `times` answers about one and the same value.
  """
  return Release(dp_event.RandomizedResponseDpEvent(
      float(noise_parameter), num_buckets), times, label='local reports')


def dpals(
    steps: int, gramian: float, scores: float, item_gramians: float,
    items_per_client: int, counts: float = 0.0,
) -> list[Release]:
  """Alternating least squares on noisy sums of statistics.

  In a step the server sees sum u u' over the clients once, and for each of a
  client's at most `items_per_client` items the sums of r u and of u u'; a
  client touches k of these tables, so their joint sensitivity is sqrt(k) times
  one table's.

  Args:
    steps: Times that the statistics are released.
    gramian: Noise multiplier of the global Gramian, in units of |u|^2.
    scores: Of the items' vectors, in units of |r u|.
    item_gramians: Of the items' Gramians, in units of |u|^2.
    items_per_client: Items that a client may report, k.
    counts: Of the items' numbers of clients, released once; 0: not released.

  References:
    Chien et al., 2021, Private alternating least squares; Rendle et al., 2022.
  """
  root = math.sqrt(items_per_client)
  releases = [
      Release(gaussian(z), steps, label=label) for z, label in (
          (gramian, 'Gramian'), (scores / root, 'item vectors'),
          (item_gramians / root, 'item Gramians'))]
  if counts:
    releases.append(Release(gaussian(counts / root), label='item counts'))
  return releases


@dataclasses.dataclass(frozen=True)
class DistributedNoiseDpEvent(dp_event.DpEvent):
  """A secure sum of integers with the clients' noise, whose server knows them.

  By RDP alone, under add_or_remove_one and replace_special: a client moves the
  sum by its own integers, no further than the noise's l2_sensitivity.
  """
  noise: DistributedNoise


def truncation_probability(
    num_clients: int, sampling_prob: float, cap: int
) -> float:
  """Probability that a cap can have touched a round: what it costs in delta.

  Formal guarantee (unit: client; add_or_remove_one and replace_special). If T
  rounds with Poisson cohorts are (epsilon, delta)-DP, then the same rounds with
  every cohort above `cap` cut to a uniform subset of `cap` are (epsilon, delta
  + T p)-DP, p being the returned value.

  Proof. Let x be the client in question, w the coins of all other clients in
  all rounds: they have the same law in both populations and do not depend on x.
  Call w bad if in some round at least `cap` others come up; P(bad) <= T p. For
  every other w no cohort exceeds the cap, with x or without, so that the two
  mechanisms agree. Given w, a Poisson round is the sum over known others plus x
  with probability q, plus noise, and the epsilon of the subsampled Gaussian is
  proven for exactly this, for every w and adaptively. So for any set S
    P[cut(D) in S] <= P[cut(D) in S, not bad] + T p
                   =  E_w[1(not bad) P[plain(D) in S | w]] + T p
                   <= E_w[1(not bad)(e^eps P[plain(D') in S | w] + delta)] + T p
                   <= e^eps P[cut(D') in S] + delta + T p,
  where the last step uses again that the mechanisms agree outside of bad. The
  bound needs no factor e^eps because bad has one law under both populations.

  Args:
    num_clients: Clients that can be drawn, x included.
    sampling_prob: Each one's probability in a round.
    cap: The largest cohort.
  """
  return float(scipy.stats.binom.sf(cap - 1, num_clients - 1, sampling_prob))


def without_replacement_pld(
    noise_multiplier: float, num_clients: int, cohort: int, interval: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
  """Privacy losses of one round of a fixed-size cohort, under replace_one.

  With q = cohort / clients, gamma' = 1 + q (gamma - 1) and H_gamma the hockey-
  stick divergence of two unit-variance Gaussians at distance 2 / z (two vectors
  of norm 1 that point away from each other), a round's divergence at gamma' >=
  1 is at most h(gamma') = q H_gamma (Balle, Barthe and Gaboardi, 2018). The
  relation is symmetric, so below 1 it is at most 1 - gamma' + gamma' h(1 /
  gamma'), and one distribution covers both directions. A convex bound that
  holds for every round, whatever came before, composes (Zhu, Dong and Wang,
  2022); connecting its dots on a grid is an upper bound (Doroshenko et al.,
  2022).

  Treating a fixed cohort as Poisson sampling with half the noise multiplier,
  with one distribution a direction, gives about 10 % less noise; it does not
  follow from the above, since a client may be replaced by one who pulls the
  other way in some rounds and not in others.
  """
  q = cohort / num_clients
  stddev = noise_multiplier / 2  # In units of the sensitivity.
  # What lies beyond has a probability below e^-50, and counts as infinite.
  loss = (10.5 + 1 / stddev) / stddev
  largest = loss if q == 1 else np.logaddexp(
      math.log1p(-q), math.log(q) + loss)
  steps = max(1, math.ceil(largest / interval))
  epsilons = np.arange(1, steps + 1) * interval
  # log(1 + (e^eps - 1) / q), also where e^eps has no float.
  log_gamma = np.logaddexp(
      0, epsilons + np.log(-np.expm1(-epsilons)) - math.log(q))
  log_gamma = np.concatenate([[0.0], log_gamma])
  near = scipy.special.ndtr(0.5 / stddev - stddev * log_gamma)
  far = scipy.special.log_ndtr(-0.5 / stddev - stddev * log_gamma)
  above = q * np.maximum(0, near - np.exp(log_gamma + far))
  ratio = np.exp(-np.concatenate([[0.0], epsilons]))
  below = 1 - ratio + ratio * above
  deltas = np.minimum.accumulate(np.concatenate([below[:0:-1], above]))
  return privacy_loss_distribution.PrivacyLossDistribution(
      pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
          interval, -steps, steps, deltas))


class _PldAccountant(pld.PLDAccountant):
  """dp-accounting's, with counted randomized response and fixed cohorts."""

  _pld: privacy_loss_distribution.PrivacyLossDistribution

  def _maybe_compose(self, event, count, do_compose):
    interval = self._value_discretization_interval
    replace_one = self.neighboring_relation is NEIGHBORING['replace_one']
    if isinstance(event, dp_event.RandomizedResponseDpEvent) and count > 1:
      error = super()._maybe_compose(event, 1, False)
      if error is None and do_compose:
        if event.num_buckets > 1 and event.noise_parameter > 0:
          self._pld = self._pld.compose(
              privacy_loss_distribution.from_randomized_response(
                  event.noise_parameter, event.num_buckets,
                  value_discretization_interval=interval,
                  neighboring_relation=self.neighboring_relation,
              ).self_compose(count))
        else:
          super()._maybe_compose(event, 1, True)
      return error
    if (isinstance(event, dp_event.SampledWithoutReplacementDpEvent)
        and isinstance(event.event, dp_event.GaussianDpEvent) and replace_one):
      if do_compose and event.event.noise_multiplier == 0:
        self._contains_non_dp_event = True
      elif do_compose:
        self._pld = self._pld.compose(without_replacement_pld(
            event.event.noise_multiplier, event.source_dataset_size,
            event.sample_size, interval).self_compose(count))
      return None
    return super()._maybe_compose(event, count, do_compose)


class _RdpAccountant(rdp.RdpAccountant):
  """dp-accounting's, with the clients' noise of a secure sum."""

  def _maybe_compose(self, event, count, do_compose):
    if isinstance(event, DistributedNoiseDpEvent) and (
        self.neighboring_relation is not NEIGHBORING['replace_one']):
      if do_compose:
        self._rdp += count * distributed_rdp(event.noise, self._orders)
      return None
    return super()._maybe_compose(event, count, do_compose)


def _halved(event: DpEvent) -> DpEvent:
  """The event for an accountant that divides by the sensitivity, here 2."""
  if isinstance(event, dp_event.GaussianDpEvent):
    return gaussian(event.noise_multiplier / 2)
  if isinstance(event, dp_event.SampledWithoutReplacementDpEvent):
    return dp_event.SampledWithoutReplacementDpEvent(
        event.source_dataset_size, event.sample_size, _halved(event.event))
  if isinstance(event, dp_event.ComposedDpEvent):
    return dp_event.ComposedDpEvent([_halved(e) for e in event.events])
  if isinstance(event, dp_event.SelfComposedDpEvent):
    return dp_event.SelfComposedDpEvent(_halved(event.event), event.count)
  return event


def epsilon(
    releases: Sequence[Release],
    delta: float,
    *,
    accountant: str = 'pld',
    neighboring: str = 'add_or_remove_one',
    interval: float = COARSE,
) -> float:
  """Returns epsilon of all the releases together, at delta.

  Formal guarantee: an upper bound for adaptive composition, unit client, under
  the neighbouring relation, for noise that is ideal (real-valued and random).
  By PLD a coarser interval is a looser bound, never a wrong one.

  Cost: PLD at N=6,040, cohort 100, 2,000 rounds: 0.1 s at 1e-3, 1 s at 1e-4.

  Args:
    releases: What was released.
    delta: The probability of failure that is allowed, in (0, 1).
    accountant: pld or rdp.
    neighboring: A key of NEIGHBORING.
    interval: Grid of the privacy losses; pld only.

  Returns:
    Epsilon; infinity where nothing is guaranteed at this delta.

  Raises:
    ValueError: For names that are not known, a delta that is no probability,
      too little noise for a grid, or an event that the accountant cannot take.
  """
  if neighboring not in NEIGHBORING:
    raise ValueError(f'neighboring={neighboring!r} is not known; use one of '
                     f'{", ".join(NEIGHBORING)}.')
  if accountant not in ('pld', 'rdp'):
    raise ValueError(f'accountant={accountant!r} is not known; use pld or rdp.')
  if not 0 < delta < 1:
    raise ValueError(f'delta={delta} must lie strictly between 0 and 1.')
  refuse_endless(releases, accountant, neighboring, interval)
  relation = NEIGHBORING[neighboring]
  left = delta - sum(r.times * r.tail_probability for r in releases)
  releases = [release for release in releases if release.times]
  if not releases:
    return 0.0
  if left <= 0:
    return math.inf
  composer = (_PldAccountant(relation, interval) if accountant == 'pld'
              else _RdpAccountant(ORDERS, relation))
  for release in releases:
    event = release.event
    if accountant == 'rdp' and neighboring == 'replace_one':
      event = _halved(event)
    try:
      composer.compose(event, release.times)
    except dp_accounting.UnsupportedEventError as error:
      raise ValueError(
          f'accountant={accountant!r} cannot take {type(event).__name__} under '
          f'neighboring={neighboring!r}; use another accountant.') from error
  return float(composer.get_epsilon(left))


def accountant_name(accountant: str, interval: float = COARSE) -> str:
  """The accountant with its version, as reports and ledgers name it."""
  version = importlib.metadata.version('dp-accounting')
  detail = f', interval {interval:g}' if accountant == 'pld' else ''
  return f'{accountant.upper()} (dp-accounting {version}{detail})'


def split_noise_multiplier(total: float, *others: float) -> float:
  """Noise left for the deltas where a cohort also makes other releases.

  Gaussian releases with noise multipliers z_i are together one with z, 1/z^2 =
  sum 1/z_i^2, also under sampling, because they are one vector.

  Args:
    total: The z that is accounted for.
    *others: Those of the other releases.

  Raises:
    ValueError: Where the others alone spend all of it.
  """
  left = total**-2 - sum(other**-2 for other in others)
  if left <= 0:
    raise ValueError(
        f'noise_multiplier={total:.4g} is spent by the other releases of a '
        f'round, with {", ".join(f"{z:.4g}" for z in others)}; give them more '
        'noise.')
  return left**-0.5


def event_to_json(event: DpEvent) -> dict[str, Any]:
  """Returns an event as JSON types, from its own named tuple."""
  def plain(value):
    if hasattr(value, '_asdict'):
      return {key: plain(item) for key, item in value._asdict().items()}
    if isinstance(value, (list, tuple)):
      return [plain(item) for item in value]
    return value
  if isinstance(event, DistributedNoiseDpEvent):
    return {'module_name': __name__, 'class_name': type(event).__name__,
            **dataclasses.asdict(event.noise)}
  return plain(event.to_named_tuple())


def event_from_json(value: dict[str, Any]) -> DpEvent:
  """Returns the event that `event_to_json` wrote.

  Raises:
    ValueError: For anything else; no other class is ever looked up.
  """
  def build(item):
    if isinstance(item, list):
      return [build(entry) for entry in item]
    if not isinstance(item, dict):
      return item
    fields = {key: build(entry) for key, entry in item.items()
              if key not in ('module_name', 'class_name')}
    name = str(item.get('class_name'))
    if (item.get('module_name'), name) == (
        __name__, DistributedNoiseDpEvent.__name__):
      return DistributedNoiseDpEvent(DistributedNoise(**fields))
    kind: Any = getattr(dp_event, name, None)
    is_event = isinstance(kind, type) and issubclass(kind, dp_event.DpEvent)
    if item.get('module_name') != dp_event.__name__ or not is_event:
      raise ValueError(f'class_name={name!r} is no DpEvent of dp-accounting.')
    return kind(**fields)
  try:
    event = build(value)
  except TypeError as error:
    raise ValueError(f'event={value!r} does not fit its class ({error}).'
                     ) from error
  if not isinstance(event, dp_event.DpEvent):
    raise ValueError(f'event={value!r} is no DpEvent.')
  return event
