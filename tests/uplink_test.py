"""What happens to a delta on its way to the sum, seen from outside a run.

The clients of these runs do not train: each sends the same delta, known
beforehand, in every round, so what the server ends with can be written down.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec import blocks, config
from fedjaxrec.local_training import Contribution
from fedjaxrec.population import ByItem
from fedjaxrec.simulation import make_simulation
from fedjaxrec.transforms.error_feedback import with_error_feedback
from fedjaxrec.transforms.sparsify import top_k
from fedjaxrec.uplink import Uplink
from tests import oracles, plain

COUNTS = [3, 5, 1, 8, 4, 7, 2]
NUM_CLIENTS, NUM_ITEMS, DIM, ROUNDS = len(COUNTS), 20, 3, 3
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=4)
CONFIG = config.Config(
    rounds=ROUNDS, model=config.ModelConfig(dim=DIM),
    objective=plain.objective(name='squared_error'),
    client=plain.client(batch_size=8), server=plain.server(),
    cohort=plain.cohort(size=0),
    engine=config.EngineConfig(block_size=2, num_size_classes=2),
    parallel=config.ParallelConfig(mode='single'))
BROKEN = 4


def deltas():
  """float64 [clients, items, dim]: client c sends (c + 1) (i + 1) / 64."""
  sent = np.zeros((NUM_CLIENTS, NUM_ITEMS, DIM))
  for c in range(NUM_CLIENTS):
    mine = POPULATION.items[POPULATION.offsets[c]:POPULATION.offsets[c + 1]]
    sent[c, mine] = (c + 1) * (mine[:, None] + 1) / 64
  return sent


def send_known_deltas(algorithm, broken=False):
  """Replaces training; who is broken sends a NaN. Counts touches by item."""
  def draw(client, key):
    # So that the update knows whose delta it makes: as the labels.
    examples = algorithm.draw(client, key)
    return examples._replace(labels=jnp.full_like(
        examples.labels, client.client_id + 1))

  def client_update(view, examples, num_examples):
    client = examples.labels[:, :1, None]
    value = jnp.where(
        examples.used, client * (examples.rows + 1) / 64, 0.0)
    if broken:
      value = jnp.where(
          ((client == BROKEN + 1) | (broken == 'all')) & examples.used,
          jnp.nan, value)
    rows = {name: jnp.broadcast_to(
        value.reshape(*value.shape, *[1] * (x.ndim - value.ndim)), x.shape)
            for name, x in view.item_rows.items()}
    nothing = jnp.zeros(len(num_examples))
    touched = ByItem(jnp.where(
        examples.used, view.personal.rows + 1, view.personal.rows))
    return Contribution(
        rows, jax.tree.map(jnp.zeros_like, view.shared), nothing + 1,
        nothing + 1, num_examples), touched

  return algorithm._replace(
      draw=draw, client_update=client_update,
      init_personal=lambda key: ByItem(jnp.zeros(NUM_ITEMS)))


def run(uplink, rounds=ROUNDS, mode='single', broken=False, num_devices=1):
  """Returns (sum of what was sent, touches [clients, items], metrics, all)."""
  simulation = make_simulation(
      dataclasses.replace(CONFIG, parallel=config.ParallelConfig(
          mode=mode, num_devices=num_devices)),
      POPULATION.offsets, POPULATION.items, POPULATION.labels, NUM_ITEMS,
      uplink=uplink, expected_cohort=1.0,
      transform_algorithm=lambda a: send_known_deltas(a, broken))
  start = simulation.init()
  before = np.asarray(start.server.item_table['item'], np.float64)
  state, metrics = simulation.run(start, 0, rounds)
  moved = np.asarray(state.server.item_table['item']) - before
  return (moved, simulation.personal_by_client(state).rows, metrics,
          simulation.clients_by_client(state))


# Sums of at most 21 numbers below 5, on a table of numbers below 1: the error
# of each addition is half an ulp of at most 64.
ATOL = 22 * 64 * 2.0**-24


def test_without_an_uplink_the_sum_is_what_was_sent():
  moved, touches, metrics, _ = run(None)
  np.testing.assert_allclose(
      moved, ROUNDS * deltas().sum(0), rtol=0, atol=ATOL)
  assert (np.asarray(metrics.rejected)[:ROUNDS] == 0).all()
  np.testing.assert_array_equal(touches, ROUNDS * (deltas()[..., 0] > 0))


@pytest.mark.parametrize('num_devices', [2, 3])
def test_what_a_client_keeps_by_item_is_at_home_with_it(num_devices):
  moved, touches, _, _ = run(None, mode='shard_map', num_devices=num_devices)
  np.testing.assert_allclose(
      moved, ROUNDS * deltas().sum(0), rtol=0, atol=ATOL)
  np.testing.assert_array_equal(touches, ROUNDS * (deltas()[..., 0] > 0))


def test_what_a_memory_holds_is_what_was_not_sent():
  moved, touches, _, clients = run(Uplink(
      transform=lambda key, *_: with_error_feedback(top_k(0.4)),
      has_memory=True))
  left = np.asarray(clients.memory[0].rows['item'], np.float64)
  assert left.shape == (NUM_CLIENTS, NUM_ITEMS, DIM)
  assert (np.abs(left).sum((1, 2)) > 0).sum() >= 4
  # What is left belongs to rows that the client has.
  assert (left[deltas() == 0] == 0).all()
  np.testing.assert_allclose(
      moved + left.sum(0), ROUNDS * deltas().sum(0), rtol=0, atol=ATOL)
  np.testing.assert_array_equal(touches, ROUNDS * (deltas()[..., 0] > 0))


def test_a_delta_that_is_not_finite_is_counted_and_not_averaged():
  identity = Uplink(transform=lambda key, *_: optax.identity())
  moved, touches, metrics, _ = run(identity, broken=True)
  expected = np.delete(deltas(), BROKEN, 0).sum(0) * ROUNDS
  np.testing.assert_allclose(moved, expected, rtol=0, atol=ATOL)
  np.testing.assert_array_equal(np.asarray(metrics.rejected)[:ROUNDS], 1)
  np.testing.assert_array_equal(
      np.asarray(metrics.reported)[:ROUNDS], NUM_CLIENTS - 1)
  # It has learnt nothing; the others have.
  assert (touches[BROKEN] == 0).all()
  assert touches.sum() == ROUNDS * (sum(COUNTS) - COUNTS[BROKEN])


@pytest.mark.parametrize('mode', [('single', 1), ('shard_map', 2)])
def test_without_an_uplink_it_is_left_out_as_well(mode):
  """The result is that of a run without that client, to the last bit."""
  moved, touches, metrics, _ = run(
      None, broken=True, mode=mode[0], num_devices=mode[1])
  expected = np.delete(deltas(), BROKEN, 0).sum(0) * ROUNDS
  np.testing.assert_allclose(moved, expected, rtol=0, atol=ATOL)
  np.testing.assert_array_equal(np.asarray(metrics.rejected)[:ROUNDS], 1)
  np.testing.assert_array_equal(
      np.asarray(metrics.reported)[:ROUNDS], NUM_CLIENTS - 1)
  np.testing.assert_array_equal(np.asarray(metrics.loss)[:ROUNDS], 1)
  assert (touches[BROKEN] == 0).all()
  assert touches.sum() == ROUNDS * (sum(COUNTS) - COUNTS[BROKEN])


def test_the_check_is_what_keeps_it_out(monkeypatch):
  monkeypatch.setattr(
      blocks, 'finite_clients',
      lambda delta: jnp.ones(len(jax.tree.leaves(delta)[0]), bool))
  assert np.isnan(run(None, broken=True)[0]).any()


@pytest.mark.parametrize('bad', [np.nan, -np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize('where', ['rows', 'shared', 'scalar'])
def test_whoever_has_one_bad_entry_is_found(bad, where):
  delta = {'rows': np.full((3, 4, 2), -1e18, np.float32),
           'shared': np.zeros((3, 5), np.float32),
           'scalar': np.full(3, 1e-45, np.float32)}
  assert np.asarray(blocks.finite_clients(delta)).all()
  delta[where][(1, *[1] * (delta[where].ndim - 1))] = bad
  np.testing.assert_array_equal(
      blocks.finite_clients(delta), [True, False, True])


@pytest.mark.parametrize('uplink', [None, Uplink(
    transform=lambda key, *_: optax.identity())], ids=['plain', 'uplink'])
def test_a_round_in_which_nobody_is_finite_has_no_loss(uplink):
  """So that the run ends, and says that training has diverged."""
  moved, touches, metrics, _ = run(uplink, broken='all')
  assert np.isnan(np.asarray(metrics.loss)[:ROUNDS]).all()
  np.testing.assert_array_equal(
      np.asarray(metrics.rejected)[:ROUNDS], NUM_CLIENTS)
  assert (moved == 0).all() and (touches == 0).all()


def test_closed_rows_do_not_travel():
  open_rows = np.arange(NUM_ITEMS) % 3 == 0
  moved, _, _, _ = run(Uplink(open_rows=jnp.asarray(open_rows)))
  expected = ROUNDS * deltas().sum(0)
  expected[~open_rows] = 0
  np.testing.assert_allclose(moved, expected, rtol=0, atol=ATOL)


def test_a_dense_uplink_sees_every_row_of_every_client_and_no_padding():
  def add_one(updates, params):
    del params
    return (jax.tree.map(lambda x: x + 1, updates[0]), updates[1])

  moved, _, _, _ = run(Uplink(
      transform=lambda key, *_: optax.stateless(add_one), is_dense=True),
      rounds=1)
  np.testing.assert_allclose(
      moved, deltas().sum(0) + NUM_CLIENTS, rtol=0, atol=ATOL)


def test_reports_are_summed_over_who_counts():
  """The server's transform gets them as an extra argument."""
  class Counted(NamedTuple):
    report: jax.Array

  def count_rows(updates, state, params=None, *, mask):
    del state, params
    return updates, Counted(mask[0]['item'].sum().astype(jnp.float32))

  def keep(updates, state, params=None, *, reports):
    del params
    return updates, state + reports

  uplink = Uplink(
      transform=lambda key, *_: optax.GradientTransformationExtraArgs(
          lambda params: Counted(jnp.float32(0)), count_rows),
      report=lambda state: state.report)
  simulation = make_simulation(
      CONFIG, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS, uplink=uplink,
      server_transform=optax.GradientTransformationExtraArgs(
          lambda params: jnp.float32(0), keep))
  state, _ = simulation.run(simulation.init(), 0, ROUNDS)
  assert float(state.server.transform_state) == ROUNDS * sum(COUNTS)
