"""Shares sum to the ring's sum; a client that is too loud is found out."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.aggregation import norm_proof, share_parties
from fedjaxrec.aggregation import prime_field as field
from fedjaxrec.aggregation.ring import make_ring
from fedjaxrec.aggregation.secret_shares import run_shared_sum
from fedjaxrec.aggregation.share_parties import (
  Reason,
  ShareParameters,
  SharingClient,
)

P = field.PRIME
D, BOUND = 60, 40.0


def vectors(count, seed=0, norm=BOUND, bits=16, length=D):
  """Integer vectors whose norm is a little below `norm`, modulo 2^bits."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, length))
  x = np.trunc(x * norm / np.linalg.norm(x, axis=1, keepdims=True))
  return {7 * i: (v.astype(np.int64) % 2**bits).astype(np.uint32)
          for i, v in enumerate(x)}


def modular_sum(inputs, clients, bits):
  total = [0] * D
  for client in clients:
    total = [(t + int(x)) % 2**bits for t, x in zip(total, inputs[client])]
  return np.array(total, np.uint32)


class TestField:

  @hypothesis.given(st.lists(
      st.tuples(*[st.integers(0, P - 1) | st.sampled_from(
          [0, 1, P - 1, P - 2, 2**31, 2**31 - 1, 2**60])] * 2),
      min_size=1, max_size=8))
  def test_it_is_arithmetic_modulo_the_prime(self, pairs):
    a, b = (np.array(column, np.uint64) for column in zip(*pairs))
    t = pairs[0][1]
    for ours, exact in (
        (field.add(a, b), [(x + y) % P for x, y in pairs]),
        (field.subtract(a, b), [(x - y) % P for x, y in pairs]),
        (field.multiply(a, b), [x * y % P for x, y in pairs]),
        (field.add_multiple(a, t, b), [(x + t * y) % P for x, y in pairs])):
      assert ours.tolist() == exact
    assert field.dot(a, b) == sum(x * y for x, y in pairs) % P
    assert field.total(a) == sum(x for x, _ in pairs) % P

  def test_signs_and_words_become_elements(self):
    x = np.array([0, 1, -1, P // 2, -(P // 2)])
    elements = field.from_signed(x)
    assert field.are_elements(elements)
    np.testing.assert_array_equal(field.to_signed(elements), x)
    words = np.array([0, P, P - 1, 2**64 - 1, 2**61 + 5], np.uint64)
    assert field.from_words(words).tolist() == [0, 0, P - 1, 0, 5]
    assert not field.are_elements(np.array([P], np.uint64))

  def test_long_vectors_keep_their_inner_product(self):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, P, (2, 20_001), dtype=np.uint64)
    assert field.dot(a, b) == sum(
        x * y for x, y in zip(a.tolist(), b.tolist())) % P

  @pytest.mark.parametrize('length', [1, 4, 5, 8, 9])
  def test_subset_sums_are_those_of_random_halves(self, length):
    rng = np.random.default_rng(length)
    words = rng.integers(
        0, 256, norm_proof.subset_bytes(length)).astype(np.uint8)
    chosen = norm_proof.subsets(words, length)
    assert len(chosen) == norm_proof.PROJECTIONS
    # Each entry is in half of the subsets, six standard deviations around.
    counts = [sum(int(row[i // 4]) >> (i % 4) & 1 for row in chosen)
              for i in range(length)]
    assert all(abs(n - 20) < 6 * math.sqrt(10) for n in counts)
    x = rng.integers(0, P, length, dtype=np.uint64)
    for row, ours in zip(chosen, norm_proof.subset_sums(chosen, x)):
      inside = [row[i // 4] >> (i % 4) & 1 for i in range(length)]
      assert ours == sum(
          int(v) for v, taken in zip(x, inside) if taken) % P


@hypothesis.given(
    bits=st.integers(8, 32), count=st.integers(3, 6),
    num_servers=st.integers(2, 4), proof=st.booleans(),
    silent=st.sets(st.integers(0, 5), max_size=2), seed=st.integers(0, 999))
def test_the_sum_is_the_rings_whoever_drops_out(
    bits, count, num_servers, proof, silent, seed):
  inputs = vectors(count, seed, bits=bits)
  gone = {7 * i for i in silent} & set(inputs)
  hypothesis.assume(count - len(gone) >= 2)
  result = run_shared_sum(
      inputs, bits=bits, num_servers=num_servers, dropouts=gone,
      l2_bound=BOUND if proof else None)
  assert set(result.survivors) == set(inputs) - gone
  assert result.rejected == {c: Reason.DROPPED for c in gone}
  np.testing.assert_array_equal(
      result.sum, modular_sum(inputs, result.survivors, bits))


def test_it_is_the_device_rings_sum_bit_for_bit():
  ring = make_ring(16, 1.0, 10, dimension=D)
  rng = np.random.default_rng(1)
  delta = rng.normal(size=(10, D)).astype(np.float32)
  delta /= np.linalg.norm(delta, axis=1, keepdims=True)
  keys = jax.random.split(jax.random.key(0), 10)
  values = jax.jit(jax.vmap(ring.encode))(jnp.asarray(delta), keys).values
  result = run_shared_sum(
      dict(enumerate(np.asarray(values))), bits=16,
      l2_bound=math.sqrt(ring.l2_bound_squared))
  assert not result.rejected
  total = values.sum(0, dtype=jnp.uint32)
  np.testing.assert_array_equal(result.sum, np.asarray(total) & 0xffff)
  np.testing.assert_array_equal(
      jax.jit(ring.decode)(jnp.asarray(result.sum)),
      jax.jit(ring.decode)(total))


def at_the_edge(excess):
  """A vector whose squared norm is 1600 + excess."""
  x = np.zeros(D, np.uint32)
  x[3], x[4] = 2**16 - 40, excess
  return x


class TestOverNorm:

  def test_the_bound_is_sharp_and_without_the_proof_nobody_looks(self):
    inputs = vectors(4) | {2: at_the_edge(0), 3: at_the_edge(1)}
    result = run_shared_sum(inputs, bits=16, l2_bound=BOUND)
    assert result.rejected == {3: Reason.OVER_NORM}
    assert 2 in result.survivors
    np.testing.assert_array_equal(
        result.sum, modular_sum(inputs, result.survivors, 16))
    # Positive control.
    free = run_shared_sum(inputs, bits=16)
    assert not free.rejected and 3 in free.survivors

  @pytest.mark.parametrize('seed', range(5))
  def test_a_client_a_thousand_times_too_loud_is_caught(self, seed):
    inputs = vectors(3, seed, bits=20) | vectors(
        1, seed, 900 * BOUND, bits=20)
    result = run_shared_sum(inputs, bits=20, l2_bound=BOUND)
    assert list(result.rejected) == [0]

  def test_honest_vectors_at_the_bound_always_pass(self):
    # Worst for the subset sums: all entries alike, or one that holds it all.
    alike = np.full(D, 5, np.uint32)
    inputs = {0: alike, 1: (2**16 - alike) % 2**16, 2: at_the_edge(0)}
    for _ in range(20):
      assert not run_shared_sum(
          inputs, bits=16, l2_bound=math.sqrt(1600)).rejected


class Liar(SharingClient):
  """Is too loud, and follows the protocol."""

  def __init__(self, vector, *arguments):
    super().__init__(vector, *arguments)
    if vector[0] == 77:  # The one of the test.
      self.signed = self.lie(self.signed)

  def lie(self, signed):
    return 1000 * signed


class FalseSquare(Liar):
  """Claims a squared norm of one."""

  def claims(self, a, v):
    claims = super().claims(a, v)
    if abs(self.signed[0]) > 100:
      self.squared_norm = claims[2] = 1
    return claims


class WrapAround(Liar):
  """Two huge entries whose squares sum to one, modulo the prime."""

  def lie(self, signed):
    first = 123456789012345
    # The prime is 3 modulo 4, so a power takes square roots.
    while True:
      rest = (1 - first * first) % P
      second = pow(rest, (P + 1) // 4, P)
      if second * second % P == rest:
        break
      first += 1
    out = np.zeros_like(signed)
    out[:2] = first, second if second < P // 2 else second - P
    return out

  def claims(self, a, v):
    claims = super().claims(a, v)
    if abs(self.signed[0]) > 100:
      self.squared_norm = claims[2] = 1
    return claims


class NotBits(Liar):
  """Shares the numbers themselves where their bits should be."""

  def bits(self, chosen):
    bits = super().bits(chosen)
    if abs(self.signed[0]) > 100:
      statement = self._parameters.statement
      width = statement.range_bits
      numbers = [y - self.half + (1 << width - 1)
                 for y in self.subset_sums(chosen)]
      bits[:] = 0
      for j, number in enumerate(numbers):
        bits[j * width] = number % P
      bits[len(numbers) * width] = (
          statement.bound_squared - self.squared_norm) % P
    return bits


def with_liar(kind):
  inputs = vectors(3)
  inputs[1] = inputs[7] // 40
  inputs[1][0] = 77
  return inputs, run_shared_sum(
      inputs, bits=16, l2_bound=BOUND, make_client=kind)


@pytest.mark.parametrize(('kind', 'reasons'), [
  (Liar, {Reason.OVER_NORM, Reason.OUT_OF_RANGE}),
  (FalseSquare, {Reason.FALSE_SQUARE}),
  (WrapAround, {Reason.OUT_OF_RANGE}),
  (NotBits, {Reason.NOT_BITS}),
])
def test_each_lie_is_caught_by_its_check_and_by_no_other(
    kind, reasons, monkeypatch):
  inputs, result = with_liar(kind)
  assert set(result.rejected) == {1}
  assert result.rejected[1] in reasons
  np.testing.assert_array_equal(
      result.sum, modular_sum(inputs, [0, 7, 14], 16))
  # With that check off the liar is in the sum (positive control).
  real = share_parties.check
  monkeypatch.setattr(
      'fedjaxrec.aggregation.secret_shares.check',
      lambda *opened: None if (r := real(*opened)) in reasons else r)
  _, poisoned = with_liar(kind)
  assert 1 in poisoned.survivors
  assert (poisoned.sum != modular_sum(inputs, inputs, 16)).any()


class TestWhatAServerSees:

  def views(self, entropy):
    """First shares, and openings, of one vector in many rounds."""
    parameters = ShareParameters(
        bits=16, num_servers=2, length=D,
        statement=norm_proof.Statement(length=D, bound_squared=1600))
    long, opened = [], []
    t = 987654321987
    for _ in range(200):
      servers = [share_parties.Aggregator(i, parameters) for i in (0, 1)]
      client = SharingClient(at_the_edge(0), parameters, entropy())
      for server, data in zip(servers, client.shares()):
        assert server.receive_shares(0, data) is None
      long.append(np.frombuffer(data := client.shares()[0], '<u8', D,
                                len(data) - 8 * D))
      challenge = bytes(32)
      for server in servers:
        server.close_shares()
      for server, data in zip(servers, client.proof(challenge)):
        assert server.receive_proof(0, data) is None
      chosen = share_parties.draw_subsets(challenge, D)
      openings = [server.open(0, chosen, t) for server in servers]
      assert share_parties.check(openings, t) is None
      opened.append(field.add(openings[0].vector, openings[1].vector))
    return np.array(long), np.array(opened)

  @staticmethod
  def surprise(words):
    """How far the upper bytes are from uniform, in standard deviations."""
    counts = np.bincount((words.ravel() >> 53).astype(int), minlength=256)
    expected = words.size / 256
    return (((counts - expected) ** 2 / expected).sum() - 255) / 510**0.5

  def test_shares_and_openings_are_uniform_and_change_every_round(self):
    def entropy():
      rng = np.random.default_rng(0)
      return lambda n: rng.bytes(n)

    one = entropy()
    long, opened = self.views(lambda: one)
    assert abs(self.surprise(long)) < 6
    assert abs(self.surprise(opened)) < 6
    for view in (long, opened):
      rounds = view.astype(np.float64)
      off = np.abs(np.corrcoef(rounds)) - np.eye(len(rounds))
      assert off.max() < 8 / D**0.5
    # Keys used again give the same message every round (positive control).
    long, opened = self.views(entropy)
    assert self.surprise(long) > 6 and self.surprise(opened) > 6

  def test_seeds_are_all_that_other_servers_get(self):
    result = run_shared_sum(vectors(3), bits=16, num_servers=4)
    assert set(result.uplink_bytes['shares'].values()) == {2 * D + 3 * 32}


class Truncated(SharingClient):
  """Sends a byte too few."""

  def shares(self):
    messages = super().shares()
    return [messages[0][:-1], *messages[1:]]


class TooLarge(SharingClient):
  """Sends a value that no field element has."""

  def shares(self):
    messages = super().shares()
    return [messages[0][:-8] + b'\xff' * 8, *messages[1:]]


class NoProof(SharingClient):
  """Sends a proof of nothing."""

  def proof(self, challenge):
    return [b'', b'']


@pytest.mark.parametrize(('kind', 'l2_bound'), [
  (Truncated, None), (Truncated, BOUND), (TooLarge, BOUND), (NoProof, BOUND)])
def test_a_malformed_message_costs_its_sender_the_round(kind, l2_bound):
  make = lambda vector, *rest: (
      kind if vector[0] == 77 else SharingClient)(vector, *rest)
  inputs = vectors(3)
  inputs[1] = inputs[0] // 2**15
  inputs[1][0] = 77
  bound = None if l2_bound is None else 1000.0
  result = run_shared_sum(inputs, bits=16, l2_bound=bound, make_client=make)
  assert result.rejected == {1: Reason.MALFORMED}
  np.testing.assert_array_equal(
      result.sum, modular_sum(inputs, [0, 7, 14], 16))


@pytest.mark.parametrize('bad', [
  np.zeros(D - 1, np.uint32), np.full(D, 2**16, np.uint32),
  np.full(D, np.nan, np.float32), np.zeros((D, 1), np.uint32)])
def test_a_vector_that_is_none_of_the_rings_stays_out(bad):
  result = run_shared_sum(vectors(3) | {1: bad}, bits=16)
  assert result.rejected == {1: Reason.BAD_INPUT}


@pytest.mark.parametrize(('options', 'message'), [
  (dict(num_servers=1), 'num_servers=1'),
  (dict(bits=33), 'bits=33'),
  (dict(l2_bound=0.5), 'l2_bound=0.5'),
  (dict(l2_bound=math.nan), 'l2_bound=nan'),
  (dict(l2_bound=1e9), 'smaller scale'),
  (dict(min_survivors=1), 'min_survivors=1'),
  (dict(dropouts=[0, 7]), 'survivors=1'),
  (dict(inputs={}), 'nobody to sum'),
])
def test_a_sum_that_may_not_be_is_refused(options, message):
  options = dict(inputs=vectors(3), bits=16) | options
  with pytest.raises(ValueError, match=message):
    run_shared_sum(options.pop('inputs'), **options)


def test_the_largest_bound_that_is_named_works():
  with pytest.raises(ValueError, match='at most') as refusal:
    norm_proof.Statement(length=100_000, bound_squared=10**15)
  named = int(str(refusal.value).split('at most ')[1].split(',')[0])
  assert named > 2**17
  norm_proof.Statement(length=100_000, bound_squared=named**2)


def test_bytes_are_counted_and_the_leaks_are_said():
  result = run_shared_sum(vectors(3), bits=16, num_servers=3, l2_bound=BOUND)
  scalars, seed = 4 * 8, 32
  assert set(result.uplink_bytes['shares'].values()) == {
      8 * D + 3 * (scalars + seed)}
  num_bits = norm_proof.Statement(length=D, bound_squared=1600).num_bits
  assert set(result.uplink_bytes['proof'].values()) == {
      3 * 8 * num_bits + 3 * seed}
  assert set(result.downlink_bytes['proof'].values()) == {32}
  assert result.between_bytes > 3 * 6 * 8 * D
  assert result.client_s > 0 and result.server_s > 0
  assert 'within the bound' in result.leaks


class TestMessagesOutOfPlace:

  def proven(self):
    """Servers that have checked a client's norm of 5, and its messages."""
    parameters = ShareParameters(
        bits=16, num_servers=2, length=D,
        statement=norm_proof.Statement(length=D, bound_squared=1600))
    servers = [share_parties.Aggregator(i, parameters) for i in (0, 1)]
    vector = np.zeros(D, np.uint32)
    vector[:2] = 3, 4
    client = SharingClient(vector, parameters)
    first, challenge = client.shares(), bytes(32)
    for server, data in zip(servers, first):
      assert server.receive_shares(3, data) is None
      server.close_shares()
    second = client.proof(challenge)
    for server, data in zip(servers, second):
      assert server.receive_proof(3, data) is None
      server.close_proofs()
    chosen = share_parties.draw_subsets(challenge, D)
    assert share_parties.check(
        [server.open(3, chosen, 12345) for server in servers], 12345) is None
    return parameters, servers, vector, second

  def sum_of(self, servers):
    return field.to_signed(share_parties.add_all(
        [server.sum_share([3]) for server in servers]))

  def loud(self, parameters):
    return SharingClient(np.full(D, 9000, np.uint32), parameters).shares()

  def test_what_was_proven_is_what_is_summed(self, monkeypatch):
    parameters, servers, vector, second = self.proven()
    for server, data in zip(servers, self.loud(parameters)):
      assert server.receive_shares(3, data) is Reason.DUPLICATE
    for server, data in zip(servers, second):
      assert server.receive_proof(3, data) is Reason.DUPLICATE
    np.testing.assert_array_equal(self.sum_of(servers), vector)
    # A server that lets the last message stand (positive control).
    for server, data in zip(servers, self.loud(parameters)):
      server._shares[3] = data
    np.testing.assert_array_equal(self.sum_of(servers), np.full(D, 9000))

  def test_who_comes_too_late_or_too_early_is_refused_by_name(self):
    parameters, servers, _, second = self.proven()
    assert [s.receive_shares(4, m) for s, m in zip(
        servers, self.loud(parameters))] == [Reason.LATE] * 2
    assert [s.receive_proof(4, m) for s, m in zip(
        servers, second)] == [Reason.LATE] * 2
    fresh = share_parties.Aggregator(0, parameters)
    assert fresh.receive_shares(3, self.loud(parameters)[0]) is None
    assert fresh.receive_proof(3, second[0]) is Reason.WRONG_STAGE
    fresh.close_shares()
    assert fresh.receive_proof(4, second[0]) is Reason.WRONG_STAGE
    assert fresh.receive_proof(3, second[0]) is None

  def test_without_a_proof_a_second_message_is_refused_as_well(self):
    parameters = ShareParameters(bits=16, num_servers=2, length=D)
    server = share_parties.Aggregator(0, parameters)
    messages = [SharingClient(v, parameters).shares()[0]
                for v in vectors(2).values()]
    assert server.receive_shares(3, messages[0]) is None
    assert server.receive_shares(3, messages[1]) is Reason.DUPLICATE
    server.close_shares()
    assert server.receive_shares(4, messages[1]) is Reason.LATE

  def test_in_a_round_a_refused_message_names_its_reason(self, monkeypatch):
    real = share_parties.Aggregator.receive_shares

    def twice(server, client, data):
      first = real(server, client, data)
      return real(server, client, data) if client == 7 else first

    monkeypatch.setattr(share_parties.Aggregator, 'receive_shares', twice)
    inputs = vectors(3)
    result = run_shared_sum(inputs, bits=16)
    assert result.rejected == {7: Reason.DUPLICATE}
    np.testing.assert_array_equal(
        result.sum, modular_sum(inputs, [0, 14], 16))
