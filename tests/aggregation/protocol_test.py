"""Tests of fedjaxrec.aggregation.protocol: the same sum at every level."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjaxrec.aggregation import (
  graph,
  identity,
  masking,
  packing,
  parameters,
  primitives,
  protocol,
  protocol_client,
)
from fedjaxrec.aggregation.messages import (
  HEADER_BYTES,
  STAGES,
  Reason,
  Stage,
)
from fedjaxrec.aggregation.protocol_server import RoundAborted
from tests.secure_rounds import (
  IDENTITIES,
  SmallRound,
  draw_inputs,
  plain_sum,
  secure_sum,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]


@st.composite
def dropout_patterns(draw):
  n = draw(st.integers(5, 10))
  k = draw(st.sampled_from([4, 6, n - 1]))
  degree = min(k, n - 1)
  t = draw(st.integers(degree // 2 + 1, max(degree // 2 + 1, degree - 1)))
  last = draw(st.lists(
      st.sampled_from([*range(5), 5, 5, 5, 5, 5]), min_size=n, max_size=n))
  return n, k, t, draw(st.integers(2, 3)), last


def leaves_the_threshold(small, k, t, min_survivors, last):
  """By the rules alone: who still answers, and who holds whose shares.

  Args:
    last: Client -> the first stage in which it is silent; 5 is never.
  """
  def there(stage):
    return [i for i, first in enumerate(last) if first > stage]
  advertised, shared, ended = there(0), there(1), there(4)
  if min(len(there(stage)) for stage in range(4)) < min_survivors:
    return False
  near = graph.draw_neighbors(
      advertised, k, small.parameters.graph_seed)
  return min(k, len(advertised) - 1) >= t and all(
      sum(j in ended for j in near[i]) >= t for i in shared)


@given(dropout_patterns(), st.integers(2, 32))
def test_any_dropouts_that_leave_the_threshold_leave_the_exact_sum(
    pattern, bits):
  n, k, t, min_survivors, last = pattern
  small = SmallRound(n=n, d=5, bits=bits, num_neighbors=k, threshold=t,
                     min_survivors=min_survivors)
  dropouts = {label: [i for i in range(n) if last[i] == stage]
              for stage, label in enumerate(STAGES)}
  if leaves_the_threshold(small, k, t, min_survivors, last):
    result = small.run(dropouts=dropouts)
    assert result.survivors == tuple(
        i for i in range(n) if last[i] > Stage.MASKED_INPUT)
    assert result.sum.tolist() == small.plain_sum(result.survivors)
    assert not result.rejected
  else:
    with pytest.raises(RoundAborted):
      small.run(dropouts=dropouts)


@pytest.mark.parametrize('stage', STAGES)
def test_a_dropout_in_any_stage_is_recovered_from(stage):
  inputs = draw_inputs()
  result = secure_sum(inputs, dropouts={stage: [2, 5]})
  stayed = (2, 5) if stage in ('consistency', 'unmask') else ()
  assert set(result.survivors) == {0, 1, 3, 4, 6, 7, *stayed}
  assert result.sum.tolist() == plain_sum(inputs, result.survivors, 16)
  assert result.sum.dtype == np.uint32


@pytest.mark.parametrize(('stage', 'gone', 'reason'), [
  ('advertise', 4, Reason.BELOW_THRESHOLD),
  ('share_keys', 4, Reason.TOO_FEW_SURVIVORS),  # The rest leave by themselves.
  ('masked_input', 6, Reason.TOO_FEW_SURVIVORS),
  ('unmask', 4, Reason.BELOW_THRESHOLD)])
def test_below_the_threshold_the_round_ends_without_a_sum(stage, gone, reason):
  with pytest.raises(RoundAborted, match='nothing of the round is used') as e:
    secure_sum(draw_inputs(), num_neighbors=8,
               dropouts={stage: range(gone)})
  assert e.value.reason is reason


def test_as_many_survivors_as_the_minimum_are_enough():
  inputs, gone = draw_inputs(), [0, 3]
  for least, fails in ((6, False), (7, True)):
    def run(least=least):
      return secure_sum(inputs, min_survivors=least,
                        dropouts={'masked_input': gone})
    if fails:
      with pytest.raises(RoundAborted, match='min_survivors=7'):
        run()
    else:
      assert run().sum.tolist() == plain_sum(inputs, [1, 2, 4, 5, 6, 7], 16)


def test_a_key_is_for_one_purpose_run_round_and_pair():
  given_ = [b'mask', b's' * 32, 1, 2, 3]
  infos = {parameters.key_info(*given_)}
  for place, other in enumerate((b'channel', b't' * 32, 4, 5, 6)):
    infos.add(parameters.key_info(
        *given_[:place], other, *given_[place + 1:]))
  assert len(infos) == 6
  assert parameters.key_info(b'mask', b's' * 32, 1, 3, 2) in infos


def test_the_levels_give_one_sum():
  inputs = draw_inputs(d=50)
  gone = [1, 4]
  ideal = protocol.run_ideal_sum(
      inputs, bits=16, min_survivors=3, dropouts=gone)
  masked = protocol.run_masked_sum(
      inputs, bits=16, num_neighbors=4, min_survivors=3, round_index=0,
      dropouts=gone)
  real = secure_sum(inputs, dropouts={'masked_input': gone})
  assert [r.level for r in (ideal, masked, real)] == list(protocol.LEVELS)
  want = plain_sum(inputs, [0, 2, 3, 5, 6, 7], 16)
  for result in (ideal, masked, real):
    assert result.sum.tolist() == want
    assert result.survivors == (0, 2, 3, 5, 6, 7)
  for result in (ideal, masked):
    assert sum(sum(stage.values())
               for stage in result.uplink_bytes.values()) == 6 * 100


@given(st.integers(2, 32), st.sets(st.integers(0, 7), max_size=5),
       st.sampled_from([2, 4, 7]))
def test_masks_that_were_dealt_vanish_from_the_sum(bits, gone, k):
  inputs = draw_inputs(d=3, bits=bits)
  result = protocol.run_masked_sum(
      inputs, bits=bits, num_neighbors=k, min_survivors=3, round_index=1,
      dropouts=gone)
  assert result.sum.tolist() == plain_sum(inputs, set(inputs) - gone, bits)


@pytest.mark.parametrize('run', [
  lambda **a: protocol.run_ideal_sum(**a),
  lambda **a: protocol.run_masked_sum(num_neighbors=4, round_index=0, **a)])
def test_the_cheap_levels_refuse_as_well(run):
  inputs = {**draw_inputs(), 2: np.full(20, np.nan), 5: np.zeros(3, np.uint32)}
  result = run(inputs=inputs, bits=16, min_survivors=6)
  assert result.rejected == {2: Reason.BAD_INPUT, 5: Reason.BAD_INPUT}
  assert result.sum.tolist() == plain_sum(
      inputs, [0, 1, 3, 4, 6, 7], 16)
  with pytest.raises(RoundAborted, match='min_survivors=7'):
    run(inputs=inputs, bits=16, min_survivors=7)


def test_ids_may_come_out_of_an_array():
  ids = np.arange(3, 11, dtype=np.int32)
  registry, identities = identity.enrol_clients(ids)
  inputs = dict(zip(ids, draw_inputs().values()))
  result = secure_sum(inputs, registry=registry, identities=identities,
                      dropouts={'masked_input': ids[:1]})
  masked = protocol.run_masked_sum(
      inputs, bits=16, num_neighbors=4, min_survivors=3, round_index=0,
      dropouts=ids[:1])
  assert result.survivors == masked.survivors == tuple(range(4, 11))
  assert result.sum.tolist() == masked.sum.tolist() == plain_sum(
      inputs, ids[1:], 16)


def test_a_client_without_an_identity_is_refused():
  inputs = draw_inputs()
  identities = {i: identity.Identity(i, IDENTITIES[i].private_key)
                for i in range(7)}
  registry = identity.Registry(
      {i: who.public_key for i, who in identities.items()})
  result = secure_sum(inputs, identities=identities, registry=registry)
  assert result.rejected == {7: Reason.NOT_ENROLLED}
  assert 7 not in result.survivors


def test_identities_remember_the_round():
  identities = {i: identity.Identity(i, IDENTITIES[i].private_key)
                for i in range(8)}
  secure_sum(draw_inputs(), identities=identities, round_index=3)
  with pytest.raises(RoundAborted) as aborted:
    secure_sum(draw_inputs(), identities=identities, round_index=3)
  assert set(aborted.value.rejected.values()) == {Reason.ROUND_REUSED}
  secure_sum(draw_inputs(), identities=identities, round_index=4)


def test_checking_a_signature_once_changes_nothing_but_the_work(monkeypatch):
  calls = []
  verify = protocol.primitives.verify
  def counted(*args):
    calls.append(args)
    return verify(*args)
  monkeypatch.setattr(protocol.primitives, 'verify', counted)
  sums, counts = [], []
  for once in (False, True):
    calls.clear()
    sums.append(secure_sum(draw_inputs(), verify_once=once).sum.tolist())
    counts.append(len(calls))
  assert sums[0] == sums[1]
  # Five messages of 8 clients, and 8 advertisements for 6 neighbours each.
  assert counts == [5 * 8 + 8 * 6, 5 * 8 + 8]


def test_every_byte_is_counted_by_stage():
  small, wire = SmallRound(), {}
  def watch(stage, client, answer):
    wire[stage.label, client] = len(answer)
    return [answer]
  result = small.run(watch)
  assert {(label, i): size for label, sizes in result.uplink_bytes.items()
          for i, size in sizes.items()} == wire
  # By hand: header 16, signature 64, 6 neighbours, 8 bits of a bitmap.
  assert result.uplink_bytes['advertise'][0] == 16 + 64 + 64
  assert result.uplink_bytes['share_keys'][0] == 80 + 32 + 6 * (88 + 32)
  assert result.uplink_bytes['masked_input'][0] == 80 + 40
  assert result.uplink_bytes['consistency'][0] == 80 + 6 * 16
  assert result.uplink_bytes['unmask'][0] == 80 + 1 + 6 * 36
  down = [result.downlink_bytes[label][0] for label in STAGES]
  assert down == [16 + 48, 16 + 1 + 6 * 128, 16 + 1 + 6 * 88, 17,
                  17 + 6 * 16]


def capture_upload(small):
  """The masked vector of client 0, as the server sees it."""
  seen = []
  def watch(stage, client, answer):
    if stage is Stage.MASKED_INPUT and client == 0:
      payload = answer[HEADER_BYTES:-64]
      seen.append(packing.unpack(
          payload, small.parameters.dimension, small.parameters.bits))
    return [answer]
  try:
    small.run(watch)
  except RoundAborted:
    pass
  return seen[0].astype(np.int64)


def chi_square(values, cells):
  counts = np.bincount(values, minlength=cells)
  return ((counts - counts.mean())**2 / counts.mean()).sum()


# 255 degrees of freedom: above 400 with probability 2e-8 (Wilson, Hilferty).
FAR_FROM_UNIFORM = 400.0
ZEROS = {i: np.zeros(20_000, np.uint32) for i in range(8)}


@pytest.mark.parametrize('kept', ['all masks', 'only the pairs', 'only its own',
                                  'none'])
def test_an_upload_is_uniform(monkeypatch, kept):
  """Chi-square of an upload of zeros over the 256 values of the ring.

  Either kind of mask alone is enough. Positive control: with none the zeros
  show.
  """
  add = masking.add_masks
  def add_some(total, added, subtracted):
    if kept == 'only the pairs':
      added = added[1:]
    elif kept == 'only its own':
      added, subtracted = added[:1], []
    if kept != 'none':
      add(total, added, subtracted)
  small = SmallRound(inputs=ZEROS, bits=8, d=20_000)
  monkeypatch.setattr(protocol_client.masking, 'add_masks', add_some)
  upload = capture_upload(small)
  assert (chi_square(upload, 256) < FAR_FROM_UNIFORM) == (kept != 'none')


@pytest.mark.parametrize('reused', [False, True])
def test_two_rounds_of_a_client_are_uncorrelated(monkeypatch, reused):
  """Their difference is uniform, even where the entropy repeats.

  Positive control: with keys that do not depend on the round the difference
  is zero throughout, though each upload is uniform.
  """
  if reused:
    monkeypatch.setattr(
        protocol_client, 'key_info',
        lambda purpose, session, round_index, i, j: bytes(
            [*purpose, min(i, j), max(i, j)]))
    # The same neighbours in both rounds.
    near = dict(num_neighbors=8, threshold=5)
  else:
    near = {}
  uploads = [capture_upload(SmallRound(
      inputs=ZEROS, bits=8, d=20_000, round_index=r, **near)) for r in (0, 1)]
  for upload in uploads:
    assert chi_square(upload, 256) < FAR_FROM_UNIFORM
  difference = (uploads[0] - uploads[1]) % 256
  assert (chi_square(difference, 256) < FAR_FROM_UNIFORM) == (not reused)
  correlation = np.corrcoef(*uploads)[0, 1]
  # Five standard deviations of the correlation of independent values.
  assert (abs(correlation) < 5 / np.sqrt(20_000)) == (not reused)


def test_no_key_is_used_twice(monkeypatch):
  """Over two rounds of one cohort: a key seals once, and masks one vector.

  A pair's mask key stands in both of its vectors, with opposite signs.
  """
  sealing, masks = [], []
  encrypt, add = primitives.encrypt, masking.add_masks
  monkeypatch.setattr(
      primitives, 'encrypt',
      lambda key, *rest: sealing.append(key) or encrypt(key, *rest))
  def watched(total, added=(), subtracted=()):
    masks.append((list(added), list(subtracted)))
    add(total, added, subtracted)
  monkeypatch.setattr(masking, 'add_masks', watched)
  for round_index in (0, 1):
    secure_sum(draw_inputs(), num_neighbors=8, threshold=5,
               round_index=round_index)
  assert len(sealing) == len(set(sealing)) == 2 * 8 * 7
  uploads = [*masks[:8], *masks[9:17]]  # The ninth is the server's.
  added = [key for plus, _ in uploads for key in plus]
  subtracted = [key for _, minus in uploads for key in minus]
  assert len(added) == len(set(added)) == 2 * (8 + 8 * 7 // 2)
  assert len(subtracted) == len(set(subtracted)) == 2 * 8 * 7 // 2
  assert set(subtracted) < set(added)


def test_masks_come_from_the_operating_system(monkeypatch):
  drawn = []
  monkeypatch.setattr(
      protocol, 'system_entropy',
      lambda size: drawn.append(size) or np.random.bytes(size))
  secure_sum(draw_inputs())
  # Of each client: two key pairs, a seed, and a sharing.
  assert len(drawn) == 2 + 8 * 4
  sums = [secure_sum(draw_inputs(), entropy=np.random.default_rng(s).bytes).sum
          for s in (0, 0, 1)]
  np.testing.assert_array_equal(sums[0], sums[2])


@pytest.mark.parametrize(('changes', 'message'), [
  ({'bits': 1}, 'bits=1'), ({'bits': 33}, 'bits=33'),
  ({'num_neighbors': 5}, 'num_neighbors=5 is odd'),
  ({'threshold': 3}, 'threshold=3 must be above half'),
  ({'threshold': 7}, 'threshold=7'),
  ({'min_survivors': 1}, 'min_survivors=1'),
  ({'min_survivors': 9}, 'min_survivors=9'),
  ({'round_index': -1}, 'round_index=-1'),
  ({'dimension': 2**29}, 'dimension='),
  ({'transport': 'udp'}, "transport='udp'"),
  ({'transport': 'tcp', 'verify_once': True}, 'choose in_process'),
  ({'dropouts': {'lunch': [1]}}, "stage='lunch'")])
def test_what_breaks_a_rule_is_refused_before_anything_is_sent(
    changes, message):
  with pytest.raises(ValueError, match=message):
    secure_sum(draw_inputs(), **changes)


def test_a_cohort_is_in_order():
  with pytest.raises(ValueError, match='cohort'):
    parameters.RoundParameters(
        cohort=(2, 1, 3), round_index=0, bits=8, dimension=1, num_neighbors=2,
        threshold=2, min_survivors=2, registry_digest=b'')


def test_inputs_without_a_vector_are_refused():
  with pytest.raises(ValueError, match='inputs'):
    secure_sum({i: 5 for i in range(5)})


def test_the_secure_sum_needs_no_jax():
  code = ('import fedjaxrec.aggregation.protocol, sys; '
          'print("jax" in sys.modules)')
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True,
                          capture_output=True, check=True)
  assert result.stdout.strip() == 'False'


def test_masks_know_neither_of_the_generators_that_are_no_cipher():
  for path in (ROOT / 'fedjaxrec/aggregation').glob('*.py'):
    if path.name in ('masking.py', 'primitives.py', 'shamir.py', 'graph.py',
                     'identity.py') or path.name.startswith('protocol'):
      text = path.read_text()
      assert 'np.random' not in text
      assert 'jax' not in text.replace('fedjaxrec', '')
