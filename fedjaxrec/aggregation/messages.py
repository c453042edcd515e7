"""What the parties send: bytes with one strict reading.

A message is a header of 16 bytes, a payload, and from a client a signature of
64 bytes over the session, the header and the payload. Numbers are
little-endian. Anything that is not exactly what was agreed is refused with a
reason.
"""

import enum
import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedjaxrec.aggregation import primitives

MAGIC, VERSION = b'FS', 1
SERVER = 2**32 - 1
_HEADER = struct.Struct('<2sBBIII')
HEADER_BYTES = _HEADER.size


class Stage(enum.IntEnum):
  """The five exchanges of a round, in order."""
  ADVERTISE = 0
  SHARE_KEYS = 1
  MASKED_INPUT = 2
  CONSISTENCY = 3
  UNMASK = 4

  @property
  def label(self) -> str:
    """The name in results and flags."""
    return self.name.lower()


STAGES = tuple(stage.label for stage in Stage)


class Kind(enum.IntEnum):
  """Stage s is asked for by kind 2 s and answered by 2 s + 1."""
  START = 0
  ADVERTISEMENT = 1
  NEIGHBORS = 2
  SHARES = 3
  DELIVERY = 4
  MASKED = 5
  SURVIVORS = 6
  AGREEMENT = 7
  CONFIRMATION = 8
  REVEAL = 9
  ABORT = 11


class Reason(enum.StrEnum):
  """Why a message, a client or a round was refused."""
  # The server, of a message.
  MALFORMED = 'malformed'
  WRONG_LENGTH = 'wrong_length'
  WRONG_SENDER = 'wrong_sender'
  WRONG_ROUND = 'wrong_round'
  WRONG_STAGE = 'wrong_stage'
  NOT_INVITED = 'not_invited'
  NOT_ENROLLED = 'not_enrolled'
  REVOKED = 'revoked'
  BAD_SIGNATURE = 'bad_signature'
  DUPLICATE = 'duplicate'
  REPLAYED = 'replayed'
  LATE = 'late'
  BAD_KEY = 'bad_key'
  OUT_OF_RING = 'out_of_ring'
  BAD_SHARE = 'bad_share'
  BAD_DEAL = 'bad_deal'
  # A client, of its own input, or of what the server asks.
  BAD_INPUT = 'bad_input'
  ROUND_REUSED = 'round_reused'
  PARAMETERS_DIFFER = 'parameters_differ'
  BAD_NEIGHBOR = 'bad_neighbor'
  SURVIVORS_DIFFER = 'survivors_differ'
  TOO_FEW_NEIGHBORS = 'too_few_neighbors'
  TOO_FEW_CONFIRMATIONS = 'too_few_confirmations'
  # Either, of the round.
  TOO_FEW_SURVIVORS = 'too_few_survivors'
  BELOW_THRESHOLD = 'below_threshold'


_REASONS = tuple(Reason)
_KINDS = frozenset(Kind)


class Refusal(Exception):
  """A message that is not what was agreed."""

  def __init__(self, reason: Reason):
    super().__init__(reason.value)
    self.reason = reason


class Message(NamedTuple):
  """A message, read. `signed` is what its signature covers, session apart."""
  kind: Kind
  round_index: int
  sender: int
  payload: memoryview
  header: bytes
  signature: bytes


def encode(
    kind: Kind, round_index: int, sender: int, payload: bytes,
    sign: Callable[[bytes], bytes] | None = None, session: bytes = b'',
) -> bytes:
  """Writes a message; signed if a signing function is given."""
  header = _HEADER.pack(
      MAGIC, VERSION, kind, round_index, sender, len(payload))
  if sign is None:
    return header + payload
  return b''.join(
      (header, payload, sign(signed_statement(session, header, payload))))


def signed_statement(
    session: bytes, header: bytes, payload: bytes | memoryview
) -> bytes:
  """What a client signs of a message: its digest within the session."""
  return primitives.digest(b'fedjaxrec message', session, header, payload)


def decode(data: bytes, signed: bool) -> Message:
  """Reads a message; the signature is for the caller to check.

  Raises:
    Refusal: MALFORMED or WRONG_LENGTH.
  """
  if len(data) < HEADER_BYTES:
    raise Refusal(Reason.MALFORMED)
  magic, version, kind, round_index, sender, size = _HEADER.unpack_from(data)
  if magic != MAGIC or version != VERSION or kind not in _KINDS:
    raise Refusal(Reason.MALFORMED)
  tail = primitives.SIGNATURE_BYTES if signed else 0
  if len(data) != HEADER_BYTES + size + tail:
    raise Refusal(Reason.WRONG_LENGTH)
  end = HEADER_BYTES + size
  return Message(
      Kind(kind), round_index, sender, memoryview(data)[HEADER_BYTES:end],
      data[:HEADER_BYTES], data[end:])


def encode_reason(reason: Reason) -> bytes:
  """A client's reason to leave, as one byte."""
  return bytes([_REASONS.index(reason)])


def decode_reason(payload: memoryview) -> Reason:
  """Reads a client's reason to leave."""
  if len(payload) != 1 or payload[0] >= len(_REASONS):
    raise Refusal(Reason.MALFORMED)
  return _REASONS[payload[0]]


def bitmap_bytes(size: int) -> int:
  """Bytes of a set of members of a cohort."""
  return -(-size // 8)


def encode_members(members: Iterable[int], cohort: Sequence[int]) -> bytes:
  """A subset of the cohort, one bit a client in the cohort's order."""
  members = set(members)
  return np.packbits(
      [client in members for client in cohort], bitorder='little').tobytes()


def decode_members(
    bitmap: bytes | memoryview, cohort: Sequence[int]
) -> tuple[int, ...]:
  """Reads a subset of the cohort.

  Raises:
    Refusal: WRONG_LENGTH, or MALFORMED for a set bit beyond the cohort's end.
  """
  if len(bitmap) != bitmap_bytes(len(cohort)):
    raise Refusal(Reason.WRONG_LENGTH)
  bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder='little')
  if bits[len(cohort):].any():
    raise Refusal(Reason.MALFORMED)
  return tuple(itertools.compress(cohort, bits.tolist()))


def split_payload(
    payload: memoryview, sizes: Sequence[int]
) -> list[bytes]:
  """Cuts a payload into fields; they must fill it."""
  if len(payload) != sum(sizes):
    raise Refusal(Reason.WRONG_LENGTH)
  fields, start = [], 0
  for size in sizes:
    fields.append(bytes(payload[start:start + size]))
    start += size
  return fields


def split_records(data: bytes, size: int) -> list[bytes]:
  """Cuts a field into records of one size."""
  return [data[start:start + size] for start in range(0, len(data), size)]
