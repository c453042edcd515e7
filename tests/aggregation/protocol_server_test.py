"""Tests of fedjaxrec.aggregation.protocol_server: clients that lie or break."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjaxrec.aggregation import identity, messages, packing
from fedjaxrec.aggregation.messages import HEADER_BYTES, Kind, Reason, Stage
from fedjaxrec.aggregation.protocol_client import (
  DEALT_BYTES,
  MASK_KEY,
  SEALED_BYTES,
  SELF_MASK,
  SHARE_BYTES,
  share_tag,
)
from fedjaxrec.aggregation.protocol_server import RoundAborted
from tests.secure_rounds import (
  IDENTITIES,
  SmallRound,
  draw_inputs,
  read_reason,
  request,
)

LIAR = 3
BODY = slice(HEADER_BYTES, -64)


def replace_at(where, change):
  """Tampers with the liar's message of one stage."""
  def tamper(stage, client, answer):
    return (change(answer) if (stage, client) == (where, LIAR) else [answer])
  return tamper


def flip(data, place):
  changed = bytearray(data)
  changed[place] ^= 1
  return bytes(changed)


def with_header(data, **fields):
  names = ('magic', 'version', 'kind', 'round_index', 'sender', 'size')
  values = dict(zip(names, messages._HEADER.unpack_from(data)))
  values.update(fields)
  return messages._HEADER.pack(*values.values()) + data[HEADER_BYTES:]


CHANGES = {
  'cut short': (lambda m: [m[:-1]], Reason.WRONG_LENGTH),
  'too long': (lambda m: [m + b'\0'], Reason.WRONG_LENGTH),
  'nothing': (lambda m: [b''], Reason.MALFORMED),
  'noise': (lambda m: [b'?' * len(m)], Reason.MALFORMED),
  'another version': (
      lambda m: [with_header(m, version=2)], Reason.MALFORMED),
  'no such kind': (lambda m: [with_header(m, kind=77)], Reason.MALFORMED),
  'a request': (lambda m: [with_header(m, kind=m[3] - 1)],
                Reason.BAD_SIGNATURE),
  'signature': (lambda m: [flip(m, -1)], Reason.BAD_SIGNATURE),
  'payload': (lambda m: [flip(m, HEADER_BYTES)], Reason.BAD_SIGNATURE),
  'round': (lambda m: [with_header(m, round_index=9)], Reason.WRONG_ROUND),
  'sender': (lambda m: [with_header(m, sender=4)], Reason.WRONG_SENDER),
}


@pytest.mark.parametrize('stage', Stage)
@pytest.mark.parametrize('name', CHANGES)
def test_a_message_that_was_changed_is_left_out(stage, name):
  change, reason = CHANGES[name]
  small = SmallRound(d=3)
  result = small.run(replace_at(stage, change))
  assert result.rejected == {LIAR: reason}
  assert (LIAR in result.survivors) == (stage > Stage.MASKED_INPUT)
  assert result.sum.tolist() == small.plain_sum(result.survivors)


@pytest.mark.parametrize('stage', Stage)
def test_a_second_copy_counts_for_nothing(stage):
  small = SmallRound()
  result = small.run(replace_at(stage, lambda m: [m, m]))
  assert result.rejected == {LIAR: Reason.DUPLICATE}
  assert result.sum.tolist() == small.plain_sum(range(8))


@pytest.mark.parametrize('stage', list(Stage)[1:])
def test_a_message_of_an_earlier_stage_is_a_replay(stage):
  sent, small = {}, SmallRound()
  def tamper(now, client, answer):
    sent[now, client] = answer
    early = [sent[stage - 1, LIAR]] if (now, client) == (stage, LIAR) else []
    return [*early, answer]
  result = small.run(tamper)
  assert result.rejected == {LIAR: Reason.REPLAYED}
  assert result.sum.tolist() == small.plain_sum(range(8))


@pytest.mark.parametrize('stage', list(Stage)[:-1])
def test_what_comes_after_its_stage_is_late(stage):
  held, small = [], SmallRound()
  def tamper(now, client, answer):
    if (now, client) == (stage, LIAR):
      held.append(answer)
      return []
    # Somebody else's turn in the next stage: the held one comes by then.
    if now == stage + 1 and client == 0:
      small_reason = small.server.receive(LIAR, held[0])
      assert small_reason is Reason.LATE
    return [answer]
  result = small.run(tamper)
  assert result.rejected == {LIAR: Reason.LATE}
  assert (LIAR in result.survivors) == (stage > Stage.MASKED_INPUT)
  assert result.sum.tolist() == small.plain_sum(result.survivors)


def test_a_message_of_another_run_of_the_round_is_refused():
  """The same round number and cohort: only the server's nonce differs."""
  recorded = {}
  def record(stage, client, answer):
    recorded[stage, client] = answer
    return [answer]
  SmallRound(seed=1).run(record)
  small = SmallRound(seed=2)
  result = small.run(replace_at(
      Stage.ADVERTISE, lambda m: [recorded[Stage.ADVERTISE, LIAR]]))
  assert result.rejected == {LIAR: Reason.BAD_SIGNATURE}
  assert LIAR not in result.survivors


def test_answers_to_what_was_not_asked_yet_are_refused():
  small = SmallRound()
  small.play_until(Stage.SHARE_KEYS)
  early = small.write(LIAR, Kind.MASKED, bytes(40))
  assert small.server.receive(LIAR, early) is Reason.WRONG_STAGE
  asked = small.write(LIAR, Kind.NEIGHBORS, b'')
  assert small.server.receive(LIAR, asked) is Reason.WRONG_STAGE


@pytest.mark.parametrize('missed', [Stage.ADVERTISE, Stage.SHARE_KEYS])
def test_who_missed_a_stage_is_late_for_the_next(missed):
  """Above all its vector, under masks that nobody takes off, is not summed."""
  small = SmallRound()
  before = small.play_until(missed)
  for client, data in before.items():
    answer = small.clients[client].handle(data)
    if client != LIAR:
      small.server.receive(client, answer)
  small.server.begin(missed + 1)
  kind, size = ((Kind.SHARES, 32 + 120 * 6) if missed is Stage.ADVERTISE
                else (Kind.MASKED, 40))
  message = small.write(LIAR, kind, b'\1' * size)
  assert small.server.receive(LIAR, message) is Reason.LATE
  assert not small.server._sum.any()


def test_who_was_not_invited_is_refused():
  small = SmallRound()
  small.play_until(Stage.ADVERTISE)
  stranger = messages.encode(
      Kind.ADVERTISEMENT, 0, 11, bytes(64), IDENTITIES[11].sign, b'')
  assert small.server.receive(11, stranger) is Reason.NOT_INVITED


@pytest.mark.parametrize('reason', [Reason.NOT_ENROLLED, Reason.REVOKED])
def test_who_is_not_enrolled_or_revoked_is_refused(reason):
  registry = identity.Registry({
      i: IDENTITIES[i].public_key for i in range(8)
      if i != LIAR or reason is Reason.REVOKED})
  if reason is Reason.REVOKED:
    registry.revoke(LIAR)
  small = SmallRound(registry=registry)
  result = small.run()
  assert result.rejected == {LIAR: reason}
  assert result.survivors == tuple(i for i in range(8) if i != LIAR)
  assert result.sum.tolist() == small.plain_sum(result.survivors)


def test_a_rotated_key_serves_and_the_old_one_does_not():
  registry = identity.Registry(
      {i: IDENTITIES[i].public_key for i in range(8)})
  new = identity.create_identity(LIAR)
  registry.rotate(LIAR, new.public_key, IDENTITIES[LIAR].sign(
      identity.rotation_statement(
          LIAR, IDENTITIES[LIAR].public_key, new.public_key)))
  stale = SmallRound(registry=registry).run()
  assert stale.rejected == {LIAR: Reason.BAD_SIGNATURE}
  fresh = SmallRound(
      registry=registry, identities={**IDENTITIES, LIAR: new}).run()
  assert not fresh.rejected


@pytest.mark.parametrize('bits', [12, 20])
def test_a_vector_outside_the_ring_is_refused(bits):
  small = SmallRound(d=5, bits=bits)
  def overflow(message):
    payload = bytearray(message[BODY])
    payload[-1] |= 0x80  # 5 * bits are no whole bytes.
    return [small.write(LIAR, Kind.MASKED, bytes(payload))]
  result = small.run(replace_at(Stage.MASKED_INPUT, overflow))
  assert result.rejected == {LIAR: Reason.OUT_OF_RING}
  assert result.sum.tolist() == small.plain_sum(
      [i for i in range(8) if i != LIAR])


@pytest.mark.parametrize(('stage', 'kind'), [
  (Stage.ADVERTISE, Kind.ADVERTISEMENT), (Stage.SHARE_KEYS, Kind.SHARES),
  (Stage.MASKED_INPUT, Kind.MASKED), (Stage.CONSISTENCY, Kind.AGREEMENT),
  (Stage.UNMASK, Kind.REVEAL)])
@pytest.mark.parametrize('change', [lambda p: p[:-1], lambda p: p + b'\0'])
def test_a_well_signed_payload_of_the_wrong_length_is_refused(
    stage, kind, change):
  small = SmallRound()
  result = small.run(replace_at(stage, lambda m: [
      small.write(LIAR, kind, change(m[BODY]))]))
  assert result.rejected == {LIAR: Reason.WRONG_LENGTH}
  assert result.sum.tolist() == small.plain_sum(result.survivors)


@pytest.mark.parametrize('place', [0, 32])
def test_a_key_with_which_everybody_agrees_is_refused(place):
  small = SmallRound()
  def zero(message):
    keys = bytearray(message[BODY])
    keys[place:place + 32] = bytes(32)
    return [small.write(LIAR, Kind.ADVERTISEMENT, bytes(keys))]
  result = small.run(replace_at(Stage.ADVERTISE, zero))
  assert result.rejected == {LIAR: Reason.BAD_KEY}


def test_a_share_that_was_not_dealt_is_refused_and_the_others_serve():
  small = SmallRound()
  def spoil(message):
    return [small.write(LIAR, Kind.REVEAL, flip(message[BODY], 5))]
  result = small.run(
      replace_at(Stage.UNMASK, spoil), dropouts={'masked_input': [6]})
  assert result.rejected == {LIAR: Reason.BAD_SHARE}
  assert result.sum.tolist() == small.plain_sum(result.survivors)


def test_holders_that_all_lie_cannot_make_a_wrong_sum():
  small = SmallRound()
  with pytest.raises(RoundAborted, match='below_threshold') as aborted:
    small.run(lambda stage, client, m: [
        small.write(client, Kind.REVEAL, flip(m[BODY], 5))
        if stage is Stage.UNMASK else m])
  assert set(aborted.value.rejected.values()) == {Reason.BAD_SHARE}


def test_a_dealer_of_another_seed_is_named_and_nothing_is_summed():
  small = SmallRound()
  with pytest.raises(RoundAborted, match='bad_deal') as aborted:
    small.run(replace_at(Stage.SHARE_KEYS, lambda m: [
        small.write(LIAR, Kind.SHARES, flip(m[BODY], 0))]))
  assert aborted.value.rejected == {LIAR: Reason.BAD_DEAL}


def test_a_dealer_of_another_mask_key_is_named_and_nothing_is_summed(
    monkeypatch):
  small = SmallRound()
  liar = small.clients[LIAR]
  deal = liar._deal
  def lie():
    right = liar._mask_key.private_key
    liar._mask_key.private_key = bytes(32)
    dealt = deal()
    liar._mask_key.private_key = right
    return dealt
  monkeypatch.setattr(liar, '_deal', lie)
  with pytest.raises(RoundAborted) as aborted:
    small.run(dropouts={'masked_input': [LIAR]})
  assert aborted.value.reason is Reason.BAD_DEAL
  assert aborted.value.rejected == {LIAR: Reason.BAD_DEAL}


def test_shares_that_nobody_can_open_cost_their_dealer_one_holder():
  """Sealed for one peer wrongly: the other holders are enough."""
  small = SmallRound()
  def spoil(message):
    return [small.write(LIAR, Kind.SHARES, flip(message[BODY], 32 + 1))]
  result = small.run(replace_at(Stage.SHARE_KEYS, spoil))
  assert not result.rejected
  assert result.sum.tolist() == small.plain_sum(range(8))


def test_flags_of_shares_beyond_the_peers_are_malformed():
  small = SmallRound()
  def spoil(message):
    payload = bytearray(message[BODY])
    payload[0] |= 0x80  # Six peers: the last two bits are none.
    return [small.write(LIAR, Kind.REVEAL, bytes(payload))]
  result = small.run(replace_at(Stage.UNMASK, spoil))
  assert result.rejected == {LIAR: Reason.MALFORMED}


def test_a_client_cannot_leave_after_its_vector_is_in_the_sum():
  small = SmallRound()
  def leave(message):
    return [message, small.write(
        LIAR, Kind.ABORT, messages.encode_reason(Reason.BAD_INPUT))]
  result = small.run(replace_at(Stage.MASKED_INPUT, leave))
  assert result.rejected == {LIAR: Reason.DUPLICATE}
  assert result.survivors == tuple(range(8))
  assert result.sum.tolist() == small.plain_sum(range(8))


@pytest.mark.parametrize('vector', [
  np.full(20, np.nan), np.full(20, 2.0**31), np.full(20, 2**16, np.uint32),
  np.full(20, -1), np.zeros(19, np.uint32), np.zeros((20, 1), np.uint32),
  [0] * 20], ids=repr)
def test_a_client_without_a_ring_vector_leaves_by_itself(vector):
  small = SmallRound(inputs={**draw_inputs(), LIAR: vector})
  result = small.run()
  assert result.rejected == {LIAR: Reason.BAD_INPUT}
  assert result.survivors == tuple(i for i in range(8) if i != LIAR)


def test_the_server_never_gets_both_kinds_of_share_of_one_client():
  """Reads every reveal by the dealers' tags: one kind a dealer."""
  small, seen = SmallRound(), {}
  def watch(stage, client, answer):
    if stage is Stage.UNMASK:
      payload = answer[BODY]
      shares = [payload[1 + SHARE_BYTES * i:1 + SHARE_BYTES * (i + 1)]
                for i in range(len(small.server._peers[client]))]
      for peer, share in zip(small.server._peers[client], shares):
        seen.setdefault(peer, []).append((client, share))
    return [answer]
  dropped = {1, 6}
  small.run(watch, dropouts={'masked_input': dropped})
  assert set(seen) == set(range(8))
  for dealer, held in seen.items():
    own = small.clients[dealer]
    for holder, share in held:
      place = own._neighbors.index(holder)
      tags = small.server._dealt[dealer][1][place][SEALED_BYTES:DEALT_BYTES]
      kinds = [kind for kind, tag in ((SELF_MASK, tags[:16]),
                                      (MASK_KEY, tags[16:]))
               if share_tag(own._session, dealer, holder, kind, share) == tag]
      assert kinds == [MASK_KEY if dealer in dropped else SELF_MASK]


def test_an_upload_has_b_bits_an_element_and_no_more():
  small = SmallRound(d=33, bits=11)
  result = small.run()
  assert packing.packed_bytes(33, 11) == 46
  assert result.uplink_bytes['masked_input'] == dict.fromkeys(
      range(8), 16 + 46 + 64)


@given(st.binary(max_size=200), st.sampled_from(Stage))
def test_no_bytes_break_the_server(noise, stage):
  """Bare, and as the payload of a message that is rightly signed."""
  small = SmallRound(n=5, d=1, num_neighbors=4, threshold=3)
  small.play_until(stage)
  assert small.server.receive(LIAR, noise) in Reason
  for kind in Kind:
    small.server.receive(LIAR, small.write(LIAR, kind, noise))


@given(st.binary(max_size=200), st.sampled_from(Stage))
def test_no_bytes_break_a_client(noise, stage):
  small = SmallRound(n=5, d=1, num_neighbors=4, threshold=3)
  small.play_until(stage)
  data = (noise if len(noise) % 2
          else request(small, Kind(2 * stage), noise))
  assert read_reason(small.clients[LIAR].handle(data)) in Reason
