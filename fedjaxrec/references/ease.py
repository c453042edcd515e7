"""EASE: the best linear item-item model that knows no item by itself."""

import numpy as np

from fedjaxrec.config.references import EaseConfig
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.references import linear
from fedjaxrec.references.reference import Reference


def weights(counts: np.ndarray, l2: float) -> np.ndarray:
  """Solves min |X - X B|^2 + l2 |B|^2 with a zero diagonal, in float64.

  With P = (X'X + l2 I)^-1: B_ij = -P_ij / P_jj, B_jj = 0.

  Args:
    counts: [num_items, num_items] X'X.
    l2: Ridge penalty, above 0.

  Returns:
    float64 [num_items, num_items].
  """
  gram = counts.astype(np.float64)
  gram[np.diag_indices_from(gram)] += l2
  inverse = np.linalg.inv(gram)
  inverse /= -np.diag(inverse)
  np.fill_diagonal(inverse, 0)
  return inverse


def fit(
    train: Interactions, config: EaseConfig,
    fold_in: Interactions | None = None) -> Reference:
  """Fits EASE: a user's scores are x_u B.

  Cost: items^3 for the inverse, and 2 users items^2 each for the counts and the
  scores; memory of three item-item matrices in float64.

  Args:
    train: The training interactions.
    config: The penalty.
    fold_in: What held-out users show; it changes no weight.

  References:
    Steck, 2019, `Embarrassingly Shallow Autoencoders for Sparse Data
    <https://arxiv.org/abs/1905.03375>`_.
  """
  return linear.from_weights(
      weights(linear.co_occurrences(train, 'ease'), config.l2), train, fold_in,
      'ease')
