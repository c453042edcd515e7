"""Several processes, one run: how they join, agree, and who writes.

Process 0 writes the run directory and speaks to the user; the others compute
and are silent. What one process finds wrong ends all of them, with its words.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedjaxrec import config as config_lib
from fedjaxrec.config import Config, ParallelConfig
from fedjaxrec.orchestration import rendezvous

T = TypeVar('T')

# JAX's own clock runs out after ours: it ends the process without a word that a
# user could read.
_GRACE_S = 60
# A shared file system may show a new file late.
_VISIBLE_S = 10.0
_PROBE_PREFIX = '.fedjaxrec-probe-'


def join(config: ParallelConfig) -> None:
  """Joins the processes of a run; the first thing that uses JAX.

  Does nothing without a coordinator, or where the caller has already called
  `jax.distributed.initialize`.

  Raises:
    ValueError: If a process does not come within join_timeout_s, or if JAX was
      used before.
  """
  if not config.coordinator:
    return
  if jax.distributed.is_initialized():
    if config.num_processes not in (0, jax.process_count()):
      raise ValueError(
          f'parallel.num_processes={config.num_processes}, but jax.distributed '
          f'was initialized with {jax.process_count()}; give the same.')
    return
  # Before the rendezvous, which the others would leave for nothing.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  name = f'parallel.coordinator={config.coordinator}'
  places: dict[str, Any] = {}
  if config.coordinator != 'auto':
    rendezvous.meet(config.coordinator, config.num_processes,
                    config.process_id, config.join_timeout_s)
    places = {
        'coordinator_address': config.coordinator,
        'num_processes': config.num_processes,
        'process_id': config.process_id}
  watch = threading.Timer(config.join_timeout_s, _give_up, (
      f'{name}: the processes were not all there within parallel.'
      f'join_timeout_s={config.join_timeout_s}. How many are missing is not '
      'known here. Check that every process of the job was started with the '
      'same command, and that their hosts reach each other.',))
  watch.daemon = True
  watch.start()
  try:
    jax.distributed.initialize(
        initialization_timeout=config.join_timeout_s + _GRACE_S, **places)
  except (RuntimeError, ValueError) as error:
    way_out = (
        'no Slurm job, cloud TPU or other cluster was recognised: give '
        'host:port of process 0, parallel.num_processes and parallel.process_id'
        if not places and isinstance(error, ValueError) else
        'call this before anything else uses JAX in the process, or join the '
        'processes yourself by jax.distributed.initialize()')
    raise ValueError(f'{name}: {way_out}. JAX says: {error}') from error
  finally:
    watch.cancel()


def _give_up(message: str) -> None:
  """Ends the process: JAX waits in C++, where no exception reaches it."""
  print(f'fedjaxrec: {message}', file=sys.stderr, flush=True)
  os._exit(2)


def is_first() -> bool:
  """Whether this process writes and speaks."""
  return jax.process_index() == 0


def without_launch(config: Config) -> Config:
  """The config of the run, without how its processes were started."""
  return dataclasses.replace(config, parallel=ParallelConfig(
      mode=config.parallel.mode, num_devices=config.parallel.num_devices))


def tell(value: Any) -> Any:
  """What process 0 says, in every process; JSON types, NumPy unwrapped."""
  if jax.process_count() == 1:
    return value
  text = np.frombuffer(json.dumps(
      value, default=lambda x: np.asarray(x).tolist()).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  text = np.resize(text, size)  # The others' is only as long.
  return json.loads(
      np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())


def hear(value: Any) -> list[Any]:
  """What each process says, in order, in every process; JSON types."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[:len(text)] = text
  texts = np.asarray(multihost_utils.process_allgather(padded))
  return [json.loads(line[:size].tobytes())
          for line, size in zip(texts, sizes)]


def together(action: Callable[[], T]) -> T:
  """Does something in every process; if one refuses, all do.

  Args:
    action: May raise ValueError or OSError; must not talk to other processes.

  Raises:
    ValueError, OSError: The process's own, or a ValueError that names the
      process that refused and repeats its words.
  """
  if jax.process_count() == 1:
    return action()
  result, failure = None, None
  try:
    result = action()
  except (ValueError, OSError) as error:
    failure = error
  said = hear(None if failure is None else str(failure))
  if failure is not None:
    raise failure
  for process, words in enumerate(said):
    if words is not None:
      raise ValueError(f'process {process} refused: {words}')
  return result  # type: ignore[return-value]


def on_first(action: Callable[[], T]) -> T:
  """Does something in process 0, and gives its JSON result to all."""
  return tell(together(lambda: action() if is_first() else None))


def check_agreement(
    config: Config, data_fingerprint: Callable[[], str]
) -> None:
  """Refuses processes that were not given the same run.

  Raises:
    ValueError: In every process, if the config or the data differ.
  """
  if jax.process_count() == 1:
    return
  values = config_lib.to_dict(without_launch(config))
  # The data may lie elsewhere on each host; it has a fingerprint.
  values['data'] |= {'path': '', 'cache_dir': ''}
  text = json.dumps(values, sort_keys=True)
  mine = {'config': hashlib.sha256(text.encode()).hexdigest(),
          'data': data_fingerprint()}
  for process, theirs in enumerate(said := hear(mine)):
    for what in mine:
      if theirs[what] != said[0][what]:
        raise ValueError(
            f'process {process} has another {what} than process 0: give every '
            'process the same flags and the same files, but for '
            'parallel.process_id.')


def check_shared(workdir: pathlib.Path) -> None:
  """Refuses a run directory that is not the same one for all processes.

  Raises:
    ValueError: In every process, if one does not see what process 0 writes.
  """
  if jax.process_count() == 1:
    return
  probe = workdir / f'{_PROBE_PREFIX}{tell(time.time_ns())}'
  together(lambda: probe.touch() if is_first() else None)

  def look():
    deadline = time.monotonic() + _VISIBLE_S
    while not probe.exists():
      if time.monotonic() > deadline:
        raise ValueError(
            f'workdir={str(workdir)!r} is not the folder that process 0 sees: '
            'checkpoints are written by all processes; choose a --workdir on a '
            'file system that all hosts share.')
      time.sleep(0.1)

  try:
    together(look)
  finally:
    if is_first():
      probe.unlink(missing_ok=True)
