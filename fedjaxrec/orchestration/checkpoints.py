"""Checkpoints by Orbax: atomic, verified when read, independent of devices.

A checkpoint is written beside its final place and renamed, so that a run killed
at any moment leaves whole checkpoints only. It carries a digest of its arrays:
a damaged one is named and refused, never half-read. It is read as what each
client has, whatever the devices and processes that wrote it, so a run may go on
with others. Where there are several processes, each writes what is at home on
its own devices into the one folder, which all of them see.
"""

import hashlib
import logging
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedjaxrec.orchestration import hosts
from fedjaxrec.population import by_client

PyTree = Any


class Best(NamedTuple):
  """The round that is tested: what evaluation needs of it.

  Attributes:
    round: int32 []: rounds done when it was seen.
    ndcg: float32 []: what it was chosen by, the larger the better: its
      validation NDCG@10 or, with evaluation.select_by=rmse, minus its RMSE.
    item_table: Leaves [num_items, ...].
    shared: The shared parameters.
    personal: Leaves [num_clients, ...].
  """
  round: np.int32
  ndcg: np.float32
  item_table: PyTree
  shared: PyTree
  personal: PyTree


class Checkpoint(NamedTuple):
  """Everything that a run needs to go on, as NumPy arrays.

  To be written by several processes, the personal leaves (of `best` too) are
  JAX arrays at home, [num_devices, clients_per_device, ...].

  Attributes:
    server: The server's state.
    personal: Leaves [num_clients, ...].
    best: The best round so far.
    train_s: float64 []: seconds in compiled rounds so far.
  """
  server: PyTree
  personal: PyTree
  best: Best
  train_s: np.float64


class Store(NamedTuple):
  """A run's checkpoints.

  Attributes:
    save: (round, Checkpoint) -> None; returns when the checkpoint is on disk,
      with every process's part.
    restore: (a Checkpoint of the shapes to expect) -> (round, Checkpoint), the
      latest, whole in every process; None where there is none.
    close: () -> None.
  """
  save: Callable[[int, Checkpoint], None]
  restore: Callable[[Checkpoint], tuple[int, Checkpoint] | None]
  close: Callable[[], None]


def _digest(leaves: Iterable[np.ndarray]) -> str:
  digest = hashlib.sha256()
  for leaf in leaves:
    digest.update(f'{leaf.dtype} {leaf.shape};'.encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def _digest_all(leaves: list[Any]) -> dict[str, Any]:
  """The digests of a checkpoint's leaves.

  Returns:
    sha256: Of the leaves that every process has, in order. homes, where there
    are leaves at home: their places, and the digest of each device's rows.
  """
  at_home = [i for i, leaf in enumerate(leaves) if _is_at_home(leaf)]
  digests = {'sha256': _digest(
      leaf for i, leaf in enumerate(leaves) if i not in at_home)}
  if not at_home:
    return digests
  rows: dict[int, list[np.ndarray]] = {}
  for i in at_home:
    for shard in leaves[i].addressable_shards:
      rows.setdefault(shard.index[0].start or 0, []).append(
          np.asarray(shard.data))
  everybody: dict[int, str] = {}
  for said in hosts.hear([[home, _digest(r)] for home, r in rows.items()]):
    everybody.update(said)
  return digests | {'homes': {
      'leaves': at_home,
      'sha256': [everybody[home] for home in range(len(everybody))]}}


def _is_at_home(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and not (
      leaf.is_fully_addressable or leaf.is_fully_replicated)


def _is_whole(leaves: list[np.ndarray], meta: dict[str, Any]) -> bool:
  """Whether the leaves are those that were digested."""
  homes = meta.get('homes') or {'leaves': [], 'sha256': []}
  at_home = [leaves[i] for i in homes['leaves']]
  return meta['sha256'] == _digest(
      leaf for i, leaf in enumerate(leaves)
      if i not in homes['leaves']) and all(
          len(leaf) == len(homes['sha256']) for leaf in at_home) and all(
              digest == _digest(leaf[home:home + 1] for leaf in at_home)
              for home, digest in enumerate(homes['sha256']))


def _is_not_orbax(record: logging.LogRecord) -> bool:
  """Orbax reports every step of its own through absl; others may speak."""
  return record.levelno >= logging.ERROR or 'orbax' not in record.pathname


def open_store(
    directory: pathlib.Path, keep: int, data_fingerprint: str
) -> Store:
  """Opens the checkpoints in a folder; writes nothing before the first save.

  Args:
    directory: The folder; made where it is missing.
    keep: Checkpoints kept, the latest ones.
    data_fingerprint: Of the data trained on: a checkpoint of other data, whose
      arrays may well have the same shapes, is refused.
  """
  logger = logging.getLogger('absl')
  if _is_not_orbax not in logger.filters:
    logger.addFilter(_is_not_orbax)
  manager = ocp.CheckpointManager(
      directory.absolute(), options=ocp.CheckpointManagerOptions(
          max_to_keep=keep, enable_async_checkpointing=False, create=False))

  def save(round_index, checkpoint):
    directory.mkdir(parents=True, exist_ok=True)
    leaves = [leaf if _is_at_home(leaf) else np.asarray(leaf)
              for leaf in jax.tree.leaves(checkpoint)]
    manager.save(round_index, args=ocp.args.Composite(
        arrays=ocp.args.StandardSave(
            {str(i): leaf for i, leaf in enumerate(leaves)}),
        meta=ocp.args.JsonSave(
            _digest_all(leaves) | {'data': data_fingerprint})), force=True)
    manager.wait_until_finished()

  def read(round_index):
    """The leaves as they were written, and what is said about them."""
    meta = manager.restore(round_index, args=ocp.args.Composite(
        meta=ocp.args.JsonRestore())).meta
    wanted = None
    if 'homes' in meta:  # Else Orbax looks for the devices that wrote them.
      written = ocp.StandardCheckpointHandler().metadata(
          directory.absolute() / str(round_index) / 'arrays')
      wanted = {name: np.zeros(leaf.shape, leaf.dtype)
                for name, leaf in dict(written.tree).items()}
    arrays = manager.restore(round_index, args=ocp.args.Composite(
        arrays=ocp.args.StandardRestore(wanted))).arrays
    return [np.asarray(arrays[str(i)]) for i in range(len(arrays))], meta

  def restore(like):
    round_index = hosts.tell(manager.latest_step())
    if round_index is None:
      return None
    try:
      found = restore_round(round_index, like)
      failure = None
    except ValueError as error:
      found, failure = None, error

    def refuse_together():
      if failure is not None:
        raise failure

    hosts.together(refuse_together)
    return round_index, found

  def restore_round(round_index, like):
    folder = directory / str(round_index)
    way_out = (
        f'delete {folder} to go on from an earlier checkpoint if there is one, '
        'or start again with --overwrite.')
    try:
      leaves, meta = read(round_index)
      damaged = not _is_whole(leaves, meta)
    except Exception as error:  # Whatever it is, there is one way out.
      raise ValueError(
          f'checkpoint={folder} is damaged and was not read '
          f'({type(error).__name__}); {way_out}') from error
    if damaged:
      raise ValueError(
          f'checkpoint={folder} is damaged (its arrays do not match its '
          f'digest) and was not read; {way_out}')
    if meta.get('data') != data_fingerprint:
      raise ValueError(
          f'checkpoint={folder} was made on data with the fingerprint '
          f'{meta.get("data")}, and the data has {data_fingerprint} now: '
          'a run is continued on its own data. Restore the data, or start '
          'again with --overwrite.')
    wanted = jax.tree.leaves(like)
    for i in meta.get('homes', {}).get('leaves', ()):
      if i < len(wanted) and leaves[i].ndim > 1 and wanted[i].shape:
        leaves[i] = by_client(leaves[i], wanted[i].shape[0])
    if [(x.shape, x.dtype) for x in wanted] != [
        (x.shape, x.dtype) for x in leaves]:
      raise ValueError(
          f'checkpoint={folder} was written for other shapes: the data, the '
          'model or the optimizers have changed. Resume with the config and '
          'the data of the run, or start again with --overwrite.')
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

  return Store(save, restore, manager.close)
