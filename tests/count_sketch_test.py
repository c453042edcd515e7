"""Rounds of count sketches, seen from outside a run, and what goes with them.

Clients do not train: each sends a delta that is known beforehand. The table of
the cohort's sum is made here, entry by entry.
"""

import functools

import jax
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.communication import make_layout, wire_bytes
from fedjaxrec.simulation import make_simulation
from tests import plain
from tests.row_clip_test import (
    NUM_CLIENTS,
    NUM_ITEMS,
    POPULATION,
    make_config,
    send_known_deltas,
    sum_by_hand,
)
from tests.transforms.sketch_test import by_hand

ROUNDS, WIDTH, DEPTH = 2, 31, 2
COUNT = {'sketch': 'count', 'sketch_width': WIDTH, 'sketch_depth': DEPTH}


def settings_of(compression, **sections):
  return make_config({}, **{
      'compression': config.CompressionConfig(**compression),
      'cohort': plain.cohort(size=4), **sections})


def run(settings, broken=False):
  """(deltas of the model by round, cohorts, simulation, state, metrics)."""
  simulation = make_simulation(
      settings, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS,
      transform_algorithm=lambda a: send_known_deltas(a, broken))
  state, moved = simulation.init(), []
  for r in range(ROUNDS):
    before = jax.tree.map(np.array, state.server[1:3])
    state, metrics = simulation.run(state, r, 1)
    moved.append(jax.tree.map(
        lambda new, old: np.asarray(new, np.float64) - old,
        tuple(state.server[1:3]), before))
  cohorts = [np.asarray(simulation.sampler(r)) for r in range(ROUNDS)]
  return moved, cohorts, simulation, state, metrics


def as_tree(total):
  rows, shared = total
  return ({'item': rows[:, 1:], 'item_bias': rows[:, 0]},
          {'bias': np.float64(shared)})


def decoded(simulation, r, total, divisor=1.0):
  """What the round's hashes make of a sum, a tree; entry by entry."""
  round_key = jax.random.fold_in(simulation.key, r)
  return by_hand(total, (np.ones(NUM_ITEMS, bool), True),
                 WIDTH, DEPTH, jax.random.fold_in(round_key, NUM_CLIENTS),
                 divisor)[1]


# Deltas are small multiples of 1 / 64, and so are their sums, exactly; what is
# rounded is the mean, the model before and the model after, all below 16.
ATOL = 3 * 16 * 2.0**-24
# Not so with a memory: a bucket adds up 81 numbers, to less than 64, twice, and
# what is decoded of it is scaled.
ATOL_MEMORY = 2 * 3 * (81 + 4) * 64 * 2.0**-24


def close(found, expected, atol=ATOL):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=0, atol=atol), found, expected)


@functools.cache
def plainly():
  return run(settings_of(COUNT))


def test_a_round_moves_by_what_the_sum_of_the_tables_decodes_to():
  moved, cohorts, simulation, _, _ = plainly()
  for r, members in enumerate(cohorts):
    assert len(members) == 4
    total = as_tree(sum_by_hand({}, members))
    close(moved[r], jax.tree.map(
        lambda x: x / 4, decoded(simulation, r, total)))
    # Rows that nobody touched move too: the server cannot tell them apart.
    assert np.abs(moved[r][0]['item'][total[0]['item'][:, 0] == 0]).max() > 0.01
  # Positive control: another round has other hashes.
  wrong = decoded(simulation, 1, as_tree(sum_by_hand({}, cohorts[0])))
  assert np.abs(wrong[0]['item'] / 4 - moved[0][0]['item']).max() > 0.1


@pytest.mark.parametrize(('num_devices', 'block_size', 'place'), [
    (3, 1, 'host'), (1, 4, 'device')])
def test_blocks_devices_and_the_place_of_the_data_change_nothing(
    num_devices, block_size, place):
  moved = run(settings_of(
      COUNT, parallel=config.ParallelConfig(
          mode='single' if num_devices == 1 else 'shard_map',
          num_devices=num_devices),
      engine=config.EngineConfig(
          block_size=block_size, num_size_classes=1, data=place)))[0]
  close(moved, plainly()[0])


def test_a_memory_holds_what_the_table_did_not_say_in_every_row():
  """Two rounds of all clients: delta, decoded smaller, remembered, added."""
  moved, _, simulation, state, _ = run(settings_of(
      COUNT | {'error_feedback': True}, cohort=plain.cohort(size=0)))
  size = NUM_ITEMS * 4 + 1
  divisor = 1 + (size - 1) / (WIDTH * DEPTH)
  memories = [jax.tree.map(np.zeros_like, as_tree(sum_by_hand({}, [])))
              for _ in range(NUM_CLIENTS)]
  for r in range(ROUNDS):
    sums = []
    for c in range(NUM_CLIENTS):
      wanted = jax.tree.map(
          np.add, as_tree(sum_by_hand({}, [c])), memories[c])
      sent = decoded(simulation, r, wanted, divisor)
      memories[c] = jax.tree.map(np.subtract, wanted, sent)
      sums.append(sent)
    close(moved[r], jax.tree.map(
        lambda *x: sum(x) / NUM_CLIENTS, *sums), ATOL_MEMORY)
  kept = simulation.clients_by_client(state).memory
  for c in range(NUM_CLIENTS):
    close(jax.tree.map(lambda x, c=c: np.asarray(x[c]), (
        kept[0].rows, kept[1])), memories[c], ATOL_MEMORY)
    assert max(np.abs(x).max() for x in jax.tree.leaves(memories[c])) > 0.1


def test_quantized_tables_are_near_those_that_are_not():
  moved = run(settings_of(COUNT | {'quantize': 'qsgd', 'bits': 12}))[0]
  # A level is a 2,047th of the largest bucket, at most the sum of all entries;
  # the mean over two rows is of at most two levels.
  largest = max(np.abs(rows).sum() + shared for rows, shared in (
      sum_by_hand({}, [c]) for c in range(NUM_CLIENTS)))
  close(moved, plainly()[0], largest / 2047 + ATOL)
  assert np.abs(moved[0][0]['item'] - plainly()[0][0][0]['item']).max() > ATOL


def test_a_client_that_is_not_finite_is_left_out_and_counted():
  moved, cohorts, simulation, _, metrics = run(
      settings_of(COUNT, cohort=plain.cohort(size=0)), broken=True)
  assert int(metrics.rejected[0]) == 1
  others = [c for c in cohorts[1] if c != 4]
  close(moved[1], jax.tree.map(
      lambda x: x / len(others),
      decoded(simulation, 1, as_tree(sum_by_hand({}, others)))))


def test_a_message_is_as_long_for_few_rows_as_for_many_but_for_their_names():
  layout = make_layout({'item': np.zeros((NUM_ITEMS, 3), np.float32)}, {},
                       NUM_ITEMS)
  lengths = wire_bytes(
      config.CompressionConfig(**COUNT), np.array([0, 1, 20]), layout)
  # A count of rows, and one position of twenty: 1 * (4 + 1) + (19 >> 4) bits.
  np.testing.assert_array_equal(lengths, 4 + 4 * WIDTH * DEPTH + np.array(
      [0, 1, 0]))


@pytest.mark.parametrize(('sections', 'words'), [
    ({'privacy': config.PrivacyConfig(l2_clip_norm=1.0)},
     'compression.sketch=count with privacy.l2_clip_norm=1.0'),
    ({'privacy': config.PrivacyConfig(row_clip_norm=1.0)},
     'privacy.row_clip_norm=1.0'),
    ({'privacy': config.PrivacyConfig(epsilon=8.0, l2_clip_norm=1.0)},
     'privacy.epsilon=8.0'),
    ({'server': plain.server(row_normalization='contributors')},
     'server.row_normalization=contributors with compression.sketch=count'),
    ({'secure': config.SecureConfig(level='ideal')},
     'compression.sketch=count with secure.level=ideal'),
    ({'local_privacy': config.LocalPrivacyConfig(
        mechanism='gaussian', epsilon=8.0)}, 'compression.sketch=count'),
    ({'algorithm': config.AlgorithmConfig(name='ials')}, 'compression'),
])
def test_what_needs_more_than_the_sum_of_the_tables_is_refused(sections, words):
  with pytest.raises(ValueError, match=words):
    config.Config(
        compression=config.CompressionConfig(**COUNT), **sections)


def test_rows_are_divided_by_the_cohort_by_default():
  """auto is mean: the noise in a row is not divided by its few contributors."""
  moved = run(settings_of(COUNT, server=plain.server(
      row_normalization='auto')))[0]
  close(moved, plainly()[0], 0)
