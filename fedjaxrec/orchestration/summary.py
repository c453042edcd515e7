"""What a run says about itself: the pieces of summary.json. Host side."""

import importlib.metadata
import platform
from typing import Any

import jax
import numpy as np

import fedjaxrec
from fedjaxrec import communication
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.data.splits import Split
from fedjaxrec.participation.samplers import build_sampler

_LIBRARIES = (
    'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'orbax-checkpoint')


def describe_versions() -> dict[str, str]:
  """Versions of the project, Python and the libraries that compute."""
  versions = {'fedjaxrec': fedjaxrec.__version__,
              'python': platform.python_version()}
  for name in _LIBRARIES:
    versions[name] = importlib.metadata.version(name)
  return versions


def describe_data(config: Config, split: Split) -> dict[str, Any]:
  """The data's name, size, split and fingerprint."""
  parts = (split.train, split.validation, split.test, split.fold_in)
  return {
      'name': config.data.source,
      'num_users': split.num_users,
      'num_items': split.num_items,
      'num_interactions': sum(part.num_interactions for part in parts),
      'num_train': split.train.num_interactions,
      'num_validation': split.validation.num_interactions,
      'num_test': split.test.num_interactions,
      'split': split.name,
      'fingerprint': split.fingerprint,
      'split_fingerprint': split.split_fingerprint(),
  }


def describe_device(placement) -> str:
  """The devices in words, e.g. `4 x cpu (shard_map)`."""
  device = placement.devices[0]
  return f'{placement.num_devices} x {device.device_kind} ({placement.mode})'


def describe_communication(
    config: Config, split: Split, item_table: Any, shared: Any,
    algorithm: Algorithm | None = None
) -> dict[str, float]:
  """Byte counts over the cohorts of the whole run, drawn again.

  Args:
    config: The run's config.
    split: The run's data.
    item_table: Leaves [num_items, ...] or their shapes.
    shared: What travels whole, down: arrays or their shapes.
    algorithm: The run's, for what it touches and uploads; None: items and
      negatives, and deltas.
  """
  counts = split.train.counts
  rows = communication.touched_rows(
      counts, config.objective.drawn_negatives, split.num_items)
  upload = None
  if algorithm is not None and algorithm.touched_rows is not None:
    rows = algorithm.touched_rows(counts)
    state = jax.eval_shape(
        lambda: algorithm.init_server(jax.random.key(0)))
    upload = jax.eval_shape(algorithm.empty_contribution, state)
    shared = jax.eval_shape(algorithm.broadcast, state)
  if algorithm is not None and algorithm.traffic is not None:
    server = jax.eval_shape(algorithm.init_server, jax.random.key(0))
    (item_table, shared), upload = jax.eval_shape(algorithm.traffic, server)
  sampler, _ = build_sampler(config.cohort, counts, config.seed)
  participations = np.zeros(split.num_users, np.int64)
  for r in range(config.rounds):
    np.add.at(participations, sampler(r), 1)
  return communication.communication_summary(
      item_table, shared, rows, participations, split.num_items,
      config.compression, upload,
      (config.local_privacy.head_items or split.num_items)
      if config.local_privacy.is_on else 0)


def rounded(value: Any, digits: int = 6) -> Any:
  """Rounds every float of nested dicts and lists; NaN stays."""
  if isinstance(value, dict):
    return {key: rounded(item, digits) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [rounded(item, digits) for item in value]
  if isinstance(value, (float, np.floating)):
    return round(float(value), digits)
  return value
