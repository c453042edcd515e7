"""Encrypted sums are the sums, and nobody without the key reads them."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from fedjaxrec.aggregation import homomorphic
from fedjaxrec.aggregation.homomorphic import run_homomorphic_sum

D = 3000  # A full ciphertext and a part of one.


@pytest.fixture
def tenseal():
  return pytest.importorskip(
      'tenseal', reason='no tenseal: pip install fedjaxrec[he]')


def vectors(count, seed=0, scale=0.1):
  rng = np.random.default_rng(seed)
  return {3 * i: (scale * rng.normal(size=D)).astype(np.float32)
          for i in range(count)}


def exact(inputs, clients):
  return sum(inputs[c].astype(np.float64) for c in clients)


@pytest.mark.parametrize('key_holder', homomorphic.KEY_HOLDERS)
def test_the_sum_of_those_who_stayed_is_right_to_a_millionth(
    tenseal, key_holder):
  inputs = vectors(5)
  result = run_homomorphic_sum(inputs, key_holder=key_holder, dropouts=[3])
  assert result.survivors == (0, 6, 9, 12)
  assert result.rejected == {3: 'dropped'}
  # float32 of a sum below one: 2^-25; the scheme's own error is about 1e-8.
  np.testing.assert_allclose(
      result.sum, exact(inputs, result.survivors), atol=1e-6)
  # One client's vector makes a difference that is seen (positive control).
  assert np.abs(result.sum - exact(inputs, inputs)).max() > 0.01
  assert all(x > 0 for x in (
      result.client_s, result.server_s, result.key_holder_s))
  assert result.who_can_decrypt == homomorphic.who_can_decrypt(key_holder)


def test_a_hundred_clients_stay_within_size_and_error(tenseal):
  inputs = dict(enumerate(
      0.01 * np.random.default_rng(1).normal(size=(100, 2 * 2048))))
  result = run_homomorphic_sum(inputs)
  assert np.abs(result.sum - sum(inputs.values())).max() < 1e-6
  sizes = set(result.uplink_bytes['ciphertexts'].values())
  assert 0 < max(sizes) < 8 * 4 * 2 * 2048


def test_the_server_holds_nothing_that_decrypts(tenseal):
  for key_holder in homomorphic.KEY_HOLDERS:
    holder = homomorphic.KeyHolder(key_holder)
    data = homomorphic.Encryptor(holder.client_context).encrypt(np.ones(8))
    context = tenseal.context_from(holder.server_context)
    with pytest.raises(ValueError, match='secret_key'):
      tenseal.ckks_vector_from(context, data[0]).decrypt()
    # With the key it does (positive control).
    np.testing.assert_allclose(holder.decrypt(data), 1, atol=1e-6)
    # Only where the clients hold the key can a client decrypt.
    client = tenseal.context_from(holder.client_context)
    assert client.is_private() == (key_holder == 'clients')


def test_a_ciphertext_looks_random_and_never_the_same(tenseal):
  encryptor = homomorphic.Encryptor(homomorphic.KeyHolder().client_context)
  first, second = (np.frombuffer(
      encryptor.encrypt(np.zeros(2048))[0], np.uint8)[200:50_200]
                   for _ in range(2))
  # Agreement of random bytes: 1 in 256, six standard deviations.
  agree = (first == second).mean()
  assert abs(agree - 1 / 256) < 6 * math.sqrt(1 / 256 / 50_000)
  assert (first == first).mean() == 1  # Positive control.


@pytest.mark.parametrize('bad', [
  np.full(D, np.nan), np.full(D, np.inf), np.full(D, 1025.0),
  np.zeros(D - 1), np.zeros((D, 1))])
def test_what_cannot_be_encrypted_stays_out(tenseal, bad):
  inputs = vectors(3) | {1: bad}
  result = run_homomorphic_sum(inputs)
  assert result.rejected == {1: 'bad_input'}
  np.testing.assert_allclose(
      result.sum, exact(inputs, [0, 3, 6]), atol=1e-6)


def test_the_largest_values_that_are_let_in_do_not_wrap(tenseal):
  largest = homomorphic.MAX_SUM / 4
  result = run_homomorphic_sum({i: np.full(D, -largest) for i in range(4)})
  assert not result.rejected
  np.testing.assert_allclose(result.sum, -homomorphic.MAX_SUM, rtol=1e-6)
  # Four and a half times as much does (positive control).
  holder = homomorphic.KeyHolder()
  adder = homomorphic.Adder(holder.server_context, 8)
  part = np.full(8, 0.5 * homomorphic.MAX_SUM)
  encryptor = homomorphic.Encryptor(holder.client_context)
  assert all(adder.add(encryptor.encrypt(part)) for _ in range(9))
  assert np.abs(holder.decrypt(adder.total()) - 9 * part).max() > 1


@pytest.mark.parametrize('tampered', [
  lambda data: data[:1], lambda data: [*data, data[0]],
  lambda data: [data[0][:100], data[1]], lambda data: [b'', b''],
  lambda data: [data[1], data[0]]])
def test_a_malformed_message_adds_nothing(tenseal, tampered):
  inputs = vectors(4)
  result = run_homomorphic_sum(
      inputs, tamper=lambda c, data: tampered(data) if c == 3 else data)
  assert result.rejected == {3: 'malformed'}
  np.testing.assert_allclose(
      result.sum, exact(inputs, [0, 6, 9]), atol=1e-6)


@pytest.mark.parametrize(('options', 'message'), [
  (dict(inputs={}), 'nobody to sum'),
  (dict(inputs={0: np.zeros((2, 2))}), r'vectors \[d\]'),
  (dict(min_survivors=1), 'min_survivors=1'),
  (dict(dropouts=[0, 3]), 'survivors=1'),
  (dict(key_holder='server'), 'key_holder='),
])
def test_a_sum_that_may_not_be_is_refused(tenseal, options, message):
  options = dict(inputs=vectors(3)) | options
  with pytest.raises(ValueError, match=message):
    run_homomorphic_sum(options.pop('inputs'), **options)


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tenseal', None)
  with pytest.raises(ValueError, match=r'pip install fedjaxrec\[he\]'):
    run_homomorphic_sum(vectors(3))


def test_the_report_says_who_could_decrypt_whom():
  text = homomorphic.who_can_decrypt('clients')
  assert 'any of them could decrypt' in text
  text = homomorphic.who_can_decrypt('third_party')
  assert 'server together with the key holder' in text


_WITHOUT = """
import importlib.util, runpy, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name == 'tenseal' else real(name, *rest))
sys.path.insert(0, 'benchmarks')
sys.argv = ['benchmark', '--n=4', '--k=2', '--d=8', '--levels=ideal,he,shares']
runpy.run_path('benchmarks/secure_aggregation.py', run_name='__main__')
"""


def test_a_benchmark_without_the_library_says_so_and_prints_its_table():
  root = pathlib.Path(__file__).resolve().parents[2]
  lines = subprocess.run(
      [sys.executable, '-c', _WITHOUT], cwd=root, capture_output=True,
      text=True, check=True).stdout.splitlines()
  rows = {row['level']: row for row in map(
      json.loads, filter(lambda line: line.startswith('{"level'), lines))}
  assert list(rows) == ['ideal', 'he', 'shares']
  assert 'fedjaxrec[he]' in rows['he']['skipped']
  assert 'total_s' not in rows['he'] and rows['shares']['exact'] is True
  assert 'skipped' in lines[-4] and 'pip install' in lines[-2]
