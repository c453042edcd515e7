"""pfl-research: its simulated backend and federated averaging, on PyTorch.

The users of a round are trained one after another. Central DP, its metrics'
printing and the evaluation of every user are off, and the tensors of all users
lie in memory before the first round: its quickest case.
"""

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from work import Clock, load


class Factorization(torch.nn.Module):
  """The model in the form that pfl asks for."""

  def __init__(self, table, vector):
    super().__init__()
    self.table = torch.nn.Parameter(torch.tensor(table))
    self.vector = torch.nn.Parameter(torch.tensor(vector))

  def loss(self, items, ratings):
    """Mean squared error of a batch."""
    rows = torch.nn.functional.embedding(items, self.table)
    return torch.nn.functional.mse_loss(rows @ self.vector, ratings)

  def metrics(self, items, ratings):
    """Nothing: the clock judges the model."""
    return {}


class Watch(TrainingProcessCallback):
  """Ends the clock's round after the server's update."""

  def __init__(self, clock):
    self._clock = clock

  def after_central_iteration(
      self, aggregate_metrics, model, *, central_iteration):
    """Counts the examples: users times the mean of their data."""
    metrics = aggregate_metrics.to_simple_dict()
    num_examples = round(
        metrics['Train population | number of devices']
        * metrics['Train population | number of data points'])
    module = model.pytorch_model
    self._clock.end(
        num_examples, module.table.detach().numpy(),
        module.vector.detach().numpy())
    return False, Metrics()


def main():
  work = load()
  np.random.seed(0)  # pfl's samplers draw from NumPy's global generator.
  users = [
      Dataset(raw_data=[torch.tensor(items, dtype=torch.int64),
                        torch.tensor(ratings)], user_id=str(user))
      for user, (items, ratings) in enumerate(zip(work.items, work.ratings))]
  data = FederatedDataset(
      lambda user: users[user],
      get_user_sampler('minimize_reuse', list(range(len(users)))))
  module = Factorization(work.table, work.vector)
  model = PyTorchModel(
      module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
  clock = Clock(work)
  FederatedAveraging().run(
      NNAlgorithmParams(
          central_num_iterations=work.all_rounds,
          evaluation_frequency=work.all_rounds, train_cohort_size=work.cohort,
          val_cohort_size=0),
      SimulatedBackend(data, data), model,
      NNTrainHyperParams(
          local_batch_size=work.batch, local_num_epochs=1,
          local_learning_rate=work.learning_rate),
      NNEvalHyperParams(local_batch_size=None), [Watch(clock)],
      send_metrics_to_platform=False)
  clock.report('pfl', 'torch')


if __name__ == '__main__':
  main()
