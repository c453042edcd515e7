"""Checkpoints by Orbax: atomic, verified when read, independent of devices.

A checkpoint is written beside its final place and renamed, so that a run killed
at any moment leaves whole checkpoints only. It carries a digest of its arrays:
a damaged one is named and refused, never half-read. Personal parameters are
stored by client, so a run may go on with other devices.
"""

import hashlib
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

PyTree = Any


class Best(NamedTuple):
  """The round that is tested: what evaluation needs of it.

  Attributes:
    round: int32 []: rounds done when it was seen.
    ndcg: float32 []: its validation NDCG@10.
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
    save: (round, Checkpoint) -> None; returns when the checkpoint is on disk.
    restore: (a Checkpoint of the shapes to expect) -> (round, Checkpoint), the
      latest; None where there is none.
    close: () -> None.
  """
  save: Callable[[int, Checkpoint], None]
  restore: Callable[[Checkpoint], tuple[int, Checkpoint] | None]
  close: Callable[[], None]


def _digest(leaves: list[np.ndarray]) -> str:
  digest = hashlib.sha256()
  for leaf in leaves:
    digest.update(f'{leaf.dtype} {leaf.shape};'.encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


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
  # Orbax reports every step of its own through absl at level INFO.
  logging.getLogger('absl').setLevel(logging.ERROR)
  manager = ocp.CheckpointManager(
      directory.absolute(), options=ocp.CheckpointManagerOptions(
          max_to_keep=keep, enable_async_checkpointing=False, create=False))

  def save(round_index, checkpoint):
    directory.mkdir(parents=True, exist_ok=True)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoint)]
    manager.save(round_index, args=ocp.args.Composite(
        arrays=ocp.args.StandardSave(
            {str(i): leaf for i, leaf in enumerate(leaves)}),
        meta=ocp.args.JsonSave({
            'sha256': _digest(leaves), 'data': data_fingerprint})), force=True)
    manager.wait_until_finished()

  def restore(like):
    round_index = manager.latest_step()
    if round_index is None:
      return None
    folder = directory / str(round_index)
    way_out = (
        f'delete {folder} to go on from an earlier checkpoint if there is one, '
        'or start again with --overwrite.')
    try:
      found = manager.restore(round_index, args=ocp.args.Composite(
          arrays=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()))
      leaves = [np.asarray(found.arrays[str(i)])
                for i in range(len(found.arrays))]
      damaged = found.meta['sha256'] != _digest(leaves)
    except Exception as error:  # Whatever it is, there is one way out.
      raise ValueError(
          f'checkpoint={folder} is damaged and was not read '
          f'({type(error).__name__}); {way_out}') from error
    if damaged:
      raise ValueError(
          f'checkpoint={folder} is damaged (its arrays do not match its '
          f'digest) and was not read; {way_out}')
    if found.meta.get('data') != data_fingerprint:
      raise ValueError(
          f'checkpoint={folder} was made on data with the fingerprint '
          f'{found.meta.get("data")}, and the data has {data_fingerprint} now: '
          'a run is continued on its own data. Restore the data, or start '
          'again with --overwrite.')
    wanted = jax.tree.leaves(like)
    if [(x.shape, x.dtype) for x in wanted] != [
        (x.shape, x.dtype) for x in leaves]:
      raise ValueError(
          f'checkpoint={folder} was written for other shapes: the data, the '
          'model or the optimizers have changed. Resume with the config and '
          'the data of the run, or start again with --overwrite.')
    return round_index, jax.tree.unflatten(jax.tree.structure(like), leaves)

  return Store(save, restore, manager.close)
