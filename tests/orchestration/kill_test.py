"""Invariant 6 against kill -9: one run, killed at four moments."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from fedjaxrec import cli
from fedjaxrec.orchestration import experiment
from tests.small_runs import as_flags, assert_same_run, make_config, read_lines

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Long enough that a checkpoint is written while rounds are still to come.
CHANGES = {'rounds': 40, 'checkpoint.every': 20, 'evaluation.every': 20}
LIMIT_S = 180


def has_begun(workdir):
  """Before the first checkpoint, most likely before the first round."""
  return (workdir / 'config.json').is_file()


def writes_a_checkpoint(workdir):
  """As soon as there is anything of it: under its name or a temporary one."""
  folder = workdir / 'checkpoints'
  return folder.is_dir() and any(
      path.name.startswith('20') for path in folder.iterdir())


def has_a_checkpoint(workdir):
  """The first one is whole, and rounds are still to come."""
  return (workdir / 'checkpoints' / '20').is_dir()


def evaluates(workdir):
  """The last checkpoint is whole: what is left is the test and the report."""
  return (workdir / 'checkpoints' / '40').is_dir()


def kill_when(condition, arguments, workdir):
  """Starts `fedjaxrec train` and kills it, without warning, at a moment."""
  log = workdir.parent / f'{condition.__name__}.txt'
  with open(log, 'w') as output:
    process = subprocess.Popen(
        [sys.executable, '-m', 'fedjaxrec', 'train', *arguments], cwd=ROOT,
        stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
      deadline = time.monotonic() + LIMIT_S
      while not condition(workdir):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.001)
    finally:
      process.send_signal(signal.SIGKILL)
      code = process.wait()
  # Had it been too quick for us, it would have ended by itself.
  assert code == -signal.SIGKILL, log.read_text()
  assert not (workdir / 'summary.json').exists()


@pytest.mark.skipif(os.name != 'posix', reason='SIGKILL is a POSIX signal')
def test_a_run_killed_four_times_is_the_run_that_was_not(tmp_path, capfd):
  workdir = tmp_path / 'killed'
  at = [f'--workdir={workdir}', '--noprogress']
  kill_when(has_begun, [*at, *as_flags(CHANGES)], workdir)
  assert not list(workdir.glob('checkpoints/*'))
  # Continued with the run's own config, so that no flag is given again.
  kill_when(writes_a_checkpoint, [*at, '--resume'], workdir)
  assert len(read_lines(workdir)) == 20
  kill_when(has_a_checkpoint, [*at, '--resume'], workdir)
  kill_when(evaluates, [*at, '--resume'], workdir)
  assert len(read_lines(workdir)) == 40
  assert cli.main(['fedjaxrec', 'train', *at, '--resume']) == 0
  assert str(workdir / 'report.html') in capfd.readouterr().out

  experiment.train(make_config(CHANGES), tmp_path / 'whole', progress=False)
  assert_same_run(workdir, tmp_path / 'whole')
  # Nothing half-written is left behind where a reader could find it.
  assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {
      '20', '40'}
  assert not list(workdir.glob('.fedjaxrec-*'))
  json.loads((workdir / 'summary.json').read_text())
