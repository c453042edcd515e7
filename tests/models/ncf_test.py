"""FedNCF's three models: whole federated rounds against NumPy, by hand."""

import jax
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.simulation import make_simulation
from tests import draws, oracles, plain
from tests.models.two_tower_oracle import add, copy, zeros

NAMES = ('gmf', 'mlp', 'neumf')
# Client 3 has nothing; client 2 has more than a batch.
COUNTS = [4, 1, 7, 0, 5]
NUM_ITEMS, DIM, HIDDEN = 21, 3, (5, 2)
ROUNDS, NUM_NEGATIVES, L2 = 2, 2, 0.02
RATE, ITEM_RATE, BATCH = 0.2, 0.4, 4
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=3)


# --- The oracle: float64, one client and one item after the other. -----------


def walk(table, shared, own, i):
  """Scores item i; returns (score, what a slope of the score needs)."""
  towers, parts = [], []
  x = None
  if 'hidden' in shared:
    user, item = (('user_mlp', 'item_mlp') if 'user_mlp' in own
                  else ('user', 'item'))
    x = np.concatenate([own[user], table[item][i]])
    for name in sorted(shared['hidden']):
      layer = shared['hidden'][name]
      z = x @ layer['kernel'] + layer['bias']
      towers.append((name, x, z > 0))
      x = np.maximum(z, 0)
  if 'hidden' not in shared or 'user_mlp' in own:
    parts.append(own['user'] * table['item'][i])
  if x is not None:
    parts.append(x)
  last = np.concatenate(parts)
  out = shared['output']
  return (last @ out['kernel'] + out['bias'])[0], (last, towers)


def pull_back(table, shared, own, i, slope, walked, gradients):
  """Adds a slope of item i's score to the three gradients."""
  last, towers = walked
  g_table, g_shared, g_own = gradients
  g_shared['output']['kernel'][:, 0] += slope * last
  g_shared['output']['bias'] += slope
  back = slope * shared['output']['kernel'][:, 0]
  if 'hidden' not in shared or 'user_mlp' in own:
    product, back = back[:DIM], back[DIM:]
    g_own['user'] += product * table['item'][i]
    g_table['item'][i] += product * own['user']
  for name, x, alive in reversed(towers):
    layer, g = shared['hidden'][name], g_shared['hidden'][name]
    back = back * alive
    g['kernel'] += np.outer(x, back)
    g['bias'] += back
    back = layer['kernel'] @ back
  if towers:
    user, item = (('user_mlp', 'item_mlp') if 'user_mlp' in own
                  else ('user', 'item'))
    g_own[user] += back[:DIM]
    g_table[item][i] += back[DIM:]


def train(table, shared, own, rows):
  """One epoch of plain gradient steps of BCE with L2."""
  for start in range(0, len(rows), BATCH):
    batch = rows[start:start + BATCH]
    used = batch < NUM_ITEMS
    gradients = (
        zeros(table), add(zeros(shared), shared, 2 * L2),
        add(zeros(own), own, 2 * L2))
    for b, k in zip(*np.nonzero(used)):
      i = batch[b, k]
      s, walked = walk(table, shared, own, i)
      slope = (oracles.sigmoid(s) - (k == 0)) / used.sum()
      pull_back(table, shared, own, i, slope, walked, gradients)
      for name, leaf in table.items():
        gradients[0][name][i] += 2 * L2 * leaf[i] / used.sum()
    table = add(table, gradients[0], -ITEM_RATE)
    shared = add(shared, gradients[1], -RATE)
    own = add(own, gradients[2], -RATE)
  return table, shared, own


# --- The tests. --------------------------------------------------------------


def simulate(name):
  settings = config.Config(
      rounds=ROUNDS, seed=4,
      model=config.ModelConfig(
          name=name, dim=DIM, init_scale=0.7,
          **({} if name == 'gmf' else {'hidden': HIDDEN})),
      objective=plain.objective(l2=L2, num_negatives=NUM_NEGATIVES),
      client=plain.client(learning_rate=RATE, item_learning_rate=ITEM_RATE,
                          batch_size=BATCH),
      server=plain.server(), cohort=plain.cohort(size=3),
      engine=config.EngineConfig(block_size=4, num_size_classes=1),
      parallel=config.ParallelConfig(mode='single'))
  return settings, make_simulation(
      settings, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS)


@pytest.mark.parametrize('name', NAMES)
def test_two_rounds_and_the_scores_after_them_are_the_oracles(name):
  settings, simulation = simulate(name)
  start = simulation.init()
  table, shared = map(copy, (start.server.item_table, start.server.shared))
  owns = simulation.personal_by_client(start)
  owns = [copy({key: leaf[c] for key, leaf in owns.items()})
          for c in range(len(COUNTS))]
  first = copy(table)
  draw = draws.make_draw(POPULATION, simulation.key, NUM_NEGATIVES)
  sampler, _ = build_sampler(settings.cohort, POPULATION.counts, settings.seed)
  for r in range(ROUNDS):
    cohort = [c for c in sampler(r) if COUNTS[c]]
    total = [zeros(table), zeros(shared)]
    for c in cohort:
      new_table, new_shared, owns[c] = train(
          table, shared, owns[c], draw(r, c)[0])
      total[0] = add(total[0], add(new_table, table, -1))
      total[1] = add(total[1], add(new_shared, shared, -1))
    table = add(table, total[0], 1 / len(cohort))
    shared = add(shared, total[1], 1 / len(cohort))
  state, _ = simulation.run(start, 0, ROUNDS)
  personal = simulation.personal_by_client(state)
  # A step passes an error on at most by rate times curvature, below 1 a step;
  # 4 steps of about 60 roundings each of numbers of order 1.
  close = lambda got, wanted: np.testing.assert_allclose(
      got, wanted, atol=oracles.tolerance(4, 60, gain=4.0))
  jax.tree.map(close, copy(state.server.item_table), table)
  jax.tree.map(close, copy(state.server.shared), shared)
  for c, mine in enumerate(owns):
    jax.tree.map(close, {k: np.float64(v[c]) for k, v in personal.items()},
                 mine)
  scores = [[walk(table, shared, own, i)[0] for i in range(NUM_ITEMS)]
            for own in owns]
  got = jax.vmap(simulation.algorithm.score, (0, None, None))(
      personal, state.server.item_table, state.server.shared)
  np.testing.assert_allclose(
      got, scores, atol=10 * oracles.tolerance(4, 60, gain=4.0))
  # The control: every table was moved by far more than that.
  for key, leaf in table.items():
    assert np.abs(leaf - first[key]).max() > 20 * oracles.tolerance(
        4, 60, gain=4.0)


@pytest.mark.parametrize(('name', 'mine', 'row', 'whole'), [
    ('gmf', DIM, DIM, DIM + 1),
    ('mlp', DIM, DIM, 6 * 5 + 5 + 5 * 2 + 2 + 2 + 1),
    ('neumf', 2 * DIM, 2 * DIM, 6 * 5 + 5 + 5 * 2 + 2 + 5 + 1)])
def test_what_stays_and_what_travels_weighs_what_the_papers_model_does(
    name, mine, row, whole):
  _, simulation = simulate(name)
  start = simulation.init()
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert count(simulation.personal_by_client(start)) == mine * len(COUNTS)
  assert count(start.server.item_table) == row * NUM_ITEMS
  assert count(start.server.shared) == whole
