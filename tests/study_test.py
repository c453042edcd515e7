"""Runs side by side are the runs alone; and what may share a program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config, study, study_fields
from fedjaxrec.local_training import most
from fedjaxrec.participation.plan import most_blocks
from fedjaxrec.simulation import State, make_simulation
from fedjaxrec.touched_rows import choose_num_slots
from tests import oracles, plain

# Long-tailed; the other population has more interactions, as many clients.
COUNTS = [4, 1, 9, 0, 6, 3, 18, 0, 2, 5, 1, 0, 7, 4]
OTHER_COUNTS = [4, 1, 9, 0, 6, 3, 18, 0, 9, 5, 1, 0, 7, 4]
HERE = oracles.make_population(COUNTS, 40, seed=2)
THERE = oracles.make_population(OTHER_COUNTS, 40, seed=3)
ROUNDS = 4

# Counts what JAX compiles.
work = {'compilations': 0}


def _count(event, duration, **kwargs):
  del duration, kwargs
  work['compilations'] += event == '/jax/core/compile/backend_compile_duration'


jax.monitoring.register_event_duration_secs_listener(_count)


def make_config(seed=0, *, mode='single', l2=0.01, clip=2.0, **scalars):
  """Every scalar that may differ has an effect; cohorts of any size."""
  values = {'client.learning_rate': 0.1, 'server.learning_rate': 0.05,
            'client.proximal_mu': 0.1, 'privacy.noise_multiplier': 0.01,
            **scalars}
  return config.Config(
      rounds=9, seed=seed, model=config.ModelConfig(dim=3, init_scale=0.5),
      objective=plain.objective(l2=l2),
      client=plain.client(
          learning_rate=values['client.learning_rate'],
          proximal_mu=values['client.proximal_mu'], schedule='exponential'),
      server=plain.server(
          optimizer='adam', learning_rate=values['server.learning_rate'],
          eps=0.05, lazy_rows=False),
      cohort=plain.cohort(sampler='poisson'),
      privacy=config.PrivacyConfig(
          l2_clip_norm=clip,
          noise_multiplier=values['privacy.noise_multiplier']),
      engine=config.EngineConfig(
          block_size=6, num_size_classes=2, rounds_per_call=3),
      parallel=config.ParallelConfig(mode=mode, num_devices=2 if (
          mode != 'single') else 0))


MEMBERS = [
    make_config(0),
    make_config(3, clip=0.3, **{'privacy.noise_multiplier': 0.1}),
    make_config(3, l2=0.05, **{
        'client.learning_rate': 0.3, 'server.learning_rate': 0.1,
        'client.proximal_mu': 0.5}),
]
# A client's step, clipping and the server's: sums of at most 14 clients, and a
# gradient's error comes out times the server's learning rate over its eps.
ATOL = oracles.tolerance(ROUNDS * 6, 3 + 14, 2)


def training(population):
  return population.offsets, population.items, population.labels


def run(made, state):
  """ROUNDS rounds in calls of three and one; metrics of each round."""
  state, first = made.run(state, 0, 3)
  state, second = made.run(state, 3, 1)
  return state, jax.tree.map(
      lambda a, b: np.concatenate(
          [np.asarray(a)[..., :3], np.asarray(b)[..., :1]], -1), first, second)


def alone(settings, population):
  # In one class, which compiles faster and changes nothing.
  settings = dataclasses.replace(settings, engine=dataclasses.replace(
      settings.engine, num_size_classes=1))
  simulation = make_simulation(
      settings, *training(population), population.num_items)
  state = simulation.init()
  start = on_host(simulation, state)
  state, metrics = run(simulation, state)
  return start, on_host(simulation, state), metrics


def on_host(simulation, state):
  return State(jax.tree.map(np.asarray, state.server),
               simulation.personal_by_client(state))


def close(left, right, atol=ATOL):
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
      left, right)


@pytest.fixture(scope='module')
def singles():
  return [alone(settings, HERE) for settings in MEMBERS]


@pytest.fixture(scope='module')
def together():
  """(study, state after all rounds, metrics), data shared, one device."""
  made = study.make_study(
      MEMBERS, [training(HERE)] * len(MEMBERS), HERE.num_items)
  state, metrics = run(made, made.init())
  return made, made.to_host(state), metrics


@pytest.mark.parametrize('index', range(len(MEMBERS)))
def test_a_member_is_the_run_alone(together, singles, index):
  made, state, metrics = together
  start, after, single = singles[index]
  close(made.members[index].init(), start, 1e-6)
  mine = study.member_state(state, index)
  close(mine, after)
  # A personal parameter is averaged with nobody's.
  assert made.members[index].personal_by_client(mine) is mine.personal
  np.testing.assert_allclose(metrics.loss[index], single.loss, rtol=1e-4)
  np.testing.assert_array_equal(metrics.reported[index], single.reported)
  np.testing.assert_array_equal(
      metrics.num_examples[index], single.num_examples)


def test_members_differ_where_they_should(together):
  """The control: seeds and scalars do far more than the tolerance."""
  _, state, metrics = together
  table = state.server.item_table['item']
  for i, j in ((0, 1), (1, 2), (0, 2)):
    assert np.abs(table[i] - table[j]).max() > 100 * ATOL
  assert len({tuple(row) for row in metrics.reported}) == 2  # Two seeds.


def test_the_second_chunk_compiles_nothing(together):
  made, state, _ = together
  start = made.restore(state)
  plan = made.plan(4, 3)
  jax.block_until_ready((start, plan))
  before = dict(work)
  jax.block_until_ready(made.execute(start, plan, 3)[0])
  # The slices of metrics aside, which are no rounds.
  assert work['compilations'] <= before['compilations']


def test_devices_share_members_and_members_may_have_data_of_their_own(
    together, singles):
  """Three members on two devices: a lane is filled, and nobody notices."""
  _, shared, _ = together
  settings = [dataclasses.replace(c, parallel=make_config(
      mode='shard_map').parallel) for c in MEMBERS]
  made = study.make_study(
      settings, [training(HERE), training(HERE), training(THERE)],
      HERE.num_items)
  assert made.placement.num_devices == 2
  state, metrics = run(made, made.init())
  assert jax.tree.leaves(metrics)[0].shape == (3, ROUNDS)
  state = made.to_host(state)
  for index in range(2):
    close(study.member_state(state, index), study.member_state(shared, index))
  _, there, _ = alone(MEMBERS[2], THERE)
  close(study.member_state(state, 2), there)
  # The control: the other data make another run.
  assert np.abs(there.server.item_table['item']
                - singles[2][1].server.item_table['item']).max() > 100 * ATOL


def test_members_that_differ_in_the_seed_alone_share_what_evaluation_compiles():
  made = study.make_study(
      [make_config(0), make_config(1),
       make_config(1, **{'client.learning_rate': 0.2})],
      [training(HERE)] * 3, HERE.num_items)
  first, second, third = (member.algorithm for member in made.members)
  assert first is second is not third
  assert first.score is third.score


def test_a_shared_trip_count_keeps_a_loop_from_selecting_its_carry():
  counts, start = jnp.array([[1, 2], [5, 3]]), jnp.zeros((2, 3))

  def loop(trips):
    def run_loop(count, carry):
      return jax.lax.fori_loop(0, trips(count), lambda i, x: x + 1, carry)
    return jax.vmap(run_loop)

  # The condition is one, and not one for each lane.
  shared = str(jax.make_jaxpr(loop(most))(counts, start))
  assert 'bool[] = lt' in shared and 'bool[2] = lt' not in shared
  np.testing.assert_array_equal(loop(most)(counts, start), 5)
  # The control: that is what a trip count for each lane compiles to.
  own = str(jax.make_jaxpr(loop(lambda count: count.max()))(counts, start))
  assert 'bool[2] = lt' in own


# --- What may share a program -------------------------------------------------


@pytest.mark.parametrize(('changes', 'shares'), [
    ({'client.learning_rate': 9.0}, True),
    ({'client.proximal_mu': 0.0}, False),  # A program without the term.
    ({'privacy.noise_multiplier': 3.0}, True),
    ({'privacy.noise_multiplier': 0.0}, False),
    ({'l2': 0.0}, False), ({'l2': 0.5}, True), ({'clip': 0.1}, True),
    ({'seed': 8}, True), ({'mode': 'auto'}, False)])
def test_scalars_and_seeds_share_a_program_and_the_rest_does_not(
    changes, shares):
  assert (study_fields.program_key(make_config(**changes))
          == study_fields.program_key(make_config())) == shares


def test_every_traceable_field_exists_and_is_a_number():
  for name in (*study_fields.TRACEABLE, *study_fields.TRACEABLE_PRIVACY):
    value = study_fields.read_field(config.Config(), name)
    assert isinstance(value, float), name


def test_a_traced_copy_leaves_the_config_alone_and_keeps_its_switches():
  before = make_config()
  value = object()  # As a tracer, it compares to nothing.
  copy = study_fields.trace_fields(before, {
      'privacy.noise_multiplier': value, 'privacy.l2_clip_norm': value,
      'seed': value})
  assert copy.privacy.noise_multiplier is copy.seed is value
  assert copy.privacy.enabled is copy.privacy.clips is True
  assert before == make_config()


@pytest.mark.parametrize(('settings', 'populations', 'message'), [
    ([make_config(), make_config(l2=0.0)], [HERE, HERE], 'program_key'),
    ([make_config(mode='pmap')], [HERE], 'parallel.mode=pmap'),
    ([make_config(), make_config(1)],
     [HERE, oracles.make_population(COUNTS[:-1], 40, seed=2)],
     'equally many clients')])
def test_what_cannot_share_a_program_is_refused_before_anything_compiles(
    settings, populations, message):
  before = dict(work)
  with pytest.raises(ValueError, match=message):
    study.make_study(settings, list(map(training, populations)), 40)
  assert work == before


def test_a_members_bytes_grow_with_what_it_holds():
  def size(**changes):
    settings = dataclasses.replace(
        make_config(), **changes) if changes else make_config()
    return study.member_bytes(settings, np.array(COUNTS), 40)

  assert size(model=config.ModelConfig(dim=30)) > 4 * size()
  # At least the tables of values and of Adam's two moments, and their sum.
  assert size() > 4 * 40 * 4 * 4


def test_slots_hold_the_blocks_of_every_member(monkeypatch):
  """A member's large clients and another's small ones stand side by side."""
  population = oracles.make_population([2] * 12 + [6] * 12 + [12] * 12, 4000,
                                       seed=4)
  settings = [dataclasses.replace(
      make_config(seed, **{'privacy.noise_multiplier': 0.0}),
      server=plain.server(learning_rate=0.3),
      cohort=plain.cohort(size=4),
      engine=config.EngineConfig(
          block_size=2, num_size_classes=3, rounds_per_call=3))
              for seed in range(6)]
  chosen = []

  def run_with(choose):
    monkeypatch.setattr(study, 'choose_num_slots', choose)
    made = study.make_study(settings, [training(population)] * 6, 4000)
    return made.run(made.init(), 0, 3)[0].server.item_table, made

  def no_slots(*args):
    chosen.append((choose_num_slots(*args), args))
    return 0

  table, made = run_with(no_slots)
  slots, (_, _, capacities, blocks, block_size) = chosen[0]
  assert slots
  # More than the largest cohort of one member needs, or the test says nothing.
  walked = np.asarray(made.plan(0, 3).num_blocks)
  assert (walked @ capacities).max() > most_blocks(
      np.diff(population.offsets), capacities, block_size, 4) @ capacities
  assert (walked <= blocks).all()
  with_slots, _ = run_with(choose_num_slots)
  close(with_slots, table)
