"""What a run with local differential privacy will do and guarantee.

A user pays for every upload that leaves its device, so the epsilon of a run is
that of the user who takes part most often: T uploads, composed. The adversary
sees each upload, the server included; nothing is amplified by sampling, because
the server invites the clients and knows who came.

An epsilon-private mechanism with any outputs is at most as revealing as
randomized response of one bit with the same epsilon, also when many are
composed adaptively (Kairouz, Oh and Viswanath, 2015, `The Composition Theorem
for Differential Privacy <https://arxiv.org/abs/1311.0776>`_, theorem 3.3): that
is what the accountant is told of laplace and priv_unit, and of reports of
items. Gaussian uploads compose as Gaussians of sensitivity twice the clip norm.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjaxrec.config import Config, LocalPrivacyConfig
from fedjaxrec.privacy import accounting
from fedjaxrec.privacy.accounting import Release
from fedjaxrec.privacy.plan import check_delta, default_delta
from fedjaxrec.privacy.scope import start_uncovered
from fedjaxrec.transforms.local_privacy import (
    local_gaussian_stddev,
    local_laplace_scale,
)
from fedjaxrec.transforms.priv_unit import priv_unit_parameters

UNIT = 'user (local: each upload is randomised on the device)'
NEIGHBORING = 'replace_one'
UPLOADS, ITEM_REPORTS = 'local uploads', 'local item reports'
_FIDELITY = ('no trusted server; float32 draws from a seeded generator, known '
             'to the operator of the simulation: the figures hold for ideal '
             'randomness that stays on the device')


class LocalPlan(NamedTuple):
  """The local privacy of a run, settled before it starts.

  Attributes:
    config: The section, its delta settled.
    num_clients: Clients with an interaction.
    rounds: Of the run.
    totals: Uploads up to each round of the user who has sent most by then.
    mean_participations: Of a client with an interaction, in the run.
    dimension: Numbers of an upload.
    warnings: For the user, before the run.
    uncovered: What the epsilon says nothing about.
  """
  config: LocalPrivacyConfig
  num_clients: int
  rounds: int
  totals: tuple[int, ...]
  mean_participations: float
  dimension: int
  warnings: tuple[str, ...]
  uncovered: tuple[str, ...]

  @property
  def participations(self) -> int:
    """Uploads of the busiest user."""
    return self.totals[-1]

  @property
  def delta(self) -> float:
    """Of a user's whole run."""
    return self.config.delta

  @property
  def noise_multiplier(self) -> float:
    """Noise stddev over the clip norm; 0 where the mechanism is no noise."""
    config = self.config
    if config.mechanism == 'gaussian':
      return local_gaussian_stddev(1.0, config.epsilon, config.delta)
    if config.mechanism == 'laplace':
      return math.sqrt(2) * local_laplace_scale(1.0, config.epsilon)
    return 0.0

  @property
  def round_release(self) -> Release:
    """A round's uploads, as they add up for the busiest user."""
    event = (accounting.gaussian(self.noise_multiplier)
             if self.config.mechanism == 'gaussian'
             else _as_one_bit(self.config.epsilon))
    return Release(event, label=UPLOADS, totals=self.totals)

  @property
  def initial_releases(self) -> tuple[Release, ...]:
    """Reports of items, before the first round."""
    if self.config.head_choice == 'public':
      return ()
    return (Release(_as_one_bit(self.config.head_epsilon), label=ITEM_REPORTS),)

  def epsilon(self, rounds: int | None = None, *, accountant: str = 'pld',
              interval: float = accounting.COARSE) -> float:
    """Epsilon of the busiest user after some rounds; None: after all."""
    rounds = self.rounds if rounds is None else rounds
    releases = list(self.initial_releases)
    if rounds:
      releases.append(self.round_release.for_rounds(0, rounds - 1))
    return accounting.epsilon(
        releases, self.delta, accountant=accountant, neighboring=NEIGHBORING,
        interval=interval)

  def summary(self) -> dict[str, Any]:
    """The section `privacy` of summary.json, for the planned rounds."""
    config, spent = self.config, self.epsilon()
    squares = {
        'gaussian': lambda: self.dimension * self.noise_multiplier**2,
        'laplace': lambda: self.dimension * self.noise_multiplier**2,
        'priv_unit': lambda: priv_unit_parameters(
            config.epsilon, self.dimension).mean_cosine**-2}
    reports = (f', after one report of an item at {config.head_epsilon:g}'
               if self.initial_releases else '')
    guarantee = (
        f'local epsilon = {spent:.4g} at delta = {self.delta:.3g} for the '
        f'busiest user, over {self.participations} uploads of epsilon '
        f'{config.epsilon:g} each{reports} (mean {self.mean_participations:.3g}'
        f' uploads), neighbouring relation {NEIGHBORING}, unit user, against '
        f'the server too, by {accounting.accountant_name("pld")}')
    return {
        'unit': UNIT, 'neighboring': NEIGHBORING, 'epsilon': None,
        'delta': self.delta, 'noise_multiplier': self.noise_multiplier or None,
        'l2_clip_norm': (
            None if config.mechanism == 'laplace' else config.clip_norm),
        'sampling_prob': 1.0, 'accountant': accounting.accountant_name('pld'),
        'fidelity': _FIDELITY, 'mechanism': config.mechanism,
        'rounds': self.rounds, 'num_clients': self.num_clients,
        'head_items': config.head_items,
        'head_source': config.head_choice if config.head_items else None,
        'local': {
            'epsilon': spent, 'delta': self.delta, 'unit': UNIT,
            'mechanism': config.mechanism, 'guarantee': guarantee,
            'epsilon_of_an_upload': config.epsilon,
            'delta_of_an_upload': (
                self.delta if config.mechanism == 'gaussian' else 0.0),
            'epsilon_of_an_item_report': (
                config.head_epsilon if self.initial_releases else None),
            'participations': self.participations,
            'mean_participations': self.mean_participations,
            'epsilon_by_adding_up': (
                self.participations * config.epsilon
                + len(self.initial_releases) * config.head_epsilon),
            'clip_norm': config.clip_norm, 'dimension': self.dimension,
            'upload_norm_over_clip_norm': math.sqrt(
                squares[config.mechanism]())},
        'warnings': list(self.warnings), 'uncovered': list(self.uncovered),
    }


def make_local_plan(
    config: Config, counts: np.ndarray, sampler: Callable[[int], np.ndarray],
    dimension: int
) -> LocalPlan:
  """Settles the local privacy of a run.

  Formal guarantee: a run whose clients send nothing but uploads randomised as
  the config says, and the reports of items that it asks for, is (epsilon,
  delta)-locally private for each user over all that the user ever sends:
  neighbours differ in one user's data, replaced by any other.

  Args:
    config: The run's, with a section local_privacy that is on.
    counts: int [num_clients]: training interactions.
    sampler: round -> ids of the clients that are invited.
    dimension: Numbers of an upload.
  """
  times: Counter[int] = Counter()
  most, totals = 0, []
  for r in range(config.rounds):
    # A client without interactions is invited, and has nothing to send.
    senders = [int(c) for c in sampler(r) if counts[c] > 0]
    times.update(senders)
    most = max([most, *(times[c] for c in senders)])
    totals.append(most)
  num_clients = int((counts > 0).sum())
  local = config.local_privacy
  delta = local.delta or default_delta(num_clients)
  warnings = check_delta(delta, num_clients, 'local_privacy.delta')
  if local.mechanism == 'priv_unit' and dimension < 4:
    raise ValueError(
        f'local_privacy.mechanism=priv_unit with {dimension} numbers in an '
        'upload: a direction needs four; use laplace.')
  return LocalPlan(
      dataclasses.replace(local, delta=delta), num_clients, config.rounds,
      tuple(totals), sum(times.values()) / max(1, num_clients), dimension,
      tuple(warnings), tuple(_uncovered(config)))


def _as_one_bit(epsilon: float) -> accounting.DpEvent:
  """Randomized response of a bit: what any epsilon-private report reveals.

  It answers at random with probability 2 / (1 + e^epsilon).
  """
  return accounting.randomized_response(
      2 / (1 + math.exp(epsilon)), 2).event


def _uncovered(config: Config) -> list[str]:
  found = [
      'Who takes part, and when: the server invites the clients, and those '
      'without an interaction send nothing.',
      'Whether an upload was left out because its delta was not finite.',
      'Evaluation: test and validation metrics, metrics.jsonl and the report '
      'are computed from the data without noise.',
      'Statistics of a cohort that are logged (loss, examples): keep them '
      'inside the simulation.',
      'Personal parameters: they depend on their own client without noise, and '
      'stay on the device.',
      'Seeds: the randomness is reproducible by whoever knows the seed.',
      'Tuning: other runs on the same data are in no ledger.',
  ]
  local = config.local_privacy
  if local.head_items and local.head_choice == 'public':
    found.append(
        f'Head items: the choice of the {local.head_items:,} rows that travel '
        'is declared public.')
  if config.evaluation.selection == 'best':
    found.append(
        'Selection: the best round is chosen on validation data without noise; '
        'evaluation.selection=last needs no such choice.')
  return found + start_uncovered(config)
