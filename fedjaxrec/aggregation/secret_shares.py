"""Sums over several servers that each see only noise: additive secret shares.

A client splits its vector into one share a server; all shares but one are the
keystream of a 32-byte seed. Servers add up what they hold, and the sum of their
sums is the sum of the vectors. With `l2_bound` a client also proves the norm of
its vector (fedjaxrec/aggregation/norm_proof.py), and one that cannot is left
out, so that nobody can outweigh the others.

Trust: the servers follow the protocol, and at least one of them does not show
its shares to the others; clients may do anything. Channels from client to
server are private and authenticated (TLS); that is not simulated. One server
that leaves ends the round.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fedjaxrec.aggregation import prime_field as field
from fedjaxrec.aggregation.cost import Cost, SumNotRevealed
from fedjaxrec.aggregation.norm_proof import Statement
from fedjaxrec.aggregation.primitives import Entropy, system_entropy
from fedjaxrec.aggregation.share_parties import (
  Aggregator,
  Reason,
  ShareParameters,
  SharingClient,
  add_all,
  check,
  draw_subsets,
)


class SharedSumResult(NamedTuple):
  """A sum, and what it took.

  Attributes:
    level: 'shares', or 'shares+norm' with the proof.
    sum: uint32 [d], modulo 2^bits, of the survivors' vectors.
    survivors: Whose vectors are in it.
    rejected: Client -> why it is not.
    uplink_bytes: Stage -> client -> bytes to all servers together.
    downlink_bytes: Stage -> client -> bytes from the servers.
    between_bytes: Bytes between the servers.
    client_s: Processor seconds of all clients together.
    server_s: Processor seconds of all servers together.
    leaks: What a party learns besides the sum, for the report.
  """
  level: str
  sum: np.ndarray
  survivors: tuple[int, ...]
  rejected: dict[int, Reason]
  uplink_bytes: dict[str, dict[int, int]]
  downlink_bytes: dict[str, dict[int, int]]
  between_bytes: int
  client_s: float
  server_s: float
  leaks: str


def run_shared_sum(
    inputs: Mapping[int, np.ndarray],
    *,
    bits: int,
    num_servers: int = 2,
    l2_bound: float | None = None,
    dropouts: Iterable[int] = (),
    min_survivors: int = 2,
    make_client: Callable[..., SharingClient] = SharingClient,
    entropy: Entropy = system_entropy,
) -> SharedSumResult:
  """Runs a sum over several servers in this process, every message in bytes.

  Formal guarantees: servers that follow the protocol, up to all but one of them
  together, learn the sum, who is in it, and of each client whether its proof
  holds: shares and openings are uniform given that (AES-128-CTR as the
  keystream). A client whose vector has a squared norm above l2_bound^2, or
  entries that are not integers of that size, is in the sum with a probability
  of at most 2^-40 + 2^-55, whatever it sends. Not hidden: of a client that is
  refused, the value that was wrong, such as its squared norm. Not prevented: a
  server that deviates can spoil the sum or have a client refused, and with a
  wrong challenge learn about a client's vector; a vector within the bound can
  still be a poisoned one.

  Cost without a bound: d bits / 8 bytes and 32 more for each other server. With
  it 8 d bytes, as many between each two servers, and two round trips; see
  benchmarks/secure_aggregation.py.

  Args:
    inputs: Client -> uint32 [d], below 2^bits.
    bits: The ring is modulo 2^bits.
    num_servers: At least 2.
    l2_bound: Largest L2 norm of a client's integers, read as signed
      (sqrt(`Ring.l2_bound_squared`), or levels); None asks for no proof.
    dropouts: Clients whose messages reach only some of the servers.
    min_survivors: A sum of fewer is not revealed.
    make_client: (vector, parameters, entropy) -> a client: for drills.
    entropy: bytes(n) -> random bytes: for tests that must repeat.

  Raises:
    ValueError: For arguments that break a rule.
    SumNotRevealed: If too few clients are left: nothing is then revealed.

  References:
    Corrigan-Gibbs and Boneh, 2017, `Prio
    <https://arxiv.org/abs/1703.06255>`_ (shares, proofs on shares); Boneh et
    al., 2019, Zero-Knowledge Proofs on Secret-Shared Data, CRYPTO.
  """
  inputs = dict(inputs)
  if not inputs:
    raise ValueError('inputs={}: there is nobody to sum; give clients.')
  if min_survivors < 2:
    raise ValueError(
        f'min_survivors={min_survivors} must be at least 2: the sum of one '
        'client is its vector.')
  if l2_bound is not None and not 1 <= l2_bound < math.inf:
    raise ValueError(
        f'l2_bound={l2_bound} must be finite and at least 1; it counts '
        'integers of the ring.')
  lengths = [v.size for v in map(np.asarray, inputs.values()) if v.ndim == 1]
  length = max(set(lengths), key=lengths.count) if lengths else 0
  statement = None if l2_bound is None else make_statement(
      l2_bound, length, len(inputs))
  parameters = ShareParameters(
      bits=bits, num_servers=num_servers, length=length, statement=statement)
  servers = [Aggregator(i, parameters) for i in range(num_servers)]
  rejected: dict[int, Reason] = {}
  clients: dict[int, SharingClient] = {}
  stages = ('shares',) if statement is None else ('shares', 'proof')
  uplink: dict[str, dict[int, int]] = {stage: {} for stage in stages}
  downlink: dict[str, dict[int, int]] = {stage: {} for stage in stages}
  silent = set(dropouts)
  client_s = server_s = 0.0

  def deliver(stage, client, messages, receive):
    """Counts it; a client is out if a server got none that it takes."""
    uplink[stage][client] = sum(map(len, messages))
    if client in silent or len(messages) != num_servers:
      rejected[client] = Reason.DROPPED
      return
    refusals = [receive(server)(client, data)
                for server, data in zip(servers, messages)]
    if any(refusals):
      rejected[client] = next(reason for reason in refusals if reason)

  for client, vector in inputs.items():
    vector = np.asarray(vector)
    if (vector.dtype != np.uint32 or vector.shape != (length,)
        or int(vector.max(initial=0)) >> bits):
      rejected[client] = Reason.BAD_INPUT
      continue
    start = time.process_time()
    clients[client] = make_client(vector, parameters, entropy)
    messages = clients[client].shares()
    client_s += time.process_time() - start
    start = time.process_time()
    deliver('shares', client, messages, lambda s: s.receive_shares)
    server_s += time.process_time() - start

  between = 0
  for server in servers:
    server.close_shares()
  if statement is not None:
    # Each server gives randomness; the hash is as random as the best of it.
    challenge = hashlib.sha256(b'subsets' + b''.join(
        entropy(32) for _ in servers)).digest()
    between += num_servers * (num_servers - 1) * 32
    chosen = draw_subsets(challenge, length)
    waiting = [c for c in clients if c not in rejected]
    for client in waiting:
      downlink['proof'][client] = len(challenge)
      start = time.process_time()
      messages = clients[client].proof(challenge)
      client_s += time.process_time() - start
      deliver('proof', client, messages, lambda s: s.receive_proof)
    for server in servers:
      server.close_proofs()
    # Drawn after all proofs are in; never zero, at which nothing is checked.
    t = 1 + int.from_bytes(hashlib.sha256(b'point' + b''.join(
        entropy(32) for _ in servers)).digest(), 'little') % (field.PRIME - 1)
    between += num_servers * (num_servers - 1) * 32
    start = time.process_time()
    for client in waiting:
      if client in rejected:
        continue
      openings = [server.open(client, chosen, t) for server in servers]
      between += (num_servers - 1) * sum(o.num_bytes() for o in openings)
      reason = check(openings, t)
      if reason is not None:
        rejected[client] = reason
    server_s += time.process_time() - start

  survivors = tuple(c for c in clients if c not in rejected)
  if len(survivors) < min_survivors:
    raise SumNotRevealed(
        f'survivors={len(survivors)} of {len(inputs)} clients are fewer than '
        f'min_survivors={min_survivors}: the sum is not revealed; ask more '
        f'clients. Refused: {_counted(rejected)}.',
        {client: str(reason) for client, reason in rejected.items()},
        Cost(uplink, downlink, client_s, server_s, between))
  start = time.process_time()
  shares = [server.sum_share(survivors) for server in servers]
  between += (num_servers - 1) * num_servers * shares[0].nbytes
  if statement is None:
    total = shares[0].astype(np.uint32)
    for share in shares[1:]:
      total = total + share
  else:
    total = field.to_signed(add_all(shares)).astype(np.uint32)
  total = total & np.uint32(2**bits - 1)
  server_s += time.process_time() - start
  return SharedSumResult(
      'shares' if statement is None else 'shares+norm', total, survivors,
      rejected, uplink, downlink, between, client_s, server_s,
      _leaks(statement))


def make_statement(
    l2_bound: float, length: int, num_clients: int
) -> Statement:
  """What the clients of a sum prove.

  Args:
    l2_bound: Largest L2 norm of a client's integers.
    length: d.
    num_clients: Most that are summed.

  Raises:
    ValueError: If the field is too small for so many, so large integers.
  """
  statement = Statement(length=length, bound_squared=int(l2_bound**2))
  if num_clients << statement.range_bits >= field.PRIME // 2:
    raise ValueError(
        f'l2_bound={l2_bound} for {num_clients} clients: the sum must stay '
        'below 2^60; use a smaller scale of the ring.')
  return statement


def _counted(rejected: dict[int, Reason]) -> str:
  """How many for which reason."""
  reasons = list(rejected.values())
  return ', '.join(f'{reasons.count(r)} {r}' for r in Reason if r in reasons)


def _leaks(statement: Statement | None) -> str:
  """What is learned besides the sum."""
  if statement is None:
    return ('Servers that do not all share their notes learn the sum and who '
            'is in it; nobody checks the size of a vector.')
  return ('Servers that do not all share their notes learn the sum, who is in '
          'it, and of each client whether its norm is within the bound; of one '
          'that is not, the squared norm or the range that it broke.')
