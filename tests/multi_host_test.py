"""Several processes give the run of one; and what stops them says why.

Each stands for a host: two processes with two virtual devices each, joined by
gloo. All that runs as a command runs once, side by side, for all tests here.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fedjaxrec import cli
from fedjaxrec.config import ParallelConfig
from fedjaxrec.orchestration import experiment, hosts, training
from fedjaxrec.orchestration.checkpoints import open_store
from tests import small_runs
from tests.multi_host_worker import CHANGES

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORKER = 'tests.multi_host_worker'
ROUNDS = CHANGES['rounds']
# Adam's step turns an error of the mean delta into at most learning_rate / eps
# times as much; the mean is of ten deltas below one, added in another order.
TOLERANCE = ROUNDS * 0.05 / 1e-3 * 10 * 2.0**-24


def free_port(lowest=0, highest=2**16):
  for port in range(lowest, highest) if lowest else [0]:
    with contextlib.suppress(OSError), socket.socket() as probe:
      probe.bind(('', port))
      return probe.getsockname()[1]
  raise OSError('no port is free')


def start(arguments, more=None):
  """A process with two devices, as a test run's environment has it."""
  environment = {
      **os.environ, 'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': '--xla_force_host_platform_device_count=2', **(more or {})}
  return subprocess.Popen(
      [sys.executable, '-m', *map(str, arguments)], stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True, env=environment)


def on_slurm(port, process_id):
  """What Slurm tells a task; JAX makes the port of the job's number."""
  return {'SLURM_JOB_ID': str(port - 61440), 'SLURM_NTASKS': '2',
          'SLURM_STEP_NODELIST': 'localhost', 'SLURM_PROCID': str(process_id),
          'SLURM_LOCALID': str(process_id)}


def meeting(port, process_id, timeout_s=300):
  return [f'--parallel.coordinator=localhost:{port}',
          '--parallel.num_processes=2', f'--parallel.process_id={process_id}',
          f'--parallel.join_timeout_s={timeout_s}']


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Name -> (exit code, output, errors) of every process; and the folder.

  Made once, by the first of pytest's own workers that comes here.
  """
  base = tmp_path_factory.getbasetemp()
  folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ
            else base) / 'several-hosts'
  done = folder / 'done.json'
  try:
    folder.mkdir()
  except FileExistsError:
    deadline = time.monotonic() + 600
    while not done.exists() and time.monotonic() < deadline:
      time.sleep(0.5)
  else:
    found = None
    try:
      found = run_all(folder)
    finally:
      (folder / 'doing.json').write_text(json.dumps(found))
      (folder / 'doing.json').rename(done)
  return folder, json.loads(done.read_text())


def run_all(folder):
  """Name -> (exit code, output, errors) of every process."""
  (folder / 'refuse').mkdir()
  port, slurm_port = free_port(), free_port(61500)
  alone_port, silent_port = free_port(slurm_port + 1), free_port()
  auto = '--parallel.coordinator=auto'
  processes = {
      **{f'work {i}': start([WORKER, 'work', folder, *meeting(port, i)])
         for i in range(2)},
      **{f'refuse {i}': start([WORKER, 'refuse', folder / 'refuse', auto],
                              on_slurm(slurm_port, i)) for i in range(2)},
      'late': start(['fedjaxrec', 'train', f'--workdir={folder / "late"}',
                     *meeting(silent_port, 1, 1)]),
      'slurm alone': start(
          ['fedjaxrec', 'train', f'--workdir={folder / "late"}', auto,
           '--parallel.join_timeout_s=1'], on_slurm(alone_port, 0))}
  try:
    outputs = {name: process.communicate(timeout=500)
               for name, process in processes.items()}
  finally:
    for process in processes.values():
      process.kill()
  return {
      name: (process.returncode, *outputs[name])
      for name, process in processes.items()}


def result(finished, name):
  code, out, errors = finished[1][name]
  assert code == 0, errors
  return json.loads(out.splitlines()[-1])


@pytest.fixture(scope='module')
def work(finished):
  """The folder of the runs, and what the two processes said."""
  return finished[0], [result(finished, f'work {i}') for i in range(2)]


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
  """The same run on the four devices of one process."""
  workdir = tmp_path_factory.mktemp('one')
  config = small_runs.make_config(CHANGES)
  summary = experiment.train(config, workdir, progress=False).summary
  return workdir, summary, experiment.build(config)


@pytest.fixture(scope='module')
def read(one_process):
  """Reads a run's latest checkpoint, by client."""
  run = one_process[2]

  @functools.cache
  def restore(workdir):
    store = open_store(
        workdir / 'checkpoints', 9, run.split.split_fingerprint())
    with contextlib.closing(store):
      return store.restore(training.checkpoint_shapes(run.simulation))

  return restore


def assert_close(left, right, atol=TOLERANCE):
  """Two (round, Checkpoint), but for the seconds."""
  assert left[0] == right[0]
  without_time = [found[1]._replace(train_s=np.float64(0))
                  for found in (left, right)]
  for a, b in zip(*map(jax.tree.leaves, without_time), strict=True):
    if a.dtype.kind == 'f':
      np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    else:
      np.testing.assert_array_equal(a, b)


def assert_same_lines(left, right):
  """Whole numbers are the same, and so are means, to the order of the sum."""
  lines = [small_runs.read_lines(folder) for folder in (left, right)]
  for line, other in zip(*lines, strict=True):
    assert line.keys() == other.keys()
    for name, value in line.items():
      if isinstance(value, int):
        assert value == other[name], name
    assert line['loss'] == pytest.approx(other['loss'], abs=TOLERANCE)


class TestTwoHostsAreOne:

  def test_a_sum_crosses_the_hosts_to_the_bit(self, work):
    for process, said in enumerate(work[1]):
      for mode, found in said['integers'].items():
        assert found['total'] == 506, mode  # 0 + 1 + 4 + ... + 121.
        assert found['server'] == 1000 + 2 * 506
        assert found['num_devices'] == 4
        assert found['homes'] == [2 * process, 2 * process + 1]

  def test_each_process_holds_its_own_rows_and_can_gather_all(self, work):
    whole = (1 + np.arange(12).reshape(4, 3)).tolist()
    for process, said in enumerate(work[1]):
      for found in said['integers'].values():
        assert found['personal'] == whole
        assert found['spread'] == [4, 3]
        assert found['own'] == [[whole[2 * process]], [whole[2 * process + 1]]]
        assert found['donated']

  def test_the_run_is_that_of_one_process(self, work, one_process, read):
    whole = work[0] / 'whole'
    assert_same_lines(whole, one_process[0])
    found = read(whole)
    assert_close(found, read(one_process[0]))
    # And that says something: the run moves by much more.
    start_table = jax.tree.leaves(
        one_process[2].simulation.init().server.item_table)[0]
    moved = np.abs(
        jax.tree.leaves(found[1].server.item_table)[0] - start_table).max()
    assert TOLERANCE < 0.01 * moved

  def test_the_summary_is_that_of_one_process(self, work, one_process):
    summary = json.loads((work[0] / 'whole' / 'summary.json').read_text())
    assert summary['device'].startswith('4 x cpu')
    for name in ('data', 'controls', 'communication', 'selected_round', 'test',
                 'groups'):
      assert summary[name] == one_process[1][name], name

  def test_pmap_spans_hosts_too(self, work, one_process):
    lines = small_runs.read_lines(work[0] / 'pmap')
    assert [line['round'] for line in lines] == [1, 2]
    for line, other in zip(lines, small_runs.read_lines(one_process[0])):
      assert line['num_examples'] == other['num_examples']
      assert line['loss'] == pytest.approx(other['loss'], abs=TOLERANCE)


class TestWrittenOnce:

  def test_every_command_ended_well(self, work):
    assert [said['codes'] for said in work[1]] == [[0] * 4] * 2

  def test_metrics_have_each_round_once(self, work):
    for name in ('whole', 'same', 'fewer'):
      lines = small_runs.read_lines(work[0] / name)
      assert [line['round'] for line in lines] == [1, 2, 3, 4]

  def test_there_is_one_of_each_file(self, work):
    names = sorted(path.name for path in (work[0] / 'whole').iterdir())
    events = [name for name in names if name.startswith('events.')]
    assert len(events) == 1
    assert set(names) - set(events) == {
        'checkpoints', 'config.json', 'metrics.jsonl', 'report.html',
        'summary.json'}

  def test_one_process_speaks(self, work):
    first, second = (said['printed'] for said in work[1])
    assert sum(line.startswith('Report: ') for line in first.splitlines()) == 4
    assert second == ''

  def test_how_it_was_started_is_no_part_of_a_run(self, work):
    """So that it is continued, or evaluated, by any number of processes."""
    config = json.loads((work[0] / 'whole' / 'config.json').read_text())
    assert config['parallel']['coordinator'] == ''
    assert config['parallel']['num_processes'] == 0

  def test_each_process_writes_its_part_of_a_checkpoint(self, work):
    meta = json.loads(
        (work[0] / 'whole' / 'checkpoints' / '4' / 'meta' / 'metadata')
        .read_text())
    assert len(meta['homes']['sha256']) == 4
    arrays = work[0] / 'whole' / 'checkpoints' / '4' / 'arrays'
    for process in range(2):
      part = arrays / f'ocdbt.process_{process}' / 'd'
      assert sum(path.stat().st_size for path in part.iterdir()) > 0


class TestCheckpointsGoAnywhere:

  def test_two_hosts_go_on_to_the_bit(self, work):
    """2 x 2 devices from the checkpoint of 2 x 2."""
    assert small_runs.read_lines(work[0] / 'same') == small_runs.read_lines(
        work[0] / 'whole')

  def test_the_parameters_are_the_same_too(self, work, read):
    assert_close(read(work[0] / 'same'), read(work[0] / 'whole'), atol=0)

  def test_other_numbers_of_devices_on_two_hosts(self, work, read):
    assert_same_lines(work[0] / 'fewer', work[0] / 'whole')
    assert_close(read(work[0] / 'fewer'), read(work[0] / 'whole'))

  @pytest.mark.parametrize('changes', [
      {'parallel.mode': 'single'}, {'parallel.mode': 'shard_map'}],
      ids=['one device', 'four devices'])
  def test_one_process(self, changes, work, read, tmp_path):
    workdir = shutil.copytree(work[0] / 'whole', tmp_path / 'run')
    shutil.rmtree(workdir / 'checkpoints' / '4')
    config = small_runs.make_config({**CHANGES, **changes})
    run = experiment.build(config)
    round_index, checkpoint = read(workdir)
    assert round_index == 2
    # What is put on other devices is what was written, to the bit.
    stop = training.start_from(run.simulation, round_index, checkpoint)
    again = training.to_checkpoint(run.simulation, stop)
    assert_close((2, again), (2, checkpoint), atol=0)
    experiment.train(config, workdir, resume=True, progress=False)
    assert_same_lines(workdir, work[0] / 'whole')
    read.cache_clear()
    assert_close(read(workdir), read(work[0] / 'whole'))

  def test_a_run_is_evaluated_where_there_are_fewer_devices(
      self, work, one_process, tmp_path):
    workdir = shutil.copytree(work[0] / 'whole', tmp_path / 'run')
    values = json.loads((workdir / 'config.json').read_text())
    values['parallel']['num_devices'] = 64
    (workdir / 'config.json').write_text(json.dumps(values))
    found = experiment.evaluate(workdir, one_process[2].config.evaluation)
    summary = json.loads((workdir / 'summary.json').read_text())
    assert found['test'] == summary['test']
    assert found['selected_round'] == summary['selected_round']

  def test_the_shapes_to_expect_are_those_of_a_run(self, one_process):
    simulation = one_process[2].simulation
    like = training.checkpoint_shapes(simulation)
    real = training.to_checkpoint(
        simulation, training.start_afresh(simulation))
    assert jax.tree.structure(like) == jax.tree.structure(real)
    for a, b in zip(*map(jax.tree.leaves, (like, real)), strict=True):
      assert (a.shape, a.dtype) == (b.shape, b.dtype)

  @pytest.mark.parametrize('home', range(4))
  def test_rows_of_any_home_that_changed_are_refused(
      self, home, work, read, tmp_path):
    """Each device's rows have a digest of their own."""
    workdir = shutil.copytree(work[0] / 'whole', tmp_path / 'run')
    meta = workdir / 'checkpoints' / '4' / 'meta' / 'metadata'
    content = json.loads(meta.read_text())
    digests = content['homes']['sha256']
    digests[home] = digests[home][::-1]
    meta.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='4 is damaged'):
      read(workdir)


class TestJoining:

  def test_a_coordinator_needs_a_folder_for_all(self, capsys):
    assert cli.main(
        ['fedjaxrec', 'train', '--parallel.coordinator=auto']) == 2
    assert 'needs --workdir' in capsys.readouterr().err

  def test_processes_are_joined_before_jax_is_used(self):
    assert jax.devices()
    with pytest.raises(ValueError, match=(
        'parallel.coordinator=localhost:.*before anything else uses JAX')):
      hosts.join(ParallelConfig(
          coordinator=f'localhost:{free_port()}', num_processes=1,
          process_id=0))

  def test_slurm_is_recognised(self, finished):
    for process in range(2):
      said = result(finished, f'refuse {process}')
      assert said['count'] == 2
      assert said['hear'] == [['x', 0], ['xx', 1]]
      assert said['tell']['of'] == 0

  def test_nobody_there_is_an_error_in_time(self, finished):
    code, out, errors = finished[1]['late']
    assert code == 2 and not out
    assert errors.startswith('fedjaxrec: parallel.coordinator=localhost:')
    assert 'process 0 was not reached within parallel.join_timeout_s=1' in (
        errors)
    assert 'How many others wait is not known' in errors and len(
        errors.splitlines()) == 1
    assert not (finished[0] / 'late').exists()

  def test_a_slurm_task_alone_is_an_error_in_time(self, finished):
    code, out, errors = finished[1]['slurm alone']
    assert code == 2 and not out
    assert 'parallel.coordinator=auto: the processes were not all there' in (
        errors)
    assert 'join_timeout_s=1' in errors and 'Traceback' not in errors

  def test_what_one_refuses_all_refuse(self, finished):
    first, second = (result(finished, f'refuse {i}') for i in range(2))
    assert (first['together'], second['together']) == (0, 1)
    assert first['one fails'] == 'ValueError: process 1 refused: no file in 1'
    assert second['one fails'] == 'FileNotFoundError: no file in 1'
    assert first['first fails'] == 'FileNotFoundError: no file in 0'
    assert second['first fails'] == (
        'ValueError: process 0 refused: no file in 0')
    assert first['first only'] == second['first only'] == 0

  def test_other_flags_and_other_data_are_refused(self, finished):
    for process in range(2):
      said = result(finished, f'refuse {process}')
      assert said['agree'] is None and said['elsewhere'] is None
      assert 'process 1 has another data than process 0' in said['data']
      assert 'process 1 has another config than process 0' in said['config']
      assert 'parallel.num_processes=3' in said['num_processes']

  def test_a_folder_that_is_not_shared_is_refused(self, finished):
    first, second = (result(finished, f'refuse {i}') for i in range(2))
    for said in (first, second):
      assert said['shared'] is None
      assert 'not the folder that process 0 sees' in said['not shared']
    assert first['left'] == ['of 0', 'of 1']
