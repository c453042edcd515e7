"""Runs a secure sum at a level of fidelity, and says what it cost.

  ideal     the sum modulo 2^bits; no cryptography at all.
  masked    real masks from real keystreams, under keys that the simulator
            deals: what is uploaded is as uniform, who could unmask it is not
            a question of cryptography.
  protocol  every message, key and share of the protocol, between a server and
            clients that share nothing but bytes.

All three return the same sum. SECURITY.md says who must be trusted in each.
"""

import collections
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fedjaxrec.aggregation import masking, packing, primitives
from fedjaxrec.aggregation.cost import Cost, Traffic
from fedjaxrec.aggregation.graph import draw_neighbors
from fedjaxrec.aggregation.identity import (
  Identity,
  Registry,
  create_identity,
)
from fedjaxrec.aggregation.messages import STAGES, Reason, Stage
from fedjaxrec.aggregation.parameters import RoundParameters, key_info
from fedjaxrec.aggregation.primitives import Entropy, system_entropy
from fedjaxrec.aggregation.protocol_client import ProtocolClient
from fedjaxrec.aggregation.protocol_server import ProtocolServer, RoundAborted
from fedjaxrec.aggregation.tcp import ProcessTransport
from fedjaxrec.aggregation.transport import (
  InProcessTransport,
  Tamper,
  Transport,
  check_dropouts,
)

LEVELS = ('ideal', 'masked', 'protocol')


class SecureSumResult(NamedTuple):
  """A sum, and what it took.

  Attributes:
    level: How real it was, one of LEVELS.
    sum: uint32 [d], modulo 2^bits, of the survivors' vectors.
    survivors: Whose vectors are in it; they need not have stayed to the end.
    rejected: Client -> the first reason for which a message of it, or it
      itself, was refused. A survivor may be here: a stray copy of a message is
      refused without its sender.
    uplink_bytes: Stage -> client -> bytes to the server, refused ones included.
    downlink_bytes: Stage -> client -> bytes from the server.
    client_s: Processor seconds of all clients together.
    server_s: Processor seconds of the server.
  """
  level: str
  sum: np.ndarray
  survivors: tuple[int, ...]
  rejected: dict[int, Reason]
  uplink_bytes: Traffic
  downlink_bytes: Traffic
  client_s: float
  server_s: float


def run_secure_sum(
    inputs: Mapping[int, np.ndarray], *, bits: int, num_neighbors: int,
    threshold: int, min_survivors: int, registry: Registry,
    identities: Mapping[int, Identity], round_index: int,
    dropouts: Mapping[str, Iterable[int]] | None = None,
    transport: str = 'in_process', dimension: int | None = None,
    num_processes: int = 2, timeout_s: float = 60.0,
    verify_once: bool = False, tamper: Tamper | None = None,
    entropy: Entropy | None = None,
) -> SecureSumResult:
  """Runs the whole protocol, every party for itself.

  Cost: a client does 2 k key agreements, k signature checks and k + 1 masks of
  d elements; it sends about d bits / 8 + 172 k bytes and receives about
  232 k. See benchmarks/secure_aggregation.py.

  Formal guarantees: against a server that follows the protocol and works with
  any clients of which no honest one has t among its neighbours, it learns
  nothing but the sum and who took part (computationally). Against one that lies
  the same holds on the complete graph with 2t > n + corrupt; on a sparser one
  it is not proven (SECURITY.md). The sum itself is protected by nothing: add
  noise.

  Args:
    inputs: Client -> uint32 [d], below 2^bits. These are the invited cohort;
      one whose vector is anything else leaves the round.
    bits: The ring is modulo 2^bits.
    num_neighbors: k; `choose_graph` finds k and t.
    threshold: t, above half of k.
    min_survivors: The sum of fewer is refused, by server and clients.
    registry: Who is enrolled.
    identities: Client -> its key pair. A client without one comes with a key
      that nobody has enrolled, and is refused. Its `last_round` moves on.
    round_index: Above every round that these identities took part in.
    dropouts: Stage's label -> clients that fall silent there, for good.
    transport: 'in_process', or 'tcp' for clients in processes on this machine.
    dimension: d; by default what most vectors have.
    num_processes: Of the TCP transport.
    timeout_s: How long the TCP transport waits for one stage's answers.
    verify_once: Checks a signature once and not by every neighbour. The clients
      of one process share the answer: same sum, and client_s is then less than
      real clients need. In process only.
    tamper: Changes messages on their way to the server: for drills, in process
      only.
    entropy: bytes(n) -> random bytes: for tests that must repeat, in process
      only. By default the operating system's.

  Raises:
    ValueError: If an argument breaks a rule; before anything is sent.
    RoundAborted: If the round ended without a sum.

  References:
    Bonawitz et al., 2017; Bell et al., 2020.
  """
  if transport not in ('in_process', 'tcp'):
    raise ValueError(
        f'transport={transport!r} is not known; choose in_process or tcp.')
  if transport == 'tcp' and (verify_once or tamper or entropy):
    raise ValueError(
        'transport=tcp: verify_once, tamper and entropy reach clients of this '
        'process only; choose in_process.')
  inputs = _plain_ids(inputs)
  silent = check_dropouts(dropouts or {})
  parameters = RoundParameters(
      cohort=tuple(sorted(inputs)), round_index=round_index, bits=bits,
      dimension=dimension or _common_dimension(inputs),
      num_neighbors=num_neighbors, threshold=threshold,
      min_survivors=min_survivors, registry_digest=registry.digest())
  entropy = entropy or system_entropy
  present = {i: identities[i] if i in identities
             else create_identity(i, entropy) for i in parameters.cohort}
  server = ProtocolServer(parameters, registry, entropy)
  carrier: Transport
  if transport == 'tcp':
    carrier = ProcessTransport(
        present, parameters, registry, inputs, silent,
        num_processes=num_processes, timeout_s=timeout_s)
    for identity in present.values():  # The processes claimed it for copies.
      identity.claim_round(round_index)
  else:
    verify = (functools.lru_cache(maxsize=None)(primitives.verify)
              if verify_once else primitives.verify)
    carrier = InProcessTransport({
        i: ProtocolClient(identity, parameters, registry, inputs[i], entropy,
                          verify) for i, identity in present.items()},
        silent, tamper)
  return run_round(server, carrier)


def run_round(server: ProtocolServer, transport: Transport) -> SecureSumResult:
  """Leads a server through the stages over a transport.

  Raises:
    RoundAborted: If the round ended without a sum; it says what was sent.
  """
  uplink: Traffic = {label: {} for label in STAGES}
  downlink: Traffic = {label: {} for label in STAGES}
  clock, client_s = _Clock(), 0.0
  aborted: RoundAborted | None = None
  try:
    for stage in Stage:
      requests = clock.time(server.begin, stage)
      downlink[stage.label] = {i: len(data) for i, data in requests.items()}
      sent = uplink[stage.label]
      for client, message in transport.exchange(stage, requests):
        sent[client] = sent.get(client, 0) + len(message)
        clock.time(server.receive, client, message)
    total = clock.time(server.finish)
  except RoundAborted as error:
    aborted = error
    raise
  finally:
    client_s = transport.close()
    if aborted is not None:
      aborted.cost = Cost(uplink, downlink, client_s, clock.seconds)
  return SecureSumResult(
      'protocol', total, server.survivors, server.rejected, uplink, downlink,
      client_s, clock.seconds)


def run_masked_sum(
    inputs: Mapping[int, np.ndarray], *, bits: int, num_neighbors: int,
    min_survivors: int, round_index: int, dropouts: Iterable[int] = (),
    dimension: int | None = None, entropy: Entropy | None = None,
) -> SecureSumResult:
  """Masks for real, under keys dealt by the simulator.

  Cost: a client expands k + 1 masks of d elements; it sends d bits / 8 bytes.

  Formal guarantees: an upload is uniform to whoever lacks the dealer's key.
  The dealer, which is the operator of the simulation, can open every upload.

  Args:
    inputs: As of `run_secure_sum`.
    bits: The ring is modulo 2^bits.
    num_neighbors: Of the graph: even, or at least len(inputs) - 1.
    min_survivors: The sum of fewer is refused.
    round_index: Part of every key.
    dropouts: Clients that do not upload; the dealer takes their masks off.
    dimension: d; by default what most vectors have.
    entropy: As of `run_secure_sum`.

  Raises:
    ValueError: If an argument breaks a rule.
    RoundAborted: If too few upload.
  """
  inputs = _plain_ids(inputs)
  degree = min(num_neighbors, len(inputs) - 1)
  parameters = RoundParameters(
      cohort=tuple(sorted(inputs)), round_index=round_index, bits=bits,
      dimension=dimension or _common_dimension(inputs),
      num_neighbors=num_neighbors, threshold=degree // 2 + 1,
      min_survivors=min_survivors, registry_digest=b'')
  root = (entropy or system_entropy)(primitives.KEY_BYTES)

  def deal(i, j):
    purpose = b'dealt self' if i == j else b'dealt mask'
    return primitives.derive(
        root, key_info(purpose, parameters.digest, round_index, i, j),
        primitives.MASK_KEY_BYTES)

  cohort, gone = parameters.cohort, set(dropouts)
  neighbors = draw_neighbors(cohort, num_neighbors, parameters.graph_seed)
  total = np.zeros(parameters.dimension, packing.narrow_dtype(bits))
  uplink: dict[int, int] = {}
  rejected: dict[int, Reason] = {}
  clients, server = _Clock(), _Clock()

  def upload(client):
    masked = masking.to_ring(inputs[client], bits)
    added, subtracted = masking.split_by_sign(
        client, {peer: deal(client, peer) for peer in neighbors[client]})
    masking.add_masks(masked, [deal(client, client), *added], subtracted)
    return packing.pack(masking.reduce_to_ring(masked, bits), bits)

  for client in cohort:
    if masking.check_input(inputs[client], parameters.dimension, bits):
      rejected[client] = Reason.BAD_INPUT
    elif client not in gone:
      data = clients.time(upload, client)
      uplink[client] = len(data)
      vector = server.time(
          packing.unpack, data, parameters.dimension, bits)
      server.time(np.add, total, vector, out=total)
  if len(uplink) < min_survivors:
    raise RoundAborted(
        Reason.TOO_FEW_SURVIVORS, Stage.MASKED_INPUT, rejected,
        f'survivors={len(uplink)} are below min_survivors={min_survivors}',
        Cost({Stage.MASKED_INPUT.label: uplink}, {}, clients.seconds,
             server.seconds))

  def unmask():
    added, subtracted = [], [deal(i, i) for i in uplink]
    for client in set(cohort) - uplink.keys():
      mine, theirs = masking.split_by_sign(client, {
          peer: deal(client, peer) for peer in neighbors[client]
          if peer in uplink})
      added += mine
      subtracted += theirs
    masking.add_masks(total, added, subtracted)
    return masking.reduce_to_ring(total, bits).astype(np.uint32)

  return SecureSumResult(
      'masked', server.time(unmask), tuple(uplink), rejected,
      {Stage.MASKED_INPUT.label: uplink}, {}, clients.seconds, server.seconds)


def run_ideal_sum(
    inputs: Mapping[int, np.ndarray], *, bits: int, min_survivors: int,
    dropouts: Iterable[int] = (), dimension: int | None = None,
) -> SecureSumResult:
  """The plain sum modulo 2^bits: no cryptography, the server sees everything.

  Args and errors: as of `run_masked_sum`.
  """
  inputs = _plain_ids(inputs)
  d = dimension or _common_dimension(inputs)
  gone, clock = set(dropouts), _Clock()
  rejected = {i: Reason.BAD_INPUT for i, vector in inputs.items()
              if masking.check_input(vector, d, bits)}
  survivors = tuple(
      i for i in sorted(inputs) if i not in gone and i not in rejected)
  if len(survivors) < min_survivors:
    raise RoundAborted(
        Reason.TOO_FEW_SURVIVORS, Stage.MASKED_INPUT, rejected,
        f'survivors={len(survivors)} are below min_survivors={min_survivors}')
  total = np.zeros(d, packing.narrow_dtype(bits))
  for client in survivors:
    clock.time(
        np.add, total, masking.to_ring(inputs[client], bits), out=total)
  size = packing.packed_bytes(d, bits)
  return SecureSumResult(
      'ideal', masking.reduce_to_ring(total, bits).astype(np.uint32), survivors,
      rejected, {Stage.MASKED_INPUT.label: dict.fromkeys(survivors, size)}, {},
      0.0, clock.seconds)


class _Clock:
  """Adds up the processor seconds of calls."""

  def __init__(self):
    self.seconds = 0.0

  def time(self, call: Callable, *args, **kwargs):
    begin = time.thread_time()
    try:
      return call(*args, **kwargs)
    finally:
      self.seconds += time.thread_time() - begin


def _plain_ids(inputs: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
  """Ids that come out of arrays are no Python integers."""
  return {int(client): vector for client, vector in inputs.items()}


def _common_dimension(inputs: Mapping[int, np.ndarray]) -> int:
  sizes = collections.Counter(
      vector.shape[0] for vector in inputs.values()
      if isinstance(vector, np.ndarray) and vector.ndim == 1)
  if not sizes:
    raise ValueError(
        f'inputs: none of {len(inputs)} vectors is an array of one axis; give '
        'each client a uint32 [d].')
  return sizes.most_common(1)[0][0]
