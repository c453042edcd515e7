"""FedPerGNN against a slow oracle; what its pseudo-items hide, and what not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.algorithms import fedpergnn
from fedjaxrec.algorithms.fedpergnn import draw_ego, make_up_deltas
from fedjaxrec.communication import touched_rows
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.population import Client
from fedjaxrec.simulation import make_simulation
from tests import oracles, plain

# Client 3 has nothing; client 1 one item, client 2 more than a batch.
COUNTS = [4, 1, 7, 0, 5]
NUM_ITEMS, DIM, ROUNDS, NUM_NEGATIVES, PSEUDO = 24, 3, 2, 2, 3
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS, seed=3)
BATCH, EPOCHS, L2 = 4, 2, 0.02
_STEP = 1e-30  # Of the complex-step derivative, which is exact.


def make_config(**changes):
  return plain.whole(**{**dict(
      rounds=ROUNDS, seed=4, model=config.ModelConfig(dim=DIM, init_scale=0.5),
      algorithm=config.AlgorithmConfig(name='fedpergnn'),
      fedpergnn=config.FedPerGNNConfig(pseudo_items=PSEUDO),
      objective=plain.objective(l2=L2, num_negatives=NUM_NEGATIVES),
      client=plain.client(learning_rate=0.4, item_learning_rate=0.9,
                          batch_size=BATCH, epochs=EPOCHS),
      server=plain.server(), cohort=plain.cohort(size=3),
      engine=config.EngineConfig(block_size=4, num_size_classes=1),
      parallel=config.ParallelConfig(mode='single')), **changes})


def simulate(settings, **kwargs):
  return make_simulation(
      settings, POPULATION.offsets, POPULATION.items, POPULATION.labels,
      NUM_ITEMS, **kwargs)


def everybody():
  """All clients, padded to the longest one's room."""
  items = np.full((len(COUNTS), max(COUNTS)), NUM_ITEMS, np.int32)
  labels = np.zeros((len(COUNTS), max(COUNTS)), np.float32)
  for c, count in enumerate(COUNTS):
    mine, mine_labels = POPULATION.client(c)
    order = np.argsort(mine)
    items[c, :count], labels[c, :count] = mine[order], mine_labels[order]
  return Client(
      jnp.arange(len(COUNTS)), jnp.asarray(COUNTS), jnp.asarray(items),
      jnp.asarray(labels))


# --- The oracle ---------------------------------------------------------------


def around(settings, params, mine, spared=None):
  """h_u, item by item."""
  left = [i for i in mine if i != spared]
  if not left:
    return np.zeros(DIM, complex)
  if settings.aggregator == 'lightgcn':
    return sum(params['item'][i] for i in left) / (
        len(left) ** settings.degree_power)
  weights = []
  for i in left:
    logit = (params['user'] @ params['attention_user']
             + params['item'][i] @ params['attention_item'])
    weights.append(np.exp(logit if logit.real > 0 else 0.2 * logit))
  return sum(w * params['item'][i] for w, i in zip(weights, left)) / sum(
      weights)


def score(params, h, item):
  return ((params['user'] + h) / 2 @ params['item'][item]
          + params['item_bias'][item] + params['user_bias'] + params['bias'])


def batch_loss(settings, params, mine, rows, objective, labels):
  """A batch's mean loss, with l2, from numbers that may be complex."""
  terms, squares = [], []
  whole = around(settings, params, mine)
  for place, group in enumerate(rows):
    for k, item in enumerate(group):
      if item == NUM_ITEMS:
        continue
      squares.append((params['item'][item]**2).sum()
                     + params['item_bias'][item]**2)
      h = whole
      if k == 0 and settings.spare_target:
        h = around(settings, params, mine, item)
      s = score(params, h, item)
      if objective == 'bce':
        terms.append(np.log(1 + np.exp(-s if k == 0 else s)))
      elif k == 0:
        terms.append((s - labels[place])**2)
  others = [params[n] for n in params if n not in ('item', 'item_bias')]
  return sum(terms) / len(terms) + L2 * (
      sum((x**2).sum() for x in others) + sum(squares) / len(squares))


def gradient(loss, params):
  """By the complex step: the imaginary part of f(x + ih) / h."""
  result = {}
  for name, leaf in params.items():
    result[name] = np.zeros(np.shape(leaf))
    for place in np.ndindex(np.shape(leaf)):
      moved = {n: np.array(x, complex) for n, x in params.items()}
      moved[name][place] += 1j * _STEP
      result[name][place] = loss(moved).imag / _STEP
  return result


def train(config, params, mine, rows, labels):
  settings, client = config.fedpergnn, config.client
  for _ in range(EPOCHS):
    for start in range(0, len(rows), BATCH):
      batch = slice(start, start + BATCH)
      slope = gradient(lambda p, b=batch: batch_loss(
          settings, p, mine, rows[b], config.objective.name, labels[b]),
                       params)
      params = {
          n: x - slope[n] * (
              client.item_learning_rate if n in ('item', 'item_bias')
              else client.learning_rate) for n, x in params.items()}
  return params


def run_oracle(settings, simulation, start):
  """Two rounds, client by client: (table, shared, layers)."""
  draw = jax.jit(jax.vmap(simulation.algorithm.draw))
  sampler, _ = build_sampler(settings.cohort, POPULATION.counts, settings.seed)
  table = {n: np.float64(x) for n, x in start.server.item_table.items()}
  shared = {n: np.float64(x) for n, x in start.server.shared.items()}
  own = simulation.personal_by_client(start).layer
  layers = [{n: np.float64(x[c]) for n, x in own.items()}
            for c in range(len(COUNTS))]
  everyone = everybody()
  for r in range(ROUNDS):
    round_key = jax.random.fold_in(simulation.key, r)
    keys = jax.vmap(lambda c, key=round_key: jax.random.fold_in(key, c))(
        jnp.arange(len(COUNTS)))
    drawn = draw(everyone, keys)
    cohort = sampler(r)
    moved = []
    for c in cohort:
      n = COUNTS[c]
      slots = np.asarray(drawn.rows[c, :-PSEUDO]).reshape(max(COUNTS), -1)[:n]
      pseudo = np.asarray(drawn.rows[c, -PSEUDO:])
      trained = train(
          settings, {**table, **shared, **layers[c]}, slots[:, 0], slots,
          np.asarray(drawn.labels[c]))
      layers[c] = {name: trained[name] for name in layers[c]}
      delta = {name: trained[name] - table[name] for name in table}
      # The made-up ones: mean and covariance of the interactions' deltas.
      real = np.stack([np.append(delta['item'][i], delta['item_bias'][i])
                       for i in slots[:, 0]])
      for m, item in enumerate(pseudo):
        if item == NUM_ITEMS:
          continue
        made_up = real.mean(0)
        for k in range(n):
          z = jax.random.normal(
              jax.random.fold_in(drawn.key[c], k), (PSEUDO,))[m]
          made_up = made_up + float(z) * (real[k] - real.mean(0)) / np.sqrt(n)
        # Neither the client nor its graph touched it otherwise.
        assert not delta['item'][item].any() and item not in slots
        delta['item'][item], delta['item_bias'][item] = (
            made_up[:DIM], made_up[DIM])
      moved.append((delta, {n: trained[n] - shared[n] for n in shared}))
    table = {n: x + sum(m[0][n] for m in moved) / len(cohort)
             for n, x in table.items()}
    shared = {n: x + sum(m[1][n] for m in moved) / len(cohort)
              for n, x in shared.items()}
  return table, shared, layers


@pytest.mark.parametrize(('changes', 'objective'), [
    ({'degree_power': 0.5}, 'bce'),
    ({'degree_power': 1.0, 'spare_target': False}, 'squared_error'),
    ({'aggregator': 'attention'}, 'bce'),
])
def test_two_rounds_are_those_of_the_oracle(changes, objective):
  settings = make_config(
      fedpergnn=config.FedPerGNNConfig(pseudo_items=PSEUDO, **changes),
      objective=plain.objective(
          name=objective, l2=L2, num_negatives=NUM_NEGATIVES))
  if objective == 'squared_error':  # Whose slope is not bounded.
    settings = dataclasses.replace(settings, client=dataclasses.replace(
        settings.client, learning_rate=0.1, item_learning_rate=0.1))
  simulation = simulate(settings)
  start = simulation.init()
  attention = 'attention' in changes.values()
  if attention:  # It begins at zero, where LeakyReLU has a kink.
    rng = np.random.default_rng(1)
    start = start._replace(server=start.server._replace(shared={
        n: jnp.asarray(rng.normal(size=x.shape), x.dtype)
        for n, x in start.server.shared.items()}))
  table, shared, layers = run_oracle(settings, simulation, start)
  state, _ = simulation.run(start, 0, ROUNDS)
  # As for the other personalised algorithms: some 8 steps of 40 roundings, of
  # which the sum over a client's items adds a few.
  atol = oracles.tolerance(8, 60, gain=8.0)
  for n, leaf in table.items():
    np.testing.assert_allclose(
        state.server.item_table[n], leaf, rtol=0, atol=atol)
  for n, leaf in shared.items():
    np.testing.assert_allclose(state.server.shared[n], leaf, rtol=0, atol=atol)
  # What is recommended with: h_u of the final table, and p_u of who trained.
  own = simulation.refit(
      jax.tree.map(np.asarray, state.server),
      simulation.personal_by_client(state))
  assert 0 < own.trained.sum() < len(COUNTS) - 1  # Somebody never trained.
  for c, count in enumerate(COUNTS):
    if not count:
      continue
    params = {**table, **shared, **layers[c]}
    params['user'] = params['user'] * own.trained[c]
    h = around(settings.fedpergnn, params, POPULATION.client(c)[0])
    expected = [score(params, h, i).real for i in range(NUM_ITEMS)]
    found = simulation.algorithm.score(
        jax.tree.map(lambda x, place=c: x[place], own),
        state.server.item_table, state.server.shared)
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * atol)


# --- Pseudo-items -------------------------------------------------------------


def supports(num_pseudo, rounds, client=2):
  """The rows of one client's uploads."""
  one = jax.tree.map(lambda x: x[client], everybody())
  pseudo_key = jax.random.key(9)
  keys = jax.random.split(jax.random.key(1), rounds)
  drawn = jax.jit(jax.vmap(lambda key: draw_ego(
      one, key, NUM_ITEMS, 1, num_pseudo, pseudo_key)))(keys)
  return [set(np.asarray(rows)) - {NUM_ITEMS} for rows in drawn.rows], drawn


def test_what_stands_in_every_upload_are_real_and_pseudo_items_alike():
  mine = set(POPULATION.client(2)[0].tolist())
  without, _ = supports(0, 40)
  assert set.intersection(*without) == mine  # The leak that they are for.
  with_them, drawn = supports(5, 40)
  always = set.intersection(*with_them)
  assert always > mine and len(always) == len(mine) + 5
  assert all(len(rows) == 2 * len(mine) + 5 for rows in with_them)
  # Negatives are never pseudo-items, and reach all of the rest.
  others = {i for rows in np.asarray(drawn.rows)[:, :-5] for i in rows}
  assert others - {NUM_ITEMS} == set(range(NUM_ITEMS)) - (always - mine)


def test_a_draw_does_not_depend_on_padding_and_has_no_item_twice():
  everyone = everybody()
  longer = everyone._replace(
      items=jnp.pad(everyone.items, ((0, 0), (0, 6)),
                    constant_values=NUM_ITEMS),
      labels=jnp.pad(everyone.labels, ((0, 0), (0, 6))))
  draw = jax.jit(jax.vmap(lambda client: draw_ego(
      client, jax.random.key(5), NUM_ITEMS, 2, PSEUDO, jax.random.key(6)).rows))
  expected = touched(np.array(COUNTS))
  for client, rows in enumerate(zip(draw(everyone), draw(longer), strict=True)):
    drawn, same = (x[x < NUM_ITEMS] for x in map(np.asarray, rows))
    np.testing.assert_array_equal(drawn, same)
    assert len(set(drawn)) == len(drawn) == expected[client]


def touched(counts, **changes):
  settings = make_config(fedpergnn=config.FedPerGNNConfig(
      pseudo_items=PSEUDO, **changes))
  return simulate(settings).algorithm.touched_rows(counts)


def test_bytes_count_the_pseudo_rows_and_no_more_than_there_are():
  counts = np.array([0, 1, 4, 7, 20, 23, 24])
  plain_rows = touched_rows(counts, NUM_NEGATIVES, NUM_ITEMS)
  # Of 4 unseen items 2 at most, of 1 none: half stays for the negatives.
  assert fedpergnn.count_pseudo_items(np.array([64]), PSEUDO, NUM_ITEMS) == 0
  np.testing.assert_array_equal(
      fedpergnn.count_pseudo_items(counts, PSEUDO, NUM_ITEMS),
      [0, 3, 3, 3, 2, 0, 0])
  np.testing.assert_array_equal(
      touched(counts) - plain_rows, [0, 3, 3, 3, 0, 0, 0])


def test_made_up_deltas_have_the_mean_and_covariance_of_the_real_ones():
  rng = np.random.default_rng(0)
  known = np.array([True, True, False, True, True])
  deltas = {'item': rng.normal(size=(5, 3)).astype(np.float32),
            'bias': rng.normal(size=5).astype(np.float32)}
  draws = 40_000
  made_up = make_up_deltas(deltas, known, draws, jax.random.key(2))
  real = np.concatenate([deltas['bias'][known, None], deltas['item'][known]], 1)
  found = np.concatenate([made_up['bias'][:, None], made_up['item']], 1)
  spread = np.cov(real.T, bias=True)
  scale = np.sqrt(np.diag(spread).max())
  # Five standard deviations of a mean, and of a product's mean.
  np.testing.assert_allclose(
      found.mean(0), real.mean(0), rtol=0, atol=5 * scale / draws**0.5)
  np.testing.assert_allclose(
      np.cov(found.T, bias=True), spread, rtol=0,
      atol=5 * 2**0.5 * scale**2 / draws**0.5)
  # No direction that the real ones do not have: four span three dimensions.
  assert np.linalg.matrix_rank(found - real.mean(0), tol=1e-4) == 3
  # One interaction alone is copied: nobody can tell which one it is.
  alone = make_up_deltas(
      deltas, np.arange(5) == 1, 3, jax.random.key(2))
  np.testing.assert_allclose(
      alone['item'], np.tile(deltas['item'][1], (3, 1)), rtol=1e-6)


class TestRefusals:

  @pytest.mark.parametrize('model', ['neumf', 'pfedrec'])
  def test_a_model_without_a_plain_product(self, model):
    with pytest.raises(ValueError, match='use model.name=mf'):
      simulate(make_config(model=config.ModelConfig(name=model, dim=DIM)))

  def test_a_client_optimizer_with_state(self):
    with pytest.raises(ValueError, match='use client.optimizer=sgd'):
      simulate(make_config(client=plain.client(optimizer='adam')))


@pytest.mark.parametrize('section', [
  {'secure': config.SecureConfig(level='ideal', l2_clip_norm=0.5)},
  {'compression': config.CompressionConfig(sparsify='top_k')}])
def test_it_runs_under_clipping_compression_or_a_secure_sum(section):
  """The chain sees the pseudo-rows as any others; sums stay finite."""
  settings = make_config(**section)
  simulation = simulate(settings)
  state, metrics = simulation.run(simulation.init(), 0, ROUNDS)
  assert (np.asarray(metrics.reported) > 0).all()
  before = simulation.init().server.item_table['item']
  after = np.asarray(state.server.item_table['item'])
  assert np.isfinite(after).all() and (after != before).any()
