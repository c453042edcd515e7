"""One small sweep, whole: run, interrupted, resumed, and what it leaves."""

import csv
import dataclasses
import json
import pathlib
import shutil
import types

import numpy as np
import pytest

from fedjaxrec import cli
from fedjaxrec import config as config_lib
from fedjaxrec.orchestration import experiment, secure, study_runs
from fedjaxrec.orchestration import sweep as sweep_lib
from fedjaxrec.reports import run_directory, sweep_directory
from tests.small_runs import make_config, read_lines, snapshot

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PRESET = ROOT / 'scripts' / 'quick_sweep.flags'
# The preset has 40 users: a rank that float order flips moves a mean by less
# than 1/40; two of them are allowed.
ATOL = 0.05


def sweep(workdir, *arguments):
  return cli.main(
      ['fedjaxrec', 'sweep', f'--workdir={workdir}', '--noprogress',
       *arguments])


def of_preset(workdir, *arguments):
  return sweep(workdir, f'--flagfile={PRESET}', '--parallel.mode=single',
               *arguments)


def read(folder, name='summary.json'):
  return json.loads((folder / name).read_text())


def members(workdir):
  return sorted((workdir / 'members').iterdir())


def shape(value):
  """The keys of nested dicts, and the types of what they hold."""
  if isinstance(value, dict):
    return {key: shape(inner) for key, inner in value.items()}
  if isinstance(value, list):
    return [shape(inner) for inner in value]
  return float if isinstance(value, (int, float)) else type(value)


def assert_same_results(left, right):
  assert left['test'].keys() == right['test'].keys()
  for section in ('test', 'controls'):
    for name, metrics in left[section].items():
      if isinstance(metrics, dict) and right[section][name] is not None:
        for metric, value in metrics.items():
          if metric != 'ci95':
            assert right[section][name][metric] == pytest.approx(
                value, abs=ATOL), (section, name, metric)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('sweep') / 'done'
  assert of_preset(workdir) == 0
  return workdir


def test_six_members_are_one_program_and_each_is_a_run(done):
  found = read(done, 'sweep.json')
  assert found['programs'] == [[0, 1, 2, 3, 4, 5]]
  assert [(m['values'], m['seed']) for m in found['members']] == [
      ({'server.learning_rate': rate}, seed) for rate in (0.02, 0.05)
      for seed in (0, 1, 2)]
  for index, folder in enumerate(members(done)):
    config = config_lib.from_dict(read(folder, 'config.json'))
    assert config.seed == index % 3
    assert config.server.learning_rate == (0.02, 0.05)[index // 3]
    assert [line['round'] for line in read_lines(folder)] == list(range(1, 7))
  assert not (done / 'programs' / '0').exists()


def test_a_member_is_what_train_makes_of_its_config(done, tmp_path):
  folder = members(done)[4]
  config = config_lib.from_dict(read(folder, 'config.json'))
  alone = experiment.train(config, tmp_path / 'alone', progress=False).summary
  summary = read(folder)
  extra = summary.pop('program')
  assert shape(summary) == shape(json.loads(json.dumps(alone)))
  for name in ('command', 'seed', 'data', 'model', 'algorithm', 'rounds',
               'versions', 'device', 'communication', 'privacy'):
    assert summary[name] == alone[name], name
  assert summary['selected_round'] == alone['selected_round']
  assert_same_results(alone, summary)
  lines, others = (read_lines(path) for path in (folder, tmp_path / 'alone'))
  assert [line.keys() for line in lines] == [line.keys() for line in others]
  np.testing.assert_allclose(
      [line['loss'] for line in lines], [line['loss'] for line in others],
      rtol=1e-4)
  # The control: another seed is another run.
  other = [line['loss'] for line in read_lines(members(done)[3])]
  assert not np.allclose(other, [line['loss'] for line in lines], rtol=1e-3)
  # Shares sum to what the program took.
  shares = [read(path)['train_s'] for path in members(done)]
  assert sum(shares) == pytest.approx(extra['train_s'], rel=1e-3)
  assert extra['members'] == 6


def test_the_tables_and_the_page_hold_every_member(done):
  with open(done / 'sweep.csv') as file:
    rows = list(csv.DictReader(file))
  for index, folder in enumerate(members(done)):
    value, = [float(row['value']) for row in rows
              if row['member'] == f'{index:03d}'
              and row['metric'] == 'test.personalised.ndcg@10']
    assert value == read(folder)['test']['personalised']['ndcg@10']
  assert (done / 'sweep.md').read_text().count('±') > 4
  assert '</svg>' in (done / 'sweep.svg').read_text()
  page = (done / 'sweep.html').read_text()
  assert 'Plotly' in page and 'server.learning_rate' in page


def test_what_is_done_is_not_run_again(done, monkeypatch, capsys):
  def refuse(*unused):
    raise AssertionError('run again')

  monkeypatch.setattr(study_runs, 'run_program', refuse)
  before = {name: (done / name).read_bytes()
            for name in ('sweep.csv', 'sweep.md', 'sweep.svg', 'sweep.html')}
  for name in before:
    (done / name).unlink()
  # Without another flag: the grid, the seeds and the config are its own.
  assert sweep(done, '--resume') == 0
  assert {name: (done / name).read_bytes() for name in before} == before
  assert str(done / 'sweep.html') in capsys.readouterr().out


def test_a_sweep_goes_on_where_it_was_interrupted_and_a_diverged_member_alone(
    done, tmp_path, monkeypatch, capsys):
  """Two good members beside two whose learning rate is absurd."""
  look, seen = study_runs.training.take_stop, []

  def interrupted(config, member, evaluator, stop, *rest):
    seen.append(stop.round)
    if stop.round == 2:
      raise KeyboardInterrupt
    return look(config, member, evaluator, stop, *rest)

  arguments = ['--sweep.grid=client.learning_rate=0.3,1e38',
               '--sweep.seeds=0,1', '--server.learning_rate=0.05',
               '--evaluation.local_only=false', '--sweep.checkpoints']
  flags = [line for line in PRESET.read_text().splitlines()
           if line.startswith('--') and not line.startswith('--sweep.')]
  monkeypatch.setattr(study_runs.training, 'take_stop', interrupted)
  workdir = tmp_path / 'sweep'
  assert sweep(workdir, *flags, '--parallel.mode=single', *arguments) == 130
  assert f'sweep --resume --workdir={workdir}' in capsys.readouterr().err
  assert seen[0] == 0 and seen[-1] == 2
  assert not list(workdir.glob('members/*/summary.json'))

  seen.clear()
  monkeypatch.setattr(
      study_runs.training, 'take_stop', lambda config, member, evaluator, stop,
      *rest: (seen.append(stop.round), look(
          config, member, evaluator, stop, *rest))[1])
  assert sweep(workdir, '--resume', '--sweep.checkpoints') == 0
  assert seen[0] == 2  # Not from the beginning.
  states = [sweep_directory.status_of(folder) for folder in members(workdir)]
  assert states == ['done', 'done', 'diverged', 'diverged']
  assert 'has diverged' in read(members(workdir)[2], 'diverged.json')['message']
  for mine, whole in zip(members(workdir)[:2], members(done)[3:5]):
    assert [line['round'] for line in read_lines(mine)] == list(range(1, 7))
    np.testing.assert_allclose(
        [line['loss'] for line in read_lines(mine)],
        [line['loss'] for line in read_lines(whole)], rtol=1e-4)
    assert_same_results(
        read(mine) | {'controls': {}}, read(whole) | {'controls': {}})
  # With its checkpoint, a member is a run that can be ranked again.
  config = config_lib.from_dict(read(members(workdir)[0], 'config.json'))
  again = experiment.evaluate(members(workdir)[0], config.evaluation)
  assert again['test'] == read(members(workdir)[0])['test']


def test_a_member_says_of_secure_sums_what_train_says(tmp_path, monkeypatch):
  config = make_config({'secure.level': 'ideal', 'secure.bits': 16})
  alone = experiment.build(config)
  job = study_runs.make_job(config, alone.split, tmp_path)
  seen = []

  def summarise(run, *_):
    seen.append(secure.describe(
        run.secure, run.split, alone.simulation, lines))
    raise KeyboardInterrupt

  lines = [{'reported': 10, 'rejected': 1}, {'reported': 0, 'rejected': 0}]
  monkeypatch.setattr(experiment, 'summarise', summarise)
  program = study_runs._Program(
      [job], types.SimpleNamespace(members=[None]), [None], {})
  with pytest.raises(KeyboardInterrupt):
    study_runs._finish(program, 0, None, 0.0, 0.0, study_runs.DEFAULTS)
  assert seen == [secure.describe(
      alone.secure, alone.split, alone.simulation, lines)]
  assert seen[0]['bits'] == 16 and seen[0]['level'] == 'ideal'


def test_a_member_with_a_torn_summary_is_made_again_and_no_other(
    done, tmp_path, monkeypatch, caplog):
  workdir = shutil.copytree(done, tmp_path / 'sweep')
  torn = members(workdir)[1] / 'summary.json'
  torn.write_text(torn.read_text()[:200])
  others = {folder: (folder / 'summary.json').read_bytes()
            for folder in members(workdir) if folder != torn.parent}
  finished = []
  original = study_runs._finish
  monkeypatch.setattr(study_runs, '_finish', lambda program, index, *rest: (
      finished.append(index), original(program, index, *rest)))
  assert sweep(workdir, '--resume') == 0
  assert finished == [1]
  assert str(torn) in caplog.text and 'damaged' in caplog.text
  assert others == {folder: (folder / 'summary.json').read_bytes()
                    for folder in others}
  for part in ('test', 'controls'):
    assert read(torn.parent)[part] == read(members(done)[1])[part]


def test_other_data_are_no_continuation(
    done, tmp_path, capsys, monkeypatch):
  load = experiment.load_data
  monkeypatch.setattr(sweep_lib.experiment, 'load_data', lambda config: load(
      dataclasses.replace(config, split=dataclasses.replace(
          config.split, name='global_time'))))
  assert sweep(done, '--resume') == 2
  assert 'a sweep on other data' in capsys.readouterr().err
  # One of an earlier version has not said what its data were.
  old = shutil.copytree(done, tmp_path / 'old')
  found = read(old, 'sweep.json')
  assert len(found.pop('data')) == 1  # The preset's seeds share them.
  run_directory.write_json(old / 'sweep.json', found)
  assert sweep(old, '--resume') == 0


def test_what_a_later_program_refuses_is_refused_before_the_first_runs(
    tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(
      study_runs, 'run_program', lambda *_: pytest.fail('it ran'))
  flags = ['--data.source=synthetic', '--synthetic.num_users=40',
           '--synthetic.num_items=60', '--synthetic.mean_interactions=10',
           '--cohort.size=10', '--cohort.sampler=poisson',
           '--privacy.delta=1e-3', '--privacy.noise_multiplier=1',
           '--privacy.l2_clip_norm=1']
  assert sweep(tmp_path / 'x', *flags,
               '--sweep.grid=privacy.head_items=0,70') == 2
  assert 'privacy.head_items=70' in capsys.readouterr().err
  assert not (tmp_path / 'x').exists()


def test_a_torn_sweep_file_is_named_with_the_way_out(done, tmp_path, capsys):
  workdir = shutil.copytree(done, tmp_path / 'sweep')
  text = (workdir / 'sweep.json').read_text()
  (workdir / 'sweep.json').write_text(text[:-20])
  before = snapshot(workdir)
  for flag in ('--resume', '--overwrite'):
    assert sweep(workdir, flag) == 2
    error = capsys.readouterr().err
    assert 'its sweep.json is damaged' in error and error.count('\n') == 1
  assert snapshot(workdir) == before
  (workdir / 'sweep.json').write_text(text)
  assert sweep(workdir, '--resume') == 0


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--resume', '--sweep.seeds=0-3'], 'other settings or seeds'),
    (['--resume', '--sweep.grid=server.learning_rate=0.1,0.2'],
     'other settings or seeds'),
    (['--resume', '--rounds=9'], 'rounds=9 differs from the sweep'),
    (['--sweep.seeds=0,1'], 'already holds a sweep'),
    (['--resume', '--overwrite'], 'contradict each other')])
def test_another_sweep_in_its_place_is_refused(done, capsys, arguments,
                                               message):
  assert sweep(done, *arguments) == 2
  assert message in capsys.readouterr().err
  assert len(list(done.glob('members/*/summary.json'))) == 6


def test_a_run_directory_is_no_place_for_a_sweep(done, capsys):
  folder = members(done)[0]
  assert sweep(folder, '--sweep.seeds=0,1', '--overwrite') == 2
  assert 'is not a sweep directory' in capsys.readouterr().err
  assert (folder / run_directory.SUMMARY).is_file()


@pytest.mark.parametrize(('arguments', 'message'), [
    # By the data, which is read before anything compiles.
    (['--cohort.size=10', '--sweep.grid=cohort.size=10,4000'],
     'cohort.size=4000'),
    (['--cohort.size=10', '--parallel.mode=pmap', '--sweep.seeds=0,1',
      '--sweep.members_per_program=1'], 'parallel.mode=pmap'),
    (['--cohort.size=10', '--secure.level=masked', '--sweep.seeds=0,1'],
     'secure.level=masked'),
    (['--cohort.size=10', '--engine.data=host', '--sweep.seeds=0,1'],
     'engine.data=host'),
    # What a study would leave out without a word.
    (['--cohort.size=10', '--secure.level=ideal', '--secure.rows=union',
      '--sweep.seeds=0,1'], 'secure.rows=union'),
    (['--cohort.size=10', '--secure.level=ideal', '--sweep.seeds=0,1',
      '--secure.noise=skellam', '--privacy.noise_multiplier=1',
      '--privacy.l2_clip_norm=1', '--privacy.delta=1e-3'],
     'secure.noise=skellam'),
    (['--cohort.size=10', '--model.name=two_tower', '--sweep.seeds=0,1',
      '--data.item_features=x.npy'], 'model.name=two_tower')])
def test_what_the_data_or_the_devices_do_not_allow_is_refused_at_once(
    tmp_path, capsys, arguments, message):
  flags = ['--data.source=synthetic', '--synthetic.num_users=40',
           '--synthetic.num_items=60', '--synthetic.mean_interactions=10']
  assert sweep(tmp_path / 'x', *flags, *arguments) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'x').exists()
