"""Invariant 6: a run continued from a checkpoint is the uninterrupted run."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.orchestration import experiment
from tests import oracles
from tests.small_runs import (
  assert_same_run,
  make_config,
  read_arrays,
  read_lines,
  snapshot,
  timeless,
)

CONFIG = make_config()  # Six rounds; all is due every second one.


class Interrupted(Exception):
  """Stands for whatever ends a process."""


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The uninterrupted run."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  experiment.train(CONFIG, workdir, progress=False)
  return workdir


@pytest.fixture
def copy(whole, tmp_path):
  """A copy of it."""
  return shutil.copytree(whole, tmp_path / 'copy')


def train_until(workdir, round_index, config=CONFIG, saved=True):
  """A run that ends when a checkpoint is, or would be, written."""
  real = experiment.open_store

  def open_store(*args):
    store = real(*args)

    def save(r, checkpoint):
      if r < round_index or saved:
        store.save(r, checkpoint)
      if r == round_index:
        raise Interrupted
    return store._replace(save=save)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment, 'open_store', open_store)
    with pytest.raises(Interrupted):
      experiment.train(config, workdir, progress=False)
  assert not (workdir / 'summary.json').exists()
  return workdir


def resume(workdir, config=CONFIG):
  return experiment.train(config, workdir, resume=True, progress=False)


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory):
  """A run that ended after its checkpoint of round 4."""
  return train_until(tmp_path_factory.mktemp('interrupted') / 'run', 4)


class TestSameRun:

  def test_interrupted_after_a_checkpoint(self, interrupted, whole, tmp_path):
    workdir = shutil.copytree(interrupted, tmp_path / 'run')
    assert len(read_lines(workdir)) == 4
    resume(workdir)
    assert_same_run(workdir, whole)
    folders = [{path.name for path in (folder / 'checkpoints').iterdir()}
               for folder in (workdir, whole)]
    assert folders[0] == folders[1] == {'2', '4', '6'}

  def test_interrupted_between_logging_and_checkpoint(self, whole, tmp_path):
    """Rounds 3 and 4 are run again, and their lines are not there twice."""
    workdir = train_until(tmp_path / 'run', 4, saved=False)
    assert len(read_lines(workdir)) == 4
    resume(workdir)
    assert_same_run(workdir, whole)

  def test_interrupted_before_any_checkpoint(self, whole, tmp_path):
    workdir = train_until(tmp_path / 'run', 2, saved=False)
    resume(workdir)
    assert_same_run(workdir, whole)

  def test_interrupted_while_a_checkpoint_was_written(self, copy, whole):
    """Orbax's temporary folder with some of the files, and half a line."""
    folder = copy / 'checkpoints'
    unfinished = folder / '6.orbax-checkpoint-tmp'
    (folder / '6').rename(unfinished)
    for path in sorted(unfinished.rglob('*'))[::2]:
      if path.is_file():
        path.unlink()
    (copy / 'summary.json').unlink()
    lines = (copy / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (copy / 'metrics.jsonl').write_text(''.join(lines[:5]) + lines[5][:20])
    resume(copy)
    assert_same_run(copy, whole)

  def test_every_part_of_the_state_is_needed(self, whole, copy, monkeypatch):
    """Positive control: what is forgotten is noticed."""
    shutil.rmtree(copy / 'checkpoints' / '6')
    real = experiment.open_store

    def open_store(*args):
      store = real(*args)

      def restore(like):
        round_index, checkpoint = store.restore(like)
        server = checkpoint.server._replace(item_opt_state=jax.tree.map(
            np.zeros_like, checkpoint.server.item_opt_state))
        return round_index, checkpoint._replace(server=server)
      return store._replace(restore=restore)

    monkeypatch.setattr(experiment, 'open_store', open_store)
    resume(copy)
    with pytest.raises(AssertionError):
      assert_same_run(copy, whole)

  def test_a_new_directory_begins_a_run(self, whole, tmp_path):
    resume(tmp_path / 'new')
    assert_same_run(tmp_path / 'new', whole)


def test_a_finished_run_continued_is_left_as_it_is(copy, whole):
  kept = snapshot(copy / 'checkpoints')
  lines = (copy / 'metrics.jsonl').read_text()
  summary = resume(copy).summary
  assert snapshot(copy / 'checkpoints') == kept
  assert (copy / 'metrics.jsonl').read_text() == lines
  old = json.loads((whole / 'summary.json').read_text())
  assert timeless(summary) == timeless(old)
  # The seconds in rounds are the whole run's, not this process's.
  for name in ('train_s', 'clients_per_s', 'examples_per_s'):
    assert summary[name] == old[name]


def test_a_finished_run_is_continued_to_more_rounds(whole, tmp_path):
  workdir = tmp_path / 'run'
  experiment.train(dataclasses.replace(CONFIG, rounds=4), workdir,
                   progress=False)
  assert resume(workdir).summary['rounds'] == 6
  assert_same_run(workdir, whole)
  assert json.loads((workdir / 'config.json').read_text())['rounds'] == 6


@pytest.mark.parametrize('changes', [
    {'engine.block_size': 3, 'engine.num_size_classes': 2,
     'engine.rounds_per_call': 1},
    {'parallel.mode': 'pmap', 'parallel.num_devices': 2},
])
def test_it_goes_on_with_other_blocks_or_devices(
    changes, interrupted, whole, tmp_path):
  """Up to the order of sums: two rounds, each a sum over ten clients."""
  workdir = shutil.copytree(interrupted, tmp_path / 'run')
  summary = resume(workdir, make_config(changes)).summary
  arrays, expected = read_arrays(workdir), read_arrays(whole)
  # The server's Adam divides a gradient by its root: an error comes out as
  # large as learning rate / eps = 50 times, relative to the gradient.
  atol = oracles.tolerance(steps=2, roundings=10 + 4 + 12, gain=50)
  assert atol < 2e-4
  for name, leaf in expected.items():
    np.testing.assert_allclose(arrays[name], leaf, rtol=0, atol=atol)
  moved = read_arrays(whole, 4)  # Positive control: two rounds move more.
  assert max(np.abs(moved[name] - leaf).max()
             for name, leaf in expected.items()
             if leaf.dtype == np.float32) > 10 * atol
  lines, old = read_lines(workdir), read_lines(whole)
  assert lines[:4] == old[:4]
  assert [line['reported'] for line in lines] == [10] * 6
  np.testing.assert_allclose(
      [line['loss'] for line in lines], [line['loss'] for line in old],
      rtol=0, atol=atol)
  old = json.loads((whole / 'summary.json').read_text())
  assert summary['selected_round'] == old['selected_round']
  assert summary['communication'] == old['communication']


def test_the_data_may_have_been_moved(copy, whole):
  """Where it lies is free: what it is, is in the checkpoint."""
  resume(copy, make_config({
      'data.cache_dir': 'elsewhere', 'data.path': 'elsewhere'}))
  assert_same_run(copy, whole)


class TestRefused:

  # One field of every part of the config that the results depend on.
  @pytest.mark.parametrize('changes', [
      {'seed': 1}, {'data.min_rating': 2.0}, {'synthetic.num_users': 41},
      {'split.name': 'user_ratio'}, {'model.dim': 5},
      {'objective.num_negatives': 3}, {'client.learning_rate': 0.2},
      {'server.b1': 0.8}, {'cohort.size': 11}, {'evaluation.ks': [5]},
  ])
  def test_another_config_is_named_and_nothing_is_touched(self, changes, copy):
    before = snapshot(copy)
    (name, value), = changes.items()
    with pytest.raises(ValueError) as error:
      resume(copy, make_config(changes))
    assert str(error.value).startswith(f'{name}={value} differs from the run')
    assert '--workdir' in str(error.value)
    assert snapshot(copy) == before

  def test_every_section_is_compared_or_declared_free(self):
    """A section added to the config must be added here, and thought about."""
    compared = {
        'seed', 'data', 'synthetic', 'split', 'model', 'algorithm', 'ials',
        'dpals', 'fcf', 'fedmf', 'fedease', 'pfedrec', 'gpfedrec', 'fedrap',
        'fedrecon', 'fedpergnn', 'cofedrec', 'ditto', 'fedrep', 'apfl', 'meta',
        'metamf', 'two_tower', 'personalization', 'objective', 'client',
        'server', 'cohort', 'compression', 'privacy', 'local_privacy', 'secure',
        'evaluation'}
    free = {'rounds', 'engine', 'parallel', 'checkpoint'}
    assert {field.name for field in dataclasses.fields(config_lib.Config)} == (
        compared | free)

  def test_fewer_rounds(self, copy):
    before = snapshot(copy)
    with pytest.raises(ValueError, match='rounds=5 is below the rounds=6'):
      resume(copy, make_config({'rounds': 5}))
    assert snapshot(copy) == before

  @pytest.mark.parametrize('side', ['client', 'server'])
  def test_more_rounds_where_a_schedule_depends_on_them(self, side, tmp_path):
    """It would have had other learning rates from the beginning."""
    changes = {f'{side}.schedule': 'cosine'}
    (tmp_path / 'config.json').write_text(
        json.dumps(config_lib.to_dict(make_config(changes))))
    with pytest.raises(ValueError, match=r'^rounds=8 differs .* has 6'):
      resume(tmp_path, make_config({'rounds': 8, **changes}))

  def test_a_damaged_checkpoint_and_the_way_out(self, copy, whole):
    """Nothing is half-read; without it the run goes on from the one before."""
    meta = copy / 'checkpoints' / '6' / 'meta' / 'metadata'
    text = meta.read_text()
    meta.write_text(text.replace('"sha256": "', '"sha256": "0'))
    assert meta.read_text() != text
    before = snapshot(copy)
    with pytest.raises(ValueError, match=r'checkpoints/6 is damaged.*delete'):
      resume(copy, make_config({'rounds': 8}))
    with pytest.raises(ValueError, match=r'checkpoints/6 is damaged'):
      experiment.evaluate(copy, CONFIG.evaluation)
    assert snapshot(copy) == before
    shutil.rmtree(copy / 'checkpoints' / '6')
    resume(copy)
    assert_same_run(copy, whole)

  def test_other_data_of_the_same_shape(self, copy, monkeypatch):
    load_split = experiment.load_split
    monkeypatch.setattr(
        experiment, 'load_split', lambda config: dataclasses.replace(
            load_split(config), fingerprint='of other data'))
    with pytest.raises(ValueError, match='checkpoints/6 was made on data'):
      resume(copy)


class TestNothingIsLost:

  def test_a_run_is_not_replaced_unasked(self, copy):
    before = snapshot(copy)
    with pytest.raises(ValueError, match='already holds a run.*--overwrite'):
      experiment.train(CONFIG, copy, progress=False)
    assert snapshot(copy) == before

  def test_overwriting_begins_anew(self, copy, whole):
    (copy / 'notes.txt').write_text("the user's")
    config = make_config({'rounds': 2})
    experiment.train(config, copy, overwrite=True, progress=False)
    assert [line['round'] for line in read_lines(copy)] == [1, 2]
    assert {path.name for path in (copy / 'checkpoints').iterdir()} == {'2'}
    assert read_lines(copy)[0] == read_lines(whole)[0]
    assert (copy / 'notes.txt').read_text() == "the user's"

  def test_a_refused_config_leaves_the_old_run(self, copy):
    """It was asked to go, but there is nothing to put in its place."""
    before = snapshot(copy)
    with pytest.raises(ValueError, match=r'cohort\.size=41'):
      experiment.train(make_config({'cohort.size': 41}), copy, overwrite=True,
                       progress=False)
    assert snapshot(copy) == before

  @pytest.mark.parametrize('kwargs', [{}, {'overwrite': True},
                                      {'resume': True}])
  def test_a_foreign_directory_is_refused(self, kwargs, tmp_path):
    (tmp_path / 'thesis.tex').write_text('...')
    (tmp_path / 'checkpoints').mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match='is not a run directory'):
      experiment.train(CONFIG, tmp_path, progress=False, **kwargs)
    assert snapshot(tmp_path) == before
