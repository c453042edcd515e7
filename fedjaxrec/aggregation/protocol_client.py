"""One client of the secure sum: it trusts nobody to keep its update secret.

It answers one request a stage, in order, and refuses everything else. What it
refuses it names, in a signed message that takes it out of the round.
"""

from collections.abc import Callable

import numpy as np

from fedjaxrec.aggregation import masking, packing, primitives, shamir
from fedjaxrec.aggregation.graph import draw_neighbors_of
from fedjaxrec.aggregation.identity import Enrolment, Identity, Registry
from fedjaxrec.aggregation.messages import (
  SERVER,
  Kind,
  Message,
  Reason,
  Refusal,
  bitmap_bytes,
  decode,
  decode_members,
  encode,
  encode_reason,
  signed_statement,
  split_payload,
  split_records,
)
from fedjaxrec.aggregation.parameters import (
  NONCE_BYTES,
  RoundParameters,
  key_info,
  session_of,
)
from fedjaxrec.aggregation.primitives import Entropy, system_entropy

KEYS_BYTES = 2 * primitives.KEY_BYTES
ADVERTISEMENT_BYTES = KEYS_BYTES + primitives.SIGNATURE_BYTES
SECRET_BYTES = 32
SHARE_BYTES = 4 * shamir.num_limbs(SECRET_BYTES)
SHARE_TAG_BYTES = 16
SEALED_BYTES = 2 * SHARE_BYTES + primitives.GCM_TAG_BYTES
DEALT_BYTES = SEALED_BYTES + 2 * SHARE_TAG_BYTES
# Which of a client's two secrets a share is of.
SELF_MASK, MASK_KEY = b'self mask', b'mask key'


def share_tag(
    session: bytes, dealer: int, holder: int, secret: bytes, share: bytes
) -> bytes:
  """Binds a dealer to a share, so that a holder cannot pass on another one.

  A share is 279 uniform bits to whoever misses it, so its hash hides it.
  """
  return primitives.digest(b'fedjaxrec share', b''.join((
      session, dealer.to_bytes(4, 'little'), holder.to_bytes(4, 'little'),
      secret, share)))[:SHARE_TAG_BYTES]


def seed_commitment(session: bytes, dealer: int, seed: bytes) -> bytes:
  """Lets the server see that it has rebuilt the right seed."""
  return primitives.digest(
      b'fedjaxrec seed', session, dealer.to_bytes(4, 'little'), seed)


def self_mask_key(seed: bytes, session: bytes, round_index: int, i: int):
  """The key of a client's own mask."""
  return primitives.derive(
      seed, key_info(b'self', session, round_index, i, i),
      primitives.MASK_KEY_BYTES)


def pair_mask_key(secret: bytes, session: bytes, round_index: int, i: int,
                  j: int):
  """The key of two neighbours' mask, from what they agreed on."""
  return primitives.derive(
      secret, key_info(b'mask', session, round_index, i, j),
      primitives.MASK_KEY_BYTES)


class ProtocolClient:
  """A client of one round.

  Formal guarantees: what leaves the client is uniform in the ring to anybody
  who lacks its own mask's seed, or the mask of one neighbour. It gives up
  shares of at most one of the two for each peer, once, and only after at least
  t neighbours have confirmed, each under a key that the server does not know,
  that they were told the same survivors.

  References:
    Bonawitz et al., 2017, `Practical secure aggregation
    <https://eprint.iacr.org/2017/281>`_, figure 4; on the graph of Bell et al.,
    2020. Different here: neighbours confirm the survivors by a MAC for each
    pair instead of a signature for all, since nobody else has to believe it.
  """

  def __init__(
      self, identity: Identity, parameters: RoundParameters,
      registry: Registry, vector: np.ndarray,
      entropy: Entropy = system_entropy,
      verify: Callable[[bytes, bytes, bytes], bool] = primitives.verify,
  ):
    """Keeps the vector until it is masked.

    Args:
      identity: Its key pair.
      parameters: The round, as this client agreed to it.
      registry: Whose keys it believes in.
      vector: Unsigned integers [d], below 2^bits; else it leaves the round.
      entropy: Keys and seeds come from it; tests may repeat them.
      verify: Checks a signature: (public key, signature, message).
    """
    self.id = identity.client_id
    self._identity, self._parameters = identity, parameters
    self._registry, self._vector = registry, vector
    self._entropy, self._verify = entropy, verify
    self._expected: Kind | None = Kind.START
    self._session = b''
    # Peer -> keys to seal for the larger id, for the smaller, to confirm.
    self._channel: dict[int, bytes] = {}
    self._mask_publics: dict[int, bytes] = {}
    self._shares: dict[int, bytes] = {}  # Peer -> of its seed, of its key.
    self._steps = {
        Kind.START: self._advertise, Kind.NEIGHBORS: self._share_keys,
        Kind.DELIVERY: self._mask_input, Kind.SURVIVORS: self._agree,
        Kind.CONFIRMATION: self._reveal}

  def handle(self, request: bytes) -> bytes:
    """Answers the server's request, or leaves the round with a reason."""
    try:
      message = decode(request, signed=False)
      if message.sender != SERVER:
        raise Refusal(Reason.WRONG_SENDER)
      if message.round_index != self._parameters.round_index:
        raise Refusal(Reason.WRONG_ROUND)
      if message.kind != self._expected:
        raise Refusal(Reason.WRONG_STAGE)
      kind, payload = self._steps[message.kind](message)
      self._expected = (
          Kind(kind + 1) if kind is not Kind.REVEAL else None)
    except Refusal as refusal:
      kind, payload = Kind.ABORT, encode_reason(refusal.reason)
      self._expected = None
      self._shares.clear()
    return encode(kind, self._parameters.round_index, self.id, payload,
                  self._identity.sign, self._session)

  def _advertise(self, message: Message):
    digest, nonce = split_payload(
        message.payload, (primitives.DIGEST_BYTES, NONCE_BYTES))
    # The server's, so that it can read the refusal.
    self._session = session_of(digest, nonce)
    if digest != self._parameters.digest:
      raise Refusal(Reason.PARAMETERS_DIFFER)
    if masking.check_input(
        self._vector, self._parameters.dimension, self._parameters.bits):
      raise Refusal(Reason.BAD_INPUT)
    if not self._identity.claim_round(self._parameters.round_index):
      raise Refusal(Reason.ROUND_REUSED)
    # Two pairs: the mask key is given up where its owner falls silent, and
    # must then open none of the shares that were sent under the other.
    self._channel_key = primitives.Agreement(
        self._entropy(primitives.KEY_BYTES))
    self._mask_key = primitives.Agreement(self._entropy(primitives.KEY_BYTES))
    return Kind.ADVERTISEMENT, (
        self._channel_key.public_key + self._mask_key.public_key)

  def _share_keys(self, message: Message):
    parameters, cohort = self._parameters, self._parameters.cohort
    bitmap_size = bitmap_bytes(len(cohort))
    members = decode_members(message.payload[:bitmap_size], cohort)
    if self.id not in members:
      raise Refusal(Reason.SURVIVORS_DIFFER)
    if len(members) < parameters.min_survivors:
      raise Refusal(Reason.TOO_FEW_SURVIVORS)
    neighbors = draw_neighbors_of(
        self.id, members, parameters.num_neighbors, parameters.graph_seed)
    if len(neighbors) < parameters.threshold:
      raise Refusal(Reason.TOO_FEW_NEIGHBORS)
    _, body = split_payload(message.payload, (
        bitmap_size, ADVERTISEMENT_BYTES * len(neighbors)))
    self._members, self._neighbors = members, neighbors
    for peer, record in zip(
        neighbors, split_records(body, ADVERTISEMENT_BYTES), strict=True):
      self._accept_peer(peer, record[:KEYS_BYTES], record[KEYS_BYTES:])
    return Kind.SHARES, self._deal()

  def _accept_peer(self, peer: int, keys: bytes, signature: bytes):
    if self._registry.status(peer) is not Enrolment.ENROLLED:
      raise Refusal(Reason.BAD_NEIGHBOR)
    header = encode(
        Kind.ADVERTISEMENT, self._parameters.round_index, peer, keys)
    statement = signed_statement(
        self._session, header[:-len(keys)], keys)
    if not self._verify(
        self._registry.public_key(peer), signature, statement):
      raise Refusal(Reason.BAD_NEIGHBOR)
    channel, self._mask_publics[peer] = split_records(
        keys, primitives.KEY_BYTES)
    try:
      secret = self._channel_key.agree(channel)
    except ValueError as error:
      raise Refusal(Reason.BAD_NEIGHBOR) from error
    self._channel[peer] = primitives.derive(
        secret, key_info(b'channel', self._session,
                         self._parameters.round_index, self.id, peer), 64)

  def _sealing_key(self, sender: int, receiver: int) -> bytes:
    """A pair has one key a direction, so that each seals one message."""
    peer = receiver if sender == self.id else sender
    keys = self._channel[peer]
    return keys[:16] if sender < receiver else keys[16:32]

  def _context(self, sender: int, receiver: int) -> bytes:
    return (self._session + sender.to_bytes(4, 'little')
            + receiver.to_bytes(4, 'little'))

  def _deal(self) -> bytes:
    """Shares of both secrets: sealed for the holder, tagged for the server."""
    self._seed = self._entropy(SECRET_BYTES)
    shares = shamir.share(
        [self._seed, self._mask_key.private_key], len(self._neighbors),
        self._parameters.threshold, self._entropy)
    flat = shares.astype('<u4').tobytes()
    parts = [seed_commitment(self._session, self.id, self._seed)]
    for peer, both in zip(
        self._neighbors, split_records(flat, 2 * SHARE_BYTES), strict=True):
      parts.append(primitives.encrypt(
          self._sealing_key(self.id, peer), both,
          self._context(self.id, peer)))
      parts.append(share_tag(
          self._session, self.id, peer, SELF_MASK, both[:SHARE_BYTES]))
      parts.append(share_tag(
          self._session, self.id, peer, MASK_KEY, both[SHARE_BYTES:]))
    return b''.join(parts)

  def _mask_input(self, message: Message):
    parameters = self._parameters
    bitmap_size = bitmap_bytes(len(parameters.cohort))
    sharers = self._read_members(
        message.payload[:bitmap_size], within=self._members)
    peers = [peer for peer in self._neighbors if peer in sharers]
    if len(peers) < parameters.threshold:
      raise Refusal(Reason.TOO_FEW_NEIGHBORS)
    _, body = split_payload(
        message.payload, (bitmap_size, SEALED_BYTES * len(peers)))
    keys = {}
    for peer, sealed in zip(
        peers, split_records(body, SEALED_BYTES), strict=True):
      opened = primitives.decrypt(
          self._sealing_key(peer, self.id), sealed,
          self._context(peer, self.id))
      if opened is not None:  # Else the peer has one holder less.
        self._shares[peer] = opened
      try:
        secret = self._mask_key.agree(self._mask_publics[peer])
      except ValueError as error:
        raise Refusal(Reason.BAD_NEIGHBOR) from error
      keys[peer] = pair_mask_key(
          secret, self._session, parameters.round_index, self.id, peer)
    self._sharers, self._peers = sharers, peers
    total = masking.to_ring(self._vector, parameters.bits)
    del self._vector
    added, subtracted = masking.split_by_sign(self.id, keys)
    own = self_mask_key(
        self._seed, self._session, parameters.round_index, self.id)
    masking.add_masks(total, [own, *added], subtracted)
    return Kind.MASKED, packing.pack(
        masking.reduce_to_ring(total, parameters.bits), parameters.bits)

  def _agree(self, message: Message):
    self._survivors = self._read_members(message.payload, self._sharers)
    if len(self._survivors) < self._parameters.min_survivors:
      raise Refusal(Reason.TOO_FEW_SURVIVORS)
    alive = [peer for peer in self._peers if peer in self._survivors]
    if len(alive) < self._parameters.threshold:
      raise Refusal(Reason.TOO_FEW_NEIGHBORS)
    self._statement = bytes(message.payload)
    return Kind.AGREEMENT, b''.join(
        self._confirmation(self.id, peer) for peer in alive)

  def _confirmation(self, sender: int, receiver: int) -> bytes:
    peer = receiver if sender == self.id else sender
    return primitives.mac(
        self._channel[peer][32:],
        self._context(sender, receiver) + self._statement)

  def _reveal(self, message: Message):
    bitmap_size = bitmap_bytes(len(self._parameters.cohort))
    confirmers = self._read_members(
        message.payload[:bitmap_size], self._survivors)
    peers = [peer for peer in self._peers if peer in confirmers]
    _, body = split_payload(
        message.payload, (bitmap_size, primitives.MAC_BYTES * len(peers)))
    valid = sum(
        primitives.equal(told, self._confirmation(peer, self.id))
        for peer, told in zip(
            peers, split_records(body, primitives.MAC_BYTES), strict=True))
    if valid < self._parameters.threshold:
      raise Refusal(Reason.TOO_FEW_CONFIRMATIONS)
    held = encode_held(self._peers, self._shares)
    shares, self._shares = self._shares, {}
    # One kind for each peer, by whether it survived; the other is forgotten.
    return Kind.REVEAL, held + b''.join(
        shares[peer][:SHARE_BYTES] if peer in self._survivors
        else shares[peer][SHARE_BYTES:]
        for peer in self._peers if peer in shares)

  def _read_members(self, bitmap: memoryview, within) -> frozenset[int]:
    """A set that the server names: of those before, and with this client."""
    members = frozenset(decode_members(bitmap, self._parameters.cohort))
    if self.id not in members or not members.issubset(within):
      raise Refusal(Reason.SURVIVORS_DIFFER)
    return members


def encode_held(peers: list[int], shares: dict[int, bytes]) -> bytes:
  """Of which of its peers a holder has a share, one bit a peer."""
  return np.packbits(
      [peer in shares for peer in peers], bitorder='little').tobytes()
