"""FedJAX: its federated averaging, sampler and in-memory federated data.

The clients of a round are trained one after another, each step a compiled
call. The batches are not shuffled, which saves it a little.
"""

import fedjax
import jax
import jax.numpy as jnp
from work import Clock, load


def main():
  work = load()

  def loss(params, batch, _):
    scores = params['table'][batch['items']] @ params['vector']
    return jnp.mean(jnp.square(scores - batch['ratings']))

  data = fedjax.InMemoryFederatedData({
      client: {'items': items, 'ratings': ratings} for client, (items, ratings)
      in enumerate(zip(work.items, work.ratings))})
  sampler = fedjax.client_samplers.UniformGetClientSampler(
      data, work.cohort, seed=0)
  algorithm = fedjax.algorithms.fed_avg.federated_averaging(
      jax.grad(loss), fedjax.optimizers.sgd(work.learning_rate),
      fedjax.optimizers.sgd(1.0),
      fedjax.ShuffleRepeatBatchHParams(
          batch_size=work.batch, num_epochs=1, skip_shuffle=True))
  state = algorithm.init(
      {'table': jnp.asarray(work.table), 'vector': jnp.asarray(work.vector)})
  clock = Clock(work)
  for _ in range(work.all_rounds):
    clients = sampler.sample()
    state, _ = algorithm.apply(state, clients)
    jax.block_until_ready(state.params)
    num_examples = sum(len(dataset) for _, dataset, _ in clients)
    clock.end(num_examples, state.params['table'], state.params['vector'])
  clock.report('fedjax', 'jax')


if __name__ == '__main__':
  main()
