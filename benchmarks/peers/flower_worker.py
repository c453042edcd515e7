"""Flower: its FedAvg strategy and simulation runtime, on Ray.

A client is a task of a Ray actor, one actor a core. The gradients are written
by hand in NumPy, and the data lie in every actor's memory: its quickest case.
CPU seconds are those of the whole tree of processes.
"""

import os
import pathlib
import sys

import work as common
from flwr.app import (
    ArrayRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

FOLDER = str(pathlib.Path(sys.argv[1]).resolve())

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
  """One client's epoch: plain SGD on the mean squared error."""
  work = common.load(FOLDER)
  client = int(context.node_config['partition-id'])
  table, vector = (
      x.copy() for x in message.content['arrays'].to_numpy_ndarrays())
  for start in range(0, work.items.shape[1], work.batch):
    items = work.items[client, start:start + work.batch]
    ratings = work.ratings[client, start:start + work.batch]
    rows = table[items]
    slope = work.learning_rate * 2 / len(items) * (rows @ vector - ratings)
    # A client's items are distinct, so a plain subtraction adds nothing twice.
    table[items] -= slope[:, None] * vector
    vector = vector - slope @ rows
  return Message(
      content=RecordDict({
          'arrays': ArrayRecord([table, vector]),
          'metrics': MetricRecord({'num-examples': work.items.shape[1]})}),
      reply_to=message)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
  """The rounds; the strategy's hook for judging the model ends each."""
  work = common.load(FOLDER)
  examples = [0]

  def add_examples(replies, weighted_by_key):
    examples[0] = sum(
        int(reply['metrics'][weighted_by_key]) for reply in replies)
    return MetricRecord()

  clock = common.Clock(work, common.tree_cpu_seconds)

  def end_round(number, arrays):
    if number:
      clock.end(examples[0], *arrays.to_numpy_ndarrays())
    else:
      clock.begin()

  FedAvg(
      fraction_train=work.cohort / len(work.items), fraction_evaluate=0.0,
      min_train_nodes=work.cohort, min_available_nodes=len(work.items),
      train_metrics_aggr_fn=add_examples,
  ).start(
      grid, ArrayRecord([work.table, work.vector]), work.all_rounds,
      evaluate_fn=end_round)
  clock.report('flwr', 'ray')


def main():
  run_simulation(
      server_app, client_app, len(common.load(FOLDER).items),
      backend_config={
          'client_resources': {'num_cpus': 1, 'num_gpus': 0.0},
          'init_args': {
              'num_cpus': os.cpu_count(), 'include_dashboard': False,
              '_node_ip_address': '127.0.0.1'}})


if __name__ == '__main__':
  main()
