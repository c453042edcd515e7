"""One round: who is summed, who is not, and who cannot tell the difference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec import config, population
from fedjaxrec.algorithms.registry import build_algorithm
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.participation.plan import Plan
from fedjaxrec.rounds import (
    Round,
    RoundMetrics,
    make_round,
    make_run_rounds,
)
from fedjaxrec.server import ServerState
from fedjaxrec.transforms.clip import clip_by_l2
from fedjaxrec.uplink import PLAIN, Uplink
from tests import draws, oracles, plain

# Client 4 has nothing to train on; the last one is whom padding could hit.
COUNTS = [3, 5, 1, 8, 0, 7, 2, 4, 6]
NUM_CLIENTS, NUM_ITEMS, NUM_NEGATIVES, DIM = len(COUNTS), 60, 2, 3
BLOCKS, BLOCK_SIZE = 5, 3
EMPTY = NUM_CLIENTS
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=3)
KEY = jax.random.key(11)
CONFIG = config.Config(
    model=config.ModelConfig(dim=DIM, init_scale=0.5),
    objective=plain.objective(num_negatives=NUM_NEGATIVES),
    client=plain.client(epochs=2, item_learning_rate=0.7),
    server=plain.server())
BASE = [[0, 1, 2], [3, 5, EMPTY]]


def keep_the_sum(server, total):
  """In place of a server's step: what it was handed."""
  return ServerState(
      server.round_index + 1, total.item_table, total.shared,
      total.row_weight, total.weight)


class CompiledRound:
  """A compiled round and its start; `plan` says who trains in which place."""

  def __init__(self, weighting='examples', uplink=PLAIN):
    settings = dataclasses.replace(
        CONFIG, cohort=plain.cohort(weighting=weighting))
    algorithm = build_algorithm(
        settings, build_recommender(CONFIG.model, NUM_ITEMS), NUM_ITEMS)
    server, self.personal = draws.make_start(algorithm, NUM_CLIENTS)
    self.table, self.shared = server.item_table, server.shared
    self.data = jax.tree.map(lambda x: x[0], population.place_clients(
        POPULATION.offsets, POPULATION.items, POPULATION.labels))
    one_round = make_round(
        algorithm._replace(server=algorithm.server._replace(
            update=keep_the_sum, needs_row_weight=True)),
        (8,), NUM_CLIENTS, NUM_ITEMS, uplink=uplink)

    def step(server, personal, *rest):
      server, personal, _, metrics = one_round.step(
          server, personal, one_round.empty_sum(server), *rest)
      return server, personal, metrics

    self.compiled = jax.jit(step)
    self.done = {}

  def __call__(self, plan, num_blocks=None, round_index=0):
    asked = (str(plan), num_blocks, round_index)
    if asked not in self.done:
      members = np.full((BLOCKS, BLOCK_SIZE), EMPTY, np.int32)
      members[:len(plan)] = plan
      server = ServerState(
          jnp.int32(round_index), self.table, self.shared,
          jnp.zeros(NUM_ITEMS), jnp.float32(0))
      num_blocks = len(plan) if num_blocks is None else num_blocks
      self.done[asked] = jax.tree.map(np.asarray, self.compiled(
          server, self.personal, self.data,
          ((members,), np.array([num_blocks], np.int32)), KEY))
    return self.done[asked]


@pytest.fixture(scope='module')
def one_round():
  return CompiledRound()


@pytest.fixture(scope='module')
def draw():
  return draws.make_draw(POPULATION, KEY, NUM_NEGATIVES)


def rows_of(draw, clients, round_index=0):
  rows = {int(i) for c in clients for i in draw(round_index, c)[0].reshape(-1)}
  return rows - {NUM_ITEMS}


def equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_round_sums_what_each_client_alone_would_send(one_round, draw):
  server, personal, metrics = one_round(BASE, round_index=2)
  total = [{name: np.zeros(leaf.shape) for name, leaf in tree.items()}
           for tree in (one_round.table, one_round.shared)]
  row_weight, loss_sum, loss_count, num_examples = np.zeros(NUM_ITEMS), 0, 0, 0
  # Six steps at most, and a sum over five clients of up to eight examples.
  atol = oracles.tolerance(4, DIM + 12 + 4 * 3) + oracles.tolerance(5, 8)
  cohort = [c for block in BASE for c in block if c != EMPTY]
  for c in cohort:
    rows, labels = draw(2, c)
    sent, own = oracles.train_client(
        *(jax.tree.map(np.float64, tree)
          for tree in (one_round.table, one_round.shared)),
        {name: leaf[c].astype(float)
         for name, leaf in one_round.personal.items()}, rows, labels,
        **oracles.fields(CONFIG.client, 'schedule', 'final_fraction'))
    total[0] = oracles.add(total[0], sent.table, COUNTS[c])
    total[1] = oracles.add(total[1], sent.shared, COUNTS[c])
    row_weight[list(rows_of(draw, [c], 2))] += COUNTS[c]
    loss_sum += sent.loss_sum
    loss_count += sent.loss_count
    num_examples += sent.num_examples
    for name in own:
      np.testing.assert_allclose(
          personal[name][c], own[name], rtol=0, atol=atol)
  for tree, expected in zip((server.item_table, server.shared), total):
    for name in expected:
      np.testing.assert_allclose(
          tree[name], expected[name], rtol=0, atol=8 * atol)
  np.testing.assert_array_equal(server.item_opt_state, row_weight)
  assert server.shared_opt_state == sum(COUNTS[c] for c in cohort)
  assert server.round_index == 3
  np.testing.assert_allclose(metrics.loss, loss_sum / loss_count, rtol=1e-5)
  assert metrics.reported == len(cohort)
  assert metrics.num_examples == num_examples


@pytest.mark.parametrize('plan', [
    [[3, EMPTY, EMPTY]],
    [[EMPTY, EMPTY, 3]],
    [[7, 3, 8]],
    [[0, 1, 2], [5, 6, 7], [8, EMPTY, 3]],
])
def test_a_client_cannot_tell_who_else_takes_part(one_round, draw, plan):
  """Its parameters and what it sends are the same to the last bit."""
  client = 3
  expected, alone, _ = one_round([[client, EMPTY, EMPTY]])
  server, personal, _ = one_round(plan)
  for name, leaf in alone.items():
    np.testing.assert_array_equal(personal[name][client], leaf[client])
    assert (leaf[client] != one_round.personal[name][client]).all()
  # What it sends shows in the sum at the rows that nobody else touches.
  others = [c for block in plan for c in block if c not in (EMPTY, client)]
  rows = sorted(rows_of(draw, [client]) - rows_of(draw, others))
  assert rows
  for name, leaf in expected.item_table.items():
    np.testing.assert_array_equal(server.item_table[name][rows], leaf[rows])
    assert np.abs(leaf[rows]).min() > 0


def test_a_round_draws_afresh(one_round):
  first, _, _ = one_round(BASE)
  second, _, _ = one_round(BASE, round_index=1)
  touched = [set(np.flatnonzero(server.item_opt_state))
             for server in (first, second)]
  assert touched[0] != touched[1]


def test_blocks_of_padding_change_no_bit(one_round):
  server, personal, metrics = one_round(BASE)
  padded = one_round(BASE, num_blocks=BLOCKS)
  equal((server, personal, metrics), padded)


@pytest.mark.parametrize('plan', [
    [[EMPTY, 0, 1], [2, EMPTY, EMPTY], [EMPTY] * 3, [3, EMPTY, 5]],
    [[0, EMPTY, EMPTY], [1, EMPTY, EMPTY], [2, EMPTY, EMPTY],
     [3, EMPTY, EMPTY], [EMPTY, EMPTY, 5]],
])
def test_padding_between_the_clients_changes_nothing(one_round, plan):
  server, personal, metrics = one_round(BASE)
  padded_server, padded_personal, padded_metrics = one_round(plan)
  equal(personal, padded_personal)
  # Counts are exact; sums of five deltas, weighed by up to eight, may be added
  # in another order.
  for field in ('round_index', 'item_opt_state', 'shared_opt_state'):
    equal(getattr(server, field), getattr(padded_server, field))
  for field in ('item_table', 'shared'):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=oracles.tolerance(5, 8)),
        getattr(server, field), getattr(padded_server, field))
  np.testing.assert_allclose(metrics.loss, padded_metrics.loss, rtol=1e-6)
  equal(metrics[1:], padded_metrics[1:])


def test_a_place_filled_with_client_0_would_change_the_sum(one_round):
  """The control: what an empty place must not be."""
  expected, _, metrics = one_round(BASE)
  wrong, _, wrong_metrics = one_round([[0, 1, 2], [3, 5, 0]])
  assert wrong.shared_opt_state == expected.shared_opt_state + COUNTS[0]
  assert wrong_metrics.reported == metrics.reported + 1
  assert np.abs(wrong.item_table['item'] - expected.item_table['item']
                ).max() > 1e-3
  # And what a padding client of weight 1 would do to the mean.
  assert abs(expected.shared['bias'] / expected.shared_opt_state
             - expected.shared['bias'] / (expected.shared_opt_state + 1)
             ) > 10 * oracles.tolerance(5, 8)


def test_who_does_not_take_part_keeps_every_bit(one_round):
  _, personal, _ = one_round(BASE)
  absent = [c for c in range(NUM_CLIENTS) if c not in (0, 1, 2, 3, 5)]
  for name, leaf in personal.items():
    np.testing.assert_array_equal(
        leaf[absent], one_round.personal[name][absent])


def test_a_client_without_examples_counts_as_absent(one_round):
  with_it = one_round([[0, 1, 2], [3, 5, 4]])
  equal(with_it, one_round(BASE))


def test_an_empty_round_sums_to_nothing(one_round):
  server, personal, metrics = one_round([[EMPTY] * 3], num_blocks=0)
  equal(personal, one_round.personal)
  for leaf in jax.tree.leaves((server[1:], metrics)):
    np.testing.assert_array_equal(leaf, 0)


class TestRunRounds:
  """With a round that is simple enough to follow by hand."""

  @staticmethod
  def run(num_rounds, plan_rounds=4):
    def step(server, personal, total, data, plan, key):
      local_index, num_blocks = plan
      del key
      server = server * 10 + num_blocks[0]
      personal = personal + local_index[0].sum() * data
      return server, personal, total, RoundMetrics(
          server * 0.5, num_blocks[0], num_blocks[0] * 2, num_blocks[0] * 3)

    plan = Plan(
        (np.arange(plan_rounds * 2, dtype=np.int32).reshape(-1, 1, 2),),
        np.arange(1, plan_rounds + 1, dtype=np.int32)[:, None])
    return jax.jit(make_run_rounds(Round(lambda server: server * 0, step)))(
        jnp.int32(0), jnp.float32(0), jnp.float32(1), plan,
        jnp.int32(num_rounds), jax.random.key(0))

  def test_rounds_follow_each_other_on_their_own_plans(self):
    server, personal, metrics = self.run(4)
    assert server == 1234
    assert personal == sum(range(8))
    np.testing.assert_array_equal(metrics.loss, [0.5, 6, 61.5, 617])
    np.testing.assert_array_equal(metrics.reported, [1, 2, 3, 4])
    np.testing.assert_array_equal(metrics.num_examples, [2, 4, 6, 8])
    np.testing.assert_array_equal(metrics.rejected, [3, 6, 9, 12])

  def test_a_shorter_chunk_stops_and_reports_no_more(self):
    server, personal, metrics = self.run(2)
    assert server == 12
    assert personal == 0 + 1 + 2 + 3
    np.testing.assert_array_equal(metrics.reported, [1, 2, 0, 0])


# --- What a delta passes before it is summed ---------------------------------

LIMIT = 1e-3


def clip_and_mark(key):
  """Clips a delta, then puts an integer of the client's own in its place."""
  def mark(updates, params):
    del params
    rows, shared = updates
    number = jax.random.randint(key, (), 1, 2**16).astype(jnp.float32)
    return rows, jax.tree.map(lambda x: x * 0 + number, shared)

  return optax.chain(clip_by_l2(LIMIT), optax.stateless(mark))


@pytest.fixture(scope='module')
def marked_round():
  return CompiledRound(
      'equal', Uplink(transform=lambda key, *_: clip_and_mark(key)))


def mark_of(marked_round, plan, **kwargs):
  return float(marked_round(plan, **kwargs)[0].shared['bias'])


def test_each_client_passes_its_own_transform_and_padding_none(marked_round):
  """Sums of integers are exact, so one mark too many would show."""
  alone = {c: mark_of(marked_round, [[c, EMPTY, EMPTY]]) for c in range(4)}
  assert all(mark >= 1 and mark == int(mark) for mark in alone.values())
  assert len(set(alone.values())) == 4
  total = sum(alone.values())
  for plan, num_blocks in (
      ([[0, 1, 2], [3, EMPTY, EMPTY]], 2),
      ([[EMPTY, 3, 1], [EMPTY, EMPTY, EMPTY], [2, 0, EMPTY]], BLOCKS),
      ([[0, 1, 2], [3, 4, EMPTY]], 2)):  # Client 4 has nothing to train on.
    assert mark_of(marked_round, plan, num_blocks=num_blocks) == total
  # Another round is another draw.
  assert mark_of(
      marked_round, [[0, EMPTY, EMPTY]], round_index=1) != alone[0]


def test_a_delta_is_clipped_before_it_is_summed(one_round, marked_round):
  def norm(server):
    return np.sqrt(sum(
        np.sum(leaf.astype(float)**2) for leaf in server.item_table.values()))

  plan = [[3, EMPTY, EMPTY]]
  assert norm(one_round(plan)[0]) > 100 * LIMIT
  # The bias had its share of the norm, until it was replaced by the mark.
  assert 0.5 * LIMIT < norm(marked_round(plan)[0]) <= LIMIT * (1 + 1e-6)
  three = norm(marked_round([[3, 5, EMPTY], [7, EMPTY, EMPTY]])[0])
  assert LIMIT < three <= 3 * LIMIT * (1 + 1e-6)


# --- A server that visits the touched rows alone -----------------------------
# That it gives the same numbers: `server_test`, and, through whole runs, the
# large catalogue of `simulation_test`.


@pytest.mark.parametrize(('server', 'transform'), [
    (plain.server(optimizer='adam', lazy_rows=False), None),
    (plain.server(), optax.identity()),
], ids=['momentum', 'transform'])
def test_visiting_touched_rows_is_refused_where_others_move(
    server, transform):
  algorithm = build_algorithm(
      dataclasses.replace(CONFIG, server=server),
      build_recommender(CONFIG.model, NUM_ITEMS), NUM_ITEMS,
      server_transform=transform)
  with pytest.raises(ValueError, match='num_slots=9'):
    make_round(algorithm, (8,), NUM_CLIENTS, NUM_ITEMS, num_slots=9)


def test_visiting_touched_rows_is_refused_on_several_devices():
  algorithm = build_algorithm(
      CONFIG, build_recommender(CONFIG.model, NUM_ITEMS), NUM_ITEMS)
  with pytest.raises(ValueError, match="axis_name='clients'"):
    make_round(
        algorithm, (8,), NUM_CLIENTS, NUM_ITEMS, num_devices=2,
        axis_name='clients', num_slots=9)
