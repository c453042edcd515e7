"""`fedjaxrec benchmark` on the command line, up to where it would train."""

import pathlib
import subprocess
import sys

import pytest

from fedjaxrec import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--benchmark.methods=fedavg,easy'], 'Did you mean ease'),
    (['--benchmark.methods=ease,ease'], 'a name twice'),
    (['--benchmark.datasets='], 'names no data set'),
    (['--benchmark.datasets=ncf,ncf'], 'a name twice'),
    (['--benchmark.datasets=nothing'], 'choose of'),
    (['--benchmark.datasets=csv:a/x.csv,csv:b/x.csv'], 'rename a file'),
    (['--benchmark.datasets=ncf,movielens-100k', '--data.path=/x'],
     '--data.path=/x'),
    (['--benchmark.seeds=0,x'], "benchmark.seeds='0,x'"),
    (['--benchmark.seeds=1,1'], '1 twice'),
    (['--benchmark.protocols=sampled-99'], 'benchmark.protocols'),
    (['--benchmark.presets=nowhere'], 'benchmark.presets'),
    (['--benchmark.tune=-1'], 'benchmark.tune'),
    (['--evaluation.protocol=full'], 'benchmark.protocols'),
    (['--parallel.coordinator=auto'], 'one process'),
    (['--seed=3'], '--seed is no flag of `fedjaxrec benchmark`'),
    (['--rounds=0', '--benchmark.methods=fedavg'], 'rounds=0'),
    (['--resume'], '--resume needs --workdir'), (['x'], 'not expected'),
    (['--benchmark.datasets=csv:missing.csv', '--benchmark.methods=ease'],
     'csv:missing.csv')])
def test_a_wrong_command_line_is_one_line(
    capsys, monkeypatch, tmp_path, arguments, message):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['fedjaxrec', 'benchmark', *arguments]) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1 and message in err
  assert not list(tmp_path.iterdir())


def test_another_directory_is_refused_before_jax_is_imported(tmp_path):
  (tmp_path / 'thesis.txt').write_text('mine')
  code = ('import sys\nfrom fedjaxrec import cli\n'
          'code = cli.main(["fedjaxrec", "benchmark", "--overwrite", '
          f'"--workdir={tmp_path}"])\n'
          'sys.exit(code != 2 or "jax" in sys.modules)')
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True,
                          capture_output=True)
  assert result.returncode == 0, result.stderr
  assert 'not a benchmark directory' in result.stderr
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


def test_a_dry_run_lists_and_writes_nothing(capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['fedjaxrec', 'benchmark', '--benchmark.dry_run',
                   '--benchmark.methods=fedavg,ease']) == 0
  out = capsys.readouterr().out
  assert 'movielens-100k' in out and '3 seeds, 0 done' in out
  assert 'fedavg' in out and 'ease' in out
  assert not list(tmp_path.iterdir())


def test_the_help_has_a_group_for_what_is_compared(capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  assert cli.main(['fedjaxrec', 'benchmark', '--help']) == 0
  out = capsys.readouterr().out
  assert 'What is compared\n  --benchmark.datasets=movielens-100k' in out
