"""What algorithms that solve for vectors in closed form have in common.

A symmetric matrix travels as its upper triangle, with the entries off the
diagonal times the root of 2: then the norm of what travels is the matrix's
Frobenius norm, and Gaussian noise on it is symmetric noise on the matrix.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.config import Config
from fedjaxrec.examples import permute
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.population import Client

PyTree = Any
# Items solved for at once: bounds the memory of a server's step.
_ITEMS_AT_ONCE = 256
# Rows that are eliminated together.
_BLOCK = 16
# Accelerators shorten float32 products unless they are told not to.
_EXACT = jax.lax.Precision.HIGHEST


class Slots(NamedTuple):
  """A client's interactions, one slot each.

  Attributes:
    rows: int32 [capacity]: items; num_items where a slot is unused.
    used: bool [capacity].
    labels: float32 [capacity]: ratings.
    order: int32 [capacity]: a random order of the used slots, from 0.
  """
  rows: jax.Array
  used: jax.Array
  labels: jax.Array
  order: jax.Array


def draw_slots(client: Client, key: jax.Array) -> Slots:
  """Returns a client's own items, without negatives.

  Args:
    client: One client, without block axis.
    key: Typed key of this client and round: of the random order.
  """
  place = jnp.arange(client.items.shape[0], dtype=jnp.int32)
  return Slots(
      client.items, place < client.num_examples, client.labels,
      permute(key, place, jnp.maximum(client.num_examples, 1)))


@functools.cache
def _triangle(dim: int) -> tuple[np.ndarray, ...]:
  """Rows, columns and factors of the packed entries, and the way back."""
  rows, columns = np.triu_indices(dim)
  factors = np.where(rows == columns, 1, np.sqrt(2)).astype(np.float32)
  place = np.zeros((dim, dim), np.int32)
  place[rows, columns] = place[columns, rows] = np.arange(len(rows))
  return rows, columns, factors, place


def pack_outer(vectors: jax.Array) -> jax.Array:
  """Packs p p': [..., dim] -> [..., dim (dim + 1) / 2], of norm |p|^2."""
  rows, columns, factors, _ = _triangle(vectors.shape[-1])
  return vectors[..., rows] * vectors[..., columns] * jnp.broadcast_to(
      factors, (*vectors.shape[:-1], len(factors)))


def unpack(packed: jax.Array, dim: int) -> jax.Array:
  """The symmetric matrices [..., dim, dim] of packed ones."""
  _, _, factors, place = _triangle(dim)
  scaled = packed / jnp.broadcast_to(factors, packed.shape)
  return scaled[..., place]


def gramian(table: jax.Array) -> jax.Array:
  """V'V of a table [rows, dim]."""
  return jnp.matmul(table.T, table, precision=_EXACT)


def invert_small(matrices: jax.Array) -> jax.Array:
  """Inverses of small positive definite matrices, by Gauss and Jordan.

  Args:
    matrices: [n, size, size]; 2 size^3 multiplications each.
  """
  size = matrices.shape[-1]

  def eliminate(k, both):
    row = jax.lax.dynamic_index_in_dim(both, k, 1, keepdims=False)  # [n, 2 s]
    pivot = jax.lax.dynamic_index_in_dim(row, k, 1)  # [n, 1]
    row = row / pivot
    column = jax.lax.dynamic_index_in_dim(both, k, 2, keepdims=False)  # [n, s]
    is_row = (jnp.arange(size) == k)[None, :]
    both = both - jnp.where(is_row, 0, column)[..., None] * row[:, None, :]
    return jnp.where(is_row[..., None], row[:, None, :], both)

  eye = jnp.broadcast_to(jnp.eye(size, dtype=matrices.dtype), matrices.shape)
  both = jax.lax.fori_loop(
      0, size, eliminate, jnp.concatenate([matrices, eye], -1))
  return both[..., size:]


def solve(matrices: jax.Array, vectors: jax.Array) -> jax.Array:
  """Solves positive definite systems by block elimination.

  Matrix products alone, which every backend has: XLA's CPU backend can wait for
  ever on two threads where its LAPACK calls run inside a loop.

  Args:
    matrices: [n, dim, dim].
    vectors: [n, dim].

  Returns:
    [n, dim]. About dim^3 multiplications a system.
  """
  dim = vectors.shape[-1]
  size = max(_BLOCK, -(-dim // _BLOCK))
  done = []
  rest, right = matrices, vectors[..., None]
  while rest.shape[-1] > 0:
    inverse = invert_small(rest[:, :size, :size])
    across = rest[:, :size, size:]  # [n, size, what is left]
    ways = jnp.matmul(
        inverse, jnp.concatenate([across, right[:, :size]], -1),
        precision=_EXACT)
    done.append(ways)
    moved = jnp.matmul(
        jnp.swapaxes(across, 1, 2), ways, precision=_EXACT)
    rest = rest[:, size:, size:] - moved[..., :-1]
    right = right[:, size:] - moved[..., -1:]
  solution = jnp.zeros((len(matrices), 0, 1), vectors.dtype)
  for ways in reversed(done):
    mine = ways[..., -1:] - jnp.matmul(
        ways[..., :-1], solution, precision=_EXACT)
    solution = jnp.concatenate([mine, solution], 1)
  return solution[..., 0]


def add_to_diagonal(matrices: jax.Array, values: jax.Array) -> jax.Array:
  """Adds values [n] to the diagonals of matrices [n, dim, dim]."""
  eye = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)
  return matrices + values[:, None, None] * eye[None]


def solve_users(
    rows: jax.Array, used: jax.Array, base: jax.Array, ridge: jax.Array,
    weight: jax.Array | float = 1.0) -> jax.Array:
  """Ridge regression of a block of clients on their items.

  p_u = (weight sum_i v_i v_i' + base + ridge_u I)^-1 sum_i v_i.

  Args:
    rows: [B, capacity, dim]; zeros where unused.
    used: bool [B, capacity].
    base: [B, dim, dim].
    ridge: [B].
    weight: Of an interaction's square.

  Returns:
    [B, dim]; zeros for a client without interactions.
  """
  rows = jnp.where(used[..., None], rows, 0)
  square = jnp.einsum('bci,bcj->bij', rows, rows, precision=_EXACT)
  matrix = add_to_diagonal(weight * square + base, ridge)
  return solve(matrix, rows.sum(1))


def solve_items(
    packed: jax.Array, vectors: jax.Array, base: jax.Array, ridge: jax.Array,
    prepare: Callable[[jax.Array], jax.Array] = lambda matrices: matrices,
) -> jax.Array:
  """v_i = (prepare(A_i) + base + ridge_i I)^-1 b_i, some hundred at a time.

  Args:
    packed: [num_items, dim (dim + 1) / 2]: the A_i.
    vectors: [num_items, dim]: the b_i.
    base: [dim, dim].
    ridge: [num_items].
    prepare: What is done to a batch of A_i [n, dim, dim] first.
  """
  dim = vectors.shape[-1]

  def some(args):
    triangle, right, ridge = args
    matrices = prepare(unpack(triangle, dim)) + base[None]
    return solve(add_to_diagonal(matrices, ridge), right)

  return map_batches(some, (packed, vectors, ridge))


def map_batches(
    fn: Callable[[PyTree], jax.Array], rows: PyTree) -> jax.Array:
  """Calls fn with some hundred rows at a time: bounds its memory.

  Args:
    fn: Leaves [some, ...] -> array [some, ...], each row by itself.
    rows: Leaves [rows, ...].

  Returns:
    What fn makes of all of them, [rows, ...].
  """
  num_rows = len(jax.tree.leaves(rows)[0])
  size = min(_ITEMS_AT_ONCE, num_rows)
  whole = num_rows // size
  first = jax.tree.map(
      lambda x: x[:whole * size].reshape(whole, size, *x.shape[1:]), rows)
  result = jax.lax.map(fn, first)
  result = result.reshape(-1, *result.shape[2:])
  if num_rows == whole * size:
    return result
  rest = fn(jax.tree.map(lambda x: x[whole * size:], rows))
  return jnp.concatenate([result, rest])


def make_vectors(
    recommender: Recommender
) -> tuple[Callable[[jax.Array], PyTree], Callable[[jax.Array], PyTree]]:
  """Init functions of the vectors of a factorisation, without its biases.

  Returns:
    Two functions of a typed key: the items', {'item': [num_items, dim]}, and
    one client's, {'user': [dim]}.
  """
  return (
      lambda key: {'item': recommender.init_server(key)[0]['item']},
      lambda key: {'user': recommender.init_personal(key)['user']})


def score(personal: PyTree, item_rows: PyTree, shared: PyTree) -> jax.Array:
  """p . v_i for every row given: float32 [rows]."""
  del shared
  return item_rows['item'] @ personal['user']


def penalty(
    config: Config, counts: jax.Array, others: jax.Array | float) -> jax.Array:
  """lambda (n + a0 others)^nu of section ials.

  Args:
    config: The whole config; its scalars may be traced.
    counts: float32 [...]: n, the interactions of each user or item.
    others: Of how many items, or clients, a pair with each counts a0.

  Returns:
    float32, the shape of counts.
  """
  ials = config.ials
  return ials.regularization * (
      counts + ials.unobserved_weight * others) ** ials.frequency_exponent
