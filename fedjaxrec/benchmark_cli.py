"""`fedjaxrec benchmark`: its flags, and what it makes of them."""

import pathlib
import sys
from typing import Any

from absl import flags

from fedjaxrec.flags import define_bool, define_flags

USAGE = 'fedjaxrec benchmark --benchmark.methods=fedavg,ease'
SUMMARY = 'Compares methods, federated and not, on data sets and seeds.'
TITLE = 'What is compared'
SECTIONS = ('', 'benchmark', 'data', 'synthetic', 'split', 'evaluation',
            'engine', 'parallel')
_FIELDS = ('rounds', *SECTIONS[2:])


def define(values: flags.FlagValues) -> None:
  """Defines the flags of `fedjaxrec benchmark`."""
  flags.DEFINE_string(
      'workdir', '', "The benchmark's directory; empty: runs/DATE-TIME-"
      'benchmark.', flag_values=values)
  define_bool('resume', False, 'Continue the benchmark in --workdir; methods, '
              'data sets and seeds may be added.', values)
  define_bool('overwrite', False, 'Replace the benchmark in --workdir.', values)
  define_bool('progress', True, 'Show progress and print the tables.', values)
  flags.DEFINE_list(
      'benchmark.datasets', ['movielens-100k'], 'Presets by name, csv:FILE, or '
      '.flags files with --data.source and --split.name.', flag_values=values)
  flags.DEFINE_list(
      'benchmark.methods', [], 'Methods by name; empty: all that have a file.',
      flag_values=values)
  flags.DEFINE_string(
      'benchmark.seeds', '0,1,2', 'The seeds of every method, 0,1,2 or 0-7. '
      'Intervals need at least two.', flag_values=values)
  flags.DEFINE_list(
      'benchmark.protocols', ['full', 'sampled-99'], 'How every run is ranked; '
      'full alone for a small catalogue.', flag_values=values)
  flags.DEFINE_string(
      'benchmark.presets', 'scripts/benchmark', 'The folder of data sets, '
      'methods and the search space.', flag_values=values)
  flags.DEFINE_integer(
      'benchmark.tune', 0, 'Settings tried for each method, those of its file '
      'and drawn ones, by validation NDCG@10; writes the chosen flags in place '
      'of a comparison. 0: compare.', lower_bound=0, flag_values=values)
  define_bool('benchmark.dry_run', False,
              'List what would be run, and stop.', values)
  define_flags(flag_values=values, only=_FIELDS)


def run(values: flags.FlagValues, workdir: pathlib.Path) -> int:
  """Runs the benchmark that the flags ask for; returns the exit code.

  Args:
    values: Parsed flags, of `define`.
    workdir: The benchmark's directory.

  Raises:
    ValueError, FileNotFoundError: For anything wrong with them, before JAX is
      imported.
  """
  from fedjaxrec.orchestration import benchmark_methods, grid
  given: dict[str, Any] = {name: values[name].value for name in values}
  for name, way_out in (
      ('evaluation.protocol', 'drop it: every run is ranked by '
       'benchmark.protocols'),
      ('parallel.coordinator', 'drop it: a benchmark is one process')):
    if values[name].present:
      raise ValueError(f'--{name}={given[name]} with a benchmark; {way_out}.')
  presets = benchmark_methods.open_presets(given['benchmark.presets'])
  protocols = benchmark_methods.parse_protocols(
      given['benchmark.protocols'])
  seeds = grid.parse_seeds(given['benchmark.seeds'], 'benchmark.seeds')
  wanted: dict[str, list[str]] = {}
  for what in ('datasets', 'methods'):
    names = [name.strip() for name in given[f'benchmark.{what}']]
    if len(set(names)) < len(names):
      raise ValueError(
          f'benchmark.{what}={",".join(names)} has a name twice; drop one.')
    wanted[what] = names
  if not wanted['datasets']:
    raise ValueError(
        "benchmark.datasets='' names no data set; choose of "
        f'{", ".join(presets.datasets())}, or give csv:FILE.')
  if given['data.path'] and len(wanted['datasets']) > 1:
    raise ValueError(
        f'--data.path={given["data.path"]} with benchmark.datasets='
        f'{",".join(wanted["datasets"])}: it is the place of one; run them one '
        'after another, the second with --resume into the same --workdir.')
  datasets = [benchmark_methods.read_dataset(presets, name, values)
              for name in wanted['datasets']]
  labels = [dataset.name for dataset in datasets]
  if len(set(labels)) < len(labels):
    raise ValueError(
        f'benchmark.datasets={",".join(wanted["datasets"])} has two of one '
        f'name in the tables, {", ".join(labels)}; rename a file.')
  methods = [
      [benchmark_methods.read_method(presets, dataset, name, values)
       for name in wanted['methods'] or presets.methods(dataset)]
      for dataset in datasets]
  tune = given['benchmark.tune']
  spaces = [[benchmark_methods.read_space(presets, method) for method in mine]
            for mine in methods] if tune else []
  if given['benchmark.dry_run']:
    _list_runs(datasets, methods, seeds, tune, workdir)
    return 0
  # What is wrong with the directory is said before the seconds that JAX takes.
  from fedjaxrec.reports import benchmark_directory, run_directory
  run_directory.check_workdir(
      workdir, resume=values.resume, overwrite=values.overwrite,
      kind=benchmark_directory.KIND)
  from fedjaxrec.orchestration import benchmark, benchmark_tuning
  plan = benchmark.Plan(datasets, methods, seeds, protocols)
  options = {'resume': values.resume, 'overwrite': values.overwrite,
             'progress': values.progress}
  try:
    if tune:
      for path in benchmark_tuning.run_tuning(
          plan, spaces, tune, workdir, **options):
        print(f'Chosen: {path}')
      return 0
    outcomes = benchmark.run_benchmark(plan, workdir, **options)
  except KeyboardInterrupt:
    print('\nInterrupted. Continue with the same command and --resume '
          f'--workdir={workdir}', file=sys.stderr)
    return 130
  for name in (benchmark_directory.TABLE, benchmark_directory.MARKDOWN,
               benchmark_directory.PAGE):
    print(f'Benchmark: {workdir / name}')
  failed = sum(outcome.status == 'failed' for outcome in outcomes)
  if failed:
    print(f'{failed} of {len(outcomes)} runs have failed; they are tried again '
          'with --resume.', file=sys.stderr)
  return int(failed > 0)


def _list_runs(datasets, methods, seeds, tune, workdir) -> None:
  """Prints a line for each method: its file, and what of it is done."""
  from fedjaxrec.reports import benchmark_directory
  for dataset, mine in zip(datasets, methods):
    print(f'{dataset.name}: {dataset.config.data.source}, split '
          f'{dataset.config.split.name}')
    for method in mine:
      done = sum(benchmark_directory.status_of(benchmark_directory.run_folder(
          workdir, dataset.name, method.name, seed)) == 'done'
                 for seed in seeds)
      what = method.reference or method.config.algorithm.name
      rounds = '' if method.reference else f', {method.config.rounds} rounds'
      runs = (f'{tune} settings' if tune else
              f'{len(seeds)} seeds, {done} done')
      print(f'  {method.name:<20}{what}{rounds}; {runs}; {method.path}')
