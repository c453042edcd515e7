"""What a run with central differential privacy does beside learning.

Before anything compiles: the plan (what is refused, how much noise), the matrix
of correlated noise, the rows that travel. In the run directory: the ledger,
charged before each block of rounds. At the end: what the summary says.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from fedjaxrec.algorithms.dpals import describe_noise
from fedjaxrec.config import Config
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.models.two_tower import SideInputs
from fedjaxrec.orchestration import local_runs
from fedjaxrec.orchestration.head_rows import top_rows
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.privacy import ledger as ledger_lib
from fedjaxrec.privacy import noise_matrices, strategies
from fedjaxrec.privacy.distributed_plan import DistributedPlan
from fedjaxrec.privacy.ledger import LedgerError, PrivacyLedger
from fedjaxrec.privacy.local import LocalPlan
from fedjaxrec.privacy.plan import PrivacyPlan, make_privacy_plan
from fedjaxrec.privacy.schedules import Cohort
from fedjaxrec.reports import run_directory
from fedjaxrec.simulation import Simulation
from fedjaxrec.transforms.correlated_noise import Strategy

# Keeps the noise on the items' popularity apart from other uses of the seed.
_HEAD_STREAM = 0x4EAD
# In metrics.jsonl, on the last line of a block: an anchor of the ledger.
HEAD_FIELD = 'privacy_ledger_head'


class PrivateRun(NamedTuple):
  """What is settled before a private run compiles.

  Attributes:
    plan: What it will do and guarantee.
    config: The run's, with the noise in place of the budget.
    strategy: The matrix of correlated noise; None for independent noise.
    open_rows: bool [num_items]: the rows that are trained; None: all.
  """
  plan: PrivacyPlan | DistributedPlan | LocalPlan
  config: Config
  strategy: Strategy | None
  open_rows: np.ndarray | None


def prepare(
    config: Config, train: Interactions, *, verify: bool = True,
    side: SideInputs | None = None
) -> PrivateRun | None:
  """Settles the privacy of a run, or refuses it; None without a budget.

  Args:
    config: The run's.
    train: The training interactions.
    verify: Whether to compute the epsilon again on the fine grid.
    side: The features that model.name=two_tower reads.

  Raises:
    ValueError: For what would not be private, before anything compiles.
  """
  if config.local_privacy.is_on:
    local, open_rows = local_runs.prepare(config, train, side)
    return PrivateRun(local, dataclasses.replace(
        config, local_privacy=local.config), None, open_rows)
  if not config.privacy.enabled:
    return None
  num_clients, cohort = describe_cohort(config, train.counts)
  plan = make_privacy_plan(config, num_clients, cohort, verify=verify)
  open_rows = choose_head(plan, train, config.seed)
  return PrivateRun(
      plan, plan.calibrated(config), make_strategy(plan), open_rows)


def describe_cohort(
    config: Config, num_examples: np.ndarray
) -> tuple[int, Cohort]:
  """The clients that can take part, and what the sampler guarantees of a round.

  Raises:
    ValueError: Where the groups of a cyclic sampler are not the bands.
  """
  settings = config.cohort
  _, max_cohort = build_sampler(settings, num_examples, config.seed)
  num_clients = int(np.count_nonzero(num_examples))
  size = settings.size or num_clients
  if settings.sampler == 'cyclic':
    return num_clients, Cohort(
        size, 'shuffled', min_separation=-(-num_clients // size))
  if settings.sampler == 'cyclic_poisson' and (
      settings.groups != config.privacy.bands):
    raise ValueError(
        f'cohort.groups={settings.groups} with privacy.bands='
        f'{config.privacy.bands}: amplified banded noise draws from as many '
        'groups as it has bands; give both the same number.')
  by_coins = settings.sampler in ('poisson', 'cyclic_poisson')
  return num_clients, Cohort(
      size, settings.sampler, max_cohort if by_coins else 0)


def make_strategy(plan: PrivacyPlan) -> Strategy | None:
  """The matrix of correlated noise, made for the participations of the plan.

  Cost: up to a second for bands; 4 to 15 s for buffers, once: they are cached.
  """
  config, facts = plan.config, plan.schedule.participation
  if config.mechanism == 'gaussian' or facts is None:
    return None
  none = np.zeros(0)
  if config.mechanism == 'blt':
    decay, scale = noise_matrices.buffered_parameters(
        plan.rounds, facts.min_separation, facts.max_participations,
        config.buffers)
    return Strategy(none, decay, scale, strategies.min_separation_sensitivity(
        noise_matrices.coefficients_of_buffers(decay, scale, plan.rounds),
        facts.min_separation, facts.max_participations))
  column = strategies.banded_coefficients(plan.rounds, config.bands)
  if plan.cohort.sampler == 'cyclic_poisson':
    # A client's rounds are at least as far apart as the bands: its columns do
    # not meet, and each turn of the groups is a release of its own.
    return Strategy(column, none, none, float(np.linalg.norm(column)))
  if (column < 0).any() or (np.diff(column) > 0).any():
    column = strategies.square_root_coefficients(plan.rounds, config.bands)
  return Strategy(column, none, none, strategies.min_separation_sensitivity(
      column, facts.min_separation, facts.max_participations))


def choose_head(
    plan: PrivacyPlan, train: Interactions, seed: int
) -> np.ndarray | None:
  """The rows that are trained, the most popular ones: bool [num_items].

  By the training interactions as they are, where they are declared public;
  otherwise by the sum of the clients' 0/1 vectors, each scaled to norm 1, plus
  Gaussian noise of the plan's head_noise_multiplier: one release, L2
  sensitivity 1, unit the client.

  Raises:
    ValueError: If there are no more items than that.
  """
  def count():
    if plan.config.head_source != 'private':
      return np.bincount(train.items, minlength=train.num_items)
    weight = np.repeat(1 / np.sqrt(np.maximum(train.counts, 1)), train.counts)
    popularity = np.bincount(train.items, weight, train.num_items)
    # Another budget is other noise: with the same, their difference has none.
    noise = np.random.default_rng(
        [_HEAD_STREAM, seed, zlib.crc32(repr(plan.config).encode())])
    return popularity + noise.normal(
        0, plan.head_noise_multiplier * plan.noise_scale, train.num_items)

  return top_rows(
      'privacy.head_items', plan.config.head_items, train.num_items, count)


def say_warnings(private: PrivateRun) -> None:
  """Prints what the user should know before the run."""
  for warning in private.plan.warnings:
    logging.warning('%s', warning)


def open_ledger(
    private: PrivateRun, config: Config, workdir: pathlib.Path, resuming: bool
) -> PrivacyLedger:
  """Begins a run's ledger, or continues it, and charges what comes first.

  Args:
    private: The run's privacy.
    config: The run's config, as it was given.
    workdir: The run directory.
    resuming: Whether there is a run to be continued; one that has logged no
      round may be without a ledger, which is begun then.

  Raises:
    LedgerError: If the ledger is missing, was edited or cut off, or is that of
      another config.
    BudgetExceededError: If the first release would pass the budget.
  """
  header = ledger_lib.make_header(private.plan, config)
  heads = [line[HEAD_FIELD] for line in run_directory.read_metrics(workdir)
           if HEAD_FIELD in line] if resuming else []
  path = workdir / ledger_lib.FILE_NAME
  there = path.exists()
  if there and resuming and not heads and b'\n' not in path.read_bytes():
    # The run was killed while its first line was written: nothing was released.
    path.unlink()
    there = False
  if heads and not there:
    raise LedgerError(
        f'{path} is missing, though the run has '
        'released rounds: what they cost is not known. Restore it from a copy, '
        'or begin a new run.')
  book = (ledger_lib.resume(workdir, header, heads[-1] if heads else '')
          if there else ledger_lib.create(workdir, header))
  for release in private.plan.initial_releases:
    book.spend(release)
  return book


def charge(
    book: PrivacyLedger, private: PrivateRun, first_round: int, num_rounds: int
) -> str:
  """Charges for rounds that are about to run; the ledger's head after it.

  Raises:
    BudgetExceededError: If they would pass the budget; they must not run.
  """
  if num_rounds:
    book.spend(private.plan.round_release, first_round,
               first_round + num_rounds - 1)
  return book.head


def charging(simulation: Simulation, pay) -> Simulation:
  """The same simulation, which pays for rounds before it runs them.

  Args:
    simulation: Any.
    pay: (first_round, num_rounds) -> None; raises where it is refused.
  """
  def run(state, first_round, num_rounds):
    pay(first_round, num_rounds)
    return simulation.run(state, first_round, num_rounds)

  return simulation._replace(run=run)


def describe(
    private: PrivateRun | None, book: PrivacyLedger | None,
    lines: Sequence[dict[str, Any]] = ()
) -> dict[str, Any] | None:
  """The section `privacy` of summary.json; None without a budget.

  Args:
    private: The run's privacy.
    book: Its ledger, all rounds charged.
    lines: Of metrics.jsonl.
  """
  if private is None:
    return None
  said = private.plan.summary()
  if private.config.algorithm.name == 'dpals':
    said |= describe_noise(private.config)
  said['rejected'] = sum(line.get('rejected', 0) for line in lines)
  if private.strategy is not None:
    said['strategy_sensitivity'] = private.strategy.sensitivity
  if private.open_rows is not None:
    said['open_rows'] = int(private.open_rows.sum())
  if book is not None:
    said['ledger'] = {
        'epsilon': book.epsilon(), 'charges': len(book.entries),
        'rounds': 1 + max(
            (entry.last_round for entry in book.entries), default=-1),
        'head': book.head}
  return said


def with_some_noise(config: Config) -> Config:
  """A config as large as the calibrated one, for estimates before any plan."""
  local = config.local_privacy
  if local.is_on and not local.delta:
    config = dataclasses.replace(
        config, local_privacy=dataclasses.replace(local, delta=1e-5))
  if not config.privacy.epsilon:
    return config
  return dataclasses.replace(config, privacy=dataclasses.replace(
      config.privacy, epsilon=0.0, noise_multiplier=1.0, head_source='public',
      bit_noise_stddev=1.0 if config.privacy.clipping == 'adaptive' else 0.0))
