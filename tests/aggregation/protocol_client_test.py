"""Tests of fedjaxrec.aggregation.protocol_client: a server that lies."""

import numpy as np
import pytest

from fedjaxrec.aggregation import identity
from fedjaxrec.aggregation.messages import (
  HEADER_BYTES,
  Kind,
  Reason,
  Stage,
  decode,
  encode_members,
)
from fedjaxrec.aggregation.protocol_client import SHARE_BYTES
from tests.secure_rounds import (
  IDENTITIES,
  SmallRound,
  read_reason,
  request,
)

VICTIM = 2


def refusal(small, data):
  return read_reason(small.clients[VICTIM].handle(data))


def survivors(small, members):
  return request(small, Kind.SURVIVORS,
                 encode_members(members, small.parameters.cohort))


def confirmations(small, requests, members):
  """What the server would hand the victim, after `members` were told so."""
  told = {}
  for client in members:
    answer = small.clients[client].handle(requests[client])
    peers = [p for p in small.clients[client]._peers if p in members]
    body = bytes(decode(answer, signed=True).payload)
    told[client] = {peer: body[16 * i:16 * (i + 1)]
                    for i, peer in enumerate(peers)}
  peers = [p for p in small.clients[VICTIM]._peers if p in members]
  return request(
      small, Kind.CONFIRMATION,
      encode_members(members, small.parameters.cohort)
      + b''.join(told[peer][VICTIM] for peer in peers))


def test_one_kind_of_share_of_each_peer_is_given_and_only_once():
  small = SmallRound()
  small.play_until(Stage.CONSISTENCY)
  alive = [0, 1, 2, 3, 4, 5]  # 6 and 7 uploaded, and are said to be gone.
  requests = dict.fromkeys(alive, survivors(small, alive))
  reveal = confirmations(small, requests, alive)
  client = small.clients[VICTIM]
  peers, held = client._peers, dict(client._shares)
  answer = decode(client.handle(reveal), signed=True)
  assert answer.kind is Kind.REVEAL
  shares = bytes(answer.payload)[1:]
  assert len(shares) == SHARE_BYTES * len(peers)
  for i, peer in enumerate(peers):
    half = held[peer][:SHARE_BYTES] if peer in alive else (
        held[peer][SHARE_BYTES:])
    assert shares[SHARE_BYTES * i:SHARE_BYTES * (i + 1)] == half
  # The other kind of each peer, and of nobody: it is gone.
  assert not client._shares
  assert refusal(small, reveal) is Reason.WRONG_STAGE


def test_a_second_set_of_survivors_is_refused():
  small = SmallRound()
  small.play_until(Stage.CONSISTENCY)
  assert refusal(small, survivors(small, range(8))) is None
  assert refusal(small, survivors(small, range(7))) is Reason.WRONG_STAGE
  # And after that nothing at all is answered.
  assert refusal(small, survivors(small, range(8))) is Reason.WRONG_STAGE


@pytest.mark.parametrize('split', [True, False])
def test_neighbors_who_were_told_other_survivors_do_not_confirm(split):
  """Half is told that 7 is there, half that it is gone: both of its secrets.

  Positive control: all are told the same, and the victim gives shares.
  """
  small = SmallRound()
  small.play_until(Stage.CONSISTENCY)
  others = [0, 1, 3, 4, 5, 6]
  alive = [*others, VICTIM]
  requests = {client: survivors(
      small, [*alive, 7] if split and client % 2 else alive)
              for client in alive}
  # Those told of 7 confirm to it as well, which the server throws away.
  told = {}
  for client in others:
    peers = [p for p in small.clients[client]._peers
             if p in alive or (split and client % 2 and p == 7)]
    body = bytes(decode(small.clients[client].handle(
        requests[client]), signed=True).payload)
    told[client] = body[16 * peers.index(VICTIM):][:16] if (
        VICTIM in peers) else None
  assert refusal(small, requests[VICTIM]) is None
  peers = [p for p in small.clients[VICTIM]._peers if p in others]
  assert len(peers) >= small.parameters.threshold
  reveal = request(
      small, Kind.CONFIRMATION,
      encode_members(alive, small.parameters.cohort)
      + b''.join(told[peer] for peer in peers))
  assert refusal(small, reveal) is (
      Reason.TOO_FEW_CONFIRMATIONS if split else None)


def test_fewer_than_t_confirmations_are_too_few():
  small = SmallRound(num_neighbors=8, threshold=5)  # The complete graph.
  requests = small.play_until(Stage.CONSISTENCY)
  four = confirmations(small, requests, [0, 1, VICTIM, 3, 4])
  assert refusal(small, four) is Reason.TOO_FEW_CONFIRMATIONS
  small = SmallRound(num_neighbors=8, threshold=5)
  requests = small.play_until(Stage.CONSISTENCY)
  five = confirmations(small, requests, [0, 1, VICTIM, 3, 4, 5])
  assert refusal(small, five) is None


@pytest.mark.parametrize(('members', 'reason'), [
  ([0, 1, 3, 4, 5], Reason.SURVIVORS_DIFFER),  # Not the victim.
  ([1, 2], Reason.TOO_FEW_SURVIVORS),
  ([0, 1, 2], Reason.TOO_FEW_NEIGHBORS)])
def test_survivors_that_would_expose_somebody_are_refused(members, reason):
  small = SmallRound()
  small.play_until(Stage.CONSISTENCY)
  assert refusal(small, survivors(small, members)) is reason
  # Nor does it answer what would have been right.
  assert refusal(small, survivors(small, range(8))) is Reason.WRONG_STAGE


def test_survivors_who_never_shared_are_refused():
  small = SmallRound(n=9)
  requests = small.server.begin(Stage.ADVERTISE)
  for client, data in requests.items():
    small.server.receive(client, small.clients[client].handle(data))
  requests = small.server.begin(Stage.SHARE_KEYS)
  for client, data in requests.items():
    if client != 8:
      small.server.receive(client, small.clients[client].handle(data))
  for client, data in small.server.begin(Stage.MASKED_INPUT).items():
    small.server.receive(client, small.clients[client].handle(data))
  assert refusal(small, survivors(small, range(9))) is Reason.SURVIVORS_DIFFER


def test_bits_beyond_the_cohort_are_malformed():
  small = SmallRound(n=9)
  small.play_until(Stage.CONSISTENCY)
  assert refusal(small, request(
      small, Kind.SURVIVORS, b'\xff\xff')) is Reason.MALFORMED


def test_a_neighbor_key_of_the_server_is_refused():
  """The server puts its own key in a neighbour's place, without its name."""
  small = SmallRound()
  requests = small.play_until(Stage.SHARE_KEYS)
  for place in (HEADER_BYTES + 1, len(requests[VICTIM]) - 1):  # Key, signature.
    data = bytearray(requests[VICTIM])
    data[place] ^= 1
    other = SmallRound()
    other.play_until(Stage.SHARE_KEYS)
    assert refusal(other, bytes(data)) is Reason.BAD_NEIGHBOR


def test_a_neighbor_of_another_identity_is_refused():
  """The server enrols nobody: a key pair that it made itself signs nothing."""
  small = SmallRound()
  requests = small.play_until(Stage.SHARE_KEYS)
  assert refusal(small, requests[VICTIM]) is None
  registry = identity.Registry({
      i: (identity.create_identity(i) if i == 4 else IDENTITIES[i]).public_key
      for i in range(8)})
  small = SmallRound()
  requests = small.play_until(Stage.SHARE_KEYS)
  assert 4 in SmallRound().server.parameters.cohort
  small.clients[VICTIM]._registry = registry
  expected = (Reason.BAD_NEIGHBOR if 4 in small.server._neighbors[VICTIM]
              else None)
  assert expected is Reason.BAD_NEIGHBOR
  assert refusal(small, requests[VICTIM]) is expected


def test_a_revoked_neighbor_is_refused():
  small = SmallRound()
  requests = small.play_until(Stage.SHARE_KEYS)
  registry = identity.Registry(
      {i: IDENTITIES[i].public_key for i in range(8)})
  registry.revoke(small.server._neighbors[VICTIM][0])
  small.clients[VICTIM]._registry = registry
  assert refusal(small, requests[VICTIM]) is Reason.BAD_NEIGHBOR


def test_members_among_whom_the_client_is_not_are_refused():
  small = SmallRound()
  requests = small.play_until(Stage.SHARE_KEYS)
  data = bytearray(requests[VICTIM])
  data[HEADER_BYTES] ^= 1 << VICTIM
  assert refusal(small, bytes(data)) is Reason.SURVIVORS_DIFFER


def test_a_server_that_names_few_members_is_refused():
  small = SmallRound()
  small.play_until(Stage.SHARE_KEYS)
  cohort = small.parameters.cohort
  few = request(small, Kind.NEIGHBORS, encode_members([1, 2], cohort))
  assert refusal(small, few) is Reason.TOO_FEW_SURVIVORS
  small = SmallRound()
  small.play_until(Stage.SHARE_KEYS)
  four = request(small, Kind.NEIGHBORS, encode_members([1, 2, 3, 4], cohort))
  assert refusal(small, four) is Reason.TOO_FEW_NEIGHBORS


def test_a_server_that_agreed_to_something_else_is_refused():
  small = SmallRound()
  other = SmallRound(threshold=5).server.begin(Stage.ADVERTISE)
  answer = small.clients[VICTIM].handle(other[VICTIM])
  assert read_reason(answer) is Reason.PARAMETERS_DIFFER
  # It is signed so that this server can tell.
  reader = SmallRound(threshold=5)
  assert reader.server.begin(Stage.ADVERTISE)
  assert reader.server.receive(VICTIM, answer) is Reason.PARAMETERS_DIFFER


@pytest.mark.parametrize(('change', 'reason'), [
  ({'round_index': 1}, Reason.WRONG_ROUND),
  ({'sender': 5}, Reason.WRONG_SENDER)])
def test_a_request_of_another_round_or_sender_is_refused(change, reason):
  small = SmallRound()
  assert refusal(small, request(
      small, Kind.START, bytes(48), **change)) is reason


@pytest.mark.parametrize(('data', 'reason'), [
  (b'', Reason.MALFORMED), (b'x' * 99, Reason.MALFORMED)])
def test_noise_is_refused(data, reason):
  assert refusal(SmallRound(), data) is reason


def test_a_round_number_is_not_played_twice():
  small = SmallRound(round_index=4)
  small.run()
  again = SmallRound(round_index=4)
  again.identities[VICTIM].last_round = 4
  result = again.run()
  assert result.rejected == {VICTIM: Reason.ROUND_REUSED}


def test_an_upload_of_a_client_alone_is_refused():
  """A server says that all others are gone, after they shared."""
  small = SmallRound()
  small.play_until(Stage.MASKED_INPUT)
  alone = request(small, Kind.DELIVERY, encode_members(
      [VICTIM], small.parameters.cohort))
  assert refusal(small, alone) is Reason.TOO_FEW_NEIGHBORS


def test_the_vector_is_left_as_it_was():
  small = SmallRound()
  before = {i: v.copy() for i, v in small.inputs.items()}
  small.run()
  for client, vector in small.inputs.items():
    np.testing.assert_array_equal(vector, before[client])
