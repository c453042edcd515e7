"""CoFedRec against a slow oracle; its clusters, its elbow, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjaxrec import config
from fedjaxrec.algorithms import cofedrec
from fedjaxrec.orchestration.summary import describe_communication
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.simulation import make_simulation
from tests import draws, oracles, plain
from tests.algorithms import personalised_oracles as slow
from tests.small_runs import random_split

# Client 3 has nothing; client 2 has more than a batch.
COUNTS = [4, 1, 7, 0, 5, 6, 3]
NUM_ITEMS, DIM, ROUNDS, NUM_NEGATIVES = 24, 3, 3, 2
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=3)
_STEP = 1e-30  # Of the complex-step derivative, which is exact.


def make_config(**changes):
  return plain.whole(**{**dict(
      rounds=ROUNDS, seed=4, model=config.ModelConfig(dim=DIM, init_scale=0.5),
      algorithm=config.AlgorithmConfig(name='cofedrec'),
      cofedrec=config.CoFedRecConfig(
          lr_eta=0.0, item_clusters=4, cluster_steps=3, contrast=0.3,
          temperature=0.5),
      objective=plain.objective(l2=0.02, num_negatives=NUM_NEGATIVES),
      client=plain.client(learning_rate=0.4, item_learning_rate=0.9,
                          batch_size=4, epochs=2),
      server=plain.server(), cohort=plain.cohort(size=5),
      engine=config.EngineConfig(block_size=4, num_size_classes=1),
      parallel=config.ParallelConfig(mode='single')), **changes})


def simulate(settings, **kwargs):
  return make_simulation(
      settings, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS, **kwargs)


# --- The oracle ---------------------------------------------------------------


def vectors(table):
  """An item is one vector: its row, and its bias."""
  return np.concatenate([table['item'], table['item_bias'][:, None]], 1)


def contrastive(rows, classes, temperature):
  """From the paper, row by row; numbers may be complex."""
  unit = [row / np.sqrt((row * row).sum()) for row in rows]
  total = 0
  for a in range(len(rows)):
    others = [b for b in range(len(rows)) if b != a]
    same = [b for b in others if classes[b] == classes[a]]
    below = sum(np.exp(unit[a] @ unit[b] / temperature) for b in others)
    for p in same:
      total -= np.log(
          np.exp(unit[a] @ unit[p] / temperature) / below) / len(same)
  return total / len(rows)


def contrastive_gradient(rows, classes, temperature):
  gradient = np.zeros(rows.shape)
  for place in np.ndindex(rows.shape):
    moved = rows.astype(complex)
    moved[place] += 1j * _STEP
    gradient[place] = contrastive(moved, classes, temperature).imag / _STEP
  return gradient


def k_means(points, centres, steps):
  def nearest(centres):
    return [int(np.argmin([((x - c)**2).sum() for c in centres]))
            for x in points]
  for _ in range(steps):
    belongs = nearest(centres)
    centres = [np.mean([x for x, k in zip(points, belongs) if k == j], 0)
               if j in belongs else c for j, c in enumerate(centres)]
  return nearest(centres)


def elbow_group(similarities):
  """Clients from the most alike to the point farthest from the chord."""
  order = sorted(similarities, key=lambda c: -similarities[c])
  points = [np.array([k, similarities[c]]) for k, c in enumerate(order)]
  chord = points[-1] - points[0]
  chord = chord / max(np.linalg.norm(chord), 1e-300)
  distances = [np.linalg.norm((p - points[0]) - (p - points[0]) @ chord * chord)
               for p in points]
  return order[:int(np.argmax(distances)) + 1]


class CoFedRec(slow.PFedRec):
  """own: (layer, table)."""

  def update(self, c, own, table, shared, rows, labels, r):
    layer, table = (self.layers[c], table) if own is None else own
    config, rate = self.config.cofedrec, self.config.client.learning_rate
    for batch_rows, batch_labels in slow.batches(
        rows, labels, self.config.client):
      batch = batch_rows, batch_labels
      _, g_shared, g_layer = self.gradients(table, shared, layer, *batch)
      shared = oracles.add(shared, g_shared, -rate)
      layer = oracles.add(layer, g_layer, -rate)
      g_table, _, _ = self.gradients(table, shared, layer, *batch)
      if r:
        items = batch_rows[:, 0]  # Of the interactions alone.
        pull = config.contrast * contrastive_gradient(
            vectors(table)[items], np.array(self.clusters)[items],
            config.temperature)
        g_table['item'][items] += pull[:, :DIM]
        g_table['item_bias'][items] += pull[:, DIM]
      table = oracles.add(
          table, g_table, -self.config.client.item_learning_rate)
    return (layer, table), table, shared

  def draw(self, stream, choices, r):
    """The server's draw among some choices, as the engine makes it."""
    key = jax.random.fold_in(jax.random.fold_in(
        jax.random.key(self.config.seed), stream), r + 1)
    chances = np.asarray(jax.random.uniform(key, (len(choices),)))
    return max(np.flatnonzero(choices), key=lambda c: chances[c])

  def mix(self, owns, cohort, r):
    """After round r: (owns, the mean table)."""
    tables = {c: owns[c][1] for c in cohort}
    mean = {n: np.mean([t[n] for t in tables.values()], 0)
            for n in tables[cohort[0]]}
    key = jax.random.fold_in(jax.random.fold_in(
        jax.random.key(self.config.seed), cofedrec._CLUSTER_STREAM), r + 1)
    points = vectors(mean)
    first = np.asarray(jax.random.permutation(key, NUM_ITEMS))
    count = self.config.cofedrec.item_clusters
    self.clusters = k_means(
        points, list(points[first[:count]]), self.config.cofedrec.cluster_steps)
    core = self.draw(cofedrec._CORE_STREAM,
                     [c in tables for c in range(len(COUNTS))], r)
    category = self.draw(cofedrec._CATEGORY_STREAM,
                         [k in self.clusters for k in range(count)], r)
    items = [i for i, k in enumerate(self.clusters) if k == category]
    similarities = {}
    for c in cohort:
      x, y = vectors(tables[core])[items], vectors(tables[c])[items]
      similarities[c] = sum(
          a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y))
    group = elbow_group(similarities)
    self.groups.append(len(group))
    average = {n: np.mean([tables[c][n] for c in group], 0) for n in mean}
    owns = list(owns)
    for c in group:
      owns[c] = (owns[c][0], average)
    return owns, mean


def run_oracle(settings, simulation, start):
  own = simulation.personal_by_client(start)
  oracle = CoFedRec(settings, [
      {n: np.float64(x[c]) for n, x in own.layer.items()}
      for c in range(len(COUNTS))])
  oracle.groups = []
  table = slow.copy(start.server.item_table)
  shared = slow.copy(start.server.shared)
  draw = draws.make_draw(POPULATION, simulation.key, NUM_NEGATIVES)
  sampler, _ = build_sampler(settings.cohort, POPULATION.counts, settings.seed)
  owns = [None] * len(COUNTS)
  for r in range(ROUNDS):
    cohort = [int(c) for c in sampler(r)]
    moved = []
    for c in cohort:
      owns[c], _, new = oracle.update(
          c, owns[c], table, shared, *draw(r, c), r)
      moved.append(new)
    shared = {n: x + sum(m[n] - x for m in moved) / len(cohort)
              for n, x in shared.items()}
    owns, table = oracle.mix(owns, cohort, r)
  assert any(1 < size < 5 for size in oracle.groups)
  return table, shared, np.stack([
      oracle.score(c, own, table, shared) for c, own in enumerate(owns)])


@pytest.fixture(scope='module')
def run():
  settings = make_config()
  simulation = simulate(settings)
  start = simulation.init()
  expected = run_oracle(settings, simulation, start)
  state, _ = simulation.run(start, 0, ROUNDS)
  return simulation, state, expected


def test_three_rounds_are_those_of_the_oracle(run):
  simulation, state, (table, shared, scores) = run
  # As for the other personalised algorithms, with a third round.
  atol = oracles.tolerance(12, 60, gain=8.0)
  for n, leaf in table.items():
    np.testing.assert_allclose(
        state.server.item_table[n], leaf, rtol=0, atol=atol)
  np.testing.assert_allclose(
      state.server.shared['bias'], shared['bias'], rtol=0, atol=atol)
  own = simulation.personal_by_client(state)
  algorithm = simulation.algorithm
  found = jax.vmap(lambda mine: algorithm.score(
      mine, state.server.item_table, state.server.shared))(own)
  np.testing.assert_allclose(found, scores, rtol=0, atol=8 * atol)
  # The one model for all knows nothing of the clients' tables.
  everybody = jax.vmap(lambda mine: algorithm.aggregated_score(
      mine, state.server.item_table, state.server.shared))
  changed = own._replace(table=jax.tree.map(np.zeros_like, own.table))
  np.testing.assert_array_equal(everybody(own), everybody(changed))


def test_the_same_seed_makes_the_same_run_to_the_last_bit(run):
  _, state, _ = run
  simulation = simulate(make_config(engine=config.EngineConfig(
      block_size=4, num_size_classes=1, rounds_per_call=1)))
  again = simulation.init()
  for r in range(ROUNDS):
    again, _ = simulation.run(again, r, 1)
  for leaf, same in zip(jax.tree.leaves(state), jax.tree.leaves(again),
                        strict=True):
    np.testing.assert_array_equal(leaf, same)


def test_the_server_keeps_the_clusters_of_its_table_and_round(run):
  simulation, state, _ = run
  for server, r in ((simulation.init().server, 0), (state.server, ROUNDS)):
    key = jax.random.fold_in(jax.random.fold_in(
        jax.random.key(4), cofedrec._CLUSTER_STREAM), r)
    made_again = cofedrec.cluster_items(server.item_table, 4, 3, key)
    np.testing.assert_array_equal(
        simulation.algorithm.broadcast(server)['cluster'], made_again)
    assert len(set(np.asarray(made_again))) > 1


def test_an_item_cluster_is_found_and_an_empty_centre_stays():
  rng = np.random.default_rng(0)
  middles = np.array([[0, 0], [9, 0], [0, 9]])
  truth = rng.integers(3, size=60)
  points = (middles[truth] + rng.normal(0, 0.1, (60, 2))).astype(np.float32)
  cluster = jax.jit(cofedrec.cluster_items, static_argnums=(1, 2))
  for seed in range(5):
    # Twelve of sixty items are the first centres: each group has one of them,
    # so no cluster holds items of two.
    found = np.asarray(cluster({'item': points}, 12, 5, jax.random.key(seed)))
    for k in range(12):
      assert len(set(truth[found == k])) <= 1
  # All alike: the first centre takes them, and the others keep their place.
  alike = cluster(
      {'item': np.ones((60, 2), np.float32)}, 12, 5, jax.random.key(0))
  np.testing.assert_array_equal(alike, 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=9, unique=True),
       st.integers(0, 2**9 - 1))
def test_a_group_is_the_top_up_to_the_point_farthest_from_the_chord(
    values, absent):
  there = np.array([not absent >> k & 1 for k in range(len(values))])
  found = _split(jnp.asarray(values + [0] * (9 - len(values)), jnp.float32),
                 jnp.asarray([*there, *[False] * (9 - len(values))]))
  if not there.any():
    assert not found.any()
    return
  kept = {c: float(v) for c, v in enumerate(values) if there[c]}
  order = sorted(kept, key=lambda c: -kept[c])
  size = int(found.sum())
  assert set(np.flatnonzero(found)) == set(order[:size])
  assert size == len(elbow_group(kept)) or _is_tie(kept, order, size)


_split = jax.jit(cofedrec.split_at_elbow)


def _is_tie(kept, order, size):
  """Whether another place lies as far from the chord, to a rounding."""
  falling = np.array([kept[c] for c in order])
  line = np.linspace(falling[0], falling[-1], len(order))
  away = np.abs(falling - line)
  # Three roundings of numbers up to 2,000.
  return away[size - 1] >= away.max() - 3 * 2000 * 2.0**-23


def test_a_row_without_another_of_its_class_adds_nothing():
  rows = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
  classes = jnp.asarray([0, 0, 1, 2, 0])
  used = jnp.asarray([True, True, True, True, False])
  loss = jax.jit(cofedrec.contrastive_loss, static_argnums=3)
  expected = contrastive(np.float64(rows[:4]), np.asarray(classes[:4]), 0.5)
  np.testing.assert_allclose(loss(rows, classes, used, 0.5), expected,
                             rtol=1e-5)
  alone = jnp.asarray([True, False, False, False, False])
  gradient = jax.grad(lambda x: loss(x, classes, alone, 0.5))(rows)
  np.testing.assert_array_equal(gradient, 0)
  # A row of zeros has no direction, and no gradient that is not finite.
  zero = jax.grad(lambda x: loss(x.at[0].set(0.0), classes, used, 0.5))(rows)
  assert np.isfinite(zero).all()


def test_bytes_are_a_table_up_and_a_table_with_the_clusters_down():
  split = random_split(6, NUM_ITEMS, 4)
  settings = make_config(cohort=plain.cohort(size=0))
  simulation = make_simulation(
      settings, split.train.offsets, split.train.items, split.train.ratings,
      NUM_ITEMS)
  server, _, _ = simulation.shapes()
  found = describe_communication(
      settings, split, server.item_table, server.shared, simulation.algorithm)
  table, bias, row_ids = 4 * NUM_ITEMS * (DIM + 1), 4, found[
      'uplink_bytes_per_client'] - 4 * NUM_ITEMS * (DIM + 1) - 4
  assert found['dense_uplink_bytes_per_client'] == table + bias
  assert 0 <= row_ids <= 4 * NUM_ITEMS
  assert found['downlink_bytes_per_client'] == (
      table + bias + 4 * NUM_ITEMS + 4)


class TestRefusals:

  def test_a_table_a_client_above_the_limit(self):
    with pytest.raises(ValueError, match='table_limit_gib=1e-06; raise that'):
      simulate(make_config(personalization=config.PersonalizationConfig(
          table_limit_gib=1e-6)))

  def test_a_client_optimizer_with_state(self):
    with pytest.raises(ValueError, match='use client.optimizer=sgd'):
      simulate(make_config(client=plain.client(optimizer='adam')))

  def test_a_transform_of_the_sum(self):
    with pytest.raises(ValueError, match='server_transform .* no sum'):
      simulate(make_config(), server_transform=optax.identity())

  def test_more_clusters_than_items(self):
    with pytest.raises(ValueError, match='item_clusters=25 with num_items=24'):
      simulate(make_config(cofedrec=config.CoFedRecConfig(item_clusters=25)))

  @pytest.mark.parametrize('section', [
      {'secure': config.SecureConfig(level='ideal', l2_clip_norm=1.0)},
      {'privacy': config.PrivacyConfig(l2_clip_norm=1.0)},
      {'compression': config.CompressionConfig(quantize='sign')}])
  def test_a_server_that_sees_clients_under_a_chain(self, section):
    with pytest.raises(ValueError, match='without privacy, compression'):
      simulate(make_config(**section))
