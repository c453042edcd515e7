"""How long is a round of PFedRec's local work on ML-100K's shape?

All clients in every round, one local epoch, 4 negatives an interaction, 32
dimensions, batches of 51 interactions with their negatives (255 examples),
binary cross-entropy, clipping on. By default a log-normal population of
ML-100K's size; --counts takes the real client sizes from a file (one integer a
line).

  python benchmarks/local_work.py --counts=FILE
"""

import harness
import jax
import numpy as np
from absl import app, flags
from mf_work import make_rounds_call

from fedjaxrec.config import (
    ClientConfig,
    CohortConfig,
    Config,
    EngineConfig,
    ModelConfig,
    ObjectiveConfig,
    ParallelConfig,
    ServerConfig,
)
from fedjaxrec.simulation import make_simulation
from fedjaxrec.transforms.clip import clip_by_l2

_COUNTS = flags.DEFINE_string('counts', '', 'File of client sizes.')
_ITEMS = flags.DEFINE_integer('items', 1682, 'Items in the catalogue.')
_DIM = flags.DEFINE_integer('dim', 32, 'Dimension of the vectors.')
_BATCH = flags.DEFINE_integer('batch', 51, 'Interactions in a batch.')
_BLOCKS = flags.DEFINE_list('blocks', ['0'], 'Block sizes; 0: automatic.')
_CLASSES = flags.DEFINE_list('classes', ['0'], 'Size classes; 0: automatic.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed calls of each.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Rounds in a call.')


def main(_):
  """One row a block size and number of classes."""
  harness.print_row(machine=harness.describe_machine())
  counts = (np.loadtxt(_COUNTS.value, dtype=np.int64) if _COUNTS.value
            else None)
  clients = harness.make_long_tailed_population(counts, _ITEMS.value)
  calls = {}
  for block in map(int, _BLOCKS.value):
    for classes in map(int, _CLASSES.value):
      config = Config(
          rounds=10**6,
          model=ModelConfig(dim=_DIM.value),
          objective=ObjectiveConfig(num_negatives=4, l2=0.0),
          client=ClientConfig(
              learning_rate=0.1, item_learning_rate=0.1,
              batch_size=_BATCH.value, schedule='constant'),
          server=ServerConfig(
              optimizer='sgd', learning_rate=1.0, row_normalization='mean',
              schedule='constant'),
          cohort=CohortConfig(size=0),
          engine=EngineConfig(
              block_size=block, num_size_classes=classes,
              rounds_per_call=_ROUNDS.value),
          parallel=ParallelConfig(mode='single'))
      simulation = make_simulation(
          config, *clients, _ITEMS.value,
          client_transform=lambda key: clip_by_l2(10.0))
      calls[simulation.block_size, len(simulation.capacities)] = (
          make_rounds_call(simulation, _ROUNDS.value))
  examples = {key: int(jax.device_get(call().num_examples[0]))
              for key, call in calls.items()}
  times = harness.measure(calls, _REPEATS.value)
  rows = [
      harness.print_row(
          block=block, classes=classes, clients=len(clients[0]) - 1,
          examples=examples[block, classes],
          median_s=t['median_s'] / _ROUNDS.value,
          min_s=t['min_s'] / _ROUNDS.value,
          examples_per_s=examples[block, classes] * _ROUNDS.value
          / t['median_s'])
      for (block, classes), t in times.items()]
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
