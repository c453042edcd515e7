"""Fold-in: fitting the personal parameters of users who did not train."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import (
    CohortConfig,
    CompressionConfig,
    Config,
    LocalPrivacyConfig,
    PrivacyConfig,
    SecureConfig,
    with_sections,
)
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.models.two_tower import SideInputs
from fedjaxrec.simulation import make_simulation

PyTree = Any


def _freeze_server(algorithm: Algorithm) -> Algorithm:
  """The same clients, and a server that only counts the rounds."""
  return algorithm._replace(
      server=algorithm.server._replace(
          update=lambda state, total: state._replace(
              round_index=state.round_index + 1),
          rows_stand_still=False, needs_row_weight=False),
      mix_clients=None)


def make_fold_in(
    config: Config, fold_in: Interactions, side: SideInputs | None = None
) -> Callable[[PyTree, PyTree, PyTree], PyTree]:
  """Builds fit(personal, item_table, shared) -> personal.

  Users with fold-in interactions train on them as in a round, for
  evaluation.fold_in_rounds rounds, from fresh personal parameters; the item
  table is held still and the server keeps nothing of theirs. Where the
  algorithm has a `refit`, that is what they do instead. Other users'
  parameters are returned as they are.

  Args:
    config: The run's config.
    fold_in: What held-out users show; may be empty.
    side: The run's features, where its model reads some.

  Returns:
    fit; leaves of personal are [num_users, ...].
  """
  if not fold_in.num_interactions:
    return lambda personal, item_table, shared: personal
  epochs = config.evaluation.fold_in_rounds
  # These refit, and have rules of their own for how many rounds there are.
  rounds = (config.rounds if config.algorithm.name in ('fedease', 'dpals')
            else epochs)
  simulation = make_simulation(
      with_sections(
          config, rounds=rounds, cohort=CohortConfig(size=0),
          # On the client's own device: nothing leaves it.
          privacy=PrivacyConfig(
              l2_clip_norm=config.privacy.l2_clip_norm
              if config.algorithm.name == 'dpals' else 0.0),
          local_privacy=LocalPrivacyConfig(),
          compression=CompressionConfig(),
          secure=SecureConfig(),
          client=dataclasses.replace(
              config.client, item_learning_rate=0.0, schedule='constant'),
          engine=dataclasses.replace(config.engine, rounds_per_call=epochs)),
      fold_in.offsets, fold_in.items, fold_in.ratings, fold_in.num_items,
      transform_algorithm=_freeze_server, side=side and side._replace(
          train_moments=side.fold_in_moments))
  held_out = fold_in.counts > 0

  @functools.cache
  def fresh():
    # Once, and as NumPy arrays: a run donates its state, and init compiles.
    state = simulation.init()
    return (jax.tree.map(np.asarray, state.server),
            simulation.personal_by_client(state))

  def fit(personal, item_table, shared):
    server, own = fresh()
    server = server._replace(item_table=item_table, shared=shared)
    if simulation.refit is not None:
      fitted = simulation.refit(server, own)
    else:
      state, _ = simulation.run(simulation.restore(server, own), 0, epochs)
      fitted = simulation.personal_by_client(state)
    return jax.tree.map(
        lambda new, old: np.where(
            held_out.reshape(-1, *[1] * (new.ndim - 1)), new, old),
        fitted, personal)

  return fit
