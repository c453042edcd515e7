"""Features and moments from the files to the ranking, and across a resume."""

import jax
import numpy as np
import pytest

from fedjaxrec.data.context import encode_moments
from fedjaxrec.orchestration import experiment, side_inputs
from fedjaxrec.orchestration.evaluator import make_evaluator
from fedjaxrec.study import make_study
from tests import small_runs


@pytest.fixture(scope='module')
def make_config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('features')
  rng = np.random.default_rng(0)
  for name, rows in (('users', 40), ('items', 60)):
    np.save(folder / f'{name}.npy', rng.normal(0, 1, (rows, 3)))

  def make(**changes):
    return small_runs.make_config({
        'model.name': 'two_tower', 'two_tower.context': True,
        'data.user_features': f'{folder}/users.npy',
        'data.item_features': f'{folder}/items.npy',
        'split.name': 'item_holdout', **changes})

  return make


def test_a_resumed_run_is_the_whole_one_and_reads_features(
    make_config, tmp_path):
  experiment.train(make_config(), tmp_path / 'whole', progress=False)
  experiment.train(
      make_config(rounds=4), tmp_path / 'parts', progress=False)
  experiment.train(make_config(), tmp_path / 'parts', resume=True,
                   progress=False)
  small_runs.assert_same_run(tmp_path / 'whole', tmp_path / 'parts')
  run, best, _ = experiment.load_trained(tmp_path / 'whole')
  known = best.personal['user_features'].values
  assert known.shape == (40, 3) and np.abs(known.mean(0)).max() < 1e-6
  # Items of validation and test join after training.
  new = run.simulation.side.new_items
  np.testing.assert_array_equal(new, np.bincount(
      run.split.train.items, minlength=run.split.num_items) == 0)
  assert (best.item_table['item'][new] == 0).all()


def test_an_evaluator_asks_at_the_moment_of_what_is_held_out(make_config):
  run = experiment.build(make_config(**{'split.name': 'leave_one_out'}))
  side = run.simulation.side
  split = run.split
  shown = (split.train, split.fold_in)
  np.testing.assert_array_equal(
      side.train_moments, encode_moments(split.train))
  # One interaction each, so that a user's moment is that one's.
  there = split.test.counts > 0
  np.testing.assert_array_equal(
      side.test_moments[there],
      encode_moments(split.test, (*shown, split.validation)))
  state = run.simulation.init()
  server = state.server
  arguments = (run.simulation.personal_by_client(state), {
      name: np.asarray(x) for name, x in server.item_table.items()},
      server.shared)
  asked = run.evaluator.validate(*arguments)
  later = run.simulation._replace(side=side._replace(
      validation_moments=(side.validation_moments + 84) % 168))
  other = make_evaluator(run.config, split, later).validate(*arguments)
  assert asked != other
  same = make_evaluator(run.config, split, run.simulation)
  assert asked == same.validate(*arguments)


def test_a_source_without_times_has_no_context(make_config, tmp_path):
  rows = [f'{u},{i}' for u in range(12) for i in range(u % 3, 30, 2)]
  (tmp_path / 'data.csv').write_text('user_id,item_id\n' + '\n'.join(rows))
  with pytest.raises(ValueError, match='context features need the time'):
    experiment.build(make_config(**{
        'data.source': f'csv:{tmp_path}/data.csv', 'data.rating_column': '',
        'data.timestamp_column': '', 'split.name': 'leave_one_out'}))


def test_local_privacy_counts_the_towers_among_what_travels(make_config):
  run = experiment.build(make_config(**{
      'local_privacy.mechanism': 'laplace', 'local_privacy.epsilon': 4.0,
      'local_privacy.head_items': 10}))
  server, _, _ = run.simulation.shapes()
  towers = sum(x.size for x in jax.tree.leaves(server.shared))
  # Beside them ten rows of a vector and a bias.
  assert towers and run.private.plan.dimension == 10 * 5 + towers


def test_a_study_refuses_features(make_config):
  config = make_config()
  split = experiment.load_data(config).train
  with pytest.raises(ValueError, match='model.name=two_tower in a study'):
    make_study([config], [(split.offsets, split.items, split.ratings)],
               split.num_items)


def test_other_models_have_no_side_inputs():
  config = small_runs.make_config()
  assert side_inputs.load_side_inputs(
      config, experiment.load_data(config)) == (None, None)
