"""Fine-tuning: each client trains a copy of the final model, and keeps it.

What fits a client's last interactions may also overfit them: evaluated before
and after.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjaxrec.algorithms.own_model import (
    OwnModel,
    init_own_model,
    keep_own,
    own_values,
)
from fedjaxrec.config import Config
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.local_training import make_local_training
from fedjaxrec.memory import check_personal_tables
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.objectives import OBJECTIVES
from fedjaxrec.optimizers import build_item_optimizer, build_optimizer
from fedjaxrec.participation.sizes import choose_block_size, choose_classes
from fedjaxrec.refit import make_refit
from fedjaxrec.server import ServerState
from fedjaxrec.simulation import Simulation

PyTree = Any
# Algorithms whose clients recommend with the plain model, to start from.
PLAIN = ('fedavg', 'fedper', 'fedrep', 'fedrecon')


def make_finetuning(
    config: Config, train: Interactions, simulation: Simulation
) -> tuple[Callable, Callable[[PyTree, PyTree, PyTree], OwnModel]] | None:
  """Builds (score, tune): the model after fine-tuning.

  Every client with training interactions takes personalization.finetune_steps
  steps on its own copy of the model, item rows, shared and personal parameters
  together, with the clients' settings and their rates times
  personalization.finetune_fraction. Nothing is uploaded.

  Args:
    config: The run's config.
    train: The training interactions; nothing else is read.
    simulation: The run's.

  Returns:
    None without steps. score: (OwnModel, item_rows, shared) -> scores; tune:
    (personal by client, item_table, shared) -> OwnModel, NumPy leaves
    [num_clients, ...]. Memory: an item table a client.

  Raises:
    ValueError: If the tables are above the limit, or if the algorithm's clients
      have models of their own already.
  """
  settings, client = config.personalization, config.client
  if not settings.finetune_steps:
    return None
  if config.algorithm.name not in PLAIN:
    raise ValueError(
        f'personalization.finetune_steps={settings.finetune_steps} with '
        f'algorithm.name={config.algorithm.name}, whose clients do not '
        'recommend with the model that would be tuned; use 0, or '
        f'algorithm.name={", ".join(PLAIN)}.')
  num_items = train.num_items
  recommender = build_recommender(config.model, num_items)
  fraction = settings.finetune_fraction
  run = make_local_training(
      recommender.score, OBJECTIVES[config.objective.name],
      build_optimizer(client, fraction * client.learning_rate),
      build_item_optimizer(dataclasses.replace(
          client, item_learning_rate=fraction * client.item_learning_rate)),
      batch_size=client.batch_size, steps=settings.finetune_steps,
      l2=config.objective.l2)

  def fit(view, examples, num_examples):
    contribution, layer = run(
        view._replace(personal=view.personal.layer), examples, num_examples)
    rows, shared = jax.tree.map(
        lambda x, delta: x + delta, (view.item_rows, view.shared),
        (contribution.item_rows, contribution.shared))
    return keep_own(layer, rows, shared, examples.used)

  algorithm = simulation.algorithm._replace(
      refit=fit, broadcast=lambda server: server.shared,
      init_personal=lambda key: init_own_model(recommender, num_items, key))
  check_personal_tables(
      algorithm, train.num_users, settings.table_limit_gib)
  refit: Any = make_refit(
      algorithm, train.offsets, train.items, train.ratings, num_items,
      choose_classes(config, train.counts), choose_block_size(
          config, simulation.placement.devices[0].platform, train.num_users,
          train.counts), simulation.key)
  empty = jax.eval_shape(
      algorithm.init_personal, jax.eval_shape(lambda: jax.random.key(0)))

  def tune(personal, item_table, shared):
    nothing = jax.tree.map(
        lambda x: np.zeros((train.num_users, *x.shape), x.dtype), empty)
    start: Any = np.int32(0)
    server = ServerState(start, item_table, shared, (), ())
    return refit(server, nothing._replace(layer=personal))

  def score(own, item_rows, shared):
    return recommender.score(own.layer, *own_values(own, item_rows, shared))

  return score, tune
