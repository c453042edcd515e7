"""What a run says about itself: the pieces of summary.json. Host side."""

import functools
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjaxrec
from fedjaxrec import communication
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.data.splits import Split
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.transforms.message_length import depends_on_content

# In a line of metrics.jsonl: bytes of the round, of all its clients.
UPLINK, DOWNLINK = 'uplink_bytes', 'downlink_bytes'
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


class Messages(NamedTuple):
  """What travels in a run.

  Attributes:
    item_table: Leaves [num_items, ...] or their shapes: downloaded by row.
    shared: Downloaded whole.
    upload: (item leaves, whole leaves) of an upload; None: deltas of the two.
    rows: int [num_clients]: item rows that each touches in a round.
    dense_rows: Rows that everybody sends and gets; 0: each its own.
  """
  item_table: Any
  shared: Any
  upload: tuple[Any, Any] | None
  rows: np.ndarray
  dense_rows: int


def describe_messages(
    config: Config, split: Split, item_table: Any, shared: Any,
    algorithm: Algorithm | None = None
) -> Messages:
  """What a run's clients send and get; arguments: `describe_communication`."""
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
  return Messages(
      item_table, shared, upload, rows,
      (config.local_privacy.head_items or split.num_items)
      if config.local_privacy.is_on else 0)


def describe_communication(
    config: Config, split: Split, item_table: Any, shared: Any,
    algorithm: Algorithm | None = None,
    lines: Sequence[Mapping[str, Any]] = ()
) -> dict[str, float]:
  """Byte counts over the cohorts of the whole run, drawn again.

  Args:
    config: The run's config.
    split: The run's data.
    item_table: Leaves [num_items, ...] or their shapes.
    shared: What travels whole, down: arrays or their shapes.
    algorithm: The run's, for what it touches and uploads; None: items and
      negatives, and deltas.
    lines: Of metrics.jsonl, of the whole run: where the length of a message
      depends on its content, they have the uploads that were counted.
  """
  messages = describe_messages(config, split, item_table, shared, algorithm)
  sampler, _ = build_sampler(config.cohort, split.train.counts, config.seed)
  participations = np.zeros(split.num_users, np.int64)
  for r in range(config.rounds):
    np.add.at(participations, sampler(r), 1)
  found = communication.communication_summary(
      messages.item_table, messages.shared, messages.rows, participations,
      split.num_items, config.compression, messages.upload,
      messages.dense_rows)
  invited = int(participations.sum())
  counted = lines and all(UPLINK in line for line in lines)
  if not (depends_on_content(config.compression) and invited and counted):
    return found
  up = sum(line[UPLINK] for line in lines)
  return found | {
      'uplink_bytes_per_client': up / invited,
      'total_bytes': up + found['downlink_bytes_per_client'] * invited}


def make_traffic(
    config: Config, split: Split, algorithm: Algorithm
) -> Callable[[int, int], np.ndarray] | None:
  """Builds (first_round, num_rounds) -> the rounds' bytes, up and down.

  Those are int64 [num_rounds, 2], of all clients of a round: sums of the same
  messages that `describe_communication` takes the means of.

  Args:
    config: The run's config.
    split: The run's data.
    algorithm: The run's.

  Returns:
    None for secure sums, whose messages are counted by themselves.
  """
  if config.secure.is_on:
    return None

  @functools.cache
  def known():
    server = jax.eval_shape(algorithm.init_server, jax.random.key(0))
    messages = describe_messages(
        config, split, server.item_table, server.shared, algorithm)
    layout, sent = (
        communication.make_layout(*leaves, split.num_items) for leaves in (
            messages[:2], messages.upload or messages[:2]))
    sampler, _ = build_sampler(config.cohort, split.train.counts, config.seed)
    return sampler, communication.bytes_by_client(
        layout, messages.rows, config.compression, sent, messages.dense_rows)

  def traffic(first_round, num_rounds):
    sampler, by_client = known()
    return communication.bytes_by_round(by_client, map(
        sampler, range(first_round, first_round + num_rounds)))

  return traffic


def rounded(value: Any, digits: int = 6) -> Any:
  """Rounds every float of nested dicts and lists; NaN stays."""
  if isinstance(value, dict):
    return {key: rounded(item, digits) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [rounded(item, digits) for item in value]
  if isinstance(value, (float, np.floating)):
    return round(float(value), digits)
  return value
