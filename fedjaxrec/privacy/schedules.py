"""A mechanism under a sampler: which bound is valid for the two together."""

from collections.abc import Callable
from typing import NamedTuple

from fedjaxrec.privacy import accounting
from fedjaxrec.privacy.accounting import Release

# Share of delta that cutting large cohorts may cost; beyond, the exact event.
_TAIL_SHARE = 0.05


class Cohort(NamedTuple):
  """What the sampler guarantees about a round.

  Attributes:
    size: Clients in a round, on average.
    sampler: A name of `config.SAMPLERS`, or cyclic_poisson: the clients are
      spread over `bands` groups, and round t draws from group t mod bands by
      coins.
    cap: The most clients in a round; poisson and cyclic_poisson only.
    min_separation: Rounds from one participation of a client to its next, where
      the sampler guarantees more than its name says; 0 elsewhere.
  """
  size: int
  sampler: str
  cap: int = 0
  min_separation: int = 0


class Participation(NamedTuple):
  """How often a client can come, which correlated noise must know.

  Attributes:
    min_separation: Rounds from one participation to the next, at least.
    max_participations: In the whole run, at most.
  """
  min_separation: int
  max_participations: int


class Schedule(NamedTuple):
  """A mechanism under a sampler, for the accountant.

  Attributes:
    make_release: noise multiplier -> release, for any number of rounds.
    neighboring: A key of `accounting.NEIGHBORING`.
    sampling_prob: Share of the clients that is in a round.
    sampling: In words.
    participation: None where the noise is independent.
    cap_note: A warning about the cap; empty without one.
  """
  make_release: Callable[[float], Release]
  neighboring: str
  sampling_prob: float
  sampling: str
  participation: Participation | None = None
  cap_note: str = ''


def make_schedule(
    mechanism: str, num_clients: int, cohort: Cohort, rounds: int,
    delta: float, *, bands: int = 1, min_separation: int = 0,
) -> Schedule:
  """Describes a mechanism under a sampler, or refuses.

  Formal guarantee: the relation and the event of the result describe noise of
  stddev noise_multiplier * clip norm on a round's sum (gaussian), or the same
  times the sensitivity of the strategy under `participation` on z before C^-1
  (banded, blt; the columns of an amplified banded strategy have norm at most 1
  and its sensitivity is 1).

  Args:
    mechanism: gaussian, banded or blt.
    num_clients: Clients that can be drawn.
    cohort: What the sampler guarantees.
    rounds: Of the run.
    delta: Probability of failure, of which a cap may use a small share.
    bands: Of mechanism=banded.
    min_separation: What the strategy is to be made for; 0: all there is.

  Raises:
    ValueError: Where no bound is known that would be valid.
  """
  if not 1 <= cohort.size <= num_clients:
    raise ValueError(
        f'cohort.size={cohort.size} must lie between 1 and the {num_clients} '
        'clients that can take part.')
  q = cohort.size / num_clients
  share = f'{cohort.size:,} of {num_clients:,} clients'
  if cohort.sampler == 'weighted':
    raise ValueError(
        "cohort.sampler='weighted' with a privacy budget: clients with a large "
        'weight come more often than any bound here allows for; use '
        'cohort.sampler=poisson.')
  if mechanism == 'gaussian':
    if cohort.sampler == 'poisson':
      make_release, note = _poisson_release(
          num_clients, q, cohort.cap or num_clients, rounds, delta)
      return Schedule(make_release, 'add_or_remove_one', q,
                      f'Poisson, each client with probability {q:.4g}, cut at '
                      f'{cohort.cap or num_clients:,}', cap_note=note)
    if cohort.size == num_clients:
      return Schedule(lambda z: Release(accounting.gaussian(z)),
                      'replace_special', 1.0, 'every client in every round')
    if cohort.sampler == 'uniform':
      return Schedule(
          lambda z: Release(accounting.fixed_size(z, num_clients, cohort.size)),
          'replace_one', q, f'fixed size, {share} without replacement')
    if cohort.sampler == 'shuffled':
      epoch = -(-num_clients // cohort.size)
      return Schedule(
          lambda z: Release(accounting.gaussian(z), rounds_per_count=epoch),
          'replace_special', q,
          f'every client once in {epoch} rounds; no amplification by sampling')
  elif cohort.sampler == 'cyclic_poisson' and mechanism == 'banded':
    group = num_clients // bands  # The smallest one bounds the probability.
    if not cohort.size <= group:
      raise ValueError(
          f'cohort.size={cohort.size} with privacy.bands={bands}: a group has '
          f'only {group} of the {num_clients} clients; use fewer bands.')
    make_release, note = _poisson_release(
        -(-num_clients // bands), cohort.size / group,
        cohort.cap or num_clients, -(-rounds // bands), delta)
    return Schedule(
        lambda z: make_release(z)._replace(rounds_per_count=bands),
        'replace_special', q,
        f'Poisson within one of {bands} groups in turn, each client with '
        f'probability {cohort.size / group:.4g}',
        Participation(bands, -(-rounds // bands)), note)
  elif cohort.sampler == 'shuffled':
    epoch = -(-num_clients // cohort.size)
    # Last in one epoch, first in the next: the order is shuffled afresh.
    guaranteed = cohort.min_separation or 1
    wanted = min_separation or guaranteed
    if wanted > guaranteed:
      raise ValueError(
          f'privacy.min_separation={wanted} with cohort.sampler='
          f'{cohort.sampler!r}, which guarantees {guaranteed}: a client could '
          'come sooner than the noise allows for; lower it, or use a sampler '
          'that keeps the order of the clients.')
    if mechanism == 'banded' and bands > wanted:
      raise ValueError(
          f'privacy.bands={bands} with a separation of {wanted} rounds: '
          'banded noise needs a client to wait at least as many rounds as it '
          'has bands; lower privacy.bands, use a sampler that guarantees more, '
          'or privacy.mechanism=blt.')
    return Schedule(
        lambda z: Release(accounting.gaussian(z), rounds_per_count=rounds),
        'replace_special', q,
        f'every client once in {epoch} rounds, at least {wanted} rounds apart; '
        'no amplification by sampling',
        Participation(wanted, min(-(-rounds // epoch), -(-rounds // wanted))))
  ways = {'gaussian': 'poisson', 'banded': 'cyclic_poisson or shuffled',
          'blt': 'shuffled'}
  raise ValueError(
      f'privacy.mechanism={mechanism!r} with cohort.sampler='
      f'{cohort.sampler!r}: no valid bound is known here for the two together; '
      f'use cohort.sampler={ways[mechanism]}.')


def _poisson_release(num_clients, q, cap, rounds, delta):
  """Poisson sampling with a cap: (noise multiplier -> release, warning)."""
  tail = accounting.truncation_probability(num_clients, q, cap)
  if rounds * tail <= _TAIL_SHARE * delta:
    return lambda z: Release(
        accounting.poisson(z, q), tail_probability=tail), ''
  return (
      lambda z: Release(accounting.truncated_poisson(z, q, num_clients, cap)),
      f'cohort.cap={cap} cuts cohorts often (in a round with probability '
      f'{tail:.1e}), which costs epsilon; use cohort.cap=0.')
