"""New items, users and columns join a trained two-tower model."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjaxrec.data import splits
from fedjaxrec.data.feature_growth import extend
from fedjaxrec.data.features import from_columns
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.orchestration import experiment, side_inputs, training
from tests import small_runs

NUM_USERS, NUM_ITEMS, NEW_USERS, NEW_ITEMS = 24, 40, 3, 5
RNG = np.random.default_rng(0)
GENRES = np.array(['drama', 'comedy', 'war'])


def write(folder, num_users, num_items, columns):
  """Interactions and features of the first users and items, as CSV files.

  User u likes items of genre u % 3, and goes on with what it had, so that an
  old answer is not asked twice; new things come first in the files' id
  order, so that every old one has another dense id afterwards.
  """
  rng = np.random.default_rng(1)
  rows = ['user_id,item_id,timestamp']
  for u in range(num_users):
    liked = [i for i in range(NUM_ITEMS if u < NUM_USERS else num_items)
             if i % 3 == u % 3]
    for t, i in enumerate(rng.permutation(liked)[:8]):
      rows.append(f'{name(u, NUM_USERS)},{name(i, NUM_ITEMS)},{t}')
  seen = {row.split(',')[1] for row in rows[1:]}
  for i in range(num_items):  # Every item is somewhere.
    if name(i, NUM_ITEMS) not in seen:
      rows.append(f'{name(i % 3, NUM_USERS)},{name(i, NUM_ITEMS)},0')
  (folder / 'data.csv').write_text('\n'.join(rows) + '\n')
  items = ['item_id,genre,year' + (',studio' if columns else '')]
  for i in range(num_items):
    genre = 'anime' if i >= NUM_ITEMS else GENRES[i % 3]
    items.append(f'{name(i, NUM_ITEMS)},{genre},{1950 + i}'
                 + (f',s{i % 2}' if columns else ''))
  (folder / 'items.csv').write_text('\n'.join(items) + '\n')
  users = ['user_id,age', *(
      f'{name(u, NUM_USERS)},{20 + 3 * u}' for u in range(num_users))]
  (folder / 'users.csv').write_text('\n'.join(users) + '\n')


def name(i, num_old):
  return f'a{i}' if i >= num_old else f'b{i:02}'


def make_config(folder, **changes):
  return small_runs.make_config({
      'data.source': f'csv:{folder}/data.csv', 'data.rating_column': '',
      'data.user_features': f'{folder}/users.csv',
      'data.item_features': f'{folder}/items.csv',
      'model.name': 'two_tower', 'cohort.size': 12, 'rounds': 4,
      'two_tower.item_hidden': [4], **changes})


@pytest.fixture(scope='module')
def grown(tmp_path_factory):
  """(old run's folder, grown config): trained, and three more of everything."""
  root = tmp_path_factory.mktemp('grown')
  for part in ('before', 'after'):
    (root / part).mkdir()
  write(root / 'before', NUM_USERS, NUM_ITEMS, columns=False)
  write(root / 'after', NUM_USERS + NEW_USERS, NUM_ITEMS + NEW_ITEMS,
        columns=True)
  experiment.train(
      make_config(root / 'before'), root / 'old', progress=False)
  return root, make_config(
      root / 'after', **{'two_tower.start': str(root / 'old'),
                         'two_tower.frozen': True, 'rounds': 3})


def scores_of(run, best):
  score = jax.jit(jax.vmap(run.simulation.algorithm.score, (0, None, None)))
  return np.asarray(score(best.personal, best.item_table, best.shared))


def assert_old_scores_stand(before, after, old, new):
  """Of all pairs of an old user and an old item, bit for bit."""
  split, grown_split = old.split.train, new.split.train
  users = [list(grown_split.user_ids).index(u) for u in split.user_ids]
  items = [list(grown_split.item_ids).index(i) for i in split.item_ids]
  np.testing.assert_array_equal(after[np.ix_(users, items)], before)
  return np.setdiff1d(np.arange(grown_split.num_items), items)


def test_old_scores_stand_bit_for_bit_and_new_items_are_scored(grown):
  root, config = grown
  old, old_best, _ = experiment.load_trained(root / 'old')
  new = experiment.build(config)
  state = side_inputs.grow_state(
      config, new.simulation, old_best, new.grown.places)
  best = training.snapshot(new.simulation, state, 0, -1.0)
  before, after = scores_of(old, old_best), scores_of(new, best)
  fresh = assert_old_scores_stand(before, after, old, new)
  assert len(fresh) == NEW_ITEMS and np.isfinite(after).all()
  # By features alone: no two users or new items are alike, no row is used.
  assert (best.item_table['item'][fresh] == 0).all()
  assert len(np.unique(after[0, fresh])) == NEW_ITEMS
  # A model that starts anew has other scores: the check can fail.
  start = training.start_afresh(new.simulation).best
  assert (scores_of(new, start) != after).any()


def test_training_on_moves_only_what_is_new(grown, tmp_path):
  root, config = grown
  result = experiment.train(config, tmp_path / 'new', progress=False)
  assert result.summary['rounds'] == 3
  old, old_best, _ = experiment.load_trained(root / 'old')
  new, best, _ = experiment.load_trained(tmp_path / 'new')
  fresh = assert_old_scores_stand(
      scores_of(old, old_best), scores_of_old_columns(new, best), old, new)
  assert (best.item_table['item'][fresh] != 0).any()
  kernel = best.shared['item_tower']['hidden'][0]['kernel']
  known = new.grown.places.item_entries
  np.testing.assert_array_equal(
      kernel[:known], old_best.shared['item_tower']['hidden'][0]['kernel'])
  assert known < len(kernel) and (kernel[known:] != 0).any()


def scores_of_old_columns(run, best):
  """The scores with the weights of new columns put back to zero."""
  shared = jax.tree.map(np.array, best.shared)
  known = run.grown.places.item_entries
  shared['item_tower']['hidden'][0]['kernel'][known:] = 0
  return scores_of(run, best._replace(shared=shared))


def test_the_data_of_the_old_run_are_loaded_once(grown, monkeypatch):
  _, config = grown
  loaded = []
  for module in (experiment, side_inputs):
    original = module.load_split
    monkeypatch.setattr(module, 'load_split', lambda config, load=original: (
        loaded.append(config.data.source.split('/')[-2]), load(config))[1])
  run = experiment.build(config)
  stop = experiment.first_stop(run)
  assert sorted(loaded) == ['after', 'before']
  # And the model is the old run's, as when its data are loaded again.
  old, old_best, _ = experiment.load_trained(config.two_tower.start)
  assert_old_scores_stand(
      scores_of(old, old_best), scores_of(run, stop.best), old, run)


def test_a_start_that_is_refused_leaves_nothing_behind(grown, tmp_path):
  root, config = grown
  config = make_config(root / 'after', **{
      'two_tower.start': str(root / 'old'), 'model.dim': 5})
  with pytest.raises(ValueError, match='keep model.dim'):
    experiment.train(config, tmp_path / 'new', progress=False)
  assert not (tmp_path / 'new' / 'config.json').exists()
  experiment.train(grown[1], tmp_path / 'new', progress=False)


def test_without_freezing_everything_goes_on_training(grown):
  root, config = grown
  config = dataclasses.replace(config, two_tower=dataclasses.replace(
      config.two_tower, frozen=False))
  _, old_best, _ = experiment.load_trained(root / 'old')
  new = experiment.build(config)
  places = new.grown.places
  state = side_inputs.grow_state(config, new.simulation, old_best, places)
  state, _ = new.simulation.run(state, 0, 2)
  rows = places.items[places.items >= 0]
  moved = np.asarray(state.server.item_table['item'])[places.items >= 0]
  assert (moved != old_best.item_table['item'][rows]).any()


@pytest.mark.parametrize(('changes', 'message'), [
    ({'model.dim': 5}, 'keep model.dim'),
    ({'two_tower.item_hidden': [6]}, 'keep model.dim'),
    ({'two_tower.personal_vector': False}, 'keep other parameters'),
    ({'two_tower.item_hidden': []}, 'other towers'),
])
def test_another_model_is_refused(grown, changes, message):
  root, config = grown
  config = make_config(
      root / 'after', **{'two_tower.start': str(root / 'old'), **changes})
  _, best, _ = experiment.load_trained(root / 'old')
  new = experiment.build(config)
  with pytest.raises(ValueError, match=message):
    side_inputs.grow_state(config, new.simulation, best, new.grown.places)


def test_a_folder_that_holds_no_such_run_is_refused(grown, tmp_path):
  root, config = grown
  def start(folder, **changes):
    return experiment.build(make_config(
        root / 'after', **{'two_tower.start': str(folder), **changes}))
  with pytest.raises(FileNotFoundError, match='--workdir of a run'):
    start(tmp_path)
  with pytest.raises(ValueError, match='other way round'):
    start(root / 'old', **{'data.user_features': ''})
  with pytest.raises(ValueError, match='two_tower.start'):
    make_config(root / 'after', **{
        'two_tower.start': 'x', 'model.name': 'mf', 'data.user_features': '',
        'data.item_features': ''})


@pytest.mark.parametrize('changes', [
    {'split.name': 'item_holdout'},
    {'split.name': 'user_ratio', 'split.validation_fraction': 0.3,
     'split.test_fraction': 0.3},
])
def test_a_run_that_knows_the_answers_is_no_start(grown, changes):
  root, _ = grown
  config = make_config(
      root / 'after', **{'two_tower.start': str(root / 'old'), **changes})
  with pytest.raises(ValueError, match='trained on [0-9]+ of the') as error:
    experiment.build(config)
  assert str(error.value).endswith('or train anew.')


def test_known_answers_are_counted_by_ids_in_each_part():
  def split(ids, *parts, user=0):  # Of the things of one of two users.
    return splits.Split('leave_one_out', *(
        Interactions(
            np.array([0, len(part) * (1 - user), len(part)]),
            np.array(part, np.int32),
            np.ones(len(part), np.float32), np.arange(len(part)),
            np.array(['u', 'v']), np.array(list(ids))) for part in parts))

  config = make_config('.', **{'two_tower.start': 'old'})
  old = split('abcd', [0, 1], [2], [3], [])

  def check(*parts, user=0):
    new = split('xdcba', *parts, user=user)
    side_inputs._refuse_known_answers(
        config, old, new, np.array([-1, 3, 2, 1, 0]), np.array([0, 1]))

  check([], [2], [1], [])  # As they were.
  check([4, 3], [1], [0], [])  # One more came.
  check([], [3], [4], [], user=1)  # What another user had.
  for parts, message in [
      (([], [1], [4, 3], []), 'trained on 2 of the 2 test'),
      (([], [3, 1], [], []), 'trained on 1 of the 2 validation'),
      (([], [1], [2], []), 'selected by 1 of the 1 test')]:
    with pytest.raises(ValueError, match=message):
      check(*parts)


def test_old_entries_keep_their_meaning_and_new_ones_come_after():
  known = from_columns({
      'year': np.array([1990.0, 2000.0]), 'genre': ['war', 'drama'],
      'tags': ['x|y', 'y|x']})
  grown = from_columns({
      'tags': ['y|a', 'x|y', 'y|x'], 'new': np.array([1.0, 2.0, 3.0]),
      'year': np.array([np.nan, 1990.0, 2000.0]),
      'genre': ['anime', 'war', 'drama']})
  matrix, num_known = extend(known, grown, 'item')
  np.testing.assert_array_equal(matrix[1:, :num_known], known.matrix())
  # The new row: an unknown year, no known genre, the tag y.
  np.testing.assert_array_equal(matrix[0, :num_known], [0, 0, 0, 0, 1])
  # After them: year=missing, genre=anime, tags=a, new.
  np.testing.assert_array_equal(matrix[:, num_known:-1], [
      [1, 1, 1], [0, 0, 0], [0, 0, 0]])
  np.testing.assert_allclose(
      matrix[:, -1], [-1.5**0.5, 0, 1.5**0.5], rtol=1e-6)
  with pytest.raises(ValueError, match="column 'year' that the trained"):
    extend(known, from_columns({'genre': ['war']}), 'item')
  with pytest.raises(ValueError, match='is of kind number'):
    extend(known, from_columns({
        'year': np.zeros(1), 'genre': np.zeros(1), 'tags': ['x|y']}), 'item')


def test_two_towers_over_a_secure_sum_say_what_was_sent(grown, tmp_path):
  # Features are read after the config: a message is as long with them as the
  # model that the server holds.
  root, _ = grown
  result = experiment.train(
      make_config(root / 'before', **{
          'secure.level': 'ideal', 'server.row_normalization': 'mean',
          'rounds': 1}), tmp_path / 'ideal', progress=False)
  secure = result.summary['secure']
  server = experiment.load_trained(root / 'old')[1]
  assert secure['dimension'] == sum(
      np.size(x) for x in jax.tree.leaves((server.item_table, server.shared)))
