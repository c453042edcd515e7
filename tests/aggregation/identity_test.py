"""Tests of fedjaxrec.aggregation.identity."""

import pytest

from fedjaxrec.aggregation import identity
from fedjaxrec.aggregation.identity import Enrolment


@pytest.fixture
def enrolled():
  return identity.enrol_clients(range(3))


def rotate(registry, old, new):
  registry.rotate(old.client_id, new.public_key, old.sign(
      identity.rotation_statement(
          old.client_id, old.public_key, new.public_key)))


def test_a_client_is_unknown_then_enrolled_then_revoked():
  registry, client = identity.Registry(), identity.create_identity(4)
  assert registry.status(4) is Enrolment.UNKNOWN
  registry.enrol(4, client.public_key)
  assert registry.status(4) is Enrolment.ENROLLED
  assert registry.public_key(4) == client.public_key
  registry.revoke(4)
  assert registry.status(4) is Enrolment.REVOKED
  with pytest.raises(ValueError, match='client_id=4 is revoked'):
    registry.public_key(4)


def test_a_revoked_client_cannot_come_back(enrolled):
  registry, clients = enrolled
  registry.revoke(1)
  with pytest.raises(ValueError, match='was enrolled before'):
    registry.enrol(1, identity.create_identity(1).public_key)
  with pytest.raises(ValueError, match='in use'):
    registry.enrol(9, clients[1].public_key)
  with pytest.raises(ValueError, match='is revoked'):
    rotate(registry, clients[1], identity.create_identity(1))


def test_the_old_key_names_the_new_one(enrolled):
  registry, clients = enrolled
  before, new = registry.digest(), identity.create_identity(0)
  rotate(registry, clients[0], new)
  assert registry.public_key(0) == new.public_key
  assert registry.digest() != before
  with pytest.raises(ValueError, match='in use'):  # Nor does a key return.
    rotate(registry, new, clients[0])


def test_nobody_else_can_rotate_a_key(enrolled):
  registry, clients = enrolled
  new = identity.create_identity(0)
  statement = identity.rotation_statement(
      0, clients[0].public_key, new.public_key)
  with pytest.raises(ValueError, match='did not sign'):
    registry.rotate(0, new.public_key, clients[1].sign(statement))
  other = identity.create_identity(0)  # A right signature, of another key.
  with pytest.raises(ValueError, match='did not sign'):
    registry.rotate(0, other.public_key, clients[0].sign(statement))


@pytest.mark.parametrize(('client_id', 'key', 'message'), [
  (-1, b'k' * 32, 'client_id=-1'), (2**32 - 1, b'k' * 32, 'client_id='),
  (9, b'k' * 31, '31 bytes')])
def test_what_is_no_client_is_not_enrolled(client_id, key, message):
  with pytest.raises(ValueError, match=message):
    identity.Registry().enrol(client_id, key)


def test_the_digest_follows_who_is_enrolled(enrolled):
  registry, clients = enrolled
  digests = [registry.digest()]
  registry.enrol(8, identity.create_identity(8).public_key)
  digests.append(registry.digest())
  registry.revoke(8)
  assert registry.digest() == digests[0]
  assert len(set(digests)) == 2


def test_a_round_is_claimed_once_and_no_earlier_one_after():
  client = identity.create_identity(0)
  assert client.claim_round(5)
  assert not client.claim_round(5)
  assert not client.claim_round(4)
  assert client.claim_round(6)


def test_a_private_key_is_not_printed():
  client = identity.create_identity(0)
  assert repr(client) == 'Identity(client_id=0)'
