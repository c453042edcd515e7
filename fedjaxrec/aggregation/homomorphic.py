"""Sums under CKKS encryption, by the optional library tenseal.

Clients encrypt, the server adds ciphertexts, and whoever holds the one secret
key decrypts the sum. Approximate: fixed-point numbers with noise, not the ring.
Ring degree 4096 with coefficient moduli of 54 and 54 bits (128-bit security,
additions only), scale 2^40.

The only file that knows tenseal.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjaxrec.aggregation.cost import Cost, SumNotRevealed

_DEGREE = 4096
_MODULI = (54, 54)
_SCALE_BITS = 40
SLOTS = _DEGREE // 2  # Numbers in a ciphertext.
# The sum times the scale must stay below half of the first modulus; a bit is
# left for the noise.
MAX_SUM = 2.0 ** (_MODULI[0] - _SCALE_BITS - 2)
KEY_HOLDERS = ('third_party', 'clients')

Tamper = Callable[[int, list[bytes]], list[bytes]]


class HomomorphicSumResult(NamedTuple):
  """A sum, and what it took.

  Attributes:
    level: 'homomorphic'.
    sum: float32 [d] of the survivors' vectors, off by about 1e-7.
    survivors: Whose vectors are in it.
    rejected: Client -> 'dropped', 'bad_input' (not finite, or too large) or
      'malformed'.
    uplink_bytes: Stage -> client -> bytes of its ciphertexts.
    downlink_bytes: Stage -> client -> bytes of the key.
    client_s: Processor seconds of all clients together.
    server_s: Processor seconds of the server.
    key_holder_s: Processor seconds of making the key and decrypting.
    who_can_decrypt: Whose vectors are safe from whom, for the report.
  """
  level: str
  sum: np.ndarray
  survivors: tuple[int, ...]
  rejected: dict[int, str]
  uplink_bytes: dict[str, dict[int, int]]
  downlink_bytes: dict[str, dict[int, int]]
  client_s: float
  server_s: float
  key_holder_s: float
  who_can_decrypt: str


def who_can_decrypt(key_holder: str) -> str:
  """What each party could read, in words for a report."""
  caveats = (
      ' There is one secret key, not shares of one. The decrypted sum carries '
      "CKKS's rounding noise and no flooding noise: showing it to somebody who "
      'also sees the ciphertexts is outside what CKKS proves (IND-CPA-D). '
      'Nothing checks what a client encrypts.')
  if key_holder == 'clients':
    return ('All clients hold the one secret key: any of them could decrypt '
            'any other client whose ciphertext it gets from the server or the '
            'network. The server holds no key and sees ciphertexts only.'
            + caveats)
  return ('A third party holds the secret key: it could decrypt every single '
          'client whose ciphertext it gets, and is to be sent the sum alone. '
          'The server and the clients hold no secret key; the server together '
          'with the key holder reads everything.' + caveats)


def _tenseal():
  """The library, or an error that says how to get it."""
  try:
    import tenseal
  except ImportError as error:
    raise ValueError(
        'secure.level=he: tenseal is not installed; it is an extra: '
        'pip install fedjaxrec[he].') from error
  return tenseal


class KeyHolder:
  """Makes the key, and decrypts.

  Args:
    key_holder: 'third_party': clients encrypt with a public key. 'clients':
      they share the secret key, and the holder is any of them; half the time.

  Attributes:
    server_context: What the server is given: no secret.
    client_context: What a client is given.
  """

  def __init__(self, key_holder: str = 'third_party'):
    if key_holder not in KEY_HOLDERS:
      raise ValueError(
          f'key_holder={key_holder!r} is not known; choose one of '
          f'{", ".join(KEY_HOLDERS)}.')
    ts = _tenseal()
    shared = key_holder == 'clients'
    kind = (ts.ENCRYPTION_TYPE.SYMMETRIC if shared
            else ts.ENCRYPTION_TYPE.ASYMMETRIC)
    self._context = ts.context(
        ts.SCHEME_TYPE.CKKS, _DEGREE, -1, list(_MODULI), encryption_type=kind)
    self._context.global_scale = 2.0**_SCALE_BITS
    options = dict(save_galois_keys=False, save_relin_keys=False)
    self.server_context = self._context.serialize(
        save_public_key=False, save_secret_key=False, **options)
    self.client_context = self._context.serialize(
        save_public_key=not shared, save_secret_key=shared, **options)

  def decrypt(self, ciphertexts: Iterable[bytes]) -> np.ndarray:
    """Returns the numbers in the ciphertexts, one after another: float64."""
    ts = _tenseal()
    return np.concatenate([
        ts.ckks_vector_from(self._context, data).decrypt()
        for data in ciphertexts])


class Encryptor:
  """A client's side; `context` is a key holder's `client_context`."""

  def __init__(self, context: bytes):
    self._ts = _tenseal()
    self._context = self._ts.context_from(context)

  def encrypt(self, vector: np.ndarray) -> list[bytes]:
    """Returns ciphertexts of 2048 numbers each, 60 KiB."""
    return [
      self._ts.ckks_vector(self._context, vector[i:i + SLOTS]).serialize()
      for i in range(0, len(vector), SLOTS)]


class Adder:
  """The server: adds ciphertexts that it cannot read.

  Args:
    context: A key holder's `server_context`.
    length: d.
  """

  def __init__(self, context: bytes, length: int):
    self._ts = _tenseal()
    self._context = self._ts.context_from(context)
    self._sizes = [min(SLOTS, length - i) for i in range(0, length, SLOTS)]
    self._total: list[Any] = []

  def add(self, ciphertexts: list[bytes]) -> bool:
    """Adds one client's vector; False, and nothing added, if malformed."""
    try:
      vectors = [self._ts.ckks_vector_from(self._context, data)
                 for data in ciphertexts]
      if [vector.size() for vector in vectors] != self._sizes:
        return False
      total = [old + new for old, new in zip(
          self._total, vectors)] if self._total else vectors
    except (ValueError, RuntimeError, TypeError, IndexError):
      return False
    self._total = total
    return True

  def total(self) -> list[bytes]:
    """The encrypted sum."""
    return [vector.serialize() for vector in self._total]


def run_homomorphic_sum(
    inputs: Mapping[int, np.ndarray],
    *,
    key_holder: str = 'third_party',
    dropouts: Iterable[int] = (),
    min_survivors: int = 2,
    tamper: Tamper | None = None,
) -> HomomorphicSumResult:
  """Runs an encrypted sum in this process, every message in bytes.

  Formal guarantee: a server that holds no key learns nothing about the vectors
  but their length and who sent one (CKKS, 128-bit security). See
  `who_can_decrypt` for the others. The sum is protected by nothing: add noise.

  Cost: about 1 ms a 1,000 numbers to encrypt, 31 bytes a number on the wire,
  under eight times float32; adding and decrypting are ten times as fast.
  Error: about 1e-8 a client and entry.

  Args:
    inputs: Client -> float [d], |x| at most MAX_SUM / len(inputs) = 4096 / n.
    key_holder: Who holds the secret key: see `KeyHolder`.
    dropouts: Clients that send nothing.
    min_survivors: A sum of fewer is not decrypted.
    tamper: (client, its ciphertexts) -> what arrives: for drills.

  Raises:
    ValueError: If tenseal is absent, or an argument breaks a rule.
    SumNotRevealed: If too few clients are left: nothing is then decrypted.

  References:
    Cheon, Kim, Kim and Song, 2017, Homomorphic Encryption for Arithmetic of
    Approximate Numbers, ASIACRYPT; Li and Micciancio, 2021, On the Security of
    Homomorphic Encryption on Approximate Numbers, EUROCRYPT.
  """
  if not inputs:
    raise ValueError('inputs={}: there is nobody to sum; give clients.')
  if min_survivors < 2:
    raise ValueError(
        f'min_survivors={min_survivors} must be at least 2: the sum of one '
        'client is its vector.')
  vectors = {c: np.asarray(v, np.float64) for c, v in inputs.items()}
  lengths = [v.size for v in vectors.values() if v.ndim == 1]
  length = max(set(lengths), key=lengths.count) if lengths else 0
  if not length:
    raise ValueError('inputs: vectors [d] with d of at least 1 are summed.')

  start = time.process_time()
  holder = KeyHolder(key_holder)
  key_holder_s = time.process_time() - start
  server = Adder(holder.server_context, length)
  client_side = Encryptor(holder.client_context)
  limit = MAX_SUM / len(vectors)
  silent = set(dropouts)
  rejected: dict[int, str] = {}
  survivors: list[int] = []
  uplink: dict[int, int] = {}
  downlink: dict[int, int] = {}
  client_s = server_s = 0.0
  for client, vector in vectors.items():
    downlink[client] = len(holder.client_context)
    # A NaN compares as False.
    if vector.shape != (length,) or not np.abs(vector).max() <= limit:
      rejected[client] = 'bad_input'
      continue
    if client in silent:
      rejected[client] = 'dropped'
      continue
    start = time.process_time()
    message = client_side.encrypt(vector)
    client_s += time.process_time() - start
    if tamper is not None:
      message = tamper(client, message)
    uplink[client] = sum(map(len, message))
    start = time.process_time()
    if server.add(message):
      survivors.append(client)
    else:
      rejected[client] = 'malformed'
    server_s += time.process_time() - start
  if len(survivors) < min_survivors:
    raise SumNotRevealed(
        f'survivors={len(survivors)} of {len(vectors)} clients are fewer than '
        f'min_survivors={min_survivors}: the sum is not decrypted; ask more '
        'clients.', rejected,
        Cost({'ciphertexts': uplink}, {'keys': downlink}, client_s, server_s,
             key_holder_s=key_holder_s))
  start = time.process_time()
  encrypted = server.total()
  server_s += time.process_time() - start
  start = time.process_time()
  total = holder.decrypt(encrypted).astype(np.float32)
  key_holder_s += time.process_time() - start
  return HomomorphicSumResult(
      'homomorphic', total, tuple(survivors), rejected, {'ciphertexts': uplink},
      {'keys': downlink}, client_s, server_s, key_holder_s,
      who_can_decrypt(key_holder))
