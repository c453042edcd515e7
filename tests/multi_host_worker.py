"""What one process of several does in `multi_host_test`, as a command.

  python -m tests.multi_host_worker SCENARIO FOLDER FLAGS...

The flags are those of `fedjaxrec train` that join the processes. The last line
of the output is a JSON object.
"""

import contextlib
import io
import json
import pathlib
import shutil
import sys

from fedjaxrec import cli
from fedjaxrec import config as config_lib
from tests import small_runs

# Blocks of four: with the default one a device would compute mostly padding.
CHANGES = {'parallel.mode': 'auto', 'rounds': 4, 'engine.block_size': 4}


def train(folder, launch, *extra):
  """The command, in this process; resumed where there is a run."""
  flags = [f'--workdir={folder}', *launch, *extra]
  if '--resume' not in extra:
    flags = [*small_runs.as_flags(CHANGES), *flags]
  return cli.main(['fedjaxrec', 'train', *flags])


def copy_at_round_2(source, target):
  """A run that was killed after the checkpoint of round 2."""
  shutil.copytree(source, target)
  shutil.rmtree(target / 'checkpoints' / '4')
  (target / 'summary.json').unlink()


def sum_integers():
  """A sum over all devices of all processes, and what lies where."""
  import jax
  import numpy as np

  from fedjaxrec import parallel

  def run(server, personal, data, plan, num_rounds, key):
    del plan, key
    total = jax.lax.psum((personal * data).sum(), parallel.AXIS)
    return server + total * num_rounds, personal + 1, total

  found = {}
  for mode in ('shard_map', 'pmap'):
    placement = parallel.choose_placement(config_lib.ParallelConfig(mode=mode))
    n, homes = placement.num_devices, placement.homes
    whole = np.arange(3 * n, dtype=np.int32).reshape(n, 3)
    own = whole[homes.start:homes.stop]
    home = parallel.put_at_home(whole, placement)
    server, personal, total = parallel.distribute(run, placement)(
        parallel.put_everywhere(np.int32(1000), placement), home,
        parallel.put_at_home(own, placement),  # Its own rows only.
        parallel.put_at_home(np.zeros((n, 1)), placement),
        parallel.put_everywhere(np.int32(2), placement),
        parallel.put_everywhere(jax.random.key(0), placement))
    spread = parallel.spread(personal, placement)
    found[mode] = {
        'homes': list(homes), 'num_devices': n, 'total': int(total),
        'server': int(server),
        'personal': parallel.gather(personal, placement).tolist(),
        'spread': list(spread.shape),
        'own': [np.asarray(s.data).tolist() for s in spread.addressable_shards],
        'donated': home.is_deleted()}
  return found


def work(folder, launch):
  """Trains on 2 x 2 devices, goes on from the middle on 2 x 2 and 2 x 1."""
  codes = [train(folder / 'whole', launch)]
  from fedjaxrec.orchestration import hosts
  for name in ('same', 'fewer'):
    hosts.on_first(lambda name=name: copy_at_round_2(
        folder / 'whole', folder / name))
  codes.append(train(folder / 'same', launch, '--resume'))
  codes.append(train(
      folder / 'fewer', launch, '--resume', '--parallel.num_devices=1'))
  codes.append(train(
      folder / 'pmap', launch, '--parallel.mode=pmap', '--rounds=2'))
  return {'codes': codes, 'integers': sum_integers()}


def refuse(folder, launch):
  """Every way in which one process differs from another."""
  from absl import flags

  from fedjaxrec.flags import define_flags, read_config
  from fedjaxrec.orchestration import hosts
  values = flags.FlagValues()
  define_flags(flag_values=values)
  values(['train', *launch])
  config = read_config(values, small_runs.make_config(CHANGES))
  hosts.join(config.parallel)
  hosts.join(config.parallel)  # Once is enough.
  import jax
  me = jax.process_index()
  own = folder / f'of {me}'
  own.mkdir()
  found = {
      'tell': hosts.tell({'of': me, 'nan': float('nan')}),
      'hear': hosts.hear(['x' * (me + 1), me]),
      'count': jax.process_count()}

  def fail_in(process):
    if me == process:
      raise FileNotFoundError(f'no file in {me}')
    return me

  def attempt(name, action):
    try:
      found[name] = action()
    except (ValueError, OSError) as error:
      found[name] = f'{type(error).__name__}: {error}'

  attempt('together', lambda: hosts.together(lambda: me))
  attempt('one fails', lambda: hosts.together(lambda: fail_in(1)))
  attempt('first fails', lambda: hosts.on_first(lambda: fail_in(0)))
  attempt('first only', lambda: hosts.on_first(lambda: fail_in(1)))
  attempt('agree', lambda: hosts.check_agreement(config, lambda: 'x'))
  elsewhere = small_runs.make_config({**CHANGES, 'data.cache_dir': f'/{me}'})
  attempt('elsewhere', lambda: hosts.check_agreement(elsewhere, lambda: 'x'))
  attempt('data', lambda: hosts.check_agreement(config, lambda: f'{me}'))
  other = small_runs.make_config({**CHANGES, 'seed': me})
  attempt('config', lambda: hosts.check_agreement(other, lambda: 'x'))
  hosts._VISIBLE_S = 0.5  # A file system that shows files late is none of ours.
  attempt('shared', lambda: hosts.check_shared(folder))
  attempt('not shared', lambda: hosts.check_shared(own))
  found['left'] = sorted(p.name for p in folder.rglob('*'))
  attempt('num_processes', lambda: hosts.join(config_lib.ParallelConfig(
      coordinator='localhost:1', num_processes=3, process_id=me)))
  return found


def main(scenario, folder, *launch):
  # Gloo writes to the same file without end of line or lock, so what Python
  # prints is kept apart.
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    result = {'work': work, 'refuse': refuse}[scenario](
        pathlib.Path(folder), list(launch))
  print('\n' + json.dumps(result | {'printed': printed.getvalue()}), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
