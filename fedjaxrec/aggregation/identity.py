"""Who a client is: a key pair, and a registry of the public halves.

A simulated public-key infrastructure. The registry stands for the authority
that every party trusts to say which key belongs to which client; the server
reads it and cannot write to it.
"""

import enum
from collections.abc import Iterable, Mapping

from fedjaxrec.aggregation import primitives
from fedjaxrec.aggregation.primitives import Entropy, system_entropy


class Identity:
  """A client's key pair for signatures, and the last round it took part in.

  A key pair that signs must never take part in a round number twice: what the
  server learnt of the first time would open the second.
  """

  def __init__(self, client_id: int, private_key: bytes, last_round: int = -1):
    self.client_id = client_id
    self.private_key = private_key
    self.last_round = last_round
    self._signer = primitives.Signer(private_key)

  @property
  def public_key(self) -> bytes:
    """Ed25519, 32 bytes."""
    return self._signer.public_key

  def sign(self, message: bytes) -> bytes:
    """Signs as this client."""
    return self._signer.sign(message)

  def claim_round(self, round_index: int) -> bool:
    """Whether the round is later than all before; if so it is now used."""
    if round_index <= self.last_round:
      return False
    self.last_round = round_index
    return True

  def __repr__(self):
    return f'Identity(client_id={self.client_id})'  # Never the private key.


def create_identity(
    client_id: int, entropy: Entropy = system_entropy
) -> Identity:
  """Makes a key pair for a client; nobody knows it until it is enrolled."""
  return Identity(client_id, primitives.generate_signing_key(entropy))


class Enrolment(enum.Enum):
  """What the registry says of a client."""
  UNKNOWN = 'unknown'
  ENROLLED = 'enrolled'
  REVOKED = 'revoked'


class Registry:
  """The public keys of the clients that may take part."""

  def __init__(self, public_keys: Mapping[int, bytes] | None = None):
    self._keys: dict[int, bytes] = {}
    self._used: set[bytes] = set()  # Keys, former ones included.
    self._revoked: set[int] = set()
    self._digest: bytes | None = None
    for client_id, public_key in (public_keys or {}).items():
      self.enrol(client_id, public_key)

  def enrol(self, client_id: int, public_key: bytes) -> None:
    """Admits a client.

    Raises:
      ValueError: If the id is taken (also by a revoked client), or the key is
        not 32 bytes or another client's.
    """
    if not 0 <= client_id < 2**32 - 1:
      raise ValueError(f'client_id={client_id} must be from 0 to 2^32 - 2.')
    if client_id in self._keys:
      raise ValueError(
          f'client_id={client_id} was enrolled before; rotate its key, or '
          'enrol the newcomer under an id of its own.')
    self._check_key(client_id, public_key)
    self._keys[client_id] = public_key
    self._used.add(public_key)
    self._digest = None

  def revoke(self, client_id: int) -> None:
    """Shuts a client out, for good."""
    self._require(client_id)
    self._revoked.add(client_id)
    self._digest = None

  def rotate(
      self, client_id: int, public_key: bytes, signature: bytes
  ) -> None:
    """Replaces a client's key.

    Args:
      client_id: An enrolled client.
      public_key: The new one.
      signature: The old key's, over `rotation_statement`.

    Raises:
      ValueError: If the client is not enrolled or the old key did not sign.
    """
    old = self._require(client_id)
    self._check_key(client_id, public_key)
    statement = rotation_statement(client_id, old, public_key)
    if not primitives.verify(old, signature, statement):
      raise ValueError(
          f'client_id={client_id}: its old key did not sign the new one; sign '
          'rotation_statement(...) with the old key, or revoke the client.')
    self._keys[client_id] = public_key
    self._used.add(public_key)
    self._digest = None

  def status(self, client_id: int) -> Enrolment:
    """Whether the client may take part."""
    if client_id in self._revoked:
      return Enrolment.REVOKED
    return (Enrolment.ENROLLED if client_id in self._keys
            else Enrolment.UNKNOWN)

  def public_key(self, client_id: int) -> bytes:
    """Returns an enrolled client's key."""
    return self._require(client_id)

  def digest(self) -> bytes:
    """SHA-256 of who is enrolled with which key: all parties compare it."""
    if self._digest is None:
      self._digest = primitives.digest(b'fedjaxrec registry', *(
          client.to_bytes(4, 'little') + self._keys[client]
          for client in sorted(self._keys.keys() - self._revoked)))
    return self._digest

  def _require(self, client_id: int) -> bytes:
    status = self.status(client_id)
    if status is not Enrolment.ENROLLED:
      raise ValueError(
          f'client_id={client_id} is {status.value}; only an enrolled client '
          'has a key to use, rotate or revoke.')
    return self._keys[client_id]

  def _check_key(self, client_id: int, public_key: bytes) -> None:
    if len(public_key) != primitives.KEY_BYTES:
      raise ValueError(
          f'client_id={client_id}: a public key of {len(public_key)} bytes; '
          f'Ed25519 has {primitives.KEY_BYTES}.')
    if public_key in self._used:
      raise ValueError(
          f'client_id={client_id}: the public key is or was in use; a client '
          'has a fresh key of its own.')


def rotation_statement(client_id: int, old: bytes, new: bytes) -> bytes:
  """What the old key signs to name its successor."""
  return primitives.digest(
      b'fedjaxrec rotation', client_id.to_bytes(4, 'little'), old, new)


def enrol_clients(
    client_ids: Iterable[int], entropy: Entropy = system_entropy
) -> tuple[Registry, dict[int, Identity]]:
  """Makes and enrols an identity for each client of a simulation."""
  identities = {int(i): create_identity(int(i), entropy) for i in client_ids}
  return (Registry({i: identity.public_key
                    for i, identity in identities.items()}), identities)
