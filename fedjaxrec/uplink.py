"""What happens to one client's update between its training and the sum.

The engine calls it inside the compiled round, client by client under `vmap`:
the chain of transforms (clip, sparsify, quantize, local noise), the memory of
what compression left out, and the codec of a secure sum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.transforms.clip import l2_norm

PyTree = Any


class Codec(NamedTuple):
  """How updates are summed as integers.

  Attributes:
    encode: (delta, key, round's key, row axes) -> (delta of uint32, accepted),
      one client's; zeros stay zeros. Row axes: how many leading axes of the
      item leaves count rows. accepted, bool []: False for a delta that the code
      has no room for.
    decode: (sum of uint32, round's key, reported) -> the sum as float32;
      reported is the number of clients in the sum, float32 [].
    checks: Whether encode itself refuses what is not finite.
    least: Fewest clients whose sum is opened; with fewer the round counts
      nobody.
  """
  encode: Callable[[PyTree, jax.Array, jax.Array, int], tuple]
  decode: Callable[[PyTree, jax.Array, jax.Array], PyTree]
  checks: bool = False
  least: int = 0


class Uplink(NamedTuple):
  """The way of a delta, the pair (item rows, shared), to the sum.

  Attributes:
    clip_norm: Server's transform state -> the L2 norm to which a delta is
      scaled down before the transform, by the one pass that also looks for what
      is not finite. None: no bound.
    transform: (key, round's key, server's transform state) -> Optax transform
      of one client's delta, which gets the extra argument `mask`: bool, for
      each leaf the leading axes of its rows in use (a scalar for shared
      leaves). None: no transform.
    report: Transform's state -> numbers that are summed over the cohort and
      given to the server's transform as its extra argument `reports`.
    has_memory: Whether the transform has a memory that stays with the client
      (error feedback): a field `memory` in its state, like the delta.
    is_dense: Whether the transform and the codec see the whole table, rows in
      the order of the items, instead of the touched rows. Costs a table a
      client of a block.
    codec: Sums as integers; None: sums of floats.
    open_rows: bool [num_items]: the rows that may travel; the others' deltas
      are dropped before the transform. None: all.
    downlink: (item rows, leaves [B, *rows, ...], axes that count rows) -> the
      rows as the clients get them. None: as the server has them.
    count_norm: L2 norm to which a client's 0/1 vector of touched rows is scaled
      down, where the server counts contributors. None: it is not bounded.
    message_length: (transformed delta, its rows in use, num_items) -> bytes of
      the message, int32 []; the round sums them. None: the length follows from
      the rows touched, and nobody counts it here.
  """
  clip_norm: Callable[[PyTree], Any] | None = None
  transform: (
      Callable[[jax.Array, jax.Array, PyTree], optax.GradientTransformation]
      | None
  ) = None
  report: Callable[[PyTree], PyTree] = lambda state: ()
  has_memory: bool = False
  is_dense: bool = False
  codec: Codec | None = None
  open_rows: jax.Array | None = None
  count_norm: float | None = None
  downlink: Callable[[PyTree, int], PyTree] | None = None
  message_length: Callable[[PyTree, jax.Array, int], jax.Array] | None = None

  @property
  def is_plain(self) -> bool:
    """Whether a delta reaches the sum as it left the client."""
    return (self.transform is None and self.codec is None
            and self.clip_norm is None and self.open_rows is None)

  @property
  def keeps_zeros(self) -> bool:
    """Whether a delta of zeros, such as a padding client's, stays zeros."""
    return self.transform is None and self.codec is None


PLAIN = Uplink()


class Sent(NamedTuple):
  """What leaves a client.

  Attributes:
    delta: (item rows, shared), transformed and encoded.
    memory: The transform's, moved on; () without one.
    reports: See `Uplink.report`.
    accepted: bool []: False where the delta was not finite, or the codec had
      no room for it: it is zeroed, and the client does not count.
  """
  delta: PyTree
  memory: PyTree
  reports: PyTree
  accepted: jax.Array


def send(
    uplink: Uplink, delta: PyTree, used: jax.Array, memory: PyTree,
    transform_state: PyTree, key: jax.Array, round_key: jax.Array
) -> Sent:
  """Sends one client's delta on its way.

  Args:
    uplink: The way.
    delta: (item rows with the leading axes of used, shared).
    used: bool: which rows are in use, and open.
    memory: The client's memory of these rows, and of shared; () without.
    transform_state: The server's, as it was broadcast.
    key: The client's key of the round.
    round_key: The round's, the same for all clients.

  Returns:
    What is sent. A delta with an entry that is not finite, or a norm that is
    none in float32 (above 1.8e19), is rejected, and its memory left as it was.
  """
  if uplink.open_rows is not None:
    delta = (jax.tree.map(
        lambda x: jnp.where(
            used.reshape(*used.shape, *[1] * (x.ndim - used.ndim)), x, 0),
        delta[0]), delta[1])
  accepted = jnp.bool_(True)
  if uplink.transform is not None or uplink.clip_norm is not None or (
      uplink.codec is None or not uplink.codec.checks):
    norm = l2_norm(delta)
    accepted = jnp.isfinite(norm)
    scale = jnp.float32(1)
    if uplink.clip_norm is not None:
      bound = uplink.clip_norm(transform_state)
      scale = jnp.where(norm > bound, bound / jnp.maximum(norm, 1e-37), 1)
    delta = jax.tree.map(lambda x: jnp.where(accepted, x * scale, 0), delta)
  reports: PyTree = ()
  left = memory
  if uplink.transform is not None:
    transform = optax.with_extra_args_support(
        uplink.transform(
            jax.random.fold_in(key, 1), round_key, transform_state))
    mask = (jax.tree.map(lambda _: used, delta[0]),
            jax.tree.map(lambda _: jnp.bool_(True), delta[1]))
    state = transform.init(delta)
    if uplink.has_memory:
      state = optax.tree.set(state, memory=memory)
    delta, state = transform.update(delta, state, None, mask=mask)
    if uplink.has_memory:
      left = jax.tree.map(
          lambda new, old: jnp.where(accepted, new, old),
          optax.tree.get(state, 'memory'), memory)
    reports = uplink.report(state)
  if uplink.codec is not None:
    delta, fits = uplink.codec.encode(
        delta, jax.random.fold_in(key, 2), round_key, used.ndim)
    accepted &= fits
  return Sent(delta, left, reports, accepted)

