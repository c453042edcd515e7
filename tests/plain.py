"""Configs with every field set: tuning a default changes no test."""

from fedjaxrec import config


def objective(**changes):
  return config.ObjectiveConfig(**{
      'name': 'bce', 'num_negatives': 2, 'l2': 0.0, **changes})


def client(**changes):
  return config.ClientConfig(**{
      'optimizer': 'sgd', 'learning_rate': 0.1, 'item_learning_rate': 0.1,
      'momentum': 0.9, 'epochs': 1, 'steps': 0, 'batch_size': 4,
      'proximal_mu': 0.0, 'schedule': 'constant', 'final_fraction': 0.1,
      **changes})


def server(**changes):
  return config.ServerConfig(**{
      'optimizer': 'sgd', 'learning_rate': 1.0, 'momentum': 0.9, 'b1': 0.9,
      'b2': 0.99, 'eps': 1e-3, 'row_normalization': 'mean', 'lazy_rows': True,
      'schedule': 'constant', 'final_fraction': 0.1, **changes})


def cohort(**changes):
  return config.CohortConfig(**{
      'size': 6, 'sampler': 'uniform', 'cap': 0, 'weights_path': '',
      'weighting': 'equal', **changes})
