"""The server of the secure sum: it carries messages, and learns the sum.

It checks what it can: who sent a message, that it was asked for, and that what
is rebuilt is what was dealt. A message that fails is left out with a reason;
the round goes on without it, or ends without a result.
"""

from collections.abc import Mapping

import numpy as np

from fedjaxrec.aggregation import masking, packing, primitives, shamir
from fedjaxrec.aggregation.cost import NOTHING, Cost
from fedjaxrec.aggregation.graph import draw_neighbors
from fedjaxrec.aggregation.identity import Enrolment, Registry
from fedjaxrec.aggregation.messages import (
  SERVER,
  Kind,
  Message,
  Reason,
  Refusal,
  Stage,
  bitmap_bytes,
  decode,
  decode_reason,
  encode,
  encode_members,
  signed_statement,
  split_payload,
  split_records,
)
from fedjaxrec.aggregation.parameters import (
  NONCE_BYTES,
  RoundParameters,
  session_of,
)
from fedjaxrec.aggregation.primitives import Entropy, system_entropy
from fedjaxrec.aggregation.protocol_client import (
  DEALT_BYTES,
  KEYS_BYTES,
  MASK_KEY,
  SEALED_BYTES,
  SECRET_BYTES,
  SELF_MASK,
  SHARE_BYTES,
  SHARE_TAG_BYTES,
  pair_mask_key,
  seed_commitment,
  self_mask_key,
  share_tag,
)


class RoundAborted(RuntimeError):
  """The round ended without a sum, and nothing of it may be used.

  Attributes:
    reason: TOO_FEW_SURVIVORS, BELOW_THRESHOLD or BAD_DEAL.
    stage: Where.
    rejected: Client -> the first reason that it was refused for.
    cost: What it took to come so far.
  """

  def __init__(self, reason: Reason, stage: Stage,
               rejected: Mapping[int, Reason | str], detail: str,
               cost: Cost = NOTHING):
    super().__init__(
        f'secure sum aborted, reason={reason.value}, stage={stage.label}: '
        f'{detail}; nothing of the round is used. Run it again under a later '
        'round_index.')
    self.reason, self.stage, self.rejected = reason, stage, dict(rejected)
    self.cost = cost


class ProtocolServer:
  """The server of one round: begin a stage, receive, begin the next, finish.

  Memory: one running sum, whatever the cohort; a masked vector is added as it
  comes. Bytes and time: see benchmarks/secure_aggregation.py.

  References: as for `ProtocolClient`.
  """

  def __init__(self, parameters: RoundParameters, registry: Registry,
               entropy: Entropy = system_entropy):
    self.parameters = parameters
    self.rejected: dict[int, Reason] = {}
    self._registry = registry
    self._nonce = entropy(NONCE_BYTES)
    self._session = session_of(parameters.digest, self._nonce)
    self._probe = primitives.Agreement(entropy(primitives.KEY_BYTES))
    self._stage = Stage.ADVERTISE
    # Those who may still answer, and stage -> those who did, in that order.
    self._active: tuple[int, ...] = parameters.cohort
    self._answered: dict[Stage, dict[int, None]] = {s: {} for s in Stage}
    self._advertised: dict[int, tuple[bytes, bytes]] = {}  # Keys, signature.
    self._dealt: dict[int, tuple[bytes, list[bytes]]] = {}
    self._confirmed: dict[int, dict[int, bytes]] = {}
    # (owner, is it the self mask) -> (point, share) of each holder.
    self._held: dict[int, list[tuple[int, bytes]]] = {}
    self._sum = np.zeros(
        parameters.dimension, packing.narrow_dtype(parameters.bits))

  def begin(self, stage: Stage) -> dict[int, bytes]:
    """Closes the stage before, and returns the requests of this one.

    Raises:
      RoundAborted: If too few clients are left.
    """
    if stage:
      done = self._answered[Stage(stage - 1)]
      self._active = tuple(i for i in self._active if i in done)
      self._require_enough()
    self._stage = stage
    requests = (self._start, self._send_neighbors, self._deliver,
                self._send_survivors, self._send_confirmations)[stage]()
    kind = Kind(2 * stage)
    return {client: encode(
        kind, self.parameters.round_index, SERVER, payload)
            for client, payload in requests.items()}

  def receive(self, client: int, data: bytes) -> Reason | None:
    """Takes a message in, from the connection of a client.

    Returns:
      None, or why the message counts for nothing. The first reason of a client
      is kept in `rejected`; what it sent before, or sends after and is right,
      counts.
    """
    try:
      message = self._authenticate(client, data)
      self._check_turn(client, message.kind)
      if message.kind is Kind.ABORT:
        reason = decode_reason(message.payload)
        self._active = tuple(i for i in self._active if i != client)
        raise Refusal(reason)
      take = (self._take_advertisement, self._take_shares, self._take_masked,
              self._take_agreement, self._take_reveal)[self._stage]
      take(client, message)
    except Refusal as refusal:
      self.rejected.setdefault(client, refusal.reason)
      return refusal.reason
    self._answered[self._stage][client] = None
    return None

  def _authenticate(self, client: int, data: bytes) -> Message:
    if client not in self.parameters.cohort:
      raise Refusal(Reason.NOT_INVITED)
    message = decode(data, signed=True)
    if message.sender != client:
      raise Refusal(Reason.WRONG_SENDER)
    status = self._registry.status(client)
    if status is Enrolment.REVOKED:
      raise Refusal(Reason.REVOKED)
    if status is Enrolment.UNKNOWN:
      raise Refusal(Reason.NOT_ENROLLED)
    if message.round_index != self.parameters.round_index:
      raise Refusal(Reason.WRONG_ROUND)
    statement = signed_statement(
        self._session, message.header, message.payload)
    if not primitives.verify(
        self._registry.public_key(client), message.signature, statement):
      raise Refusal(Reason.BAD_SIGNATURE)
    return message

  def _check_turn(self, client: int, kind: Kind) -> None:
    # A client leaves instead of answering, not after: its vector is summed.
    stage = self._stage if kind is Kind.ABORT else Stage(kind // 2)
    if kind % 2 == 0 or stage > self._stage:
      raise Refusal(Reason.WRONG_STAGE)
    answered = client in self._answered[stage]
    if stage < self._stage:
      raise Refusal(Reason.REPLAYED if answered else Reason.LATE)
    if answered:
      raise Refusal(Reason.DUPLICATE)
    if client not in self._active:
      raise Refusal(Reason.LATE)

  def _require_enough(self) -> None:
    if len(self._active) < self.parameters.min_survivors:
      self._abort(
          Reason.TOO_FEW_SURVIVORS, f'survivors={len(self._active)} of '
          f'{len(self.parameters.cohort)} are below min_survivors='
          f'{self.parameters.min_survivors}')

  def _abort(self, reason: Reason, detail: str):
    raise RoundAborted(reason, self._stage, self.rejected, detail)

  # Stage 0: keys.

  def _start(self):
    payload = self.parameters.digest + self._nonce
    return dict.fromkeys(self._active, payload)

  def _take_advertisement(self, client, message):
    keys, = split_payload(message.payload, (KEYS_BYTES,))
    for key in split_records(keys, primitives.KEY_BYTES):
      try:
        self._probe.agree(key)
      except ValueError as error:
        raise Refusal(Reason.BAD_KEY) from error
    self._advertised[client] = keys, message.signature

  # Stage 1: shares.

  def _send_neighbors(self):
    members = self._active
    self._neighbors = draw_neighbors(
        members, self.parameters.num_neighbors, self.parameters.graph_seed)
    degree = min(self.parameters.num_neighbors, len(members) - 1)
    if degree < self.parameters.threshold:
      self._abort(
          Reason.BELOW_THRESHOLD, f'{degree} neighbours a client are below '
          f'threshold={self.parameters.threshold}')
    bitmap = encode_members(members, self.parameters.cohort)
    records = {i: b''.join(record) for i, record in self._advertised.items()}
    return {client: bitmap + b''.join(
        records[peer] for peer in self._neighbors[client])
            for client in members}

  def _take_shares(self, client, message):
    degree = len(self._neighbors[client])
    commitment, body = split_payload(
        message.payload, (primitives.DIGEST_BYTES, DEALT_BYTES * degree))
    self._dealt[client] = commitment, split_records(body, DEALT_BYTES)

  # Stage 2: masked vectors.

  def _deliver(self):
    sharers = frozenset(self._active)
    bitmap = encode_members(sharers, self.parameters.cohort)
    boxes: dict[int, list[bytes]] = {client: [] for client in self._active}
    # In the order of the senders' ids, which is that of a client's neighbours.
    for dealer in self._active:
      for peer, record in zip(
          self._neighbors[dealer], self._dealt[dealer][1], strict=True):
        if peer in sharers:
          boxes[peer].append(record[:SEALED_BYTES])
    self._peers = {
        client: [peer for peer in self._neighbors[client] if peer in sharers]
        for client in self._active}
    return {client: bitmap + b''.join(box) for client, box in boxes.items()}

  def _take_masked(self, client, message):
    bits, dimension = self.parameters.bits, self.parameters.dimension
    if len(message.payload) != packing.packed_bytes(dimension, bits):
      raise Refusal(Reason.WRONG_LENGTH)
    vector = packing.unpack(message.payload, dimension, bits)
    if vector is None:
      raise Refusal(Reason.OUT_OF_RING)
    np.add(self._sum, vector, out=self._sum)

  # Stage 3: does everybody see the same survivors?

  def _send_survivors(self):
    self.survivors = self._active
    bitmap = encode_members(self._active, self.parameters.cohort)
    return dict.fromkeys(self._active, bitmap)

  def _take_agreement(self, client, message):
    alive = frozenset(self.survivors)
    peers = [peer for peer in self._peers[client] if peer in alive]
    body, = split_payload(
        message.payload, (primitives.MAC_BYTES * len(peers),))
    self._confirmed[client] = dict(zip(
        peers, split_records(body, primitives.MAC_BYTES), strict=True))

  # Stage 4: shares back, and masks off.

  def _send_confirmations(self):
    bitmap = encode_members(self._active, self.parameters.cohort)
    confirmers = frozenset(self._active)
    return {client: bitmap + b''.join(
        self._confirmed[peer][client] for peer in self._peers[client]
        if peer in confirmers) for client in self._active}

  def _take_reveal(self, client, message):
    peers = self._peers[client]
    size = bitmap_bytes(len(peers))
    flags = np.unpackbits(
        np.frombuffer(message.payload[:size], np.uint8), bitorder='little')
    if flags.size < len(peers) or flags[len(peers):].any():
      raise Refusal(Reason.MALFORMED)
    holding = [peer for peer, flag in zip(peers, flags) if flag]
    _, body = split_payload(
        message.payload, (size, SHARE_BYTES * len(holding)))
    alive = frozenset(self.survivors)
    for peer, share in zip(
        holding, split_records(body, SHARE_BYTES), strict=True):
      place = self._neighbors[peer].index(client)
      record = self._dealt[peer][1][place]
      tags = record[SEALED_BYTES:]
      kind, tag = ((SELF_MASK, tags[:SHARE_TAG_BYTES]) if peer in alive
                   else (MASK_KEY, tags[SHARE_TAG_BYTES:]))
      if share_tag(self._session, peer, client, kind, share) == tag:
        self._held.setdefault(peer, []).append((place + 1, share))
      else:  # The right ones still help.
        self.rejected.setdefault(client, Reason.BAD_SHARE)

  def finish(self) -> np.ndarray:
    """Takes the masks off.

    Returns:
      uint32 [d]: the sum of the survivors' vectors modulo 2^bits.

    Raises:
      RoundAborted: If a secret has fewer than t shares, or is not the one that
        was dealt.
    """
    alive = frozenset(self.survivors)
    secrets = self._rebuild()
    round_index, session = self.parameters.round_index, self._session
    added, subtracted = [], []
    for client, secret in secrets.items():
      if client in alive:
        if seed_commitment(session, client, secret) != self._dealt[client][0]:
          self._blame(client)
        subtracted.append(self_mask_key(secret, session, round_index, client))
        continue
      agreement = primitives.Agreement(secret)
      if agreement.public_key != self._mask_public(client):
        self._blame(client)
      # The masks that the neighbours put on, with their sign: the opposite.
      keys = {peer: pair_mask_key(
          agreement.agree(self._mask_public(peer)), session, round_index,
          client, peer) for peer in self._peers[client] if peer in alive}
      mine, theirs = masking.split_by_sign(client, keys)
      added += mine
      subtracted += theirs
    masking.add_masks(self._sum, added, subtracted)
    return masking.reduce_to_ring(
        self._sum, self.parameters.bits).astype(np.uint32)

  def _rebuild(self) -> dict[int, bytes]:
    """The seed of each survivor, the mask key of each client that fell out."""
    threshold, owners = self.parameters.threshold, list(self._dealt)
    points = np.zeros((len(owners), threshold), np.int64)
    shares = []
    for row, owner in enumerate(owners):
      held = self._held.get(owner, [])[:threshold]
      if len(held) < threshold:
        self._abort(
            Reason.BELOW_THRESHOLD, f'client {owner} has {len(held)} shares '
            f'of a secret, threshold={threshold}')
      points[row] = [point for point, _ in held]
      shares.append(b''.join(share for _, share in held))
    limbs = np.frombuffer(b''.join(shares), '<u4').reshape(
        len(owners), threshold, SHARE_BYTES // 4)
    secrets: dict[int, bytes] = {}
    for owner, secret in zip(
        owners, shamir.rebuild(points, limbs, SECRET_BYTES), strict=True):
      if secret is None:
        self._blame(owner)
      else:
        secrets[owner] = secret
    return secrets

  def _blame(self, dealer: int):
    self.rejected.setdefault(dealer, Reason.BAD_DEAL)
    self._abort(
        Reason.BAD_DEAL, f'client {dealer} dealt shares of another secret '
        'than it used; leave it out')

  def _mask_public(self, client: int) -> bytes:
    return self._advertised[client][0][primitives.KEY_BYTES:]
