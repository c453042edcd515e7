"""Remembering what was not sent, and sending it the next time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.transforms.leaves import zeros_unless_finite

PyTree = Any
_GIB = 2**30


class ErrorFeedbackState(NamedTuple):
  """A client's memory and its compressor's state.

  Attributes:
    memory: Like the params: what was not sent yet.
    inner: The compressor's state.
  """
  memory: PyTree
  inner: PyTree


def error_feedback_step(
    compress: Callable[[PyTree], PyTree], delta: PyTree, memory: PyTree
) -> tuple[PyTree, PyTree]:
  """Compresses delta + memory, and remembers what that left out.

  Works on whatever rows it is given: of an item table the touched ones, with
  the client's memory of those rows.

  Args:
    compress: The compressor, a pure function.
    delta: Any pytree. One that is not finite counts as zeros.
    memory: Like delta.

  Returns:
    (sent, new memory), with sent + new memory = delta + memory up to one
    rounding of the last bit.
  """
  wanted = optax.tree.add(zeros_unless_finite(delta), memory)
  sent = compress(wanted)
  return sent, optax.tree.sub(wanted, sent)


def with_error_feedback(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Wraps a compressor so that nothing is lost, only late.

  The output is what the compressor sends of the update plus the memory; what it
  leaves out is the new memory. So the sum of all outputs plus the memory is the
  sum of all inputs (to float rounding).

  Wire cost: the inner one's. Memory: one copy of the params for every client,
  see `error_feedback_bytes`.
  Error: with a contraction, |x - C(x)|^2 <= (1 - d) |x|^2 for some d > 0 (as
  top_k and sign are, and random_k and low_rank where they do not unbias), and
  inputs of norm at most G, the memory's norm stays below 2 G / d. A compressor
  that is unbiased but no contraction has no such bound.
  Bias: of one output the compressor's; over many rounds it vanishes.
  Sensitivity: the output's norm is not bounded by the input's, because the
  memory is in it: clip after it, not before. Privacy: none by itself; the
  memory carries a client's data from one of its rounds to the next. Zeros in
  give what the memory holds, and zeros if that is zero; an input that is not
  finite counts as zeros.

  Args:
    inner: Any compressor; extra arguments are handed on to it.

  References:
    Karimireddy et al., 2019, `Error Feedback Fixes SignSGD
    <https://arxiv.org/abs/1901.09847>`_; Stich et al., 2018, `Sparsified SGD
    with Memory <https://arxiv.org/abs/1809.07599>`_.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return ErrorFeedbackState(
        jax.tree.map(jnp.zeros_like, params), inner.init(params))

  def update(updates, state, params=None, **extra_args):
    inner_state = state.inner

    def compress(wanted):
      nonlocal inner_state
      sent, inner_state = inner.update(
          wanted, state.inner, params, **extra_args)
      return sent

    sent, memory = error_feedback_step(compress, updates, state.memory)
    return sent, ErrorFeedbackState(memory, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def error_feedback_bytes(
    num_clients: int, item_table: PyTree, shared: PyTree
) -> int:
  """Returns the bytes of a dense memory of every client.

  Args:
    num_clients: Clients in the population, whether they ever take part or not.
    item_table: Leaves [num_items, ...], arrays or their shapes.
    shared: The shared parameters, likewise.
  """
  return num_clients * sum(
      int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize
      for x in jax.tree.leaves((item_table, shared)))


def check_error_feedback(
    num_clients: int, item_table: PyTree, shared: PyTree, limit_gib: float
) -> None:
  """Refuses a memory that would not fit.

  Args:
    num_clients: See `error_feedback_bytes`.
    item_table: Likewise.
    shared: Likewise.
    limit_gib: compression.error_feedback_limit_gib.

  Raises:
    ValueError: If the memory is larger.
  """
  size = error_feedback_bytes(num_clients, item_table, shared) / _GIB
  if size > limit_gib:
    raise ValueError(
        'compression.error_feedback=True needs a copy of the model for each of '
        f'num_clients={num_clients} clients, {size:.2f} GiB, above '
        f'compression.error_feedback_limit_gib={limit_gib}; raise that, make '
        'the model or the population smaller, or switch error feedback off.')
