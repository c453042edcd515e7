"""How fast is a round, against the other simulators of federated learning?

The work: FedAvg of explicit matrix factorisation on made ratings, one local
epoch of SGD, server learning rate 1. Every peer gets an environment of its own
with pinned versions, made on the first run and kept in --environments, and one
worker (in `peers/`) that does the work the way that peer's users write it. All
of a run's rows are measured in that run: one peer at a time on all cores, and
ours before the first and after each. Compilation is in the first round alone,
which, like the warm-up, is no part of the medians. `median_s` is wall-clock and
`cpu_s` processor seconds of a round, `first_s` the first round (of ours: call).

  python benchmarks/peers.py --cohort=1000 --rounds=5

Each round is checked: it trained on cohort x history ratings, and it lowered
the loss over all clients. From the same start, the peers' losses must be alike
after every round, whoever was sampled. A peer that cannot be installed, fails
or does other work is a row with an `error`; the others go on.

What is not alike, and whom it helps:

* Ours clips every client's delta and adds Gaussian noise to the sum, keeps a
  private vector and bias for every client and a bias for every item, and
  shuffles a client's ratings in every round. The peers do none of this: theirs
  is one table and one vector, both shared, and ratings in stored order.
* Ours returns to Python once a round, as DrJAX does and the others at least
  do; --rounds_per_call gives it more, as in real runs. Its sampling and
  planning are in its seconds. It compiles for longer than any of them: see
  `first_s`.
* DrJAX offers building blocks: no clients as objects, no sampler. Its cohort
  is drawn and gathered by NumPy, the least that could be done.
* FedJAX, pfl and Flower build a client's data set or message, its result and
  its metrics, as their users get them. FedJAX is on the JAX of its quickest
  pins. pfl's printing is off, and so are evaluation and its privacy.
* Flower's client is gradients written by hand in NumPy, which costs nearly
  nothing: its row is the price of its messages. It runs on Ray, one actor a
  core; its CPU seconds are those of all these processes, its first round may
  share their start, and at most three of its rounds are timed.
* The pins compute on the CPU, so ours does too. DrJAX is on JAX 0.10.2.
* The ratio to DrJAX depends on the cohort: while all the copies of the table
  that its clients train fit the caches, it is far smaller.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import harness
import jax
import numpy as np
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation, make_rounds_call

import fedjaxrec

WORKERS = pathlib.Path(__file__).resolve().parent / 'peers'
sys.path.append(str(WORKERS))
import work as work_lib  # noqa: E402  The workers' own module.


class Peer(NamedTuple):
  """Where a peer comes from.

  Attributes:
    installs: Requirements of each pip install, in order.
    most_rounds: Timed rounds at most: a round of some takes seconds.
  """
  installs: tuple[tuple[str, ...], ...]
  most_rounds: int = 10**6


PEERS = {
    'drjax': Peer((('drjax==0.2.1', 'jax==0.10.2', 'jaxlib==0.10.2'),)),
    'fedjax': Peer(((
        'fedjax==0.0.17', 'jax==0.4.30', 'jaxlib==0.4.30', 'dm-haiku==0.0.13',
        'optax==0.2.4', 'chex<0.1.90', 'numpy<2.2'),)),
    # First torch, or pfl might choose another one. Where its wheel brings CUDA,
    # the worker computes on the CPU all the same.
    'pfl': Peer((('torch==2.13.0',), ('pfl==0.6.0',))),
    'flower': Peer((('flwr[simulation]==1.41.0',),), most_rounds=3),
}

_PEERS = flags.DEFINE_list('peers', list(PEERS), 'Peers to measure, in order.')
_COHORT = flags.DEFINE_integer('cohort', 1000, 'Clients in a round.')
_POPULATION = flags.DEFINE_integer('population', 2000, 'Clients.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Timed rounds of each peer.')
_WARM_UP = flags.DEFINE_integer(
    'warm_up', 2, 'Rounds after the first that are not timed either.')
_ITEMS = flags.DEFINE_integer('items', 1000, 'Items in the catalogue.')
_DIM = flags.DEFINE_integer('dim', 16, 'Dimension of the vectors.')
_HISTORY = flags.DEFINE_integer('history', 40, 'Ratings of a client.')
_BATCH = flags.DEFINE_integer('batch', 20, 'Ratings in a batch.')
_CLIP = flags.DEFINE_float('l2_clip_norm', 0.5, 'Our clipping norm.')
_NOISE = flags.DEFINE_float(
    'noise_multiplier', 1.0, 'Our noise stddev over the clipping norm.')
_CALL = flags.DEFINE_integer('rounds_per_call', 1, 'Our rounds in a call.')
_ENVIRONMENTS = flags.DEFINE_string(
    'environments', '', 'Folder of the environments; by default `fedjaxrec/'
    "peers` in the user's cache folder.")
_PYTHON = flags.DEFINE_string(
    'python', sys.executable,
    'Interpreter of the environments; the pins ran on Python 3.11.')
_LIMIT = flags.DEFINE_integer('limit_s', 600, 'Seconds that a peer may take.')

flags.register_validator(
    'peers', lambda names: all(name in PEERS for name in names),
    f'--peers has a name that is not one of {", ".join(PEERS)}.')


class PeerError(Exception):
  """A peer that could not be measured, and why, in one line."""


def run_logged(
    command: list[str], log: pathlib.Path, limit_s: int, **variables: str
) -> None:
  """Runs a command in an environment that knows nothing of ours."""
  environment = {
      k: v for k, v in os.environ.items()
      if k not in ('PYTHONPATH', 'PYTHONHOME')} | variables
  try:
    # A file and no pipe: what outlives a command would hold a pipe open.
    with log.open('w', encoding='utf-8') as file:
      code = subprocess.run(
          command, stdout=file, stderr=subprocess.STDOUT, env=environment,
          timeout=limit_s, check=False).returncode
  except subprocess.TimeoutExpired:
    raise PeerError(f'took more than limit_s={limit_s}') from None
  if code:
    raise PeerError(f'exit status {code}: {find_reason(log)}')


def find_reason(log: pathlib.Path) -> str:
  """The last line of a log that names an error, or its last line."""
  lines = [line.strip() for line in log.read_text(
      encoding='utf-8', errors='replace').splitlines() if line.strip()]
  errors = [line for line in lines if 'rror:' in line or 'ERROR' in line]
  return (errors or lines or ['no output'])[-1][:300]


def make_environment(name: str, root: pathlib.Path) -> pathlib.Path:
  """Makes a peer's environment unless it stands; returns its interpreter."""
  folder = root / name
  interpreter = folder / 'bin' / 'python'
  wanted = json.dumps([PEERS[name].installs, _PYTHON.value])
  finished = folder / 'finished.json'
  if finished.exists() and finished.read_text() == wanted:
    return interpreter
  shutil.rmtree(folder, ignore_errors=True)
  root.mkdir(parents=True, exist_ok=True)
  log = root / f'{name}.log'
  print(f'Making the environment of {name} (once) ...', file=sys.stderr)
  run_logged([_PYTHON.value, '-m', 'venv', str(folder)], log, 300)
  for requirements in PEERS[name].installs:
    run_logged(
        [str(interpreter), '-m', 'pip', 'install', *requirements], log, 1800)
  finished.write_text(wanted)
  return interpreter


def measure_peer(
    name: str, interpreter: pathlib.Path, work: work_lib.Work
) -> dict:
  """Runs a peer's worker; returns versions, rounds and losses."""
  print(f'Measuring {name} ...', file=sys.stderr)
  work = work._replace(rounds=min(work.rounds, PEERS[name].most_rounds))
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    work_lib.save(work, folder)
    run_logged(
        [str(interpreter), str(WORKERS / f'{name}_worker.py'), temporary],
        folder / 'log.txt', _LIMIT.value, JAX_PLATFORMS='cpu',
        PFL_PYTORCH_DEVICE='cpu', FLWR_TELEMETRY_ENABLED='0',
        FLWR_HOME=temporary, RAY_USAGE_STATS_ENABLED='0')
    result = folder / 'result.json'
    if not result.exists():
      raise PeerError(f'no result: {find_reason(folder / "log.txt")}')
    return json.loads(result.read_text())


def check_alike(losses: dict[str, list[float]]) -> None:
  """Raises if the latest peer's losses are not those of the first."""
  first, latest = list(losses)[0], list(losses)[-1]
  # What a cohort's mean differs from another's shrinks with its root.
  tolerance = 0.3 / np.sqrt(_COHORT.value)
  for number, (a, b) in enumerate(zip(losses[first], losses[latest])):
    if abs(a - b) > tolerance * a:
      del losses[latest]
      raise PeerError(
          f'loss={b:.4g} after round {number} is not that of {first}, '
          f'{a:.4g}: other work')


def make_row(
    peer: str, version: str, runs_on: str, first_s: float,
    wall_s: list[float], cpu_s: list[float]
) -> dict:
  """One row, of the timed rounds' seconds."""
  median = statistics.median(wall_s)
  return {
      'peer': peer, 'version': version, 'runs_on': runs_on,
      'cohort': _COHORT.value, 'items': _ITEMS.value, 'dim': _DIM.value,
      'timed': len(wall_s), 'median_s': median, 'min_s': min(wall_s),
      'max_s': max(wall_s), 'cpu_s': statistics.median(cpu_s),
      'first_s': first_s, 'clients_per_s': _COHORT.value / median}


class Ours:
  """Our rounds, measured in this process whenever asked."""

  def __init__(self, population: tuple[np.ndarray, np.ndarray, np.ndarray]):
    simulation = make_mf_simulation(
        make_mf_config(
            dim=_DIM.value, batch=_BATCH.value, cohort=_COHORT.value,
            rounds_per_call=_CALL.value),
        population, _ITEMS.value, l2_clip_norm=_CLIP.value,
        noise_multiplier=_NOISE.value)
    self._run = make_rounds_call(simulation, _CALL.value)
    self._wall_s: list[float] = []
    self._cpu_s: list[float] = []
    self._losses: list[float] = []
    self._first_s = self._call()[0]
    for _ in range(_WARM_UP.value):
      self._call()

  def _call(self) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    metrics = jax.block_until_ready(self._run())
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    assert np.all(
        metrics.num_examples == _COHORT.value * _HISTORY.value), metrics
    self._losses.append(float(metrics.loss[-1]))
    return seconds

  def measure(self) -> None:
    """Times more calls: many, for they are short."""
    self._call()  # Not timed: whatever ran before had the caches.
    for _ in range(4 * _ROUNDS.value):
      wall, cpu = self._call()
      self._wall_s.append(wall / _CALL.value)
      self._cpu_s.append(cpu / _CALL.value)

  def row(self) -> dict:
    """All calls' row; raises if they did not learn."""
    if not self._losses[-1] < self._losses[0]:
      raise RuntimeError(f'losses={self._losses}: ours did not learn.')
    return make_row(
        'fedjaxrec', fedjaxrec.__version__, f'jax {jax.__version__}',
        self._first_s, self._wall_s, self._cpu_s)


def main(_):
  """Measures ours and each peer; one JSON object a row, then a table."""
  if _HISTORY.value % _BATCH.value:
    raise ValueError(
        f'history={_HISTORY.value} is no multiple of batch={_BATCH.value}; '
        'the batches of a compiled round are one array: choose a batch that '
        'divides it.')
  jax.config.update('jax_platforms', 'cpu')
  harness.print_row(
      machine=harness.describe_machine(), load_average=os.getloadavg())
  root = pathlib.Path(_ENVIRONMENTS.value or pathlib.Path(
      os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
      / 'fedjaxrec' / 'peers').resolve()
  population = harness.make_population(
      _POPULATION.value, _HISTORY.value, _ITEMS.value)
  rng = np.random.default_rng(1)
  # Not around zero, from where the inner product would hardly move.
  start = 0.3 + 0.1 * rng.standard_normal(
      (_ITEMS.value + 1, _DIM.value), np.float32)
  work = work_lib.Work(
      *(x.reshape(-1, _HISTORY.value) for x in population[1:]),
      table=start[1:], vector=start[0], cohort=_COHORT.value,
      batch=_BATCH.value, learning_rate=0.05, warm_up=_WARM_UP.value,
      rounds=_ROUNDS.value)

  ours = Ours(population)  # First, as it refuses what cannot be run.
  rows, losses, interpreters = [], {}, {}
  for name in _PEERS.value:
    try:
      interpreters[name] = make_environment(name, root)
    except (PeerError, OSError) as error:
      rows.append({'peer': name, 'error': f'not installed: {error}'})
  ours.measure()
  for name, interpreter in interpreters.items():
    try:
      result = measure_peer(name, interpreter, work)
      losses[name] = result['losses']
      check_alike(losses)
      (_, version), runs_on = result['versions'].items()
      timed = result['rounds'][1 + work.warm_up:]
      rows.append(make_row(
          name, version, ' '.join(runs_on), result['rounds'][0]['wall_s'],
          [r['wall_s'] for r in timed], [r['cpu_s'] for r in timed]))
    except PeerError as error:
      rows.append({'peer': name, 'error': str(error)})
    ours.measure()

  rows = [ours.row(), *rows]
  for row in rows:
    if 'error' not in row:
      row['times_slower_than_ours'] = row['median_s'] / rows[0]['median_s']
      row['times_our_cpu'] = row['cpu_s'] / rows[0]['cpu_s']
  harness.print_table([harness.print_row(**row) for row in rows])


if __name__ == '__main__':
  app.run(main)
