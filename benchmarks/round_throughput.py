"""How fast is a round, against a copy of the whole item table per client?

The work: matrix factorisation FedAvg on explicit ratings, one local epoch of
SGD, squared error; by default 1,000 clients of 40 ratings, batches of 20, 16
dimensions. `touched_rows` is fedjaxrec with clipping of every client's delta
and Gaussian noise on the sum; `whole_table` is a plain vmap over clients, each
training a copy of the table (the DrJAX way), without clipping and noise. Both
draw the same batches and start from the same parameters, and the benchmark
checks that one round without clipping and noise moves both alike.

  python benchmarks/round_throughput.py --items=1000 --dim=16 --history=40 \
      --batch=20 --cohort=1000 --population=2000 --noise_multiplier=1
"""

import harness
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation, make_rounds_call

from fedjaxrec.examples import draw_examples
from fedjaxrec.population import Client

_ITEMS = flags.DEFINE_list(
    'items', ['1000'], 'Items in the catalogue; several, separated by commas.')
_DIM = flags.DEFINE_integer('dim', 16, 'Dimension of the vectors.')
_HISTORY = flags.DEFINE_integer('history', 40, 'Ratings of a client.')
_BATCH = flags.DEFINE_integer('batch', 20, 'Ratings in a batch.')
_COHORT = flags.DEFINE_integer('cohort', 1000, 'Clients in a round.')
_POPULATION = flags.DEFINE_integer('population', 2000, 'Clients.')
_CLIP = flags.DEFINE_float('l2_clip_norm', 0.5, 'Clipping norm; 0 for none.')
_NOISE = flags.DEFINE_float(
    'noise_multiplier', 1.0, 'Noise stddev over the clipping norm; 0 for none.')
_BLOCK = flags.DEFINE_integer('block', 0, 'Clients in a block; 0: automatic.')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Timed calls of each variant.')
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Rounds in a call of ours.')


def make_whole_table(config, population, num_items):
  """One round in which every client trains a copy of the whole table."""
  offsets, items, labels = population
  history = int(offsets[1])
  batch = config.client.batch_size
  item_rate = config.client.item_learning_rate
  rate = config.client.learning_rate

  def loss(params, rows, ratings):
    table, bias, user, user_bias, shared = params
    scores = table[rows] @ user + bias[rows] + user_bias + shared
    return jnp.mean(jnp.square(scores - ratings))

  gradient = jax.grad(loss)

  def train(table, bias, shared, user, user_bias, client, key):
    examples = draw_examples(client, key, num_items, 0)
    # A scan over the batches: faster here than the same steps unrolled.
    def step(params, batch_of):
      grads = gradient(params, *batch_of)
      return tuple(
          p - (item_rate if i < 2 else rate) * g
          for i, (p, g) in enumerate(zip(params, grads, strict=True))), None

    params, _ = jax.lax.scan(
        step, (table, bias, user, user_bias, shared),
        (examples.rows[:, 0].reshape(-1, batch),
         examples.labels.reshape(-1, batch)))
    deltas = (params[0] - table, params[1] - bias, params[4] - shared)
    return deltas, params[2:4]

  @jax.jit
  def round_fn(server, personal, cohort, key):
    table, bias, shared = server
    clients = Client(
        cohort, jnp.full(cohort.shape, history, jnp.int32),
        jnp.asarray(items.reshape(-1, history))[cohort],
        jnp.asarray(labels.reshape(-1, history))[cohort])
    keys = jax.vmap(lambda c: jax.random.fold_in(key, c))(cohort)
    deltas, own = jax.vmap(train, (None, None, None, 0, 0, 0, 0))(
        table, bias, shared, personal[0][cohort], personal[1][cohort], clients,
        keys)
    server = jax.tree.map(lambda p, d: p + d.mean(0), server, deltas)
    personal = jax.tree.map(lambda x, y: x.at[cohort].set(y), personal, own)
    return server, personal

  return round_fn


def run(num_items: int) -> list[dict]:
  """Compares the two at one size of the catalogue."""
  population = harness.make_population(
      _POPULATION.value, _HISTORY.value, num_items)
  config = make_mf_config(
      dim=_DIM.value, batch=_BATCH.value, cohort=_COHORT.value,
      block=_BLOCK.value, rounds_per_call=_ROUNDS.value)
  whole = make_whole_table(config, population, num_items)
  plain = make_mf_simulation(config, population, num_items)
  state = plain.init()
  server, personal = to_whole_table(plain, state)
  key = jax.random.fold_in(plain.key, 0)
  cohort = jnp.asarray(plain.sampler(0))

  # Nothing is bought by computing less: the same round, moved alike.
  ours, metrics = plain.run(state, 0, 1)
  assert int(metrics.num_examples[0]) == _COHORT.value * _HISTORY.value
  theirs = whole(server, personal, cohort, key)
  for a, b in zip(jax.tree.leaves(to_whole_table(plain, ours)),
                  jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

  private = make_mf_simulation(
      config, population, num_items, l2_clip_norm=_CLIP.value,
      noise_multiplier=_NOISE.value)
  call_ours = make_rounds_call(private, _ROUNDS.value)
  times = harness.measure({
      'touched_rows': call_ours,
      'whole_table': lambda: whole(server, personal, cohort, key),
  }, _REPEATS.value)
  rows = []
  for variant, rounds in (('touched_rows', _ROUNDS.value), ('whole_table', 1)):
    median = times[variant]['median_s'] / rounds
    rows.append(harness.print_row(
        variant=variant, items=num_items, dim=_DIM.value,
        history=_HISTORY.value, batch=_BATCH.value, cohort=_COHORT.value,
        population=_POPULATION.value,
        l2_clip_norm=_CLIP.value if variant == 'touched_rows' else 0.0,
        noise_multiplier=_NOISE.value if variant == 'touched_rows' else 0.0,
        median_s=median, min_s=times[variant]['min_s'] / rounds,
        compile_s=times[variant]['first_s'] - times[variant]['median_s'],
        clients_per_s=_COHORT.value / median,
        times_faster=times['whole_table']['median_s'] / median))
  return rows


def to_whole_table(simulation, state):
  """Our state as the whole-table round has it."""
  table, shared = state.server.item_table, state.server.shared
  personal = simulation.personal_by_client(state)
  # Copies: a simulation's call takes its state's memory over.
  return jax.tree.map(lambda x: jnp.array(x, copy=True), (
      (table['item'], table['item_bias'], shared['bias']),
      (personal['user'], personal['user_bias'])))


def main(_):
  """Runs every catalogue size; one JSON object a row, then a table."""
  harness.print_row(machine=harness.describe_machine())
  rows = [row for items in _ITEMS.value for row in run(int(items))]
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
