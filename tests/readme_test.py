"""What the README says is run, and the commands that it promises are CI's."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from fedjaxrec import cli
from fedjaxrec.config.sections import SECTIONS

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()
MAIN = ('python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt '
        '-e . && .venv/bin/fedjaxrec train')
TESTS = ('python3 -m venv .venv-test && .venv-test/bin/pip install -q -c '
         "constraints.txt -e '.[test]' && .venv-test/bin/python -m pytest "
         '-n auto --dist worksteal')


def blocks(language: str) -> list[str]:
  return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


def run(command: list[str], cwd: pathlib.Path):
  """Runs a command as a user would: without the test run's virtual devices."""
  environment = {name: value for name, value in os.environ.items()
                 if name != 'XLA_FLAGS'}
  environment |= {'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT)}
  result = subprocess.run(command, cwd=cwd, env=environment, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL)
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


@pytest.fixture
def shell(tmp_path):
  """Runs lines of bash in which `fedjaxrec` is the one under test."""
  def run_lines(*lines):
    return run(['bash', '-euc', '\n'.join(
        ['fedjaxrec() { "$PYTHON" -m fedjaxrec "$@"; }', *lines])], tmp_path)
  return run_lines


def test_the_two_commands_are_one_line_each_on_the_first_screen():
  first_screen = README.splitlines()[:24]
  assert MAIN in first_screen
  assert TESTS in first_screen


def test_the_figure_is_filled_in():
  assert 'FIGURE' not in README


def test_ci_takes_its_test_command_from_the_readme():
  script = (ROOT / '.ci' / 'run').read_text()
  patterns = re.findall(r"grep -m 1 '(.*?)' README.md", script)
  assert len(patterns) == 1
  lines = [line for line in README.splitlines()
           if re.search(patterns[0], line)]
  assert lines == [TESTS]
  # It is split at the last `&&`, so that lint comes between install and tests.
  assert TESTS.rpartition(' && ')[2].startswith('.venv-test/bin/python -m pyt')
  assert os.access(ROOT / '.ci' / 'run', os.X_OK)


def test_every_flag_named_in_the_readme_exists():
  # Of other programs, and whole sections (`--privacy.*`).
  known = {'helpshort', 'helpfull', 'flagfile', 'dist', 'nodes', 'ntasks',
           *SECTIONS}
  for command in cli.COMMANDS:
    known |= set(cli._flag_values(command))
  named = set(re.findall(r'--([a-z][a-z_.0-9]*)', README))
  assert {name.rstrip('.') for name in named} <= known


def test_the_main_command_trains(shell):
  """On made-up data and for three rounds, in the environment of the tests."""
  command = MAIN.rpartition(' && ')[2].removeprefix('.venv/bin/')
  out = shell(f'{command} --data.source=synthetic --rounds=3 '
              '--synthetic.num_users=60 --synthetic.num_items=120 '
              '--synthetic.mean_interactions=12 --model.dim=4 --cohort.size=20',
              'test -s runs/*-synthetic/summary.json',
              'test -s runs/*-synthetic/report.html')
  assert re.search(r'Report: runs/.*-synthetic/report.html', out)


def test_the_lines_of_python_run(tmp_path):
  snippets = blocks('python')
  assert len(snippets) == 1
  assert len(snippets[0].strip().splitlines()) <= 10
  out = run([sys.executable, '-c', snippets[0]], tmp_path)
  assert 0 <= float(out.split()[-1]) <= 1
  assert (tmp_path / 'runs' / 'first' / 'summary.json').is_file()


SCRIPTS = [block for block in blocks('bash') if 'venv' not in block]


# What a block of commands must print, in the README's order.
@pytest.mark.parametrize(('script', 'parts'), list(zip(SCRIPTS, [
    ['movielens-100k', 'Report: runs/second/report.html'],
    ['0.7', 'Report: runs/private/report.html', 'epsilon'],
    ['Report: runs/secure/report.html'],
    ['sweep'],
    ['scripts/benchmark/default/pfedrec.flags'],
], strict=True)), ids=['shell', 'privacy', 'secure', 'sweep', 'benchmark'])
def test_the_lines_of_bash_run(shell, script, parts):
  out = shell(*script.splitlines())
  for part in parts:
    assert part in out, out
