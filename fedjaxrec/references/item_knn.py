"""Item-KNN: items whose users overlap, by shrunk cosine."""

import numpy as np

from fedjaxrec.config.references import ItemKNNConfig
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.references import linear
from fedjaxrec.references.reference import Reference

# 3 / sqrt(18) and 1 / sqrt(2) are one similarity.
_ROUNDING = 2**-40


def similarities(counts: np.ndarray, config: ItemKNNConfig) -> np.ndarray:
  """Computes each item's neighbours.

  s_ij = n_ij / (sqrt(n_i n_j) + shrinkage), s_ii = 0. An item i keeps its
  `num_neighbors` largest s_ij; those tied with the last of them stay too, so
  that the order of the items decides nothing.

  Args:
    counts: float32 [num_items, num_items] users who have both items.
    config: Neighbours and shrinkage.

  Returns:
    float32 [num_items, num_items]; column i has the neighbours of item i.
  """
  sizes = np.diag(counts).astype(np.float64)
  # The root of a product of whole numbers: equal cosines come out equal.
  denominator = np.sqrt(np.outer(sizes, sizes)) + config.shrinkage
  result = np.divide(
      counts, denominator, out=np.zeros_like(denominator),
      where=denominator > 0)
  np.fill_diagonal(result, 0)
  num_items = len(result)
  if 0 < config.num_neighbors < num_items:
    place = num_items - config.num_neighbors
    least = np.partition(result, place, axis=0)[place]
    result[result < least[None, :] * (1 - _ROUNDING)] = 0
  return result.astype(np.float32)


def fit(
    train: Interactions, config: ItemKNNConfig,
    fold_in: Interactions | None = None) -> Reference:
  """Fits item-KNN: a user's score of i is the sum of s_ij over the user's j.

  Cost: 2 users items^2 operations each for the counts and for the scores;
  memory of four item-item matrices in float64 and one score for each user and
  item.

  Args:
    train: The training interactions.
    config: Neighbours and shrinkage.
    fold_in: What held-out users show; it changes no similarity.

  References:
    Sarwar et al., 2001, Item-based Collaborative Filtering Recommendation
    Algorithms, WWW; shrinkage after Bell and Koren, 2007, Scalable
    Collaborative Filtering with Jointly Derived Neighborhood Interpolation
    Weights, ICDM.
  """
  weights = similarities(linear.co_occurrences(train, 'item_knn'), config)
  return linear.from_weights(weights, train, fold_in, 'item_knn')
