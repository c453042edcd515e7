"""Meta-learners against slow oracles; what they refuse; what travels."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.communication import communication_summary
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.refit import _STREAM as REFIT_ROUND
from fedjaxrec.simulation import make_simulation
from tests import draws, oracles, plain
from tests.algorithms import personalised_oracles as slow

# Client 3 has nothing, client 1 nothing to query; client 2 more than a batch.
COUNTS = [4, 1, 9, 0, 5]
NUM_ITEMS, DIM, ROUNDS, NUM_NEGATIVES = 24, 3, 2, 2
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=3)
add = slow.add


def make_config(name, **changes):
  is_metamf = name == 'metamf'
  settings = dict(
      rounds=ROUNDS, seed=4, model=config.ModelConfig(
          name='metamf' if is_metamf else 'mf', dim=DIM, init_scale=0.5,
          memory=3, generator_width=4, generator_rank=2),
      algorithm=config.AlgorithmConfig(name=name),
      objective=plain.objective(l2=0.02, num_negatives=NUM_NEGATIVES),
      client=plain.client(learning_rate=0.4, item_learning_rate=0.9,
                          batch_size=4,
                          epochs=2 if name in ('reptile', 'perfedavg') else 1),
      server=plain.server(), cohort=plain.cohort(size=3),
      meta=config.MetaConfig(
          learning_rate=0.7, epochs=2 if name == 'fomaml' else 1,
          final_epochs=3),
      metamf=config.MetaMFConfig(user_learning_rate=0.6),
      engine=config.EngineConfig(block_size=4, num_size_classes=1),
      parallel=config.ParallelConfig(mode='single'))
  return plain.whole(**{**settings, **changes})


def simulate(settings, **kwargs):
  return make_simulation(
      settings, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS, **kwargs)


class Meta(slow.Oracle):
  """update(w, rows, labels) -> w, of w = (table, shared, layer)."""

  def gradient(self, w, rows, labels):
    if not len(rows):
      return tuple({n: np.zeros_like(x) for n, x in part.items()} for part in w)
    return self.gradients(*w, rows, labels)

  def adapt(self, w, rows, labels, epochs):
    rate = self.config.meta.learning_rate
    for batch in slow.batches(rows, labels, self.config.client, epochs):
      _, shared, layer = self.gradient(w, *batch)
      w = (w[0], add(w[1], shared, -rate), add(w[2], layer, -rate))
    return w


class Reptile(Meta):

  def update(self, w, rows, labels):
    for batch in slow.batches(rows, labels, self.config.client):
      w = self.descend(*w, self.gradient(w, *batch))
    return w


class FOMAML(Meta):

  def update(self, w, rows, labels):
    phi = self.adapt(w, rows[::2], labels[::2], self.config.meta.epochs)
    return self.descend(*w, self.gradient(phi, rows[1::2], labels[1::2]))


class PerFedAvg(Meta):

  def update(self, w, rows, labels):
    alpha, parts = self.config.meta.learning_rate, (
        3 if self.config.meta.hessian else 2)
    for rows_b, labels_b in slow.batches(rows, labels, self.config.client):
      part = [(rows_b[j::parts], labels_b[j::parts]) for j in range(parts)]
      if not len(part[1][0]):
        continue
      _, shared, layer = self.gradient(w, *part[0])
      phi = (w[0], add(w[1], shared, -alpha), add(w[2], layer, -alpha))
      g = self.gradient(phi, *part[1])
      if self.config.meta.hessian:
        # The paper's difference of gradients, along what was adapted.
        step = 1e-5
        ends = [self.gradient((
            w[0], add(w[1], g[1], sign * step), add(w[2], g[2], sign * step)),
            *part[2]) for sign in (1, -1)]
        g = tuple(add(mine, add(up, down, -1), -alpha / (2 * step))
                  for mine, up, down in zip(g, *ends))
      w = self.descend(*w, g)
    return w


ORACLES = {'reptile': Reptile, 'fomaml': FOMAML, 'perfedavg': PerFedAvg}


@pytest.mark.parametrize(('name', 'hessian'), [
    ('reptile', False), ('fomaml', False), ('perfedavg', False),
    ('perfedavg', True)])
def test_two_rounds_and_the_adaptation_are_the_oracle_s(name, hessian):
  settings = make_config(name)
  settings = dataclasses.replace(settings, meta=dataclasses.replace(
      settings.meta, hessian=hessian))
  simulation = simulate(settings)
  state = simulation.init()
  start = state.server.shared
  w = tuple(map(slow.copy, (
      state.server.item_table, start.shared, start.layer)))
  begin = w
  oracle = ORACLES[name](settings, None)
  draw = draws.make_draw(POPULATION, simulation.key, NUM_NEGATIVES)
  sampler, _ = build_sampler(
      settings.cohort, POPULATION.counts, settings.seed)
  for r in range(ROUNDS):
    ends = [oracle.update(w, *draw(r, c)) for c in sampler(r)]
    w = tuple(
        {n: x + sum(end[i][n] - x for end in ends) / len(ends)
         for n, x in part.items()} for i, part in enumerate(w))
  state, _ = simulation.run(state, 0, ROUNDS)
  # As in personalised_test; the Hessian is of an objective whose third
  # derivatives are below 1, so the difference is off by step^2 at most.
  atol = oracles.tolerance(8, 40, gain=8.0)
  server = jax.tree.map(np.asarray, state.server)
  found = (server.item_table, server.shared.shared, server.shared.layer)
  for part, wanted, first in zip(found, w, begin):
    for n, leaf in wanted.items():
      np.testing.assert_allclose(part[n], leaf, rtol=0, atol=atol)
      # The control: rounds do move it.
      assert np.abs(leaf - first[n]).max() > 100 * atol
  own = simulation.refit(server, simulation.personal_by_client(state))
  np.testing.assert_array_equal(own.known, [1, 1, 1, 0, 1])
  score = simulation.algorithm.score
  scores = jax.vmap(lambda mine: score(
      mine, server.item_table, server.shared))(own)
  for c, count in enumerate(COUNTS):
    mine = oracle.adapt(
        w, *draw(REFIT_ROUND, c), settings.meta.final_epochs) if count else w
    np.testing.assert_allclose(
        scores[c], slow.scores(*mine), rtol=0, atol=8 * atol)
  # Who has not adapted has the model for all.
  algorithm = simulation.algorithm
  np.testing.assert_allclose(scores[3], algorithm.aggregated_score(
      None, server.item_table, server.shared), rtol=0,
                             atol=oracles.tolerance(1, DIM + 3))
  # No round reads what a client kept: whatever it is, the server learns alike.
  other = simulation.init()
  other = other._replace(personal=jax.tree.map(
      lambda x: x + 7.0, other.personal))
  again, _ = simulation.run(other, 0, ROUNDS)
  jax.tree.map(np.testing.assert_array_equal, server.shared,
               jax.tree.map(np.asarray, again.server.shared))


# --- MetaMF: the device sees what is generated, the server the networks -------


NETWORKS = {'item_hidden': ('rise',),
            'first_hidden': ('first_weight', 'first_bias'),
            'second_hidden': ('second_weight', 'second_bias')}


def generate(u, table, shared):
  """What a client gets: {name: values}, item vectors of low rank included."""
  c = u @ shared['memory']
  made = {}
  for hidden, names in NETWORKS.items():
    h = np.maximum(c @ shared[hidden]['kernel'] + shared[hidden]['bias'], 0)
    for name in names:
      made[name] = h @ shared[name]['kernel'] + shared[name]['bias']
    if hidden == 'item_hidden':
      made['low'] = (np.einsum('w,nwr->nr', h, table['item'])
                     + table['item_bias'])
  return made


def on_device(made, rows, labels):
  """(scores, gradient of the mean loss by what was generated)."""
  num_items, rank = made['low'].shape
  rise = made['rise'].reshape(rank, DIM)
  weight = made['first_weight'].reshape(DIM, -1)
  used = rows < num_items
  scores, at = np.zeros(rows.shape), {}
  for place in zip(*np.nonzero(used)):
    item = made['low'][rows[place]] @ rise
    z = item @ weight + made['first_bias']
    at[place] = item, z
    scores[place] = np.maximum(z, 0) @ made['second_weight'] + made[
        'second_bias'][0]
  _, _, slopes = oracles.loss_and_slopes('bce', scores, labels, used)
  g = {name: np.zeros_like(x) for name, x in made.items()}
  for place, (item, z) in at.items():
    slope = slopes[place]
    g['second_weight'] += slope * np.maximum(z, 0)
    g['second_bias'] += slope
    back = slope * made['second_weight'] * (z > 0)
    g['first_bias'] += back
    g['first_weight'] += np.outer(item, back).ravel()
    back = weight @ back
    g['rise'] += np.outer(made['low'][rows[place]], back).ravel()
    g['low'][rows[place]] += rise @ back
  return g


def on_server(u, table, shared, g):
  """Passes a client's gradient on: gradients of (u, table, shared)."""
  c = u @ shared['memory']
  g_c, g_table, g_shared = np.zeros_like(c), {}, {}
  for hidden, names in NETWORKS.items():
    z = c @ shared[hidden]['kernel'] + shared[hidden]['bias']
    h, back = np.maximum(z, 0), 0.0
    for name in names:
      g_shared[name] = {'kernel': np.outer(h, g[name]), 'bias': g[name]}
      back = back + shared[name]['kernel'] @ g[name]
    if hidden == 'item_hidden':
      g_table = {'item': np.einsum('w,nr->nwr', h, g['low']),
                 'item_bias': g['low']}
      back = back + np.einsum('nwr,nr->w', table['item'], g['low'])
    back = back * (z > 0)
    g_shared[hidden] = {'kernel': np.outer(c, back), 'bias': back}
    g_c += shared[hidden]['kernel'] @ back
  g_shared['memory'] = np.outer(u, g_c)
  return shared['memory'] @ g_c, g_table, g_shared


def test_metamf_is_its_oracle_in_which_the_server_alone_has_the_networks():
  settings = make_config('metamf')
  simulation = simulate(settings)
  state = simulation.init()
  double = lambda tree: jax.tree.map(lambda x: np.array(x, float), tree)
  table, shared = map(double, (state.server.item_table, state.server.shared))
  users = double(simulation.personal_by_client(state))['user']
  first = users.copy()
  draw = draws.make_draw(POPULATION, simulation.key, NUM_NEGATIVES)
  sampler, _ = build_sampler(
      settings.cohort, POPULATION.counts, settings.seed)
  l2, client = settings.objective.l2, settings.client
  for r in range(ROUNDS):
    parts = []
    for c in sampler(r):
      rows, labels = draw(r, c)
      made = generate(users[c], table, shared)
      g_user, g_table, g_shared = on_server(
          users[c], table, shared, on_device(made, rows, labels))
      used = rows[rows < NUM_ITEMS]
      touched = np.bincount(used, minlength=NUM_ITEMS) / len(used)
      g_table = {n: g + 2 * l2 * slow.per_row(touched, g) * table[n]
                 for n, g in g_table.items()}
      g_shared = jax.tree.map(lambda g, x: g + 2 * l2 * x, g_shared, shared)
      users[c] -= settings.metamf.user_learning_rate * (
          g_user + 2 * l2 * users[c])
      parts.append((g_table, g_shared))
    table, shared = (
        jax.tree.map(lambda x, *g, rate=rate: x - rate * sum(g) / len(g),
                     start, *(part[i] for part in parts))
        for i, (start, rate) in enumerate((
            (table, client.item_learning_rate),
            (shared, client.learning_rate))))
  state, _ = simulation.run(state, 0, ROUNDS)
  # Chains of seven products of at most NUM_ITEMS terms a step.
  atol = oracles.tolerance(ROUNDS, 7 * NUM_ITEMS, gain=8.0)
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol),
      (dict(state.server.item_table), dict(state.server.shared)),
      (table, shared))
  found = simulation.personal_by_client(state)['user']
  np.testing.assert_allclose(found, users, rtol=0, atol=atol)
  moved = np.abs(users - first).max(1) > 100 * atol
  assert 1 < moved.sum() < len(COUNTS)


def test_metamf_s_messages_hold_what_is_generated_and_not_the_networks():
  settings = make_config('metamf')
  algorithm = simulate(settings).algorithm
  state = jax.eval_shape(algorithm.init_server, jax.random.key(0))
  down, up = jax.eval_shape(algorithm.traffic, state)
  summary = communication_summary(
      *down, np.array([7]), np.array([1]), NUM_ITEMS, upload=up)
  # Rank 2 a row; rise 2 * 3, scorer 3 * 4 + 4 + 4 + 1: four bytes each.
  generated = 4 * (7 * 2 + 2 * 3 + 3 * 4 + 4 + 4 + 1)
  assert summary['downlink_bytes_per_client'] == generated
  assert generated < summary['uplink_bytes_per_client'] < generated + 4 * 7 + 8
  table = jax.tree.leaves(state.item_table)
  assert sum(x.size for x in table) > NUM_ITEMS * 2  # The control.


class TestRefusals:

  @pytest.mark.parametrize('name', ['reptile', 'fomaml', 'perfedavg', 'metamf'])
  def test_a_client_optimizer_with_state(self, name):
    with pytest.raises(ValueError, match='use client.optimizer=sgd'):
      simulate(make_config(name, client=plain.client(optimizer='adam')))

  @pytest.mark.parametrize('name', ['fomaml', 'metamf'])
  def test_more_than_one_gradient(self, name):
    with pytest.raises(ValueError, match='use client.epochs=1'):
      simulate(make_config(name, client=plain.client(epochs=2)))

  def test_a_batch_without_its_parts(self):
    with pytest.raises(ValueError, match='use at least 2'):
      simulate(make_config('perfedavg', client=plain.client(batch_size=1)))

  def test_metamf_with_another_model(self):
    with pytest.raises(ValueError, match='use model.name=metamf'):
      simulate(make_config('metamf', model=config.ModelConfig(name='mf')))

  @pytest.mark.parametrize('changes', [
      {'secure': config.SecureConfig(level='ideal', l2_clip_norm=1.0)},
      {'compression': config.CompressionConfig(
          sparsify='top_k', fraction=0.1)},
      {'compression': config.CompressionConfig(downlink_bits=8)},
      {'local_privacy': config.LocalPrivacyConfig(
          mechanism='laplace', epsilon=1.0)}])
  def test_metamf_unseen_compressed_or_randomised(self, changes):
    with pytest.raises(ValueError, match='must see each gradient'):
      simulate(make_config('metamf', **changes))
