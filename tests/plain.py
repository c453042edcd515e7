"""Configs with every field set: tuning a default changes no test."""

from fedjaxrec import config
from fedjaxrec.config.unread import drop_unread


def whole(**sections):
  """A whole config, in which what nothing would read is left at its default."""
  return config.Config(**drop_unread(vars(config.Config()) | sections))


def objective(**changes):
  draws = changes.get('name') != 'squared_error'
  return config.ObjectiveConfig(**{
      'name': 'bce', 'num_negatives': 2 if draws else 0, 'l2': 0.0, **changes})


def client(**changes):
  return config.ClientConfig(**{
      'optimizer': 'sgd', 'learning_rate': 0.1, 'item_learning_rate': 0.1,
      'momentum': 0.9, 'epochs': 1, 'steps': 0, 'batch_size': 4,
      'proximal_mu': 0.0, 'schedule': 'constant', 'final_fraction': 0.1,
      **changes})


def server(**changes):
  # Others do not read it, and a config refuses what is not read.
  if changes.get('optimizer') in ('adagrad', 'adam', 'yogi'):
    changes = {'eps': 1e-3, **changes}
  return config.ServerConfig(**{
      'optimizer': 'sgd', 'learning_rate': 1.0, 'momentum': 0.9, 'b1': 0.9,
      'b2': 0.99, 'row_normalization': 'mean', 'lazy_rows': True,
      'schedule': 'constant', 'final_fraction': 0.1, **changes})


def cohort(**changes):
  return config.CohortConfig(**{
      'size': 6, 'sampler': 'uniform', 'cap': 0, 'weights_path': '',
      'weighting': 'equal', **changes})
