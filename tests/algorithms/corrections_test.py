"""SCAFFOLD and FedNova against their oracles; what they refuse; what they send.

The oracles are written from the papers, one client after the other, each on a
copy of the whole item table.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.algorithms.fednova import reach
from fedjaxrec.communication.ledger import communication_summary
from fedjaxrec.config.corrections import sections_on
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.simulation import make_simulation
from tests import draws, oracles, plain
from tests.algorithms import personalised_oracles as slow

# Client 3 has nothing; steps of an epoch are 1, 1, 2, 0, 2.
COUNTS = [4, 1, 7, 0, 5]
NUM_ITEMS, DIM, ROUNDS, NUM_NEGATIVES = 24, 3, 2, 2
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=3)
CLIENT = plain.client(
    learning_rate=0.4, item_learning_rate=0.9, batch_size=4, epochs=2)
# Errors of a step pass on at most by rate times curvature, 1 + 0.9 / 4; some 8
# steps of about 40 roundings each. A control variate has the errors of a round
# over rate times steps (at least 0.8), and is walked along by the next round.
ATOL = oracles.tolerance(8, 40, gain=16.0)


def make_config(**changes):
  return config.Config(**{**dict(
      rounds=ROUNDS, seed=4, model=config.ModelConfig(dim=DIM, init_scale=0.5),
      objective=plain.objective(l2=0.02, num_negatives=NUM_NEGATIVES),
      client=CLIENT, server=plain.server(row_normalization='contributors'),
      cohort=plain.cohort(size=3),
      engine=config.EngineConfig(block_size=4, num_size_classes=1),
      parallel=config.ParallelConfig(mode='single')), **changes})


def with_variates(**changes):
  return make_config(client=dataclasses.replace(
      CLIENT, control_variates=True, **changes))


def normalized(client=CLIENT, **changes):
  return make_config(client=client, cohort=plain.cohort(
      size=3, normalization='local_steps', **changes))


def simulate(settings):
  return make_simulation(
      settings, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      POPULATION.num_items)


@functools.cache
def run(settings):
  simulation = simulate(settings)
  state, _ = simulation.run(simulation.init(), 0, ROUNDS)
  return simulation, jax.tree.map(np.asarray, state)


def run_cohort(simulation, cohort):
  """The server's state after a round of these clients, whoever was drawn."""
  data, plan = simulation.plan(0, 1)
  members = np.full_like(plan.local_index[0], len(COUNTS))
  members[0, 0, 0, :len(cohort)] = cohort
  state, _ = simulation.execute(
      simulation.init(), (data, plan._replace(
          local_index=(members,), num_blocks=plan.num_blocks.at[0, 0].set(1))),
      1)
  return jax.tree.map(np.asarray, state.server)


def start_of(simulation, variates=False):
  """What everybody starts from, in float64: (table, shared, personal)."""
  start = simulation.init()
  own = simulation.personal_by_client(start)
  table, shared = start.server.item_table, start.server.shared
  if variates:
    table, shared, own = table['model'], shared['model'], own.personal
  personal = [{name: np.float64(leaf[c]) for name, leaf in own.items()}
              for c in range(len(leaf_of(own)))]
  return slow.copy(table), slow.copy(shared), personal


def leaf_of(tree):
  return jax.tree.leaves(tree)[0]


def cohorts_of(settings):
  sampler, _ = build_sampler(settings.cohort, POPULATION.counts, settings.seed)
  return [[c for c in sampler(r) if COUNTS[c]] for r in range(ROUNDS)]


def close(found, expected, atol=ATOL):
  for name, leaf in expected.items():
    np.testing.assert_allclose(found[name], leaf, rtol=0, atol=atol)


class SlowScaffold:
  """Algorithm 1 of the paper, option II, on the rows that a client touches."""

  def __init__(self, settings, table, shared, personal):
    self.settings, self.table, self.shared = settings, table, shared
    self.personal = personal
    nothing = lambda tree: {n: np.zeros_like(x) for n, x in tree.items()}
    self.c_table, self.c_shared = nothing(table), nothing(shared)
    self.own = [(nothing(table), nothing(shared)) for _ in personal]
    self.touched = [set() for _ in personal]
    self.came = set()

  def client(self, u, rows, labels):
    client = self.settings.client
    table, shared = slow.copy(self.table), slow.copy(self.shared)
    mine = sorted({int(i) for i in rows.reshape(-1)} - {NUM_ITEMS})
    c_u, c_u_shared = self.own[u]
    steps = 0
    for _ in range(client.epochs):
      for start in range(0, len(rows), client.batch_size):
        batch = slice(start, start + client.batch_size)
        _, _, g_table, g_shared, g_personal = oracles.batch_gradients(
            'bce', table, shared, self.personal[u], rows[batch], labels[batch],
            self.settings.objective.l2)
        for name in table:
          for i in mine:
            table[name][i] -= client.item_learning_rate * (
                g_table[name][i] - c_u[name][i] + self.c_table[name][i])
        shared['bias'] = shared['bias'] - client.learning_rate * (
            g_shared['bias'] - c_u_shared['bias'] + self.c_shared['bias'])
        self.personal[u] = oracles.add(
            self.personal[u], g_personal, -client.learning_rate)
        steps += 1
    for name in table:
      for i in mine:
        c_u[name][i] += -self.c_table[name][i] + (
            self.table[name][i] - table[name][i]) / (
                steps * client.item_learning_rate)
    c_u_shared['bias'] = c_u_shared['bias'] - self.c_shared['bias'] + (
        self.shared['bias'] - shared['bias']) / (steps * client.learning_rate)
    self.touched[u] |= set(mine)
    self.came.add(u)
    return mine, oracles.add(table, self.table, -1), oracles.add(
        shared, self.shared, -1)

  def round(self, cohort, draw):
    sent = [self.client(u, *draw(u)) for u in cohort]
    for name, leaf in self.table.items():
      for i in range(NUM_ITEMS):
        deltas = [delta[name][i] for mine, delta, _ in sent if i in mine]
        if deltas:
          leaf[i] += sum(deltas) / len(deltas)
    self.shared['bias'] = self.shared['bias'] + sum(
        s['bias'] for _, _, s in sent) / len(sent)
    # The server's: the mean over the clients that have one, from scratch.
    for name, leaf in self.c_table.items():
      for i in range(NUM_ITEMS):
        holders = [u for u, rows in enumerate(self.touched) if i in rows]
        if holders:
          leaf[i] = np.mean([self.own[u][0][name][i] for u in holders], 0)
    self.c_shared['bias'] = np.mean(
        [self.own[u][1]['bias'] for u in self.came])


class TestScaffold:

  def test_two_rounds_are_those_of_the_oracle(self):
    simulation, state = run(with_variates())
    settings = with_variates()
    oracle = SlowScaffold(settings, *start_of(simulation, variates=True))
    draw = draws.make_draw(POPULATION, simulation.key, NUM_NEGATIVES)
    for r, cohort in enumerate(cohorts_of(settings)):
      oracle.round(cohort, lambda u, r=r: draw(r, u))
    table, shared = state.server.item_table, state.server.shared
    close(table['model'], oracle.table)
    close(shared['model'], oracle.shared)
    close(table['variate'], oracle.c_table)
    close(shared['variate'], oracle.c_shared)
    own = simulation.personal_by_client(state)
    for u, (c_table, c_shared) in enumerate(oracle.own):
      close({n: x[u] for n, x in own.personal.items()}, oracle.personal[u])
      close({n: x[u] for n, x in own.table.rows[0].items()}, c_table)
      close({n: x[u] for n, x in own.shared.items()}, c_shared)
      assert set(np.flatnonzero(own.table.rows[1][u])) == oracle.touched[u]
    # Some rows have been corrected, and not all clients have come.
    assert 0 < len(oracle.came) < len(COUNTS)
    assert np.abs(table['variate']['item']).max() > 100 * ATOL

  def test_the_correction_changes_the_second_round(self):
    _, plainly = run(make_config())
    moved = run(with_variates())[1].server.item_table['model']['item']
    assert np.abs(
        moved - plainly.server.item_table['item']).max() > 100 * ATOL

  def test_the_first_round_is_federated_averaging(self):
    """All control variates are zero; what is kept of it is not."""
    corrected = run_cohort(run(with_variates())[0], [0, 2, 4])
    plainly = run_cohort(run(make_config())[0], [0, 2, 4])
    # The same steps, compiled otherwise: a rounding or two each.
    close(corrected.item_table['model'], plainly.item_table)
    close(corrected.shared['model'], plainly.shared)
    assert np.abs(corrected.item_table['variate']['item']).max() > 100 * ATOL

  def test_a_run_goes_on_from_what_was_kept(self):
    simulation, finished = run(with_variates())
    state, _ = simulation.run(simulation.init(), 0, 1)
    kept = simulation.clients_by_client(state)
    server = jax.tree.map(np.asarray, state.server)
    state, _ = simulation.run(simulation.restore(server, kept), 1, 1)
    jax.tree.map(np.testing.assert_array_equal,
                 jax.tree.map(np.asarray, state), finished)

  def test_who_stays_away_keeps_its_variate(self):
    simulation, _ = run(with_variates())
    state, _ = simulation.run(simulation.init(), 0, 1)
    own = simulation.personal_by_client(state)
    came = set(cohorts_of(with_variates())[0])
    for u in range(len(COUNTS)):
      assert own.known[u] == (u in came)
      assert np.abs(own.table.rows[0]['item'][u]).any() == (u in came)

  def test_messages_are_twice_as_long(self):
    simulation, _ = run(with_variates())
    algorithm = simulation.algorithm
    state = jax.eval_shape(algorithm.init_server, jax.random.key(0))
    down, up = algorithm.traffic(state)
    rows, times = np.array([9]), np.array([1])
    found = communication_summary(*down, rows, times, NUM_ITEMS, upload=up)
    plainly = simulate(make_config()).algorithm
    single = jax.eval_shape(plainly.init_server, jax.random.key(0))
    expected = communication_summary(
        single.item_table, single.shared, rows, times, NUM_ITEMS)
    row, bias = 4 * (DIM + 1), 4
    # And up, for each row and for the rest, whether it is the client's first.
    assert found['uplink_bytes_per_client'] == (
        expected['uplink_bytes_per_client'] + 9 * (row + 4) + bias + 4)
    assert found['downlink_bytes_per_client'] == (
        expected['downlink_bytes_per_client'] + 9 * row + bias)

  def test_a_table_a_client_above_the_limit_is_refused(self):
    settings = dataclasses.replace(
        with_variates(), personalization=config.PersonalizationConfig(
            table_limit_gib=1e-6))
    with pytest.raises(ValueError, match='table_limit_gib=1e-06; raise that'):
      simulate(settings)


def impulse_response(steps, rate, momentum, mu):
  """|a|_1 by brute force: each step's gradient alone, carried to the end."""
  total = 0.0
  for k in range(steps):
    y, velocity = 0.0, 0.0
    for t in range(steps):
      velocity = momentum * velocity + (t == k) + mu * y
      y -= rate * velocity
    total += abs(y) / rate
  return total


@pytest.mark.parametrize(('momentum', 'mu'), [
    (0.0, 0.0), (0.9, 0.0), (0.3, 0.0), (0.0, 0.7), (0.0, 1e-6)])
def test_the_reach_of_steps_is_the_sum_of_their_coefficients(momentum, mu):
  rate, steps = 0.5, np.array([0, 1, 2, 3, 10, 40])
  expected = [impulse_response(t, rate, momentum, mu) for t in steps]
  # A few float32 roundings; m^t has t of them, in numbers divided by 1 - m.
  np.testing.assert_allclose(
      reach(jnp.asarray(steps), momentum, rate * mu), expected, rtol=3e-5)


class TestFedNova:

  @pytest.mark.parametrize(('client', 'weighting'), [
      ({}, 'equal'),
      ({'optimizer': 'momentum', 'momentum': 0.6, 'item_optimizer': 'sgd'},
       'equal'),
      ({'proximal_mu': 0.3}, 'examples'),
  ], ids=['sgd', 'momentum', 'prox-examples'])
  def test_two_rounds_are_those_of_the_oracle(self, client, weighting):
    settings = normalized(
        dataclasses.replace(CLIENT, **client), weighting=weighting)
    simulation, state = run(settings)
    table, shared, personal = start_of(simulation)
    draw = draws.make_draw(POPULATION, simulation.key, NUM_NEGATIVES)
    c = settings.client
    for r, cohort in enumerate(cohorts_of(settings)):
      sent = []
      for u in cohort:
        rows, labels = draw(r, u)
        result, personal[u] = oracles.train_client(
            table, shared, personal[u], rows, labels, l2=0.02,
            **oracles.fields(c, 'schedule', 'final_fraction'))
        steps = c.epochs * -(-len(rows) // c.batch_size)
        weight = len(rows) if weighting == 'examples' else 1
        a_item, a_shared = (
            impulse_response(steps, rate, c.momentum if name == 'momentum'
                             else 0.0, c.proximal_mu)
            for name, rate in ((c.item_optimizer or c.optimizer,
                                c.item_learning_rate),
                               (c.optimizer, c.learning_rate)))
        sent.append((set(rows.reshape(-1)), weight, result, a_item, a_shared))
      total = sum(w for _, w, *_ in sent)
      tau_item = sum(w * a for _, w, _, a, _ in sent) / total
      tau_shared = sum(w * a for _, w, _, _, a in sent) / total
      new = slow.copy(table)
      for name in table:
        for i in range(NUM_ITEMS):
          who = [(w, s.table[name][i] / a) for rows, w, s, a, _ in sent
                 if i in rows]
          if who:
            new[name][i] += tau_item * sum(w * d for w, d in who) / sum(
                w for w, _ in who)
      table = new
      shared = {'bias': shared['bias'] + tau_shared * sum(
          w * s.shared['bias'] / a for _, w, s, _, a in sent) / total}
    close(state.server.item_table, table)
    close(state.server.shared, shared)
    for u, mine in enumerate(personal):
      close({n: x[u] for n, x in
             simulation.personal_by_client(state).items()}, mine)

  def test_with_equal_steps_it_is_federated_averaging(self):
    """Four steps each: dividing and multiplying by 4 rounds nothing."""
    found = run_cohort(run(normalized())[0], [2, 4])
    expected = run_cohort(run(make_config())[0], [2, 4])
    # But the compiler may join a product and a sum, here or there.
    close(found.item_table, expected.item_table, oracles.tolerance(4, 3))
    close(found.shared, expected.shared, oracles.tolerance(4, 3))

  def test_with_unequal_steps_it_is_not(self):
    found = run_cohort(run(normalized())[0], [0, 4])
    expected = run_cohort(run(make_config())[0], [0, 4])
    assert np.abs(found.item_table['item']
                  - expected.item_table['item']).max() > 100 * ATOL

  def test_an_upload_has_two_numbers_more(self):
    algorithm = simulate(normalized()).algorithm
    state = jax.eval_shape(algorithm.init_server, jax.random.key(0))
    down, up = algorithm.traffic(state)
    rows, times = np.array([9]), np.array([1])
    found = communication_summary(*down, rows, times, NUM_ITEMS, upload=up)
    expected = communication_summary(*down, rows, times, NUM_ITEMS)
    assert found['uplink_bytes_per_client'] == (
        expected['uplink_bytes_per_client'] + 8)
    assert found['downlink_bytes_per_client'] == (
        expected['downlink_bytes_per_client'])


PRIVATE = config.PrivacyConfig(l2_clip_norm=1.0)
SECURE = config.SecureConfig(level='ideal', l2_clip_norm=1.0)
COMPRESSED = config.CompressionConfig(quantize='sign')


@pytest.mark.parametrize(('changes', 'expected'), [
    ({}, ()),
    ({'privacy': PRIVATE}, ('privacy',)),
    ({'privacy': config.PrivacyConfig(l2_clip_norm=1.0, epsilon=8.0),
      'compression': COMPRESSED}, ('privacy', 'compression')),
    ({'compression': config.CompressionConfig(downlink_bits=8)},
     ('compression',)),
    ({'local_privacy': config.LocalPrivacyConfig(
        mechanism='gaussian', epsilon=8.0)}, ('local_privacy',)),
    ({'secure': SECURE, 'server': plain.server()}, ('secure',)),
])
def test_the_sections_that_change_what_travels_are_named(changes, expected):
  assert sections_on(make_config(**changes)) == expected


class TestRefusals:

  @pytest.mark.parametrize(('changes', 'message'), [
      ({'algorithm': config.AlgorithmConfig(name='fedrecon')}, 'stateless'),
      ({'algorithm': config.AlgorithmConfig(name='ditto')},
       'algorithm.name=ditto: .* use algorithm.name=fedavg or fedper'),
      ({'client': dataclasses.replace(
          CLIENT, control_variates=True, optimizer='adam')},
       'client.optimizer=adam: .* use client.optimizer=sgd'),
      ({'client': dataclasses.replace(
          CLIENT, control_variates=True, item_optimizer='rowwise_adagrad')},
       'client.item_optimizer=rowwise_adagrad'),
      ({'client': dataclasses.replace(
          CLIENT, control_variates=True, proximal_mu=0.1)},
       'client.proximal_mu=0.1'),
      ({'cohort': plain.cohort(weighting='examples')},
       'use cohort.weighting=equal'),
      ({'cohort': plain.cohort(normalization='local_steps')},
       'use one of the two'),
      ({'personalization': config.PersonalizationConfig(finetune_steps=2)},
       'personalization.finetune_steps=2'),
      ({'privacy': PRIVATE}, 'section privacy'),
      ({'compression': COMPRESSED}, 'section compression'),
      ({'secure': SECURE, 'server': plain.server()}, 'section secure'),
  ])
  def test_control_variates(self, changes, message):
    client = dataclasses.replace(CLIENT, control_variates=True)
    with pytest.raises(ValueError, match='SCAFFOLD.*' + message):
      make_config(**{'client': client, **changes})

  @pytest.mark.parametrize(('changes', 'message'), [
      ({'algorithm': config.AlgorithmConfig(name='fedrap')},
       'algorithm.name=fedrap: .* or cohort.normalization=none'),
      ({'client': dataclasses.replace(CLIENT, optimizer='adam')},
       'client.optimizer=adam: .* use client.optimizer=sgd or momentum'),
      ({'client': dataclasses.replace(
          CLIENT, optimizer='momentum', proximal_mu=0.1)}, 'use one of them'),
      ({'client': dataclasses.replace(CLIENT, proximal_mu=2.0)},
       'client.proximal_mu=2.0 .* below 1'),
      ({'client': dataclasses.replace(CLIENT, steps=3)},
       'client.steps=3: .* use cohort.normalization=none'),
      ({'privacy': PRIVATE}, 'section privacy .* use client.steps'),
      ({'compression': COMPRESSED}, 'section compression'),
      ({'secure': SECURE, 'server': plain.server()}, 'section secure'),
  ])
  def test_normalization(self, changes, message):
    with pytest.raises(ValueError, match='FedNova.*' + message):
      make_config(**{'cohort': plain.cohort(
          size=3, normalization='local_steps'), **changes})

  def test_a_normalization_that_is_not_known(self):
    with pytest.raises(ValueError, match="cohort.normalization='steps'"):
      plain.cohort(normalization='steps')
