"""The order of the rooms, and the sides of the files, checked on the source.

The map below is the law, and this file its only place: a room may import the
rooms that stand before it. Reports stand before orchestration, because the
experiment loop writes the report.
"""

import ast
import functools
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A room is a folder or a file of fedjaxrec/; imports point only to earlier
# ones.
ROOMS = (
  'config', 'flags', 'data', 'population', 'participation', 'models',
  'objectives', 'examples', 'optimizers', 'local_training',
  'jax_privacy_bridge', 'transforms', 'aggregation', 'uplink', 'protection',
  'touched_rows', 'server', 'blocks', 'refit', 'rounds', 'hosted_rounds',
  'hosted_clients', 'memory', 'parallel', 'algorithms', 'communication',
  'simulation', 'study_fields', 'study', 'personalization', 'evaluation',
  'references', 'privacy', 'reports', 'orchestration',
  '__init__', 'sweep_cli', 'benchmark_cli', 'privacy_cli', 'cli', '__main__',
)
# Who may ask the package for its version by `import fedjaxrec`.
ASK_VERSION = {'orchestration', 'cli', '__main__'}
# Whole rooms on one side. Other rooms have files of both sides; there, as
# everywhere but where the sides meet, no file is on both.
HOST = {'config', 'flags', 'data', 'participation', 'reports', 'privacy_cli',
        'study_fields', '__init__', 'sweep_cli', 'benchmark_cli', 'cli',
        '__main__'}
DEVICE = {'population', 'models', 'objectives', 'examples', 'optimizers',
          'local_training', 'transforms', 'uplink', 'protection', 'server',
          'touched_rows', 'blocks', 'refit', 'rounds', 'hosted_rounds',
          'hosted_clients', 'memory', 'parallel', 'algorithms', 'simulation',
          'study'}
MEETING_POINT = {'orchestration'}

DEVICE_LIBRARIES = {'jax', 'jaxlib', 'flax', 'optax'}
IO_LIBRARIES = {
  'array_record', 'csv', 'gzip', 'io', 'json', 'orbax', 'os', 'pathlib',
  'pickle', 'plotly', 'pyarrow', 'requests', 'rich', 'shutil', 'socket',
  'subprocess', 'tempfile', 'tensorboardX', 'tensorflow', 'tensorflow_datasets',
  'urllib', 'zipfile',
}
IO_CALLS = {'open', 'print', 'input', 'np.load', 'np.save', 'np.savez',
            'np.loadtxt', 'np.fromfile'}
# Heavy libraries: one module knows each of them, and nobody else.
ONE_MODULE = ('tensorflow_datasets', 'plotly', 'tensorboardX', 'pyarrow',
              'orbax', 'dp_accounting', 'cryptography', 'jax_privacy',
              'tenseal')
# Gone, or on their way out, in one of the JAX versions that are supported.
OLD_NAMES = {'jax.tree_map', 'jax.device_put_replicated',
             'jax.experimental.shard_map'}
MAX_LINES = 450
# A file takes another's place in one module, which does it whole.
REPLACING = {'os.replace', 'tempfile.mkstemp', 'tempfile.NamedTemporaryFile'}
WHOLE_FILE = 'data/whole_file.py'


def _imports(tree: ast.AST) -> Iterator[str]:
  """Yields each imported module, names of a `from` import included."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _room_of_import(name: str) -> str | None:
  parts = name.split('.')
  if parts[0] != 'fedjaxrec':
    return None
  return parts[1] if len(parts) > 1 and parts[1] in ROOMS else '__init__'


def violations(path: str, source: str) -> list[str]:
  """Returns which rules a file breaks.

  Args:
    path: Relative to fedjaxrec/, with slashes.
    source: The file's text.
  """
  found = []
  tree = ast.parse(source)
  room = path.split('/')[0].removesuffix('.py')
  imports = list(_imports(tree))
  libraries = {name.split('.')[0] for name in imports}
  dotted = {ast.unparse(node) for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)} | set(imports)
  calls = {ast.unparse(node.func) for node in ast.walk(tree)
           if isinstance(node, ast.Call)}
  does_io = (libraries & IO_LIBRARIES) | (calls & IO_CALLS)
  if 'absl.flags' in imports:
    does_io.add('absl.flags')

  if room not in ROOMS:
    return [f'{path}: room {room} has no place in the order']
  for name in imports:
    other = _room_of_import(name)
    if name == 'fedjaxrec' and room in ASK_VERSION:
      continue
    if other is not None and ROOMS.index(other) > ROOMS.index(room):
      found.append(f'{path}: order: imports {name}')
  if room in HOST and libraries & DEVICE_LIBRARIES:
    found.append(f'{path}: host imports {libraries & DEVICE_LIBRARIES}')
  if room in DEVICE and does_io:
    found.append(f'{path}: device does I/O: {does_io}')
  if (room not in HOST | DEVICE | MEETING_POINT and does_io
      and libraries & DEVICE_LIBRARIES):
    found.append(f'{path}: both sides: {libraries & DEVICE_LIBRARIES} and '
                 f'{does_io}')
  if 'flax' in libraries and room != 'models':
    found.append(f'{path}: flax outside models/')
  if 'chex' in libraries:
    found.append(f'{path}: chex outside tests/')
  for name in dotted:
    if name in OLD_NAMES:
      found.append(f'{path}: old name {name}')
    if name in REPLACING and path != WHOLE_FILE:
      found.append(f'{path}: replaces a file by {name}, not {WHOLE_FILE}')
  if len(source.splitlines()) > MAX_LINES:
    found.append(f'{path}: length: {len(source.splitlines())} lines')
  if path.count('/') > 1:
    found.append(f'{path}: depth: more than two')
  if path.endswith('utils.py'):
    found.append(f'{path}: name: a file is one subject')
  if not ast.get_docstring(tree):
    found.append(f'{path}: docstring: none at the top')
  return found


def missing_rooms(
    rooms: Iterable[str], package: pathlib.Path) -> list[str]:
  """Returns the rooms that are neither a folder of modules nor a file."""
  return [room for room in rooms
          if not (package / room / '__init__.py').is_file()
          and not (package / f'{room}.py').is_file()]


@functools.cache
def _libraries(source: str) -> frozenset[str]:
  return frozenset(name.split('.')[0] for name in _imports(ast.parse(source)))


def importers(sources: dict[str, str], library: str) -> list[str]:
  """Returns the files that import a library."""
  return [path for path, source in sources.items()
          if library in _libraries(source)]


@pytest.fixture(scope='module')
def sources() -> dict[str, str]:
  package = ROOT / 'fedjaxrec'
  return {path.relative_to(package).as_posix(): path.read_text()
          for path in sorted(package.rglob('*.py'))}


def test_every_file_keeps_the_order_and_its_side(sources):
  assert len(sources) > 5
  found = [violation for path, source in sources.items()
           for violation in violations(path, source)]
  assert not found, '\n'.join(found)


def test_every_room_of_the_map_is_there_once(tmp_path):
  assert missing_rooms(ROOMS, ROOT / 'fedjaxrec') == []
  assert len(set(ROOMS)) == len(ROOMS)
  assert HOST | DEVICE | MEETING_POINT | ASK_VERSION <= set(ROOMS)
  # The control: one that was planned, one that is empty, and a file.
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'rounds.py').write_text('')
  assert missing_rooms(
      ['export', 'empty', 'rounds'], tmp_path) == ['export', 'empty']


@pytest.mark.parametrize('library', ONE_MODULE)
def test_a_heavy_library_is_imported_in_one_module(sources, library):
  assert len(importers(sources, library)) == 1, importers(sources, library)


@pytest.mark.parametrize(('path', 'source', 'rule'), [
  ('data/splits.py', 'from fedjaxrec.rounds import Plan', 'order'),
  ('data/splits.py', 'from fedjaxrec import rounds', 'order'),
  ('server.py', 'import fedjaxrec.orchestration.experiment', 'order'),
  ('reports/html.py', 'from fedjaxrec.orchestration import x', 'order'),
  ('rounds.py', 'def f():\n  from fedjaxrec.cli import main', 'order'),
  ('rounds.py', 'from fedjaxrec import train', 'order'),
  ('rounds.py', 'import fedjaxrec', 'order'),
  ('orchestration/experiment.py', 'from fedjaxrec import train', 'order'),
  ('helpers.py', 'import math', 'no place'),
  ('data/splits.py', 'import jax.numpy as jnp', 'host imports'),
  ('participation/plan.py', 'from jax import random', 'host imports'),
  ('rounds.py', 'import pathlib', 'device does I/O'),
  ('rounds.py', 'def f():\n  print(1)', 'device does I/O'),
  ('server.py', 'import numpy as np\nnp.load("x")', 'device does I/O'),
  ('evaluation/ranking.py', 'import jax\nimport json', 'both sides'),
  ('evaluation/ranking.py', 'import jax\nfrom absl import flags', 'both'),
  ('rounds.py', 'from flax import nnx', 'flax'),
  ('models/mf.py', 'import chex', 'chex'),
  ('rounds.py', 'import jax\njax.tree_map(f, x)', 'old name'),
  ('rounds.py', 'from jax.experimental import shard_map', 'old name'),
  ('rounds.py', 'x = 1\n' * 451, 'length'),
  ('data/a/b.py', 'import math', 'depth'),
  ('data/utils.py', 'import math', 'name'),
  ('data/splits.py', 'import math', 'docstring'),
  ('data/cache.py', 'import os\nos.replace(a, b)', 'replaces a file'),
  ('data/cache.py', 'import tempfile\ntempfile.mkstemp()', 'replaces a file'),
])
def test_each_rule_catches_a_file_that_breaks_it(path, source, rule):
  assert any(rule in violation for violation in violations(path, source))


def test_a_file_that_breaks_no_rule_passes():
  source = '"""Subject."""\nimport jax\nfrom fedjaxrec.config import Config\n'
  assert not violations('rounds.py', source)


def test_a_library_in_two_modules_is_caught():
  sources = {'a.py': 'import pyarrow.csv', 'b.py': 'from pyarrow import csv',
             'c.py': 'import json'}
  assert importers(sources, 'pyarrow') == ['a.py', 'b.py']


@pytest.mark.parametrize('room', sorted(HOST - {'__main__'}))
def test_the_host_side_imports_without_jax(sources, room):
  """By running it: an import of an import counts as well."""
  modules = [
    'fedjaxrec.' + path.removesuffix('.py').replace('/', '.')
    for path in sources if path.split('/')[0].removesuffix('.py') == room]
  modules = [module.removesuffix('.__init__') for module in modules]
  code = '\n'.join([*(f'import {module}' for module in modules), 'import sys',
                    'print(sorted({"jax", "flax", "optax", "tensorflow"}'
                    ' & set(sys.modules)))'])
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True,
                          capture_output=True, check=True)
  assert result.stdout.strip() == '[]', result.stdout
