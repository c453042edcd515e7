"""Runs small enough to be made many times, and what of them is compared."""

import dataclasses
import json
import math

import numpy as np
import orbax.checkpoint as ocp

from fedjaxrec import config as config_lib
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.data.splits import Split

# One size class on one device compiles fastest. Adam on the server, so that a
# run has more to remember than its parameters.
SMALL = {
    'rounds': 6,
    'data.source': 'synthetic',
    'synthetic.num_users': 40,
    'synthetic.num_items': 60,
    'synthetic.mean_interactions': 10.0,
    'synthetic.num_clusters': 4,
    'model.dim': 4,
    'objective.num_negatives': 2,
    'objective.l2': 0.0,
    'client.learning_rate': 0.3,
    'client.item_learning_rate': 3.0,
    'client.schedule': 'constant',
    'server.optimizer': 'adam',
    'server.learning_rate': 0.05,
    'server.eps': 1e-3,
    'server.row_normalization': 'mean',
    'server.schedule': 'constant',
    'cohort.size': 10,
    'engine.num_size_classes': 1,
    'parallel.mode': 'single',
    'evaluation.every': 2,
    'evaluation.bootstrap_samples': 100,
    'evaluation.local_only': False,
    'checkpoint.every': 2,
    'checkpoint.keep': 3,
}
# Wall-clock times and what is divided by them: all that may differ.
TIMES = {'wall_s', 'compile_s', 'train_s', 'clients_per_s', 'examples_per_s'}


def make_config(changes=None):
  """SMALL as a config, with other values by dotted name."""
  nested = {}
  for name, value in {**SMALL, **(changes or {})}.items():
    section, _, field = name.rpartition('.')
    (nested.setdefault(section, {}) if section else nested)[field] = value
  return config_lib.from_dict(nested)


def as_flags(changes=None):
  """The same on a command line."""
  return [f'--{name}={str(value).lower()}' if isinstance(value, bool)
          else f'--{name}={value}'
          for name, value in {**SMALL, **(changes or {})}.items()]


def read_arrays(workdir, round_index=None):
  """The arrays of a checkpoint, without the seconds, as Orbax reads them."""
  with ocp.CheckpointManager((workdir / 'checkpoints').absolute()) as manager:
    found = manager.restore(
        manager.latest_step() if round_index is None else round_index,
        args=ocp.args.Composite(arrays=ocp.args.StandardRestore())).arrays
  # The seconds are the only number of 64 bits.
  kept = {name: leaf for name, leaf in found.items()
          if leaf.dtype != np.float64}
  assert len(kept) == len(found) - 1 > 10
  return kept


def read_lines(workdir, times=False):
  """metrics.jsonl, without times unless asked for."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [{name: value for name, value in line.items()
           if times or name not in TIMES} for line in lines]


def timeless(summary):
  """A summary without what may differ from run to run."""
  return {name: value for name, value in summary.items() if name not in TIMES}


def assert_same_run(left, right):
  """Two run directories are of the same run, to the last bit."""
  arrays, others = read_arrays(left), read_arrays(right)
  assert arrays.keys() == others.keys()
  for name, leaf in arrays.items():
    np.testing.assert_array_equal(leaf, others[name], strict=True)
  assert read_lines(left) == read_lines(right)
  summaries = [timeless(json.loads((folder / 'summary.json').read_text()))
               for folder in (left, right)]
  assert summaries[0] == summaries[1]


def snapshot(folder):
  """Every file of a folder, its bytes and when it was written."""
  return {str(path.relative_to(folder)):
          (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else ''
          for path in sorted(folder.rglob('*'))}


def make_interactions(rows, num_items):
  """Interactions from a list of each user's items, in order of time."""
  counts = [len(items) for items in rows]
  items = np.concatenate([np.asarray(items, np.int32) for items in rows])
  return Interactions(
      np.concatenate([[0], np.cumsum(counts)]), items,
      np.ones(len(items), np.float32),
      np.concatenate([np.arange(count) for count in counts]),
      np.arange(len(rows)), np.arange(num_items))


def random_split(num_users, num_items, num_train, num_blocks=1, seed=0):
  """Every user has num_train items, one for validation and one for the test.

  User u draws them uniformly from block u % num_blocks of the catalogue. Given
  what the others did and what u trained on, u's test item is uniform over the
  rest of u's block.
  """
  rng = np.random.default_rng(seed)
  size = num_items // num_blocks
  drawn = np.stack([
      u % num_blocks * size + rng.permutation(size)[:num_train + 2]
      for u in range(num_users)])
  nobody = make_interactions([[0]] * num_users, num_items)
  return Split(
      'leave_one_out', make_interactions(drawn[:, :-2], num_items),
      make_interactions(drawn[:, -2:-1], num_items),
      make_interactions(drawn[:, -1:], num_items),
      nobody.take(np.zeros(num_users, bool)), fingerprint=f'random {seed}')


def with_test_items(split, items):
  """The split with another test item for each user; -1 for none."""
  items = np.asarray(items)
  test = make_interactions(
      [[item] if item >= 0 else [] for item in items], split.num_items)
  return dataclasses.replace(split, test=test)


def chance_bound(expected):
  """Hits that independent users pass by chance with probability below 1e-9.

  Bernstein's inequality for a sum X of independent indicators with mean E:
  P(X >= E + t) <= exp(-t^2 / (2 E + 2 t / 3)).
  """
  c = math.log(1e9)
  return expected + c / 3 + math.sqrt(c**2 / 9 + 2 * c * expected)
