"""Does a run's memory follow its block, and not its cohort?

For growing cohorts at a fixed block: the temporary bytes that the compiler
reports for the rounds of a call, the engine's own estimate of the same made
before compiling, and the most memory that a process which runs them ever held
(each row in a process of its own, beside one that only imports the engine).

  python benchmarks/memory.py --cohorts=100,1000,10000 --block=16
"""

import json
import resource
import subprocess
import sys

import harness
import jax
from absl import app, flags
from mf_work import make_mf_config, make_mf_simulation, make_rounds_call

_COHORTS = flags.DEFINE_list(
    'cohorts', ['100', '1000', '10000'], 'Clients in a round.')
_POPULATION = flags.DEFINE_integer('population', 10000, 'Clients.')
_ITEMS = flags.DEFINE_integer('items', 1000, 'Items in the catalogue.')
_DIM = flags.DEFINE_integer('dim', 16, 'Dimension of the vectors.')
_BLOCK = flags.DEFINE_integer('block', 16, 'Clients in a block.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Rounds that are run.')
_DATA = flags.DEFINE_enum(
    'data', 'device', ['device', 'host'], 'Where the interactions lie.')
_CHILD = flags.DEFINE_integer(
    'child', -1, 'Measures this cohort in this process and prints one object; '
    '0: nothing but the engine and its population. Used by the benchmark.')


def measure_here(cohort: int) -> dict[str, float]:
  """Runs one cohort's rounds in this process, and says what it took."""
  population = harness.make_population(_POPULATION.value, 40, _ITEMS.value)
  row: dict[str, float] = {}
  if cohort:
    simulation = make_mf_simulation(
        make_mf_config(
            dim=_DIM.value, batch=20, cohort=cohort, block=_BLOCK.value,
            rounds_per_call=_ROUNDS.value, data=_DATA.value),
        population, _ITEMS.value, l2_clip_norm=0.5)
    memory = simulation.memory
    row = {
        'temporary_mb': simulation.temporary_bytes() / 1e6,
        'estimated_temporary_mb': (memory.step + memory.block) / 1e6,
        'estimated_total_mb': memory.total / 1e6}
    call = make_rounds_call(simulation, _ROUNDS.value)
    for _ in range(2):
      jax.block_until_ready(call())
  # Kilobytes on Linux.
  row['peak_rss_mb'] = resource.getrusage(
      resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
  return row


def measure_in_child(cohort: int) -> dict[str, float]:
  """The same in a process of its own."""
  names = ('population', 'items', 'dim', 'block', 'rounds', 'data')
  result = subprocess.run(
      [sys.executable, __file__, f'--child={cohort}',
       *(f'--{name}={flags.FLAGS[name].value}' for name in names)],
      capture_output=True, text=True, check=False)
  if result.returncode:
    raise RuntimeError(
        f'cohort={cohort} failed in its process:\n{result.stderr[-2000:]}')
  return json.loads(result.stdout.splitlines()[-1])


def main(_):
  """One row a cohort."""
  if _CHILD.value >= 0:
    print(json.dumps(measure_here(_CHILD.value)))
    return
  harness.print_row(machine=harness.describe_machine())
  nothing = measure_in_child(0)['peak_rss_mb']
  rows = []
  for cohort in map(int, _COHORTS.value):
    row = measure_in_child(cohort)
    rows.append(harness.print_row(
        cohort=cohort, block=_BLOCK.value, items=_ITEMS.value, **row,
        above_nothing_mb=row['peak_rss_mb'] - nothing))
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
