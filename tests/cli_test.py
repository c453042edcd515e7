"""The command line as a person and as a script meet it."""

import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

import fedjaxrec
from fedjaxrec import cli, config

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def run(capsys):
  """Runs a command line in this process: (exit code, stdout, stderr)."""
  def run_main(*arguments):
    code = cli.main(['fedjaxrec', *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err
  return run_main


@pytest.fixture
def calls(monkeypatch):
  """Stands in for training, and records what the command line asks of it."""
  recorded = []

  def train(config, workdir, *, resume, overwrite, progress):
    recorded.append((config, workdir, resume, overwrite, progress))
    return types.SimpleNamespace(summary={}, workdir=workdir)

  def evaluate(workdir, evaluation):
    recorded.append((workdir, evaluation))
    return {'test': {'ndcg@10': 0.5}}

  package = types.ModuleType('fedjaxrec.orchestration')
  package.experiment = types.SimpleNamespace(train=train, evaluate=evaluate)
  monkeypatch.setitem(sys.modules, 'fedjaxrec.orchestration', package)
  monkeypatch.setitem(
      sys.modules, 'fedjaxrec.orchestration.experiment', package.experiment)
  package.hosts = types.SimpleNamespace(is_first=lambda: True)
  return recorded


@pytest.fixture
def run_directory(tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  saved = config.Config(rounds=5, model=config.ModelConfig(dim=4))
  (folder / 'config.json').write_text(json.dumps(config.to_dict(saved)))
  return folder


def fails_in_one_line(result, *parts):
  code, out, err = result
  assert code == 2
  assert out == ''
  assert err.startswith('fedjaxrec: ') and err.count('\n') == 1, err
  for part in parts:
    assert part in err
  return True


# Help.

@pytest.mark.parametrize(
    'arguments', [[], ['--help'], ['-h'], ['help'], ['--helpshort']])
def test_the_overview_lists_every_command(run, arguments):
  code, out, err = run(*arguments)
  assert (code, err) == (0, '')
  for command in cli.COMMANDS:
    assert f'\n  {command} ' in out
  assert len(out.splitlines()) < 25
  assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize('arguments', [
  ['train', '--helpshort'], ['train', '--help'], ['help', 'train'],
  ['train', '--rounds=3', '-h']])
def test_the_short_help_of_a_command_groups_its_flags(
    run, monkeypatch, arguments):
  monkeypatch.setenv('COLUMNS', '80')
  code, out, _ = run(*arguments)
  assert code == 0
  assert max(map(len, out.splitlines())) <= 80
  assert len(out.splitlines()) < 170
  positions = [out.index(text) for text in (
      'The run\n', '--workdir', '--rounds=', '--data.source=movielens-100k',
      'The recommender\n', '--model.dim=', '--evaluation.ks=5,10,20',
      '\n  engine  ', 'own settings, likewise: ials')]
  assert positions == sorted(positions)


def test_a_section_that_is_folded_is_listed_when_asked_for(run):
  _, short, _ = run('train', '--help')
  assert '\n  privacy         Central' in short
  assert '--privacy.epsilon' not in short
  _, section, _ = run('train', '--help', 'privacy')
  assert '--privacy.epsilon=0.0' in section
  assert '--cohort.size' not in section
  assert '--privacy.epsilon' in run('train', '--helpfull')[1]


def test_every_section_of_the_config_has_a_group_in_the_help():
  sections = {name.partition('.')[0] for name in cli._flag_values('train')
              if '.' in name}
  assert sections | {''} == set(cli.SECTIONS)


def test_the_full_help_explains_every_flag(run):
  _, out, _ = run('train', '--helpfull')
  text = ' '.join(out.split())
  assert 'its state lasts one round' in text
  assert 'its state lasts one round' in ' '.join(run('--helpfull')[1].split())


@pytest.mark.parametrize('command', sorted(cli.COMMANDS))
def test_every_command_has_help(run, command):
  code, out, err = run(command, '--help')
  assert (code, err) == (0, '')
  assert f'Usage: fedjaxrec {command}' in out


@pytest.mark.parametrize('arguments', [
  ['--help'], ['train', '--helpfull'], ['train', '--cohort.blok=3'],
  ['train', '--rounds=0'], ['version'], ['datasets']])
def test_an_answer_needs_no_jax(arguments):
  code = (
      'import sys\nfrom fedjaxrec import cli\n'
      f'cli.main(["fedjaxrec", *{arguments!r}])\n'
      'heavy = {"jax", "flax", "optax", "tensorflow", "plotly", "pyarrow"}\n'
      'sys.exit(f"heavy: {heavy & set(sys.modules)}" '
      'if heavy & set(sys.modules) else 0)\n')
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True,
                          capture_output=True)
  assert result.returncode == 0, result.stderr


# Refusals.

def test_an_unknown_command_is_answered_with_the_nearest(run):
  assert fails_in_one_line(run('trian'), "'trian'", 'Did you mean train?')
  assert fails_in_one_line(run('xyz'), 'Commands: train, sweep')
  assert fails_in_one_line(
      run('--rounds=3', 'train'), 'fedjaxrec train --rounds=3')


@pytest.mark.parametrize(('flag', 'meant'), [
  ('--cohort.sise=3', '--cohort.size'), ('--cohort.blok=3', '--cohort.cap'),
  ('--dim=3', '--model.dim'), ('--model.hiden=3', '--model.hidden'),
  ('--round=3', '--rounds'), ('--workdirr=x', '--workdir')])
def test_an_unknown_flag_is_answered_with_the_nearest(run, flag, meant):
  name = flag.partition('=')[0]
  assert fails_in_one_line(
      run('train', flag), f'{name} is not a flag', 'Did you mean', meant)


@pytest.mark.parametrize('arguments', [
  ['evaluate', 'runs/x', '--rounds=3'], ['report', 'runs/x', '--model.dim=3'],
  ['datasets', 'synthetic', '--rounds=3'], ['version', '--seed=3'],
  ['report', 'runs/x', '--overwrite']])
def test_a_flag_that_a_command_does_not_use_is_refused(run, arguments):
  name = arguments[-1].partition('=')[0]
  assert fails_in_one_line(
      run(*arguments), f'{name} is no flag of `fedjaxrec {arguments[0]}`',
      '`fedjaxrec train` does')


@pytest.mark.parametrize(('arguments', 'message'), [
  (['train', '--rounds=many'], '--rounds=many: not a whole number'),
  (['train', '--rounds'], 'Missing value for flag --rounds'),
  (['train', '--rounds=0'], 'rounds=0 must be'),
  (['train', '--resume=perhaps'], '--resume=perhaps: neither true nor false'),
  (['train', '--model.name=svd'], "model.name='svd' is not known"),
  (['train', '--flagfile=nowhere'], 'nowhere'),
  (['train', 'rounds=3'], "'rounds=3' was not expected"),
  (['train', '--resume'], '--resume needs --workdir'),
  (['train', '--synthetic.num_users=9'], '--data.source=synthetic'),
  (['evaluate'], 'no run directory'),
  (['evaluate', 'a', '--workdir=b'], 'two run directories'),
  (['evaluate', 'nowhere'], '--workdir=nowhere holds no config.json'),
  (['datasets', '--data.path=x'], 'needs the name of a data set'),
  (['datasets', 'movielens'], "data.source='movielens' is not known"),
  (['datasets', 'synthetic', '--data.source=ncf'], 'two data sets'),
])
def test_a_wrong_command_line_is_refused_in_one_line(
    run, calls, arguments, message):
  assert fails_in_one_line(run(*arguments), message)
  assert not calls


@pytest.mark.parametrize('text', ['{"rounds": 3', '{"round": 3}', '[]', 'null'])
def test_a_damaged_config_is_named(run, calls, run_directory, text):
  (run_directory / 'config.json').write_text(text)
  assert fails_in_one_line(
      run('train', '--resume', f'--workdir={run_directory}'), 'config.json',
      'damaged')
  assert not calls


def test_a_refusal_by_the_package_is_one_line_and_a_defect_is_a_traceback(
    run, calls, monkeypatch):
  def refuse(config, workdir, **unused):
    raise error
  # What the package raises itself is a refusal ...
  monkeypatch.setitem(refuse.__globals__, '__name__', 'fedjaxrec.data.sources')
  monkeypatch.setattr(
      sys.modules['fedjaxrec.orchestration.experiment'], 'train', refuse)
  error = ValueError('cohort.size=9 is above the population of 5.')
  assert fails_in_one_line(run('train'), 'cohort.size=9')
  error = FileNotFoundError('data.path=x does not exist.')
  assert fails_in_one_line(run('train'), 'data.path=x')
  error = FloatingPointError('loss=nan in round 3: lower the learning rate.')
  code, _, err = run('train')
  assert (code, err) == (1, f'fedjaxrec: {error}\n')
  # ... what is no refusal, or comes out of a library, is a defect.
  error = KeyError('rounds')
  with pytest.raises(KeyError):
    run('train')
  monkeypatch.setattr(
      sys.modules['fedjaxrec.orchestration.experiment'], 'train',
      lambda *args, **kwargs: np.zeros(3).reshape(2, 2))
  monkeypatch.setitem(refuse.__globals__, '__name__', 'numpy.elsewhere')
  with pytest.raises(ValueError, match='reshape'):
    run('train')


# Commands.

def test_train_passes_the_config_and_names_the_report(run, calls, tmp_path):
  code, out, _ = run('train', f'--workdir={tmp_path / "a"}', '--rounds=3',
                     '--noprogress', '--overwrite')
  assert code == 0
  assert calls == [
      (config.Config(rounds=3), tmp_path / 'a', False, True, False)]
  assert out.splitlines()[-1] == f'Report: {tmp_path / "a" / "report.html"}'


def test_train_names_its_own_run_directory(run, calls, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for _ in range(2):
    assert run('train', '--data.source=csv:my folder/a.csv')[0] == 0
    calls[-1][1].mkdir(parents=True)
  first, second = (call[1] for call in calls)
  assert first != second
  assert first.parent == pathlib.Path('runs')
  assert 'csv-my-folder-a.csv' in first.name


def test_resume_takes_the_runs_config_and_the_flags_given(
    run, calls, run_directory):
  run('train', '--resume', f'--workdir={run_directory}', '--rounds=200')
  assert calls == [(
      config.Config(rounds=200, model=config.ModelConfig(dim=4)),
      run_directory, True, False, True)]


def test_an_interruption_says_how_to_continue(run, calls, monkeypatch):
  def train(*unused, **unused_too):
    raise KeyboardInterrupt
  monkeypatch.setattr(
      sys.modules['fedjaxrec.orchestration.experiment'], 'train', train)
  code, _, err = run('train', '--workdir=runs/a')
  assert code == 130
  assert 'fedjaxrec train --resume --workdir=runs/a' in err


def test_evaluate_starts_from_the_runs_own_protocol(run, calls, run_directory):
  code, out, _ = run('evaluate', run_directory,
                     '--evaluation.protocol=sampled-99')
  assert code == 0
  assert calls == [
      (run_directory, config.EvaluationConfig(protocol='sampled-99'))]
  assert json.loads(out)['test']['ndcg@10'] == 0.5


def test_report_writes_the_page_of_a_run(run, monkeypatch, run_directory):
  written = []
  package = types.ModuleType('fedjaxrec.reports')
  package.html = types.SimpleNamespace(write_report=written.append)
  monkeypatch.setitem(sys.modules, 'fedjaxrec.reports', package)
  code, out, _ = run('report', run_directory)
  assert (code, written) == (0, [run_directory])
  assert 'report.html' in out


def test_datasets_lists_every_source_and_what_is_cached(
    run, tmp_path, monkeypatch):
  (tmp_path / 'movielens-100k.npz').write_bytes(b'')
  code, out, _ = run('datasets', f'--data.cache_dir={tmp_path}')
  assert code == 0
  rows = {line.split()[0]: line for line in out.splitlines() if line}
  assert set(config.SOURCES) <= set(rows)
  assert rows['movielens-100k'].endswith('yes')
  assert '100,000' in rows['movielens-100k']
  assert rows['movielens-1m'].endswith('no')


def test_datasets_prints_the_facts_of_a_made_up_population(run):
  facts = []
  for _ in range(2):
    code, out, _ = run('datasets', 'synthetic', '--synthetic.num_users=20',
                       '--synthetic.num_items=30', '--seed=3',
                       '--synthetic.mean_interactions=5')
    assert code == 0
    facts.append(json.loads(out))
  assert facts[0] == facts[1]
  assert facts[0]['num_users'] <= 20
  assert len(facts[0]['fingerprint']) == 64


def test_version_is_the_packages(run):
  assert run('version')[1] == f'fedjaxrec {fedjaxrec.__version__}\n'
  assert run('--version') == run('version')


def test_the_module_is_the_command():
  result = subprocess.run([sys.executable, '-m', 'fedjaxrec', 'trian'],
                          cwd=ROOT, text=True, capture_output=True)
  assert result.returncode == 2
  assert result.stderr.count('\n') == 1


def test_a_reader_that_has_seen_enough_is_no_error():
  script = '{ "$0" -m fedjaxrec train --helpfull; echo $? >&2; } | true'
  result = subprocess.run(['bash', '-c', script, sys.executable], cwd=ROOT,
                          text=True, capture_output=True)
  assert result.stderr.strip() in ('0', '141')


def test_resume_where_no_run_was_begun_begins_it(run, calls, tmp_path):
  workdir = tmp_path / 'new'
  code, *_ = run('train', '--resume', f'--workdir={workdir}', '--rounds=3')
  assert code == 0
  (config, given, resume, _, _), = calls
  assert (config.rounds, given, resume) == (3, workdir, True)
