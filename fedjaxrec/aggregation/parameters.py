"""What all parties of a round agree on before it starts."""

import dataclasses
import functools

import numpy as np

from fedjaxrec.aggregation import packing, primitives

PROTOCOL = b'fedjaxrec secure sum 1'
NONCE_BYTES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundParameters:
  """One round's agreement; two parties with another one refuse each other.

  Attributes:
    cohort: Ids of the invited clients, increasing.
    round_index: A client takes part in a number once.
    bits: The ring is modulo 2^bits, 2 to 32.
    dimension: Elements of a vector.
    num_neighbors: k: even, or at least len(cohort) - 1.
    threshold: t: shares that rebuild a secret; more than half of k, so that no
      two groups of neighbours can give up both secrets of a client.
    min_survivors: The sum of fewer is neither computed nor helped to.
    registry_digest: Whose keys count.
  """
  cohort: tuple[int, ...]
  round_index: int
  bits: int
  dimension: int
  num_neighbors: int
  threshold: int
  min_survivors: int
  registry_digest: bytes

  def __post_init__(self):
    packing.check_bits(self.bits)
    if list(self.cohort) != sorted(set(self.cohort)) or not all(
        0 <= client < 2**32 - 1 for client in self.cohort):
      raise ValueError(
          'cohort: ids must increase and lie from 0 to 2^32 - 2; sort them.')
    if not 0 <= self.round_index < 2**32:
      raise ValueError(
          f'round_index={self.round_index} must be from 0 to 2^32 - 1.')
    if not 1 <= self.dimension <= 2**28:
      raise ValueError(
          f'dimension={self.dimension} must be from 1 to 2^28; a longer vector '
          'goes in several rounds.')
    n = len(self.cohort)
    if self.num_neighbors % 2 and self.num_neighbors < n - 1:
      raise ValueError(
          f'num_neighbors={self.num_neighbors} is odd and below the cohort of '
          f'{n} less one; choose an even number, or {n - 1} for the complete '
          'graph.')
    degree = min(self.num_neighbors, n - 1)
    if not degree / 2 < self.threshold <= degree:
      raise ValueError(
          f'threshold={self.threshold} must be above half of the '
          f'{degree} neighbours that a client has (num_neighbors='
          f'{self.num_neighbors}, a cohort of {n}) and at most all of them; '
          'choose_graph(...) finds one.')
    if not 2 <= self.min_survivors <= n:
      raise ValueError(
          f'min_survivors={self.min_survivors} must be at least 2 (the sum of '
          f'one is its update) and at most the {n} clients that are invited.')

  @functools.cached_property
  def digest(self) -> bytes:
    """SHA-256 of the agreement."""
    numbers = (self.round_index, self.bits, self.dimension, self.num_neighbors,
               self.threshold, self.min_survivors)
    return primitives.digest(
        PROTOCOL, np.array(numbers, '<u8').tobytes(),
        np.array(self.cohort, '<u4').tobytes(), self.registry_digest)

  @property
  def graph_seed(self) -> bytes:
    """Public, and not for the server to choose."""
    return primitives.digest(b'fedjaxrec graph seed', self.digest)


def session_of(parameters_digest: bytes, nonce: bytes) -> bytes:
  """What every signature and key of one run of a round is bound to."""
  return primitives.digest(
      b'fedjaxrec session', parameters_digest, nonce)


def key_info(
    purpose: bytes, session: bytes, round_index: int, i: int, j: int
) -> bytes:
  """HKDF's info: protocol | purpose | session | round | i | j, with i <= j."""
  return b'|'.join((
      PROTOCOL, purpose, session, round_index.to_bytes(4, 'little'),
      min(i, j).to_bytes(4, 'little'), max(i, j).to_bytes(4, 'little')))
