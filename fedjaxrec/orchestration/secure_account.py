"""What the secure sums of a run have cost, round by round and together.

A round's account is part of its line of metrics.jsonl, so that a run that was
continued in another process has the whole, and a round that was run again has
it once.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from fedjaxrec.aggregation.cost import Cost

# In a line of metrics.jsonl.
FIELD = 'secure'


@dataclasses.dataclass(kw_only=True)
class RoundAccount:
  """One round on the host: who was asked, who counted, what was sent.

  Attributes:
    asked: Clients that were asked for a message.
    survivors: Clients in the sum; 0 without one.
    aborted: Why there is no sum; empty where there is one.
    rejected: Reason -> clients that were refused, or whose messages were.
    uplink_bytes, downlink_bytes: Stage -> bytes of all clients, those of an
      aborted round too.
    between_bytes: Bytes between servers.
    client_s, server_s: Processor seconds of all clients and of the servers.
    key_holder_s: Of the key holder of secure.level=he.
    union_rows: Rows of the union; -1 where none was found.
    exact: Whether a decrypted sum rounded to the integers.
  """
  asked: int = 0
  survivors: int = 0
  aborted: str = ''
  rejected: dict[str, int] = dataclasses.field(
      default_factory=collections.Counter)
  uplink_bytes: dict[str, int] = dataclasses.field(
      default_factory=collections.Counter)
  downlink_bytes: dict[str, int] = dataclasses.field(
      default_factory=collections.Counter)
  between_bytes: int = 0
  client_s: float = 0.0
  server_s: float = 0.0
  key_holder_s: float = 0.0
  union_rows: int = -1
  exact: bool = True

  def add(self, cost: Cost, rejected: Iterable[Any]) -> None:
    """Books what one of the round's sums took, and whom it refused."""
    for account, traffic in ((self.uplink_bytes, cost.uplink_bytes),
                             (self.downlink_bytes, cost.downlink_bytes)):
      for stage, by_client in traffic.items():
        account[stage] = account.get(stage, 0) + sum(by_client.values())
    self.between_bytes += cost.between_bytes
    self.client_s += cost.client_s
    self.server_s += cost.server_s
    self.key_holder_s += cost.key_holder_s
    for reason in rejected:
      name = str(getattr(reason, 'value', reason))
      self.rejected[name] = self.rejected.get(name, 0) + 1

  def to_json(self) -> dict[str, Any]:
    """As a field of a line of metrics.jsonl."""
    return {field.name: (dict(value) if isinstance(value, dict) else value)
            for field in dataclasses.fields(self)
            for value in (getattr(self, field.name),)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
  """The accounts of all rounds of a run.

  Attributes:
    rounds: Rounds that were summed or aborted on the host.
    summed: Those with a sum.
    participations: Clients that were asked in the rounds with a sum.
    aborted_participations: In the others.
    survivors: Clients in the sums.
    aborts: Reason -> rounds without a sum.
    rejected: Reason -> clients, over all rounds.
    uplink_bytes, downlink_bytes: Stage -> bytes, of the rounds with a sum.
    aborted_uplink_bytes, aborted_downlink_bytes: Of the others.
    between_bytes: Between servers, over all rounds.
    client_s, server_s, key_holder_s: Over all rounds.
    union_rows: Of each round that found a union.
    inexact_rounds: Rounds whose decrypted sum did not round to the integers.
  """
  rounds: int
  summed: int
  participations: int
  aborted_participations: int
  survivors: int
  aborts: dict[str, int]
  rejected: dict[str, int]
  uplink_bytes: dict[str, int]
  downlink_bytes: dict[str, int]
  aborted_uplink_bytes: int
  aborted_downlink_bytes: int
  between_bytes: int
  client_s: float
  server_s: float
  key_holder_s: float
  union_rows: list[int]
  inexact_rounds: int


def add_up(accounts: Iterable[Mapping[str, Any]]) -> Totals:
  """Adds up the accounts of rounds, as `RoundAccount.to_json` gives them."""
  accounts = list(accounts)
  done = [a for a in accounts if not a['aborted']]
  gone = [a for a in accounts if a['aborted']]

  def by_name(some, field):
    total: collections.Counter[str] = collections.Counter()
    for account in some:
      total.update(account[field])
    return dict(total)

  def in_all(some, field):
    return sum(sum(account[field].values()) for account in some)

  return Totals(
      rounds=len(accounts), summed=len(done),
      participations=sum(a['asked'] for a in done),
      aborted_participations=sum(a['asked'] for a in gone),
      survivors=sum(a['survivors'] for a in done),
      aborts=dict(collections.Counter(a['aborted'] for a in gone)),
      rejected=by_name(accounts, 'rejected'),
      uplink_bytes=by_name(done, 'uplink_bytes'),
      downlink_bytes=by_name(done, 'downlink_bytes'),
      aborted_uplink_bytes=in_all(gone, 'uplink_bytes'),
      aborted_downlink_bytes=in_all(gone, 'downlink_bytes'),
      between_bytes=sum(a['between_bytes'] for a in accounts),
      client_s=sum(a['client_s'] for a in accounts),
      server_s=sum(a['server_s'] for a in accounts),
      # A run that was begun by an older version has none in its lines.
      key_holder_s=sum(a.get('key_holder_s', 0.0) for a in accounts),
      union_rows=[a['union_rows'] for a in accounts if a['union_rows'] >= 0],
      inexact_rounds=sum(not a['exact'] for a in accounts))


def describe(totals: Totals) -> dict[str, Any]:
  """What was measured, for the section `secure` of summary.json.

  Bytes by stage are per client of the rounds with a sum; what aborted rounds
  moved stands beside them, in bytes of all their clients.
  """
  asked = max(1, totals.participations)
  words: dict[str, Any] = {
      'bytes': 'measured, of all messages of the rounds with a sum',
      'measured_rounds': totals.rounds, 'aborts': totals.aborts,
      'aborted': {
          'clients': totals.aborted_participations,
          'uplink_bytes': totals.aborted_uplink_bytes,
          'downlink_bytes': totals.aborted_downlink_bytes},
      'exact': not totals.inexact_rounds,
      'client_s': totals.client_s, 'server_s': totals.server_s,
      'key_holder_s': totals.key_holder_s,
      'uplink_bytes_by_stage': {
          stage: n / asked for stage, n in totals.uplink_bytes.items()},
      'downlink_bytes_by_stage': {
          stage: n / asked for stage, n in totals.downlink_bytes.items()}}
  if totals.between_bytes:
    words['between_servers_bytes'] = totals.between_bytes
  return words
