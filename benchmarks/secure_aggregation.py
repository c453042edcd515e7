r"""What does it cost that the server does not see an update?

The same vectors summed at each level: by nobody's leave (ideal), under masks
whose keys are dealt (masked), by the whole protocol with all parties on one
core (protocol), over two servers (shares; shares+norm with the proof of the
norm), and under CKKS (he; a row says so where its library is absent). Seconds
by the clock and of this process's processor, processor seconds of all clients
together and of the server, bytes of all clients together, and whether the sum
is the plain one.

  python benchmarks/secure_aggregation.py --n=100 --k=32 --d=100000 \
      --dropout=0.1
  python benchmarks/secure_aggregation.py --n=100,1000 --k=64 --d=10000,100000 \
      --bits=16,32 --levels=ideal,masked,protocol
"""

import importlib.util
import math
import time

import harness
import numpy as np
from absl import app, flags

from fedjaxrec.aggregation import protocol
from fedjaxrec.aggregation.identity import enrol_clients

LEVELS = ('ideal', 'masked', 'protocol', 'shares', 'shares+norm', 'he')
_N = flags.DEFINE_list('n', ['100'], 'Clients that are invited.')
_K = flags.DEFINE_integer(
    'k', 32, 'Neighbours of a client in the protocol and under dealt masks.')
_T = flags.DEFINE_integer(
    't', 0, 'Shares that rebuild a secret; 0: two thirds of k.')
_D = flags.DEFINE_list('d', ['100000'], 'Elements of a vector.')
_BITS = flags.DEFINE_list('bits', ['32'], 'The ring is modulo 2^bits.')
_DROPOUT = flags.DEFINE_float(
    'dropout', 0.1, 'Clients that fall silent before they upload.')
_LEVELS = flags.DEFINE_list('levels', list(LEVELS), 'Levels to run.')
_REPEATS = flags.DEFINE_integer(
    'repeats', 1, 'Rounds of each; the fastest is printed.')
_VERIFY_ONCE = flags.DEFINE_boolean(
    'verify_once', False, 'The clients of the process check a signature once, '
    'and not each for itself: faster, and less than real clients need.')
_TRANSPORT = flags.DEFINE_enum(
    'transport', 'in_process', ['in_process', 'tcp'], 'Of the protocol.')


def draw_inputs(n: int, d: int, bits: int) -> dict[int, np.ndarray]:
  """Signed integers whose sum fits the ring, as uint32 modulo 2^bits [d].

  Small enough for the proof of the norm as well, which counts in 61 bits.
  """
  most = max(1, min(2**12, 2**(bits - 1) // n, 10**8 // d))
  rng = np.random.default_rng(0)
  ring = np.uint32(2**bits - 1)
  return {client: rng.integers(-most, most, d, np.int32).astype(
      np.uint32) & ring for client in range(n)}


def to_signed(vector: np.ndarray, bits: int) -> np.ndarray:
  """Ring elements as integers around zero: int64 [d]."""
  signed = vector.astype(np.int64)
  return np.where(signed >> bits - 1, signed - 2**bits, signed)


def make_runs(inputs, bits: int, k: int, t: int, gone: list[int]):
  """Level -> call(repeat) that runs it; a level loads what it needs."""
  least = max(2, len(inputs) // 2)
  if 'protocol' in _LEVELS.value:
    registry, identities = enrol_clients(inputs)

  def run_protocol(repeat):
    return protocol.run_secure_sum(
        inputs, bits=bits, num_neighbors=k, threshold=t, min_survivors=least,
        registry=registry, identities=identities, round_index=repeat,
        dropouts={'masked_input': gone}, transport=_TRANSPORT.value,
        verify_once=_VERIFY_ONCE.value)

  def run_shares(repeat, l2_bound=None):
    from fedjaxrec.aggregation.secret_shares import run_shared_sum
    return run_shared_sum(inputs, bits=bits, num_servers=2, dropouts=gone,
                          min_survivors=least, l2_bound=l2_bound)

  def run_shares_with_norm(repeat):
    longest = max(float(np.linalg.norm(to_signed(vector, bits)))
                  for vector in inputs.values())
    return run_shares(repeat, max(1.0, 1.01 * longest))

  def run_he(repeat):
    from fedjaxrec.aggregation.homomorphic import run_homomorphic_sum
    vectors = {client: to_signed(vector, bits) / 2.0**12
               for client, vector in inputs.items()}
    return run_homomorphic_sum(vectors, dropouts=gone, min_survivors=least)

  return {
      'ideal': lambda repeat: protocol.run_ideal_sum(
          inputs, bits=bits, min_survivors=least, dropouts=gone),
      'masked': lambda repeat: protocol.run_masked_sum(
          inputs, bits=bits, num_neighbors=k, min_survivors=least,
          round_index=repeat, dropouts=gone),
      'protocol': run_protocol, 'shares': run_shares,
      'shares+norm': run_shares_with_norm, 'he': run_he}


def why_skipped(level: str) -> str:
  """Why a level cannot run here; empty if it can."""
  if level != 'he' or importlib.util.find_spec('tenseal') is not None:
    return ''
  return 'tenseal is not installed: pip install fedjaxrec[he]'


def describe(result, inputs, bits: int, level: str) -> dict:
  """Whether the sum is right, and the traffic of all clients together."""
  want = np.zeros_like(next(iter(inputs.values())), np.uint64)
  for client in result.survivors:
    want += inputs[client]
  want = (want & np.uint64(2**bits - 1)).astype(np.uint32)
  if level == 'he':
    difference = result.sum.astype(np.float64) - to_signed(want, bits) / 2.0**12
    error = float(np.abs(difference).max())
  else:
    error = float(np.abs(to_signed(result.sum, bits)
                         - to_signed(want, bits)).max())
  up, down = (sum(sum(stage.values()) for stage in traffic.values())
              for traffic in (result.uplink_bytes, result.downlink_bytes))
  return {'survivors': len(result.survivors), 'client_s': result.client_s,
          'server_s': result.server_s, 'uplink_bytes': up,
          'downlink_bytes': down, 'exact': error == 0, 'max_error': error}


def main(_):
  """One row a combination of level, clients, elements and bits."""
  unknown = set(_LEVELS.value) - set(LEVELS)
  if unknown:
    raise ValueError(
        f'levels={",".join(sorted(unknown))} is not known; choose of '
        f'{", ".join(LEVELS)}.')
  if not 0 <= _DROPOUT.value < 0.5:
    raise ValueError(
        f'dropout={_DROPOUT.value} must be 0 or more and below a half.')
  harness.print_row(machine=harness.describe_machine())
  rows = []
  for n, d, bits in ((int(n), int(d), int(bits)) for n in _N.value
                     for d in _D.value for bits in _BITS.value):
    inputs = draw_inputs(n, d, bits)
    gone = list(range(math.floor(_DROPOUT.value * n)))
    k = min(_K.value, n - 1)
    t = _T.value or 2 * k // 3
    runs = make_runs(inputs, bits, k, t, gone)
    for level in _LEVELS.value:
      skipped = why_skipped(level)
      if skipped:
        rows.append(harness.print_row(
            level=level, n=n, d=d, bits=bits, skipped=skipped))
        continue
      best = None
      for repeat in range(_REPEATS.value):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        result = runs[level](repeat)
        total_s = time.perf_counter() - begin
        cpu_s = time.process_time() - begin_cpu
        if best is None or total_s < best[0]:
          best = total_s, cpu_s, result
      rows.append(harness.print_row(
          level=level, n=n, k=k if level in ('masked', 'protocol') else None,
          t=t if level == 'protocol' else None, d=d, bits=bits,
          dropout=_DROPOUT.value, total_s=best[0], cpu_s=best[1],
          **describe(best[2], inputs, bits, level)))
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
