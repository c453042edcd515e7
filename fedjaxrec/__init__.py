"""Simulates privacy-preserving federated recommender systems on JAX.

A config in, a result out:

  import fedjaxrec
  config = fedjaxrec.Config(rounds=20)
  result = fedjaxrec.train(config, workdir='runs/first')

Importing this package imports neither JAX nor any other heavy library; `train`
does, when it is called.
"""

import os
import pathlib
import typing

from fedjaxrec.config import (
  AlgorithmConfig,
  CheckpointConfig,
  ClientConfig,
  CohortConfig,
  Config,
  DataConfig,
  EngineConfig,
  EvaluationConfig,
  ModelConfig,
  ObjectiveConfig,
  ParallelConfig,
  ServerConfig,
  SplitConfig,
  SyntheticConfig,
)

if typing.TYPE_CHECKING:
  from fedjaxrec.orchestration.experiment import Result

__version__ = '0.1.0'

__all__ = [
  'AlgorithmConfig', 'CheckpointConfig', 'ClientConfig', 'CohortConfig',
  'Config', 'DataConfig', 'EngineConfig', 'EvaluationConfig', 'ModelConfig',
  'ObjectiveConfig', 'ParallelConfig', 'ServerConfig', 'SplitConfig',
  'SyntheticConfig', 'train',
]


def train(
    config: Config,
    workdir: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> 'Result':
  """Trains and evaluates a federated recommender; same as `fedjaxrec train`.

  Args:
    config: The run, whole.
    workdir: Where the run's files go; it must be new, empty, or the run to
      resume or overwrite.
    resume: Whether to continue the run in `workdir`.
    overwrite: Whether to replace the run in `workdir`.
    progress: Whether to show a progress bar and print the table.

  Returns:
    A result with `summary` (the contents of summary.json) and `workdir`.

  Raises:
    ValueError: When the config, the data or the run directory is refused;
      always before anything is compiled.
    FileNotFoundError: When a file that the config names does not exist.
  """
  from fedjaxrec.orchestration import experiment
  return experiment.train(config, pathlib.Path(workdir), resume=resume,
                          overwrite=overwrite, progress=progress)
