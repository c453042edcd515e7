"""The parties of a sum by secret shares: what each holds, sends and checks.

They exchange nothing but bytes; fedjaxrec/aggregation/secret_shares.py carries
them and says who must be trusted.
"""

import dataclasses
import enum
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fedjaxrec.aggregation import norm_proof, packing
from fedjaxrec.aggregation import prime_field as field
from fedjaxrec.aggregation.norm_proof import Statement
from fedjaxrec.aggregation.primitives import (
  MASK_KEY_BYTES,
  Entropy,
  Keystream,
  StreamBuffer,
  system_entropy,
)

_SCALARS = 4  # Shares of <a, a>, <a, v>, <v, v> and half of the total.
_WORD = 8


class Reason(enum.StrEnum):
  """Why a client is not in the sum."""
  DROPPED = 'dropped'  # A message to some server never came.
  BAD_INPUT = 'bad_input'  # Its own vector is none of the ring's.
  MALFORMED = 'malformed'  # A message of another length, or no field elements.
  DUPLICATE = 'duplicate'  # A second message of a kind; the first one stands.
  LATE = 'late'  # A message after the servers went on to what follows it.
  WRONG_STAGE = 'wrong_stage'  # A proof before the challenge, or of nothing.
  FALSE_SQUARE = 'false_square'  # The squared norm is not the vector's.
  NOT_BITS = 'not_bits'  # What was shared as bits is none.
  OUT_OF_RANGE = 'out_of_range'  # Entries so large that squares could wrap.
  OVER_NORM = 'over_norm'  # The squared norm is above the bound.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareParameters:
  """What all parties agree on.

  Attributes:
    bits: The ring is modulo 2^bits.
    num_servers: At least 2.
    length: d.
    statement: What clients prove; None for nothing.
  """
  bits: int
  num_servers: int
  length: int
  statement: Statement | None = None

  def __post_init__(self):
    packing.check_bits(self.bits)
    if self.num_servers < 2:
      raise ValueError(
          f'num_servers={self.num_servers} must be at least 2: a single one '
          'would hold every vector.')
    if self.length < 1:
      raise ValueError(f'length={self.length} must be at least 1.')

  @property
  def dtype(self) -> np.dtype:
    """Type of a share's elements."""
    return (np.dtype('<u8') if self.statement is not None
            else packing.narrow_dtype(self.bits))


def _stream(seed: bytes, count: int, dtype: np.dtype) -> np.ndarray:
  """A seed's uniform words [count]."""
  return Keystream(seed).read_into(StreamBuffer(count, np.dtype(dtype)))


def _expand(seed: bytes, count: int) -> np.ndarray:
  """A seed's elements of the prime field [count]."""
  return field.from_words(_stream(seed, count, np.dtype('<u8')))


def _split(secret: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
  """The share that makes the masks' sum the secret, in the field."""
  for mask in masks:
    secret = field.subtract(secret, mask)
  return secret


class SharingClient:
  """A client: what it sends, given its vector.

  Args:
    vector: uint32 [d], below 2^bits.
    parameters: What all agree on.
    entropy: bytes(n) -> random bytes.
  """

  def __init__(
      self, vector: np.ndarray, parameters: ShareParameters,
      entropy: Entropy = system_entropy):
    self._parameters = parameters
    self._entropy = entropy
    self._ring = vector
    half = 2 ** (parameters.bits - 1)
    signed = vector.astype(np.int64)
    self.signed = np.where(signed >= half, signed - 2 * half, signed)

  def _share_scalars(self, values: list[int]) -> list[list[int]]:
    """Shares of field elements: one row a server."""
    count = self._parameters.num_servers
    words = _expand(self._entropy(MASK_KEY_BYTES), (count - 1) * len(values))
    rest = [[int(x) for x in row] for row in words.reshape(count - 1, -1)]
    first = [(v - sum(column)) % field.PRIME
             for v, column in zip(values, zip(*rest))]
    return [first, *rest]

  def shares(self) -> list[bytes]:
    """The first message to every server; server 0 gets the long one."""
    parameters = self._parameters
    seeds = [self._entropy(MASK_KEY_BYTES)
             for _ in range(parameters.num_servers)]
    if parameters.statement is None:
      share = self._ring.astype(parameters.dtype)
      for seed in seeds[1:]:
        share = share - _stream(seed, parameters.length, parameters.dtype)
      share &= parameters.dtype.type(2**parameters.bits - 1)
      return [packing.pack(share, parameters.bits), *seeds[1:]]
    # A seed's stream: the share of the mask a, then that of v.
    d = parameters.length
    v = field.from_signed(self.signed)
    streams = [_expand(seed, d if i == 0 else 2 * d)
               for i, seed in enumerate(seeds)]
    a = streams[0]
    for stream in streams[1:]:
      a = field.add(a, stream[:d])
    first = _split(v, [stream[d:] for stream in streams[1:]])
    scalars = self._share_scalars(self.claims(a, v))
    messages = [seed + np.array(row, '<u8').tobytes()
                for seed, row in zip(seeds, scalars)]
    messages[0] += first.astype('<u8').tobytes()
    return messages

  def claims(self, a: np.ndarray, v: np.ndarray) -> list[int]:
    """<a, a>, <a, v>, <v, v> and half of the total, as elements."""
    self.squared_norm = int((self.signed * self.signed).sum())
    self.half = int(self.signed.sum()) >> 1
    return [field.dot(a, a), field.dot(a, v), self.squared_norm % field.PRIME,
            self.half % field.PRIME]

  def subset_sums(self, chosen: np.ndarray) -> list[int]:
    """Its own subset sums, signed."""
    sums = norm_proof.subset_sums(chosen, field.from_signed(self.signed))
    return [y - field.PRIME if y > field.PRIME // 2 else y for y in sums]

  def bits(self, chosen: np.ndarray) -> np.ndarray:
    """The bits that it shares."""
    assert self._parameters.statement is not None
    return norm_proof.proof_bits(
        self._parameters.statement, self.subset_sums(chosen), self.half,
        self.squared_norm)

  def proof(self, challenge: bytes) -> list[bytes]:
    """The second message to every server, after the subsets are known."""
    parameters = self._parameters
    bits = self.bits(draw_subsets(challenge, parameters.length))
    seeds = [self._entropy(MASK_KEY_BYTES)
             for _ in range(parameters.num_servers)]
    # A seed's stream: the share of the mask, then of the three vectors.
    m = len(bits)
    streams = [_expand(seed, m if i == 0 else 4 * m)
               for i, seed in enumerate(seeds)]
    a = streams[0]
    for stream in streams[1:]:
      a = field.add(a, stream[:m])
    double = field.multiply(field.add(a, a), bits)
    secret = np.concatenate(
        [bits, field.multiply(a, a), field.subtract(double, a)])
    first = _split(secret, [stream[m:] for stream in streams[1:]])
    return [seeds[0] + first.astype('<u8').tobytes(), *seeds[1:]]


def draw_subsets(challenge: bytes, length: int) -> np.ndarray:
  """The subsets that a challenge stands for."""
  return norm_proof.subsets(_stream(
      challenge, norm_proof.subset_bytes(length), np.dtype('u1')), length)


class Opening(NamedTuple):
  """What a server shows the others of its shares of one client.

  Attributes:
    vector: u = a + t v [d].
    square: Share of <a, a> + 2 t <a, v> + t^2 s.
    bits: a' + t b for the bits' mask a' and the bits b [m].
    products: Shares of what their squares less t times them must be [m].
    linear: Shares of zeros [41].
  """
  vector: np.ndarray
  square: int
  bits: np.ndarray
  products: np.ndarray
  linear: list[int]

  def num_bytes(self) -> int:
    """Bytes on the wire."""
    return _WORD * (len(self.vector) + 1 + 2 * len(self.bits)
                    + len(self.linear))


class Aggregator:
  """One of the servers: it holds shares, and shows only sums and openings.

  It serves one round. A client's first message of a kind stands: what was
  proven is what is summed.
  """

  def __init__(self, index: int, parameters: ShareParameters):
    self._index = index
    self._parameters = parameters
    self._shares: dict[int, bytes] = {}
    self._proofs: dict[int, bytes] = {}
    self._shares_closed = self._proofs_closed = False

  def close_shares(self) -> None:
    """To be called before the challenge is drawn, or the sum is taken."""
    self._shares_closed = True

  def close_proofs(self) -> None:
    """To be called before the point is drawn at which proofs are opened."""
    self._proofs_closed = True

  def receive_shares(self, client: int, data: bytes) -> Reason | None:
    """Takes a client's first message; why it does not, or None."""
    if client in self._shares:
      return Reason.DUPLICATE
    if self._shares_closed:
      return Reason.LATE
    parameters = self._parameters
    seed = self._index > 0 or parameters.statement is not None
    size = MASK_KEY_BYTES if seed else 0
    if parameters.statement is not None:
      size += _SCALARS * _WORD
    if self._index == 0:
      size += (packing.packed_bytes(parameters.length, parameters.bits)
               if parameters.statement is None
               else _WORD * parameters.length)
    if len(data) != size:
      return Reason.MALFORMED
    if parameters.statement is not None and not field.are_elements(
        np.frombuffer(data, '<u8', offset=MASK_KEY_BYTES)):
      return Reason.MALFORMED
    if parameters.statement is None and self._index == 0 and packing.unpack(
        data, parameters.length, parameters.bits) is None:
      return Reason.MALFORMED
    self._shares[client] = data
    return None

  def receive_proof(self, client: int, data: bytes) -> Reason | None:
    """Takes a client's second message; why it does not, or None."""
    assert self._parameters.statement is not None
    if client in self._proofs:
      return Reason.DUPLICATE
    if self._proofs_closed:
      return Reason.LATE
    if client not in self._shares or not self._shares_closed:
      return Reason.WRONG_STAGE
    m = self._parameters.statement.num_bits
    size = MASK_KEY_BYTES + (3 * m * _WORD if self._index == 0 else 0)
    if len(data) != size or not field.are_elements(
        np.frombuffer(data[MASK_KEY_BYTES:], '<u8')):
      return Reason.MALFORMED
    self._proofs[client] = data
    return None

  def _vector_shares(self, client: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the mask a and of v."""
    data, d = self._shares[client], self._parameters.length
    if self._index:
      both = _expand(data[:MASK_KEY_BYTES], 2 * d)
      return both[:d], both[d:]
    offset = MASK_KEY_BYTES + _SCALARS * _WORD
    return _expand(data[:MASK_KEY_BYTES], d), np.frombuffer(
        data, '<u8', d, offset).astype(np.uint64)

  def open(self, client: int, chosen: np.ndarray, t: int) -> Opening:
    """Its part of the checks of one client at the challenge t."""
    statement = self._parameters.statement
    assert statement is not None
    m = statement.num_bits
    a, v = self._vector_shares(client)
    aa, av, vv, half = np.frombuffer(
        self._shares[client], '<u8', _SCALARS, MASK_KEY_BYTES).tolist()
    proof = self._proofs[client]
    if self._index:
      both = _expand(proof, 4 * m)
      mask, rest = both[:m], both[m:]
    else:
      mask = _expand(proof[:MASK_KEY_BYTES], m)
      rest = np.frombuffer(proof, '<u8', 3 * m, MASK_KEY_BYTES).astype(
          np.uint64)
    bits, squares, crosses = rest[:m], rest[m:2 * m], rest[2 * m:]
    return Opening(
        field.add_multiple(a, t, v), (aa + 2 * t * av + t * t * vv)
        % field.PRIME, field.add_multiple(mask, t, bits),
        field.add_multiple(squares, t, crosses),
        norm_proof.linear_check(
            statement, norm_proof.subset_sums(chosen, v), half, vv, bits,
            self._index == 0))

  def sum_share(self, clients: Iterable[int]) -> np.ndarray:
    """Its share of the sum over the clients that all servers accept."""
    parameters = self._parameters
    total = np.zeros(parameters.length, parameters.dtype)
    for client in clients:
      if parameters.statement is not None:
        total = field.add(total, self._vector_shares(client)[1])
      elif self._index:
        total = total + _stream(
            self._shares[client], parameters.length, parameters.dtype)
      else:
        total = total + packing.unpack(
            self._shares[client], parameters.length, parameters.bits)
    return total


def check(openings: list[Opening], t: int) -> Reason | None:
  """What every server concludes from all openings of one client."""
  vector, bits, products = (
      add_all([getattr(o, name) for o in openings])
      for name in ('vector', 'bits', 'products'))
  if field.dot(vector, vector) != sum(o.square for o in openings) % field.PRIME:
    return Reason.FALSE_SQUARE
  factor = np.uint64(t)
  if (field.subtract(field.multiply(bits, bits), field.multiply(bits, factor))
      != products).any():
    return Reason.NOT_BITS
  *ranges, bound = (sum(column) % field.PRIME
                    for column in zip(*(o.linear for o in openings)))
  if any(ranges):
    return Reason.OUT_OF_RANGE
  return Reason.OVER_NORM if bound else None


def add_all(parts: list[np.ndarray]) -> np.ndarray:
  """The sum of vectors of field elements."""
  whole = parts[0]
  for part in parts[1:]:
    whole = field.add(whole, part)
  return whole
