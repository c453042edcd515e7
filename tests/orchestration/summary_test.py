"""The pieces of summary.json that need no run."""

import types

import jax
import numpy as np
import pytest

from fedjaxrec.communication import (
    bits,
    download_bytes,
    make_layout,
    wire_bytes,
)
from fedjaxrec.orchestration import experiment, summary, training
from fedjaxrec.participation.samplers import build_sampler
from tests.small_runs import make_config, make_interactions, random_split

TABLE = {'item': np.zeros((30, 4), np.float32),
         'item_bias': np.zeros(30, np.float32)}
SHARED = {'bias': np.zeros((), np.float32)}
ROW = 4 * 5


def test_floats_are_rounded_and_everything_else_is_kept():
  value = {'a': [0.123456789, 3, True, None, 'x'], 'b': (np.float32(1 / 3),),
           'c': {'d': np.float64(2 / 3), 'e': 1e-9}}
  assert summary.rounded(value) == {
      'a': [0.123457, 3, True, None, 'x'], 'b': [0.333333],
      'c': {'d': 0.666667, 'e': 0.0}}
  assert type(summary.rounded(value)['b'][0]) is float
  assert np.isnan(summary.rounded(float('nan')))
  assert summary.rounded(1234567.1234567, 2) == 1234567.12


def test_the_data_is_counted_in_all_parts():
  config = make_config()
  split = random_split(5, 30, 4)
  described = summary.describe_data(config, split)
  assert described == {
      'name': 'synthetic', 'num_users': 5, 'num_items': 30,
      'num_interactions': 30, 'num_train': 20, 'num_validation': 5,
      'num_test': 5, 'split': 'leave_one_out', 'fingerprint': 'random 0',
      'split_fingerprint': split.split_fingerprint()}
  assert {type(value) for value in described.values()} == {int, str}


def test_the_devices_in_words():
  placement = types.SimpleNamespace(
      devices=[types.SimpleNamespace(device_kind='H200')] * 4, num_devices=4,
      mode='pmap')
  assert summary.describe_device(placement) == '4 x H200 (pmap)'


@pytest.mark.parametrize('sampler', ['uniform', 'poisson', 'shuffled'])
def test_communication_counts_who_took_part(sampler):
  """Bytes of every participation, one after the other."""
  counts = [3, 0, 5, 1, 12, 2]
  rows = [np.arange(n) for n in counts]
  split = random_split(6, 30, 4)
  object.__setattr__(split, 'train', make_interactions(rows, 30))
  config = make_config({
      'rounds': 7, 'cohort.sampler': sampler, 'cohort.size': 2, 'seed': 5})
  sample, _ = build_sampler(config.cohort, np.array(counts), config.seed)
  down = up = participations = 0
  for r in range(7):
    for client in sample(r):
      touched = counts[client] + min(2 * counts[client], 30 - counts[client])
      down += touched * ROW + 4
      up += touched * (ROW + 4) + 4
      participations += 1
  described = summary.describe_communication(config, split, TABLE, SHARED)
  assert described == pytest.approx({
      'uplink_bytes_per_client': up / participations,
      'downlink_bytes_per_client': down / participations,
      'dense_uplink_bytes_per_client': 30 * ROW + 4,
      'total_bytes': up + down})


@pytest.mark.parametrize(('threshold', 'quantize'), [
    (1e-30, 'none'), (1e6, 'none'), (1e6, 'qsgd')])
def test_a_threshold_s_bytes_are_those_of_the_entries_that_reach_it(
    threshold, quantize):
  """All of them, or none: the lengths by the formula, and by hand."""
  split = random_split(8, 30, 4)
  config = make_config({
      'rounds': 2, 'cohort.size': 3, 'compression.sparsify': 'threshold',
      'compression.threshold': threshold, 'compression.quantize': quantize,
      'evaluation.every': 0, 'checkpoint.every': 0})
  run = experiment.build(config, split)
  *_, stop = training.train_rounds(
      config, run.simulation, run.evaluator,
      training.start_afresh(run.simulation))
  server = stop.state.server
  layout = make_layout(server.item_table, server.shared, 30)
  leaves = len(layout.item) + len(layout.shared)
  rows = 4 + 2 * 4
  # The count of rows, their positions, and for each leaf that nothing is there.
  nothing = 4 + int(bits.positions_bytes(30, rows)) + 4 * leaves
  one = nothing if threshold > 1 else int(
      wire_bytes(config.compression, rows, layout))
  if threshold < 1:
    # A bias, say, may be exactly zero; then it is not sent.
    assert 3 * nothing < stop.lines[0]['uplink_bytes'] <= 3 * one
  else:
    assert [line['uplink_bytes'] for line in stop.lines] == [3 * one] * 2
  assert [line['downlink_bytes'] for line in stop.lines] == [
      3 * int(download_bytes(rows, layout))] * 2
  described = summary.describe_communication(
      config, split, server.item_table, server.shared,
      run.simulation.algorithm, stop.lines)
  assert described['total_bytes'] == sum(
      line['uplink_bytes'] + line['downlink_bytes'] for line in stop.lines)
  assert described['uplink_bytes_per_client'] == sum(
      line['uplink_bytes'] for line in stop.lines) / 6


@pytest.mark.parametrize('changes', [
    {}, {'algorithm.name': 'ials', 'objective.name': 'squared_error'},
    {'compression.sparsify': 'top_k', 'compression.downlink_bits': 8}])
def test_the_bytes_of_the_rounds_are_those_of_the_summary(changes):
  split = random_split(9, 30, 4)
  config = make_config({'rounds': 5, 'cohort.size': 3, **changes})
  run = experiment.build(config, split)
  server = jax.eval_shape(
      run.simulation.algorithm.init_server, jax.random.key(0))
  described = summary.describe_communication(
      config, split, server.item_table, server.shared,
      run.simulation.algorithm)
  by_round = run.evaluator.traffic(0, 5)
  assert by_round.shape == (5, 2) and (by_round > 0).all()
  assert by_round.sum() == pytest.approx(described['total_bytes'], rel=1e-12)
  assert by_round[:, 0].sum() / 15 == pytest.approx(
      described['uplink_bytes_per_client'], rel=1e-12)
  np.testing.assert_array_equal(run.evaluator.traffic(2, 2), by_round[2:4])


def test_without_negatives_only_the_interactions_travel():
  config = make_config({'objective.name': 'squared_error', 'cohort.size': 0})
  described = summary.describe_communication(
      config, random_split(5, 30, 4), TABLE, SHARED)
  assert described['downlink_bytes_per_client'] == 4 * ROW + 4
