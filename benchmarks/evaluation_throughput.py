"""How long does full ranking take?

Ranks one held-out item of every user among all items that the user has not
trained on, with top-10 lists, for a matrix factorisation model of random
parameters; by default at ML-1M's size.

  python benchmarks/evaluation_throughput.py --users=6040 --items=3706 --dim=64
"""

import harness
import jax
import numpy as np
from absl import app, flags

from fedjaxrec.config import ModelConfig
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.evaluation.ranking import make_ranker
from fedjaxrec.models.registry import build_recommender

_USERS = flags.DEFINE_integer('users', 6040, 'Users.')
_ITEMS = flags.DEFINE_integer('items', 3706, 'Items in the catalogue.')
_HISTORY = flags.DEFINE_integer('history', 160, 'Interactions of a user.')
_DIM = flags.DEFINE_integer('dim', 64, 'Dimension of the vectors.')
_BATCH = flags.DEFINE_integer('batch', 512, 'Users ranked at once.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed calls of each.')


def main(_):
  """One row a protocol."""
  harness.print_row(machine=harness.describe_machine())
  users, items, history = _USERS.value, _ITEMS.value, _HISTORY.value
  offsets, rows, labels = harness.make_population(users, history, items)
  everything = Interactions(
      offsets, rows, labels, np.zeros(len(rows), np.int64), np.arange(users),
      np.arange(items), False)
  last = np.tile(np.arange(history) == history // 2, users)
  targets, train = everything.take(last), everything.take(~last)
  recommender = build_recommender(ModelConfig(dim=_DIM.value), items)
  table, shared = recommender.init_server(jax.random.key(0))
  # Compiled, or every user would be given an item table of their own first.
  personal = jax.block_until_ready(
      jax.jit(jax.vmap(recommender.init_personal))(
          jax.random.split(jax.random.key(1), users)))
  calls = {}
  for protocol, top_k in (('full', 0), ('full', 10), ('sampled-99', 0)):
    rank = make_ranker(
        recommender.score, targets, [train], items, protocol=protocol,
        batch_size=_BATCH.value, seed=0, top_k=top_k)
    calls[protocol, top_k] = (
        lambda rank=rank: rank(personal, table, shared).rank)
  times = harness.measure(calls, _REPEATS.value)
  harness.print_table([
      harness.print_row(
          protocol=protocol, top_k=top_k, users=users, items=items,
          dim=_DIM.value, median_s=t['median_s'], first_s=t['first_s'],
          users_per_s=users / t['median_s'])
      for (protocol, top_k), t in times.items()])


if __name__ == '__main__':
  app.run(main)
