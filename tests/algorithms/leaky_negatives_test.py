"""The published leak: as leaky as published, labelled, never by accident."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.algorithms.leaky_negatives import held_out_items
from fedjaxrec.algorithms.registry import build_algorithm
from fedjaxrec.algorithms.whole_table import draw_whole
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.orchestration import experiment
from fedjaxrec.population import Client
from fedjaxrec.reports.tables import LEAKING, describe_protocol
from fedjaxrec.simulation import make_parts, make_simulation
from tests.small_runs import chance_bound, make_config, random_split

K = 10
NUM_USERS, NUM_ITEMS, NUM_TRAIN = 120, 130, 12
LEAKY = {'objective.negative_pool': 'pfedrec-leaky'}
PFEDREC = {
    'algorithm.name': 'pfedrec', 'model.name': 'pfedrec', 'model.dim': 8,
    'model.init_scale': 1.0, 'pfedrec.lr_eta': 80.0, 'rounds': 10,
    'cohort.size': 0, 'objective.num_negatives': 4,
    'client.learning_rate': 0.1, 'client.batch_size': 51,
    'server.optimizer': 'sgd', 'server.learning_rate': 1.0,
    'evaluation.every': 0, 'checkpoint.every': 0,
    'evaluation.local_only': True}
ITEMS = np.array([3, 7, 20, 21, 22, 41, NUM_ITEMS, NUM_ITEMS], np.int32)
CLIENT = Client(jnp.int32(5), jnp.int32(6), jnp.asarray(ITEMS),
                jnp.ones(8, jnp.float32))
SPARED = np.array([4, 60, NUM_ITEMS], np.int32)


def count(draw, draws=400):
  """How often each item is a negative of CLIENT in so many rounds."""
  keys = jax.random.split(jax.random.key(0), draws)
  drawn = jax.vmap(draw)(keys)
  return drawn, np.bincount(
      np.asarray(drawn)[:, :, 1:].ravel(), minlength=NUM_ITEMS + 1)


class TestDraw:

  def test_the_leak_spares_the_held_out_items_and_nothing_else(self):
    drawn, counts = count(jax.jit(lambda key: draw_whole(
        CLIENT, key, NUM_ITEMS, 4, spared=jnp.asarray(SPARED)).slots))
    drawn = np.asarray(drawn)
    np.testing.assert_array_equal(
        np.sort(drawn[:, :6, 0], 1), np.tile(ITEMS[:6], (400, 1)))
    assert (drawn[:, 6:] == NUM_ITEMS).all()
    never = {*ITEMS[:6].tolist(), 4, 60}
    pool = [i for i in range(NUM_ITEMS) if i not in never]
    assert counts[list(never)].sum() == 0
    # 9,600 draws from 122 items: below chance_bound of each other.
    expected = 400 * 6 * 4 / len(pool)
    assert counts[pool].sum() == 400 * 6 * 4
    assert counts[pool].max() <= chance_bound(expected)
    assert counts[pool].min() > 0
    # With replacement, as released: some of 24 draws repeat in most rounds.
    repeats = [len(set(d.ravel())) < 24 for d in drawn[:, :6, 1:]]
    assert np.mean(repeats) > 0.8

  @pytest.mark.parametrize('name', ['pfedrec', 'fedrecon', 'fedrap'])
  def test_no_other_draw_spares_them(self, name):
    config = make_config({**PFEDREC, 'algorithm.name': name})
    draw = build_algorithm(config, build_recommender(
        config.model, NUM_ITEMS), NUM_ITEMS).draw
    drawn, counts = count(jax.jit(lambda key: (
        lambda e: e.slots if hasattr(e, 'slots') else e.rows)(
            draw(CLIENT, key))))
    assert counts[ITEMS[:6]].sum() == 0
    expected = 400 * 24 / (NUM_ITEMS - 6)
    # Bernstein, as in chance_bound, to the other side.
    assert counts[[4, 60]].min() >= 2 * expected - chance_bound(expected)
    assert all(len(set(d.ravel())) == 24 for d in np.asarray(drawn)[:, :6, 1:])

  def test_repeated_draws_alone_leak_nothing(self):
    drawn, counts = count(jax.jit(lambda key: draw_whole(
        CLIENT, key, NUM_ITEMS, 4, repeated=True).slots))
    expected = 400 * 24 / (NUM_ITEMS - 6)
    assert counts[ITEMS[:6]].sum() == 0
    assert counts[[4, 60]].min() >= 2 * expected - chance_bound(expected)
    assert len(set(np.asarray(drawn)[0, :6, 1:].ravel())) < 24

  def test_held_out_items_stand_side_by_side(self):
    offsets = np.array([0, 1, 1, 3])
    np.testing.assert_array_equal(
        held_out_items([(offsets, np.array([5, 6, 7])),
                        (np.array([0, 0, 1, 1]), np.array([8]))], 9),
        [[5, 9, 9], [9, 9, 8], [6, 7, 9]])


class TestAccident:

  def test_the_default_pool_is_sound(self):
    assert not config_lib.Config().objective.leaks

  @pytest.mark.parametrize('changes', [
      {'algorithm.name': 'fedavg', 'model.name': 'mf'},
      {'algorithm.name': 'fedrap'}, {'split.name': 'global_time'}])
  def test_it_is_refused_where_nothing_was_published(self, changes):
    with pytest.raises(ValueError, match='use objective.negative_pool=unseen'):
      make_config({**PFEDREC, **LEAKY, **changes})

  def test_repeated_draws_are_refused_where_slots_hold_rows(self):
    with pytest.raises(ValueError, match='use false, or algorithm'):
      make_config({'objective.repeated_negatives': True})

  def test_a_run_that_is_not_told_of_them_is_refused_and_not_mislabelled(self):
    config = make_config({**PFEDREC, **LEAKY})
    split = random_split(8, NUM_ITEMS, NUM_TRAIN)
    with pytest.raises(ValueError, match='only `fedjaxrec train` hands them'):
      make_simulation(config, split.train.offsets, split.train.items,
                      split.train.ratings, NUM_ITEMS)
    with pytest.raises(ValueError, match='objective.negative_pool=unseen'):
      make_parts(config, build_recommender(config.model, NUM_ITEMS), NUM_ITEMS)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Pure noise, trained under either pool: {leaks: (folder, summary)}."""
  split = random_split(NUM_USERS, NUM_ITEMS, NUM_TRAIN)
  done = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment, 'load_split', lambda config: split)
    for leaks in (False, True):
      folder = tmp_path_factory.mktemp('run')
      config = make_config({**PFEDREC, **(LEAKY if leaks else {})})
      done[leaks] = folder, experiment.train(
          config, folder, overwrite=True, progress=False).summary
  return done


class TestRun:

  def hits(self, metrics):
    return round(metrics[f'hit_rate@{K}'] * metrics['num_users'])

  def test_a_client_alone_finds_what_the_leak_spares(self, runs):
    """And, with the leak switched off, no more than chance gives."""
    bound = chance_bound(NUM_USERS * K / (NUM_ITEMS - NUM_TRAIN - 1))
    for leaks, (_, summary) in runs.items():
      alone = self.hits(summary['controls']['local_only'])
      assert alone > 0.9 * NUM_USERS if leaks else alone <= bound
      if not leaks:
        assert self.hits(summary['test']['personalised']) <= bound
      assert self.hits(summary['controls']['popularity']) <= bound

  def test_it_is_labelled_wherever_it_prints(self, runs):
    for leaks, (folder, summary) in runs.items():
      protocol = summary['test']['protocol']
      assert ('pfedrec-leaky' in protocol) == leaks
      assert (LEAKING in describe_protocol(protocol)) == leaks
      report = (folder / 'report.html').read_text()
      assert (LEAKING in report) == leaks

  def test_it_is_logged(self, monkeypatch):
    split = random_split(8, NUM_ITEMS, NUM_TRAIN)
    config = make_config({**PFEDREC, **LEAKY})
    logged = []
    monkeypatch.setattr(
        experiment.logging, 'warning', lambda text, *_: logged.append(text))
    experiment._spared_items(config, split)
    assert len(logged) == 1 and 'LEAKS' in logged[0]
    sound = dataclasses.replace(config, objective=dataclasses.replace(
        config.objective, negative_pool='unseen'))
    assert experiment._spared_items(sound, split) is None
    assert len(logged) == 1
