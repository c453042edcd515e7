"""The privacy ledger of a run: append-only, chained, and asked before spending.

`privacy_ledger.jsonl` holds a header (what is promised to whom) and one line a
block of rounds (what was released, as a `DpEvent`). Every line holds the SHA-
256 of the line before it, so that an edited, removed or reordered line is
found. Two limits. Somebody who may write the file can compute the whole chain
anew; and a file that ends early is a whole, shorter ledger. Both need an anchor
outside the file: keep `PrivacyLedger.head` elsewhere (the checkpoint, a signed
release) and give it to `read` again.

A block is charged before it runs. A run that is resumed from an older
checkpoint repeats rounds with the same key on the same config: the same
release, with the same noise, which tells nobody anything new. So rounds that
are in the ledger are not charged again, and a config with another digest is
refused.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

from fedjaxrec.config import Config, to_dict
from fedjaxrec.privacy import accounting, chain, local
from fedjaxrec.privacy.accounting import Release
from fedjaxrec.privacy.distributed_plan import DistributedPlan
from fedjaxrec.privacy.local import LocalPlan
from fedjaxrec.privacy.plan import PrivacyPlan

FILE_NAME = 'privacy_ledger.jsonl'
_VERSION = 1
# They change nothing that is released.
_FREE_SECTIONS = ('engine', 'parallel', 'checkpoint', 'evaluation', 'rounds')


class BudgetExceededError(ValueError):
  """The release would pass the budget; it has not happened."""


class LedgerError(ValueError):
  """The ledger was edited, is damaged, or belongs to another run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """What a ledger promises.

  Attributes:
    unit: Whose data: client, or of local privacy `local.UNIT`.
    neighboring: A key of `accounting.NEIGHBORING`.
    delta: Of the guarantee.
    budget_epsilon: What must not be passed at that delta.
    accountant: pld or rdp: who judges.
    accountant_version: In words.
    population: Clients that the guarantee is about.
    sampling: The sampling actually used, in words.
    l2_clip_norm: Bound of one client's delta, on which epsilon rests.
    row_clip_norm: Bound of each of its item rows before that, on which nothing
      rests; 0 for none.
    noise_multiplier: What is accounted for.
    planned_rounds: Rounds that the noise was calibrated for.
    config_digest: `config_digest` of the run.
    deployment_cohort: Of the deployment that is simulated; 0 for none.
    uncovered: What the epsilon says nothing about.
  """
  unit: str = 'client'
  neighboring: str
  delta: float
  budget_epsilon: float
  accountant: str
  accountant_version: str
  population: int
  sampling: str
  l2_clip_norm: float
  noise_multiplier: float
  planned_rounds: int
  config_digest: str
  deployment_cohort: int = 0
  row_clip_norm: float = 0.0
  uncovered: tuple[str, ...] = ()


class Spending(NamedTuple):
  """What a ledger says was spent.

  Attributes:
    epsilon: By the header's accountant.
    cross_epsilon: By the other one; NaN where it cannot take the events.
    rounds: Rounds that were charged.
    releases: What they are composed of, equal events counted together.
  """
  epsilon: float
  cross_epsilon: float
  rounds: int
  releases: tuple[Release, ...]


class Entry(NamedTuple):
  """One charge: rounds first to last, or -1 and -1 for none in particular."""
  release: Release
  first_round: int
  last_round: int


def config_digest(config: Config) -> str:
  """SHA-256 of what decides the releases of a run, its seed included.

  More rounds, other metrics, devices and checkpoints are no other releases;
  where the data lies is not either.
  """
  values = to_dict(config)
  for section in _FREE_SECTIONS:
    values.pop(section, None)
  for field in ('path', 'cache_dir'):
    values.get('data', {}).pop(field, None)
  return hashlib.sha256(chain.canonical(values)).hexdigest()


def make_header(
    plan: PrivacyPlan | DistributedPlan | LocalPlan, config: Config
) -> Header:
  """The header of a run's ledger; without a budget, the plan's epsilon is it.
  """
  if isinstance(plan, LocalPlan):
    return Header(
        unit=local.UNIT, neighboring=local.NEIGHBORING, delta=plan.delta,
        budget_epsilon=plan.epsilon(), accountant='pld',
        accountant_version=accounting.accountant_name('pld'),
        population=plan.num_clients,
        sampling='no amplification by sampling: the server invites the '
                 f'clients; the busiest one sends {plan.participations:,} '
                 'uploads, which is what is composed',
        l2_clip_norm=plan.config.clip_norm,
        noise_multiplier=plan.noise_multiplier, planned_rounds=plan.rounds,
        config_digest=config_digest(config), uncovered=plan.uncovered)
  return Header(
      neighboring=plan.schedule.neighboring, delta=plan.delta,
      budget_epsilon=plan.config.epsilon or plan.epsilon(),
      accountant=plan.config.accountant,
      accountant_version=accounting.accountant_name(plan.config.accountant),
      population=plan.num_clients, sampling=plan.schedule.sampling,
      l2_clip_norm=plan.l2_clip_norm,
      noise_multiplier=plan.calibration.noise_multiplier,
      planned_rounds=plan.rounds, config_digest=config_digest(config),
      deployment_cohort=plan.config.deployment_cohort,
      row_clip_norm=plan.config.row_clip_norm, uncovered=plan.uncovered)


class PrivacyLedger:
  """A ledger that is open for spending; made by `create`, `read` or `resume`.

  Attributes:
    header: What is promised.
    entries: What was charged, in order.
    head: SHA-256 of the last line: what an outside anchor should keep.
  """

  def __init__(self, path, header, entries, head, size):
    self.path = pathlib.Path(path)
    self.header: Header = header
    self.entries: list[Entry] = entries
    self.head: str = head
    self._size = size
    self._known_good: tuple[Release, ...] = ()

  def spend(
      self, release: Release, first_round: int = -1, last_round: int = -1
  ) -> bool:
    """Charges for a release before it happens, or refuses it.

    Args:
      release: For rounds: what one of them (or `rounds_per_count` of them)
        releases. For a release outside the rounds: with its count.
      first_round: First round of a block; -1: outside the rounds.
      last_round: Last one, included.

    Returns:
      Whether anything was charged; False where the ledger has it already.

    Raises:
      BudgetExceededError: If epsilon would pass the budget. Nothing is written.
      LedgerError: If the release is not the one that these rounds had before,
        if rounds before them were never charged, or if another process writes.
    """
    earlier = [entry for entry in self.entries
               if entry.release.label == release.label]
    if first_round < 0:
      if earlier:
        _same(earlier[-1].release, release)
        return False
      charge = release
    else:
      if not first_round <= last_round:
        raise ValueError(f'last_round={last_round} lies before first_round='
                         f'{first_round}; give a block of at least one round.')
      done = earlier[-1].last_round + 1 if earlier else 0
      if earlier:
        _same(earlier[-1].release, release)
      if last_round < done:
        return False
      if first_round > done:
        raise LedgerError(
            f'first_round={first_round}, but {self.path} has no charge for '
            f'rounds {done} to {first_round - 1}; it is not the ledger of this '
            'run, or was cut short: restore it, or begin a new run.')
      first_round = done
      charge = release.for_rounds(first_round, last_round)
    self._refuse_beyond_budget(charge, last_round)
    self._append(Entry(charge, first_round, last_round))
    return True

  def epsilon(self, accountant: str = '',
              interval: float = accounting.COARSE) -> float:
    """Epsilon of all that was charged; by the header's accountant, or another.

    Raises:
      ValueError: For an accountant that cannot take the events.
    """
    return self._epsilon(_merged(self.entries), accountant, interval)

  def recompute(self, interval: float = accounting.COARSE) -> Spending:
    """Epsilon from the file alone, by both accountants."""
    other = 'rdp' if self.header.accountant == 'pld' else 'pld'
    try:
      cross = self.epsilon(other, interval)
    except ValueError:
      cross = math.nan
    return Spending(
        self.epsilon(interval=interval), cross,
        max((entry.last_round + 1 for entry in self.entries), default=0),
        _merged(self.entries))

  def _epsilon(self, releases, accountant='', interval=accounting.COARSE):
    header = self.header
    return accounting.epsilon(
        releases, header.delta, accountant=accountant or header.accountant,
        neighboring=header.neighboring, interval=interval)

  def _refuse_beyond_budget(self, charge, last_round):
    budget = self.header.budget_epsilon
    wanted = _merged([*self.entries, Entry(charge, 0, 0)])
    if _at_most(wanted, self._known_good):
      return
    # Whole runs are asked for block by block; if all of it fits, so do they.
    if 0 <= last_round < self.header.planned_rounds:
      whole = _merged([
          *(entry for entry in self.entries
            if entry.release.label != charge.label),
          Entry(charge.for_rounds(0, self.header.planned_rounds - 1), 0, 0)])
      if _at_most(wanted, whole) and self._epsilon(whole) <= budget:
        self._known_good = whole
        return
    spent = self._epsilon(wanted)
    if not spent <= budget * (1 + 1e-9):
      before = self._epsilon(_merged(self.entries))
      raise BudgetExceededError(
          f'privacy.epsilon={budget:.6g} would be passed: spent so far '
          f'{before:.6g}, with {charge.label}'
          + (f' up to {last_round}' if last_round >= 0 else '')
          + f' {spent:.6g}, at delta={self.header.delta:.3g} (planned: '
          f'{self.header.planned_rounds} rounds). Nothing of it was released; '
          'stop here, or begin a new run with more noise for the rounds that '
          'are wanted.')
    self._known_good = wanted

  def _append(self, entry):
    body = {
        'kind': 'release', 'label': entry.release.label,
        'first_round': entry.first_round, 'last_round': entry.last_round,
        'event': accounting.event_to_json(entry.release.event),
        'count': entry.release.times,
        'tail_probability': entry.release.tail_probability,
        'rounds_per_count': entry.release.rounds_per_count}
    line, head = chain.seal(body, self.head)
    with open(self.path, 'r+b') as file:
      file.seek(0, os.SEEK_END)
      if file.tell() != self._size:
        raise LedgerError(
            f'{self.path} has grown or shrunk since it was opened: another '
            'process writes it; let one run at a time use a run directory.')
      file.write(line)
      file.flush()
      os.fsync(file.fileno())
    self.entries.append(entry)
    self.head = head
    self._size += len(line)


def create(workdir: str | os.PathLike[str], header: Header) -> PrivacyLedger:
  """Begins the ledger of a new run.

  Raises:
    LedgerError: If there is one already: what was spent stays spent.
  """
  path = pathlib.Path(workdir) / FILE_NAME
  body = {'kind': 'header', 'version': _VERSION, **dataclasses.asdict(header)}
  line, head = chain.seal(body, chain.GENESIS)
  try:
    with open(path, 'xb') as file:
      file.write(line)
      file.flush()
      os.fsync(file.fileno())
  except FileExistsError as error:
    raise LedgerError(
        f'{path} exists: what was spent stays spent. Continue that run with '
        '--resume, or choose another --workdir.') from error
  return PrivacyLedger(path, header, [], head, len(line))


def read(
    workdir: str | os.PathLike[str], expected_head: str = ''
) -> PrivacyLedger:
  """Reads a ledger and checks its chain.

  A last line that was only half written is left out, and `resume` removes it:
  it was never confirmed, so nothing was released under it.

  Args:
    workdir: The run directory.
    expected_head: A head that was kept elsewhere; the chain must contain it.

  Raises:
    FileNotFoundError: If the run has no ledger.
    LedgerError: If the ledger was edited, reordered, cut, or is no ledger.
  """
  path = pathlib.Path(workdir) / FILE_NAME
  if not path.is_file():
    raise FileNotFoundError(
        f'{path} does not exist: the run had no privacy budget, or {workdir} '
        'is no run directory.')
  content = path.read_bytes()
  whole = content[:content.rfind(b'\n') + 1]
  lines = whole.splitlines()
  if not lines:
    raise LedgerError(f'{path} holds no whole line; restore it from a copy.')
  head, heads, header = chain.GENESIS, [], None
  entries: list[Entry] = []
  for number, line in enumerate(lines, 1):
    try:
      body, head = chain.unseal(line, head)
    except ValueError as error:
      raise LedgerError(f'{path}, line {number}: {error} Restore the ledger '
                        'from a copy.') from error
    heads.append(head)
    try:
      if number == 1:
        header = _parse_header(body)
      else:
        entries.append(_parse_entry(body))
    except (KeyError, TypeError, ValueError) as error:
      raise LedgerError(
          f'{path}, line {number}: not of this version ({error!r}); read it '
          'with the version that wrote it.') from error
  if expected_head and expected_head not in heads:
    raise LedgerError(
        f'{path} does not contain the line {expected_head[:12]} that was '
        'recorded outside it: the end was cut off, or it was written anew; '
        'restore it from a copy.')
  assert header is not None  # The first line is there.
  return PrivacyLedger(path, header, entries, head, len(whole))


def resume(
    workdir: str | os.PathLike[str], header: Header, expected_head: str = ''
) -> PrivacyLedger:
  """Opens the ledger of a run that is continued.

  Args:
    workdir: The run directory.
    header: What the continued run would promise.
    expected_head: See `read`.

  Raises:
    FileNotFoundError: If the run has no ledger.
    LedgerError: If the config, the budget or the population is another one.
  """
  ledger = read(workdir, expected_head)
  for field in ('config_digest', 'neighboring', 'delta', 'accountant',
                'population', 'l2_clip_norm', 'deployment_cohort'):
    old, new = getattr(ledger.header, field), getattr(header, field)
    if old != new:
      raise LedgerError(
          f'{field}={new!r} differs from {old!r} in {ledger.path}: another '
          'config would release the same rounds again with other noise, which '
          'nobody has accounted for. Resume with the config of the run, or '
          'begin a new one.')
  # A half-written line goes before anything is appended to it.
  if ledger.path.stat().st_size != ledger._size:
    with open(ledger.path, 'r+b') as file:
      file.truncate(ledger._size)
      os.fsync(file.fileno())
  return ledger


def _same(old: Release, new: Release) -> None:
  """Refuses to call another release by the name of an earlier one."""
  if (old.event != new.event or old.rounds_per_count != new.rounds_per_count
      or old.tail_probability != new.tail_probability):
    raise LedgerError(
        f'release={new.event} differs from {old.event}, which the ledger has '
        f'for {old.label}: the mechanism of a run cannot change; begin a new '
        'run.')


def _merged(entries) -> tuple[Release, ...]:
  """Equal releases, counted together."""
  merged: list[Release] = []
  for entry in entries:
    new = entry.release
    for index, old in enumerate(merged):
      if (old.event, old.tail_probability, old.label) == (
          new.event, new.tail_probability, new.label):
        merged[index] = old._replace(times=old.times + new.times)
        break
    else:
      merged.append(new)
  return tuple(merged)


def _at_most(releases, others) -> bool:
  """Whether the others hold every release, at least as often."""
  counts = {(r.label, json.dumps(accounting.event_to_json(r.event)),
             r.tail_probability): r.times for r in others}
  return all(
      counts.get((r.label, json.dumps(accounting.event_to_json(r.event)),
                  r.tail_probability), 0) >= r.times for r in releases)


def _parse_header(body: dict[str, Any]) -> Header:
  if body.get('kind') != 'header' or body.get('version') != _VERSION:
    raise ValueError(f'kind={body.get("kind")!r}')
  fields = {field.name: body[field.name]
            for field in dataclasses.fields(Header)}
  return Header(**{**fields, 'uncovered': tuple(fields['uncovered'])})


def _parse_entry(body: dict[str, Any]) -> Entry:
  if body.get('kind') != 'release':
    raise ValueError(f'kind={body.get("kind")!r}')
  return Entry(
      Release(accounting.event_from_json(body['event']), body['count'],
              body['tail_probability'], body['rounds_per_count'],
              body['label']),
      body['first_round'], body['last_round'])
