"""How long a client's message is, where its content decides: on the device.

`communication.wire_bytes` is a formula of the rows that a client touches. Two
chains have messages whose length depends on the numbers as well: a threshold
sends as many entries as reach it, and signs have zeros on top. For these the
round itself counts, client by client, the bytes that `communication.encoding`
would write.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjaxrec.config.compression import CompressionConfig, num_kept

PyTree = Any
_COUNT_BYTES = 4
_SCALE_BYTES = 4


def depends_on_content(config: CompressionConfig) -> bool:
  """Whether the length of a message is no formula of the rows touched.

  Signs of rotated coefficients, and of a sketch's, are taken to have no zeros:
  what the delta becomes again does not show them.
  """
  return config.sparsify == 'threshold' or (
      config.quantize == 'sign' and not config.rotate
      and config.sketch == 'none')


def build_message_length(
    config: CompressionConfig
) -> Callable[[PyTree, jax.Array, int], jax.Array] | None:
  """Builds (delta, rows in use, num_items) -> bytes of its message, int32 [].

  The length is that of `communication.encode_upload`, to the byte, of float32
  leaves. It is a statistic of the client's data, and so is the sum over a
  cohort: a server sees it, and no epsilon covers it.

  Args:
    config: The chain.

  Returns:
    None where the length follows from the rows touched alone. Otherwise a
    function of the delta (item rows, shared) that the chain put out, zeros in
    rows that are not in use; of which are, bool, the leading axes of the item
    leaves; and of the items in the catalogue. Time: one pass.
  """
  if not depends_on_content(config):
    return None

  def length(delta, used, num_items):
    table, shared = delta
    rows = jnp.sum(used, dtype=jnp.int32)
    total = _COUNT_BYTES + positions_bytes(num_items, rows)
    for x in jax.tree.leaves(table):
      width = x.size // used.size
      total += _leaf_bytes(config, x, rows * width, width)
    for x in jax.tree.leaves(shared):
      total += _leaf_bytes(config, x, x.size, 0)
    return total

  return length


def _leaf_bytes(
    config: CompressionConfig, x: jax.Array, count: Any, width: int
) -> jax.Array:
  """Bytes of a leaf of `count` numbers in use, `width` in a row; 0: no rows.
  """
  there = jnp.sum(x != 0, dtype=jnp.int32)
  sent: Any
  head: Any
  if config.sparsify == 'threshold':
    sent, head = there, _COUNT_BYTES + positions_bytes(count, there)
  elif config.sparsify == 'none':
    sent, head = count, 0
  elif width and config.granularity == 'rows':
    units = count // width
    kept = num_kept(units, config.fraction)
    sent, head = kept * width, positions_bytes(units, kept)
  else:
    sent = num_kept(count, config.fraction)
    head = positions_bytes(count, sent)
  return jnp.where(
      jnp.asarray(count) > 0, head + _values_bytes(config, sent, there), 0)


def _values_bytes(config, sent, there):
  if config.quantize == 'none':
    return 4 * sent
  if config.quantize == 'sign':
    size = _SCALE_BYTES + _COUNT_BYTES + positions_bytes(
        sent, sent - there) - (-sent // 8)
  elif config.quantize == 'ternary':
    size = _SCALE_BYTES - (-sent // 5)
  else:
    size = _SCALE_BYTES - (-sent * config.bits // 8)
  return jnp.where(jnp.asarray(sent) > 0, size, 0)


def positions_bytes(num_places: Any, num_set: Any) -> jax.Array:
  """`communication.bits.positions_bytes` on the device, of numbers below 2^30.

  Args:
    num_places: int32 [].
    num_set: int32 [], at most num_places.

  Returns:
    int32 [].
  """
  n, k = jnp.int32(num_places), jnp.int32(num_set)
  ratio = jnp.maximum(n // jnp.maximum(k, 1), 1)
  low = 31 - jax.lax.clz(ratio)
  size = jnp.minimum(n, k * (low + 1) + (jnp.maximum(n - 1, 0) >> low))
  return jnp.where((k == 0) | (k == n), 0, -(-size // 8))
