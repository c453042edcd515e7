"""Implicit alternating least squares, each half solved exactly. Host side.

  L = sum over interactions (1 - p_u . v_i)^2 + a0 sum over all pairs
      (p_u . v_i)^2 + sum_u lambda_u |p_u|^2 + sum_i lambda_i |v_i|^2,
  lambda_u = lambda (n_u + a0 num_items)^nu, lambda_i = lambda (n_i + a0
  num_users)^nu.

Each half of a sweep solves one side exactly with the other one fixed.

References:
  Hu, Koren and Volinsky, 2008, Collaborative Filtering for Implicit Feedback
  Datasets, ICDM; the scaling of the penalty by frequency after Rendle et al.,
  2022, `Revisiting the Performance of iALS on Item Recommendation Benchmarks
  <https://arxiv.org/abs/2110.14037>`_.
"""

from collections.abc import Callable

import numpy as np

from fedjaxrec.config.references import IALSConfig
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.references.reference import Reference, known_items

# Gathered rows times dimensions held at once (8 bytes each).
_BLOCK_ENTRIES = 2**22
_NARROW = 8
_STREAM = 0x1A15


def score_dot(personal, item_rows, shared):
  """A user's scores: item_rows [rows, dim] times personal [dim]."""
  del shared
  return item_rows @ personal


def solve_side(
    offsets: np.ndarray, others: np.ndarray, factors: np.ndarray,
    config: IALSConfig) -> np.ndarray:
  """Solves for every user (or item) with the other side's factors fixed.

  x_u = (sum_{i of u} v_i v_i' + a0 V'V + lambda_u I)^-1 sum_{i of u} v_i.

  Users are taken in the order of their counts, in blocks that are as wide as
  their last, so little of a block is padding. A block narrower than the
  dimension is solved in the space of its interactions: with V'V = Q S Q',
  W = (a0 S + lambda_u I)^-1 and Y the rows times Q, x_u = Q W Y' (I + Y W
  Y')^-1 1, the same by the matrix inversion lemma.

  Args:
    offsets: int64 [n + 1]: who has others[offsets[u]:offsets[u + 1]].
    others: int [nnz] indices into `factors`.
    factors: float [m, dim], the fixed side; its type is computed in.
    config: The penalties.

  Returns:
    float [n, dim]; zeros where there is no interaction. Cost: nnz k d + n k^3 /
    3 multiplications, d the dimension and k the lesser of d and a user's count.
  """
  num_others, dim = factors.shape
  counts = np.diff(offsets)
  gram = factors.T @ factors
  spectrum, basis = np.linalg.eigh(gram)
  spectrum = config.unobserved_weight * np.maximum(spectrum, 0)
  penalty = config.regularization * (
      counts + config.unobserved_weight * num_others
  ) ** config.frequency_exponent
  penalty = penalty.astype(factors.dtype)
  # In the basis V'V is diagonal; the last row is what padding reads.
  padded = np.concatenate([factors @ basis, np.zeros((1, dim), factors.dtype)])
  result = np.zeros((len(counts), dim), factors.dtype)
  for members, width in _blocks(counts, dim):
    column = np.arange(width)[None, :]
    mine = column < counts[members][:, None]
    place = np.where(mine, offsets[members][:, None] + column, 0)
    rows = padded[np.where(mine, others[place], num_others)]  # [B, width, dim]
    diagonal = spectrum[None, :] + penalty[members][:, None]  # [B, dim]
    if width < dim:
      matrix = (rows / diagonal[:, None, :]) @ rows.transpose(0, 2, 1)
      matrix[:, np.arange(width), np.arange(width)] += 1
      right = np.ones((len(members), width, 1), factors.dtype)
      solved = rows.transpose(0, 2, 1) @ np.linalg.solve(matrix, right)
      result[members] = solved[..., 0] / diagonal
    else:
      matrix = rows.transpose(0, 2, 1) @ rows
      matrix[:, np.arange(dim), np.arange(dim)] += diagonal
      result[members] = np.linalg.solve(
          matrix, rows.sum(1)[..., None])[..., 0]
  return result @ basis.T


def _blocks(counts: np.ndarray, dim: int):
  """Yields (users of similar counts, the largest count); no user without."""
  order = np.argsort(counts, kind='stable')
  order = order[counts[order] > 0]
  widths = counts[order]
  start = 0
  while start < len(order):
    # As many as are at most a quarter wider, and fit.
    stop = int(np.searchsorted(
        widths, max(1.25 * widths[start], _NARROW), side='right'))
    width = max(int(widths[stop - 1]), dim)
    stop = min(stop, start + max(1, _BLOCK_ENTRIES // (width * dim)))
    yield order[start:stop], int(widths[stop - 1])
    start = stop


def by_item(train: Interactions) -> tuple[np.ndarray, np.ndarray]:
  """The interactions by item: int64 [num_items + 1] offsets, int32 users."""
  counts = np.bincount(train.items, minlength=train.num_items)
  order = np.argsort(train.items, kind='stable')
  return np.concatenate([[0], np.cumsum(counts)]), train.users[order]


def initial_items(
    num_items: int, config: IALSConfig, seed: int) -> np.ndarray:
  """Draws the item factors' start: [num_items, dim] in their precision."""
  generator = np.random.default_rng([_STREAM, seed])
  start = generator.standard_normal((num_items, config.dim))
  return (config.init_scale / np.sqrt(config.dim) * start).astype(
      config.precision)


def fit(
    train: Interactions, config: IALSConfig,
    fold_in: Interactions | None = None, seed: int = 0,
    after_sweep: Callable[[int, Reference], None] | None = None) -> Reference:
  """Fits iALS; a user's vector is the exact answer to the final item factors.

  An item without a training interaction has a zero vector, and score 0 for
  everybody. ML-1M at 64 dimensions takes some seconds a sweep on two cores.

  Args:
    train: The training interactions; their ratings are not read.
    config: Dimension, sweeps, penalties.
    fold_in: What held-out users show: they are solved for, and change no item.
    seed: Seed of the initial item factors.
    after_sweep: Called with (sweeps done, the reference as it stands).
  """
  users_of_item = by_item(train)
  shown = known_items(train, fold_in)
  items = initial_items(train.num_items, config, seed)

  def reference(items):
    users = solve_side(*shown, items, config)
    return Reference(
        score_dot, users.astype(np.float32), items.astype(np.float32), ())

  for sweep in range(config.sweeps):
    users = solve_side(train.offsets, train.items, items, config)
    items = solve_side(*users_of_item, users, config)
    if after_sweep is not None:
      after_sweep(sweep + 1, reference(items))
  return reference(items)
