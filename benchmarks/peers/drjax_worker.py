"""DrJAX: the whole round is one compiled program, a vmap over the clients.

Unlike the others it has no client objects and no sampler: the cohort is drawn
and gathered by NumPy. Every client trains a dense copy of the item table. Of
the ways to write it, this one was the quickest on a CPU: a scan over the steps
(not unrolled), and the mean of the trained models instead of their deltas,
which is the same where the server's learning rate is 1.
"""

import drjax
import jax
import jax.numpy as jnp
import numpy as np
from work import Clock, load


def main():
  work = load()
  rng = np.random.default_rng(0)

  def loss(params, items, ratings):
    table, vector = params
    return jnp.mean(jnp.square(table[items] @ vector - ratings))

  def train(params, items, ratings):
    """One client: items and ratings are [steps, batch]; returns its model."""
    def step(current, batch):
      grads = jax.grad(loss)(current, *batch)
      return jax.tree.map(
          lambda p, g: p - work.learning_rate * g, current, grads), None

    return jax.lax.scan(step, params, (items, ratings))[0]

  @jax.jit
  @drjax.program(placements={'clients': work.cohort})
  def run_round(params, items, ratings):
    return drjax.reduce_mean(
        drjax.map_fn(train, (drjax.broadcast(params), items, ratings)))

  batches = (work.cohort, -1, work.batch)
  params = (jnp.asarray(work.table), jnp.asarray(work.vector))
  clock = Clock(work)
  for _ in range(work.all_rounds):
    cohort = rng.choice(len(work.items), work.cohort, replace=False)
    items = work.items[cohort].reshape(batches)
    params = jax.block_until_ready(
        run_round(params, items, work.ratings[cohort].reshape(batches)))
    clock.end(items.size, *params)
  clock.report('drjax', 'jax')


if __name__ == '__main__':
  main()
