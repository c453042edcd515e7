"""Tests of fedjaxrec.aggregation.messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjaxrec.aggregation import messages
from fedjaxrec.aggregation.messages import Kind, Reason, Refusal


@given(st.sampled_from(list(Kind)), st.integers(0, 2**32 - 1),
       st.integers(0, 2**32 - 1), st.binary(max_size=50))
def test_what_is_written_is_read(kind, round_index, sender, payload):
  data = messages.encode(
      kind, round_index, sender, payload, lambda statement: b's' * 64, b'run')
  read = messages.decode(data, signed=True)
  assert read[:3] == (kind, round_index, sender)
  assert bytes(read.payload) == payload
  assert read.signature == b's' * 64
  assert len(data) == 16 + len(payload) + 64


def test_the_bytes_of_a_message_are_these():
  """By hand: a format that changes needs another version."""
  assert messages.encode(Kind.SURVIVORS, 258, 3, b'ab') == (
      b'FS' + bytes([1, 6, 2, 1, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0]) + b'ab')


def test_a_signature_covers_session_header_and_payload():
  parts = [b'session', b'header', b'payload']
  statements = {messages.signed_statement(*parts)}
  for place in range(3):
    changed = list(parts)
    changed[place] += b'!'
    statements.add(messages.signed_statement(*changed))
  # Nor can a byte move from one part to the next.
  statements.add(messages.signed_statement(b'sessionh', b'eader', b'payload'))
  assert len(statements) == 5


@given(st.integers(1, 40), st.data())
def test_members_come_back(size, data):
  cohort = tuple(range(100, 100 + size))
  members = data.draw(st.sets(st.sampled_from(cohort)))
  bitmap = messages.encode_members(members, cohort)
  assert len(bitmap) == -(-size // 8)
  assert messages.decode_members(bitmap, cohort) == tuple(sorted(members))


@pytest.mark.parametrize('reason', Reason)
def test_a_reason_comes_back(reason):
  assert messages.decode_reason(
      memoryview(messages.encode_reason(reason))) is reason


@pytest.mark.parametrize('payload', [b'', b'\xff', b'\0\0'])
def test_what_is_no_reason_is_malformed(payload):
  with pytest.raises(Refusal, match='malformed'):
    messages.decode_reason(memoryview(payload))
