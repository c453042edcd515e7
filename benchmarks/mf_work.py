"""The work that the speed benchmarks share: MF, one epoch of SGD."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from fedjaxrec.config import (
    ClientConfig,
    CohortConfig,
    Config,
    EngineConfig,
    ModelConfig,
    ObjectiveConfig,
    ParallelConfig,
    PrivacyConfig,
    ServerConfig,
)
from fedjaxrec.simulation import Simulation, make_simulation


def make_mf_config(
    *, dim: int, batch: int, cohort: int, block: int = 0,
    rounds_per_call: int = 10, num_devices: int = 1, data: str = 'device',
    num_negatives: int = 0
) -> Config:
  """Plain FedAvg: mean of the deltas, server rate 1.

  The ratings by squared error or, with negatives, every interaction and so
  many negatives drawn for each by the logistic loss.
  """
  return Config(
      rounds=10**6,
      model=ModelConfig(dim=dim),
      objective=ObjectiveConfig(
          name='bce', num_negatives=num_negatives, l2=0.0)
      if num_negatives else ObjectiveConfig(name='squared_error', l2=0.0),
      client=ClientConfig(
          learning_rate=0.05, item_learning_rate=0.05, batch_size=batch,
          schedule='constant'),
      server=ServerConfig(
          optimizer='sgd', learning_rate=1.0, row_normalization='mean',
          schedule='constant'),
      cohort=CohortConfig(size=cohort),
      engine=EngineConfig(
          block_size=block, rounds_per_call=rounds_per_call, data=data),
      parallel=ParallelConfig(
          mode='single' if num_devices == 1 else 'auto',
          num_devices=num_devices))


def make_mf_simulation(
    config: Config,
    population: tuple[np.ndarray, np.ndarray, np.ndarray],
    num_items: int,
    *,
    l2_clip_norm: float = 0.0,
    noise_multiplier: float = 0.0,
    devices: Sequence[jax.Device] | None = None,
) -> Simulation:
  """Builds the simulation, with central DP's clipping and noise if asked."""
  return make_simulation(
      dataclasses.replace(config, privacy=PrivacyConfig(
          l2_clip_norm=l2_clip_norm, noise_multiplier=noise_multiplier)),
      *population, num_items, devices=devices)


def make_rounds_call(simulation: Simulation, rounds: int):
  """Builds a call of the next `rounds` rounds, planning included."""
  holder = {'state': simulation.init(), 'round': 0}

  def call():
    holder['state'], metrics = simulation.run(
        holder['state'], holder['round'], rounds)
    holder['round'] += rounds
    return metrics

  return call
