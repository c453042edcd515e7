"""The cryptography that the secure sum stands on, and nothing of our own.

The only file that knows the `cryptography` library. Curve25519 and SHA-256
throughout; a name that says what a key is for goes into every derivation, so
that no key serves two purposes.
"""

import hashlib
import hmac
import os
import struct
from collections.abc import Callable

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
  Ed25519PrivateKey,
  Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
  X25519PrivateKey,
  X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# bytes(n) -> n random bytes. os.urandom, but for tests that must repeat.
Entropy = Callable[[int], bytes]
system_entropy: Entropy = os.urandom

KEY_BYTES = 32
SIGNATURE_BYTES = 64
DIGEST_BYTES = 32
# A mask key is an AES-128 key and the first counter block.
MASK_KEY_BYTES = 32
GCM_TAG_BYTES = 16
MAC_BYTES = 16
_BLOCK_BYTES = 16


def digest(purpose: bytes, *parts: bytes | memoryview) -> bytes:
  """SHA-256 of the parts, each with its length, under a purpose."""
  lengths = struct.pack(f'<{len(parts) + 1}Q', len(purpose), *map(len, parts))
  return hashlib.sha256(b''.join((lengths, purpose, *parts))).digest()


def mac(key: bytes, message: bytes) -> bytes:
  """HMAC-SHA-256, cut to 128 bits."""
  return hmac.digest(key, message, 'sha256')[:MAC_BYTES]


def equal(a: bytes, b: bytes) -> bool:
  """Compares in a time that does not depend on where they differ."""
  return hmac.compare_digest(a, b)


def derive(secret: bytes, info: bytes, length: int) -> bytes:
  """HKDF-SHA-256; `info` names protocol, purpose, round and pair."""
  return HKDF(hashes.SHA256(), length, None, info).derive(secret)


def generate_signing_key(entropy: Entropy = system_entropy) -> bytes:
  """Returns a fresh Ed25519 private key."""
  return entropy(KEY_BYTES)


class Signer:
  """An Ed25519 private key, loaded."""

  def __init__(self, private_key: bytes):
    self._key = Ed25519PrivateKey.from_private_bytes(private_key)
    self.public_key = self._key.public_key().public_bytes_raw()

  def sign(self, message: bytes) -> bytes:
    """Returns the signature, 64 bytes."""
    return self._key.sign(message)


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
  """Whether `signature` is the key's Ed25519 signature of the message."""
  try:
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
  except (InvalidSignature, ValueError):
    return False
  return True


class Agreement:
  """An X25519 private key, loaded; from bytes, or fresh."""

  def __init__(self, private_key: bytes):
    self.private_key = private_key
    self._key = X25519PrivateKey.from_private_bytes(private_key)
    self.public_key = self._key.public_key().public_bytes_raw()

  def agree(self, public_key: bytes) -> bytes:
    """Returns the secret shared with the owner of `public_key`.

    Raises:
      ValueError: If the public key is a point of small order, with which
        everybody would know the secret.
    """
    return self._key.exchange(X25519PublicKey.from_public_bytes(public_key))


def encrypt(key: bytes, message: bytes, context: bytes) -> bytes:
  """AES-128-GCM under a key that encrypts this one message and no other."""
  return AESGCM(key).encrypt(bytes(12), message, context)


def decrypt(key: bytes, ciphertext: bytes, context: bytes) -> bytes | None:
  """Returns the message, or None if it is not what was encrypted."""
  try:
    return AESGCM(key).decrypt(bytes(12), ciphertext, context)
  except (InvalidTag, ValueError):
    return None


class Keystream:
  """The AES-128-CTR keystream of one key, as unsigned integers.

  Cost: about 0.15 ms a megabyte on a processor with AES instructions.

  Formal guarantees: a key is used once, for fewer than 2^32 blocks; the stream
  is then indistinguishable from uniform bits up to about 2^-64 for AES-128, and
  its reduction modulo 2^b, b <= the type's width, is as uniform.
  """

  def __init__(self, key: bytes):
    if len(key) != MASK_KEY_BYTES:
      raise ValueError(
          f'len(key)={len(key)} is no mask key; derive {MASK_KEY_BYTES} bytes.')
    self._encryptor = Cipher(
        algorithms.AES(key[:16]), modes.CTR(key[16:])).encryptor()

  def read_into(self, buffer: 'StreamBuffer') -> np.ndarray:
    """Returns the stream's next values; the buffer's next reader overwrites."""
    self._encryptor.update_into(buffer.zeros, buffer.data)
    return buffer.values


class StreamBuffer:
  """Room for one piece of a keystream, `length` values of `dtype`."""

  def __init__(self, length: int, dtype: np.dtype):
    self.zeros = bytes(length * dtype.itemsize)
    self.data = bytearray(len(self.zeros) + _BLOCK_BYTES - 1)
    self.values = np.frombuffer(self.data, dtype, length)
