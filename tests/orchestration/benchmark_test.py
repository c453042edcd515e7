"""A benchmark end to end: a file of one's own, both sides of the federation."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest

from fedjaxrec import cli
from fedjaxrec.evaluation import controls
from fedjaxrec.orchestration import (
  benchmark,
  benchmark_methods,
  benchmark_runs,
  benchmark_tuning,
  experiment,
  grid,
)
from fedjaxrec.orchestration.benchmark_methods import Method
from tests.small_runs import as_flags, make_config, snapshot

CHANGES = {'rounds': 2, 'cohort.size': 5000, 'evaluation.every': 1,
           'evaluation.local_only': True}
METHODS = {
    'popularity': ['--benchmark.reference=popularity'],
    'ease': ['--benchmark.reference=ease', '--ease.l2=20'],
    'small': ['--benchmark.counterpart=ease', *(
        flag for flag in as_flags(CHANGES)
        if not flag.startswith(('--data.', '--synthetic.', '--parallel.')))]}
NUM_USERS, NUM_ITEMS = 30, 140


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Presets, and a CSV file of users in seven groups of other tastes."""
  folder = tmp_path_factory.mktemp('benchmark')
  rng = np.random.default_rng(0)
  rows = ['who,what,when']
  for user in range(NUM_USERS):
    items = rng.permutation(NUM_ITEMS // 7)[:12] * 7 + user % 7
    rows += [f'{user},{item},{time}' for time, item in enumerate(items)]
  (folder / 'mine.csv').write_text('\n'.join(rows) + '\n')
  presets = folder / 'presets'
  (presets / 'default').mkdir(parents=True)
  for name, lines in METHODS.items():
    (presets / 'default' / f'{name}.flags').write_text('\n'.join(lines) + '\n')
  (presets / 'search_space.txt').write_text(
      'popularity:\nease: ease.l2=1,20,1e6\nsmall: rounds=0,1,2\n')
  return folder


def run(folder, workdir, *arguments):
  return cli.main([
      'fedjaxrec', 'benchmark', f'--benchmark.datasets=csv:{folder}/mine.csv',
      '--data.user_column=who', '--data.item_column=what',
      '--data.timestamp_column=when', '--data.rating_column=',
      f'--benchmark.presets={folder}/presets', '--parallel.mode=single',
      '--evaluation.bootstrap_samples=100', '--noprogress',
      f'--data.cache_dir={folder}/cache', f'--workdir={workdir}', *arguments])


@pytest.fixture(scope='module')
def done(folder):
  """One that was killed, and went on with more methods and seeds."""
  workdir = folder / 'done'
  made = []
  original = benchmark_runs.run_method

  def kill_at(number):
    def run_method(method, split, protocols, where, progress):
      made.append((method.name, method.config.seed))
      original(method, split, protocols, where, progress)
      if len(made) == number:
        (where / 'summary.json').unlink()  # It had not come so far.
        raise KeyboardInterrupt
    return run_method

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(benchmark_runs, 'run_method', kill_at(3))
    assert run(folder, workdir, '--benchmark.methods=popularity,ease',
               '--benchmark.seeds=0,1') == 130
    before = snapshot(workdir / 'runs' / 'csv-mine.csv' / 'popularity')
    patch.setattr(benchmark_runs, 'run_method', kill_at(-1))
    assert run(folder, workdir, '--benchmark.methods=popularity,ease',
               '--benchmark.seeds=0,1', '--resume') == 0
    assert run(folder, workdir, '--benchmark.methods=small',
               '--benchmark.seeds=0', '--resume') == 0
  assert snapshot(workdir / 'runs' / 'csv-mine.csv' / 'popularity') == before
  return workdir, made


def rows_of(workdir):
  with open(workdir / 'benchmark.csv') as file:
    return {tuple(list(row.values())[1:6]): row for row in csv.DictReader(file)}


def value(workdir, *where):
  return float(rows_of(workdir)[where]['value'])


class TestRun:

  def test_what_was_done_is_not_done_again_and_more_is_added(self, done):
    workdir, made = done
    assert made == [
        ('popularity', 0), ('popularity', 1), ('ease', 0),  # Killed here.
        ('ease', 0), ('ease', 1), ('small', 0)]
    content = json.loads((workdir / 'benchmark.json').read_text())
    assert len(content['runs']) == 5

  def test_all_protocols_parameters_and_controls_are_there(self, done):
    found = {key[:3] for key in rows_of(done[0])}
    assert found == {
        (protocol, *method) for protocol in ('full', 'sampled-99')
        for method in (
            ('small', 'personalised'), ('small', 'aggregated'),
            ('small:local_only', 'personalised'),
            ('small:permuted', 'personalised'), ('ease', 'personalised'),
            ('ease:permuted', 'personalised'), ('popularity', 'aggregated'),
            ('popularity:permuted', 'aggregated'))}
    metrics = {key[4] for key in rows_of(done[0])}
    assert {'ndcg@10', 'coverage@10', 'gini@10',
            'worst_decile_ndcg@10'} <= metrics
    # Ties make fewer groups of items than five.
    assert any(name.startswith(('item_quintile_1_', 'item_group_1_of_'))
               for name in metrics)

  def test_who_knows_the_users_falls_when_test_items_are_permuted(self, done):
    ease, permuted = (
        value(done[0], 'full', name, 'personalised', '0', 'auc')
        for name in ('ease', 'ease:permuted'))
    assert ease > 0.6 > permuted + 0.05

  def test_popularity_is_what_a_run_has_as_its_control(self, done):
    summary = json.loads(next(
        (done[0] / 'runs').rglob('small/0/summary.json')).read_text())
    assert value(done[0], 'full', 'popularity', 'aggregated', '0',
                 'ndcg@10') == summary['controls']['popularity']['ndcg@10']
    other = summary['other_protocols']['sampled-99']['controls']
    assert value(done[0], 'sampled-99', 'popularity', 'aggregated', '0',
                 'ndcg@10') == other['popularity']['ndcg@10']

  def test_a_cohort_above_the_population_is_all_of_it(self, done):
    config = json.loads(next(
        (done[0] / 'runs').rglob('small/0/config.json')).read_text())
    assert config['cohort']['size'] == 0
    row = rows_of(done[0])['full', 'small', 'personalised', '0', 'ndcg@10']
    assert float(row['bytes']) > 0 and float(row['wall_s']) > 0

  def test_the_tables_and_the_page_are_there(self, done):
    assert 'csv:mine.csv' in (done[0] / 'benchmark.md').read_text()
    assert '<title>fedjaxrec benchmark' in (
        done[0] / 'benchmark.html').read_text()

  @pytest.mark.parametrize(('arguments', 'message'), [
      ([], '--resume'),
      (['--resume', '--rounds=1'], 'rounds=1 for small on csv:mine.csv'),
      (['--resume', '--evaluation.ks=10'], 'evaluation.ks'),
      (['--resume', '--benchmark.protocols=full'], 'benchmark.protocols=full'),
      (['--resume', '--benchmark.tune=2', '--benchmark.methods=ease'],
       'holds a benchmark'),
      (['--resume', '--split.name=global_time'], 'have changed')])
  def test_other_settings_or_data_are_refused(
      self, done, folder, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(
        benchmark_runs, 'run_method', lambda *_: pytest.fail('it ran'))
    before = snapshot(done[0])
    assert run(folder, done[0], '--benchmark.seeds=0', *arguments) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert message in error
    assert snapshot(done[0]) == before


def test_what_left_no_result_may_be_changed_and_new_fields_have_defaults(
    tmp_path):
  def content(**fields):
    return {'tune': 0, 'protocols': ['full'], 'datasets': {'d': 'x'}, 'runs': [
        {'dataset': 'd', 'method': 'm', 'seed': 0, 'fields': fields}]}

  changed = content(rounds=3)
  assert benchmark.merge(content(rounds=2), changed, tmp_path) == changed
  folder = tmp_path / 'runs' / 'd' / 'm' / '0'
  folder.mkdir(parents=True)
  (folder / 'summary.json').write_text('{}')
  with pytest.raises(ValueError, match='rounds=3 for m on d.* has 2'):
    benchmark.merge(content(rounds=2), changed, tmp_path)
  # A field of a later version, by its default and by another value.
  newer = content(**{'rounds': 2, 'client.epochs': 1})
  assert benchmark.merge(content(rounds=2), newer, tmp_path) == newer
  with pytest.raises(ValueError, match='client.epochs=2 .* has 1'):
    benchmark.merge(content(rounds=2), content(
        **{'rounds': 2, 'client.epochs': 2}), tmp_path)
  other = content(rounds=2) | {'datasets': {'d': 'y'}}
  with pytest.raises(ValueError, match='another d'):
    benchmark.merge(content(rounds=2), other, tmp_path)


def test_clients_train_alone_once_for_all_protocols(folder, monkeypatch):
  calls = []
  original = controls.train_local_only
  monkeypatch.setattr(
      controls, 'train_local_only',
      lambda *args, **kw: calls.append(1) or original(*args, **kw))
  assert run(folder, folder / 'alone', '--benchmark.methods=small',
             '--benchmark.seeds=0') == 0
  assert len(calls) == 1


def test_a_run_builds_one_evaluator_for_each_question(folder, monkeypatch):
  made = []
  for module in (experiment, benchmark_runs):
    original = module.make_evaluator
    monkeypatch.setattr(
        module, 'make_evaluator', lambda *args, make=original, **options: (
            made.append(args[0].evaluation.protocol),
            make(*args, **options))[1])
  assert run(folder, folder / 'evaluators', '--benchmark.methods=small',
             '--benchmark.seeds=0') == 0
  # The run's own; the other protocol; and permuted, by both.
  assert sorted(made) == ['full', 'full', 'sampled-99', 'sampled-99']


def test_torn_files_cost_the_runs_that_they_told_of_and_no_other(
    done, folder, tmp_path, monkeypatch, caplog):
  workdir = shutil.copytree(done[0], tmp_path / 'w')
  torn = next((workdir / 'runs').rglob('ease/1/summary.json'))
  before = rows_of(workdir)
  torn.write_text(torn.read_text()[:100])
  made = []
  original = benchmark_runs.run_method
  monkeypatch.setattr(
      benchmark_runs, 'run_method', lambda method, *rest: (made.append(
          (method.name, method.config.seed)), original(method, *rest)))
  assert run(folder, workdir, '--benchmark.methods=popularity,ease',
             '--benchmark.seeds=0,1', '--resume') == 0
  assert made == [('ease', 1)]
  assert 'summary.json' in caplog.text and 'damaged' in caplog.text
  assert {key: row['value'] for key, row in rows_of(workdir).items()} == {
      key: row['value'] for key, row in before.items()}


def test_a_file_that_a_method_lacks_is_a_refusal_and_no_defect(
    folder, monkeypatch):
  def run_method(method, *_):
    benchmark_methods.open_presets('/no/such/folder')

  workdir = folder / 'lacks'
  with monkeypatch.context() as patch:
    patch.setattr(benchmark_runs, 'run_method', run_method)
    patch.setattr(benchmark_runs, 'validate', run_method)
    for name, more in (('lacks', []), ('tuned-lacks', ['--benchmark.tune=1'])):
      assert run(folder, folder / name, '--benchmark.methods=popularity',
                 '--benchmark.seeds=0', *more) == 1
  assert 'seed 0: refused: benchmark.presets' in (
      workdir / 'benchmark.md').read_text()
  trial = json.loads(next((folder / 'tuned-lacks').rglob('000.json'))
                     .read_text())
  assert trial['status'] == 'refused'


def test_what_fails_is_recorded_and_the_others_go_on(folder, monkeypatch):
  original = benchmark_runs.run_method

  def run_method(method, *rest):
    if method.name == 'ease' and method.config.seed:
      raise FloatingPointError('loss=nan')
    original(method, *rest)

  monkeypatch.setattr(benchmark_runs, 'run_method', run_method)
  workdir = folder / 'fails'
  assert run(folder, workdir, '--benchmark.methods=ease',
             '--benchmark.seeds=0,1', '--benchmark.protocols=full') == 0
  assert 'seed 1: diverged: loss=nan' in (workdir / 'benchmark.md').read_text()
  assert {key[3] for key in rows_of(workdir)} == {'0'}
  assert {key[0] for key in rows_of(workdir)} == {'full'}


def test_a_defect_stops_no_other_method_and_is_tried_again(
    folder, monkeypatch):
  original = benchmark_runs.run_method

  def run_method(method, *rest):
    if method.name == 'ease':
      return np.zeros((2, 3)) @ np.zeros(2)
    return original(method, *rest)

  workdir = folder / 'ours'
  arguments = ['--benchmark.methods=ease,popularity', '--benchmark.seeds=0',
               '--benchmark.protocols=full']
  with monkeypatch.context() as patch:
    patch.setattr(benchmark_runs, 'run_method', run_method)
    assert run(folder, workdir, *arguments) == 1
  text = (workdir / 'benchmark.md').read_text()
  assert 'ease, seed 0: failed: ValueError: matmul' in text
  assert {key[1] for key in rows_of(workdir)} >= {'popularity'}
  assert run(folder, workdir, '--resume', *arguments) == 0
  assert {key[1] for key in rows_of(workdir)} >= {'popularity', 'ease'}


def test_a_catalogue_without_99_negatives_is_refused_before_anything_runs(
    folder, tmp_path, capsys):
  lines = (folder / 'mine.csv').read_text().splitlines()
  few = [lines[0], *(line for line in lines[1:]
                     if int(line.split(',')[1]) < 60)]
  (tmp_path / 'mine.csv').write_text('\n'.join(few) + '\n')
  (tmp_path / 'presets').symlink_to(folder / 'presets')
  assert run(tmp_path, tmp_path / 'w', '--benchmark.methods=ease') == 2
  assert '--benchmark.protocols=full' in capsys.readouterr().err
  assert not (tmp_path / 'w').exists()


@pytest.fixture(scope='module')
def tuned(folder):
  workdir = folder / 'tuned'
  assert run(folder, workdir, '--benchmark.methods=ease,popularity',
             '--benchmark.tune=3') == 0
  return workdir


class TestTuning:

  def test_the_budget_is_kept_and_the_best_is_written(self, tuned):
    with open(tuned / 'tuning.csv') as file:
      rows = list(csv.DictReader(file))
    ease = [row for row in rows if row['method'] == 'ease']
    # The stored settings, and the two others of the space.
    assert [row['settings'] for row in ease][0] == '' and len(ease) == 3
    assert {row['settings'] for row in ease[1:]} == {
        'ease.l2=1', 'ease.l2=1e+06'}
    assert len(rows) == 4  # Popularity has nothing to try.
    best = max(ease, key=lambda row: float(row['validation_ndcg@10']))
    text = (tuned / 'chosen' / 'csv-mine.csv' / 'ease.flags').read_text()
    assert f'--{best["settings"] or "ease.l2=20"}\n' in text
    assert text.count('--ease.l2=') == 1
    assert '--benchmark.reference=ease' in text and '# ease on' in text

  def test_what_was_tried_is_not_tried_again(
      self, tuned, folder, monkeypatch):
    path = next((tuned / 'trials').rglob('ease/001.json'))
    path.unlink()
    tried = []
    original = benchmark_runs.validate
    monkeypatch.setattr(
        benchmark_runs, 'validate', lambda method, *rest: tried.append(
            method.settings.ease.l2) or original(method, *rest))
    assert run(folder, tuned, '--benchmark.methods=ease', '--resume',
               '--benchmark.tune=3') == 0
    assert len(tried) == 1 and tried[0] in (1, 1e6)
    assert path.is_file()

  def test_a_torn_trial_is_tried_again(
      self, tuned, folder, tmp_path, monkeypatch, caplog):
    workdir = shutil.copytree(tuned, tmp_path / 'w')
    path = next((workdir / 'trials').rglob('ease/001.json'))
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:20])
    tried = []
    original = benchmark_runs.validate
    monkeypatch.setattr(
        benchmark_runs, 'validate', lambda method, *rest: tried.append(
            method.settings.ease.l2) or original(method, *rest))
    assert run(folder, workdir, '--benchmark.methods=ease', '--resume',
               '--benchmark.tune=3') == 0
    assert tried == [whole['values']['ease.l2']]
    assert '001.json' in caplog.text
    assert json.loads(path.read_text())['ndcg@10'] == whole['ndcg@10']

  def test_trials_under_privacy_are_warned_of_once_a_method(
      self, folder, tmp_path, monkeypatch, caplog):
    presets = shutil.copytree(folder / 'presets', tmp_path / 'presets')
    for name, lines in {
        'central': ['--privacy.epsilon=3', '--privacy.l2_clip_norm=1',
                    '--cohort.sampler=poisson'],
        'local': ['--local_privacy.mechanism=gaussian',
                  '--local_privacy.epsilon=1']}.items():
      (presets / 'default' / f'{name}.flags').write_text(
          '\n'.join([*METHODS['small'], '--cohort.size=10', *lines]) + '\n')
    with open(presets / 'search_space.txt', 'a') as file:
      file.write('central: rounds=2,3\nlocal:\n')
    (tmp_path / 'mine.csv').symlink_to(folder / 'mine.csv')
    monkeypatch.setattr(benchmark_runs, 'validate', lambda *_: 0.5)
    assert run(tmp_path, tmp_path / 'w', '--benchmark.tune=2',
               '--benchmark.methods=small,ease,central,local') == 0
    said = [record.getMessage() for record in caplog.records
            if 'ledger' in record.getMessage()]
    assert len(said) == 2
    for text, name, number in zip(said, ('central', 'local'), (2, 1)):
      assert text.startswith(f'{name}: ') and f' {number} settings' in text
      assert 'no ledger records' in text and 'validation' in text

  def test_another_budget_is_refused(self, tuned, folder, capsys):
    assert run(folder, tuned, '--benchmark.methods=ease', '--resume',
               '--benchmark.tune=2') == 2
    assert '--benchmark.tune=3' in capsys.readouterr().err

  def test_another_search_space_is_refused(
      self, tuned, folder, capsys, tmp_path):
    shutil.copytree(folder / 'presets', tmp_path / 'presets')
    (tmp_path / 'presets' / 'search_space.txt').write_text(
        'ease: ease.l2=1,20,7\n')
    assert run(folder, tuned, '--benchmark.methods=ease', '--resume',
               '--benchmark.tune=3',
               f'--benchmark.presets={tmp_path}/presets') == 2
    assert 'search space has changed' in capsys.readouterr().err

  def test_a_federated_method_is_judged_on_validation_by_its_best_round(
      self, folder, monkeypatch):
    seen = []

    def validate(method, split, progress):
      del progress
      assert split.validation.num_interactions == NUM_USERS
      seen.append(method.config.rounds)
      return float(method.config.rounds == 1)

    monkeypatch.setattr(benchmark_runs, 'validate', validate)
    workdir = folder / 'federated'
    assert run(folder, workdir, '--benchmark.methods=small',
               '--benchmark.tune=9') == 0
    # rounds=0 is refused and rounds=2 is the file's own: neither is drawn.
    assert seen == [2, 1]
    text = next(workdir.rglob('small.flags')).read_text()
    assert '--rounds=1\n' in text and '--rounds=2' not in text


  def test_a_refused_setting_is_recorded_and_the_others_are_tried(
      self, folder, monkeypatch, capsys):
    original = benchmark_runs.validate

    def validate(method, split, progress):
      if method.reference == 'popularity' or method.settings.ease.l2 == 1:
        # As the package itself refuses what the config could not know of.
        grid.parse_axes(['no_field'])
      return original(method, split, progress)

    monkeypatch.setattr(benchmark_runs, 'validate', validate)
    workdir = folder / 'refused'
    assert run(folder, workdir, '--benchmark.methods=popularity,ease',
               '--benchmark.tune=3') == 1
    error = capsys.readouterr().err
    assert 'popularity' in error and 'was refused' in error
    with open(workdir / 'tuning.csv') as file:
      found = {(row['method'], row['settings']): row['status']
               for row in csv.DictReader(file)}
    assert found == {
        ('popularity', ''): 'refused', ('ease', ''): 'done',
        ('ease', 'ease.l2=1'): 'refused', ('ease', 'ease.l2=1e+06'): 'done'}
    assert [path.name for path in workdir.rglob('*.flags')] == ['ease.flags']

  def test_a_defect_is_no_refusal(self, folder, monkeypatch):
    monkeypatch.setattr(
        benchmark_runs, 'validate',
        lambda *_: np.zeros((2, 3)) @ np.zeros(2))
    with pytest.raises(ValueError, match='matmul'):
      run(folder, folder / 'defect', '--benchmark.methods=ease',
          '--benchmark.tune=1')


def test_a_sum_on_the_host_is_counted_as_train_counts_it(folder, tmp_path):
  (tmp_path / 'presets' / 'default').mkdir(parents=True)
  (tmp_path / 'presets' / 'default' / 'masked.flags').write_text('\n'.join([
      *METHODS['small'][1:], '--secure.level=masked',
      '--secure.l2_clip_norm=1', '--evaluation.local_only=false']) + '\n')
  (tmp_path / 'mine.csv').symlink_to(folder / 'mine.csv')
  assert run(tmp_path, tmp_path / 'w', '--benchmark.methods=masked',
             '--benchmark.seeds=0', '--benchmark.protocols=full') == 0
  summary = json.loads(next(
      (tmp_path / 'w').rglob('masked/0/summary.json')).read_text())
  assert summary['secure']['measured_rounds'] == 2
  total = summary['communication']['total_bytes']
  # Every client sends its whole table, in both rounds, at 16 bits or more.
  assert total > 2 * NUM_USERS * NUM_ITEMS * 2
  row = rows_of(tmp_path / 'w')['full', 'masked', 'personalised', '0',
                                'ndcg@10']
  assert float(row['bytes']) == total


def test_settings_of_a_space_are_drawn_without_repetition():
  method = Method('m', pathlib.Path('m.flags'), make_config(), '', None, '')
  axes = grid.parse_axes(['client.epochs=1,2,3;model.dim=2,4,8'])
  drawn = benchmark_tuning.draw_settings(method, axes, 5, 0)
  assert drawn[0] == {} and len(drawn) == 5
  assert len({repr(values) for values in drawn}) == 5
  assert drawn == benchmark_tuning.draw_settings(method, axes, 5, 0)
  assert drawn != benchmark_tuning.draw_settings(method, axes, 5, 1)
  # The whole space but the file's own settings, and those once.
  assert len(benchmark_tuning.draw_settings(method, axes, 99, 0)) == 9


def test_one_run_of_two_protocols_is_the_run_that_train_makes(done, tmp_path):
  workdir = done[0]
  folder = next((workdir / 'runs').rglob('small/0'))
  assert cli.main([
      'fedjaxrec', 'train', f'--workdir={tmp_path}/run', '--noprogress',
      *_as_arguments(json.loads((folder / 'config.json').read_text()))]) == 0
  ours, theirs = (json.loads((where / 'summary.json').read_text())
                  for where in (folder, tmp_path / 'run'))
  for part in ('test', 'controls', 'groups', 'item_groups', 'communication'):
    assert ours[part] == theirs[part]


def _as_arguments(values, prefix=''):
  found = []
  for name, inner in values.items():
    if name == 'synthetic':
      continue
    if isinstance(inner, dict):
      found += _as_arguments(inner, f'{prefix}{name}.')
    elif isinstance(inner, list):
      found.append(f'--{prefix}{name}={",".join(map(str, inner))}')
    else:
      text = str(inner).lower() if isinstance(inner, bool) else inner
      found.append(f'--{prefix}{name}={text}')
  return found


def test_every_stored_federated_method_can_be_built_on_a_small_data_set(
    tmp_path):
  (tmp_path / 'small.flags').write_text(
      '--data.source=synthetic\n--synthetic.num_users=30\n'
      '--synthetic.num_items=140\n--synthetic.mean_interactions=10\n')
  values = cli._flag_values('benchmark')
  values(['', '--parallel.mode=single'])
  presets = benchmark_methods.open_presets('scripts/benchmark')
  data = benchmark_methods.read_dataset(
      presets, str(tmp_path / 'small.flags'), values)
  methods = [benchmark_methods.read_method(presets, data, name, values)
             for name in presets.methods(data)]
  plan = benchmark.Plan([data], [methods], [0], ('full',))
  splits = benchmark.load_splits(plan)
  plan = benchmark.fit_cohorts(plan, splits)
  built = [method.name for method in plan.methods[0] if not method.reference
           and experiment.build(method.config, splits[data.name])]
  assert len(built) >= 15


def test_memory_is_freed_between_methods_and_not_between_seeds(
    folder, monkeypatch):
  calls = []

  def diverge(method, *_):
    calls.append(method.name)
    raise FloatingPointError('loss=nan')

  monkeypatch.setattr(benchmark_runs, 'run_method', diverge)
  monkeypatch.setattr(benchmark, 'free_memory', lambda: calls.append('free'))
  assert run(folder, folder / 'frees', '--benchmark.methods=popularity,ease',
             '--benchmark.seeds=0,1') == 1  # As every run has failed.
  assert calls == ['popularity', 'popularity', 'free', 'ease', 'ease', 'free']
