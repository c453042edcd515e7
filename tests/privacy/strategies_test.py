"""Correlated noise against dense matrices and enumerated participations."""

import itertools

import numpy as np
import pytest

from fedjaxrec.privacy import strategies


def dense(coefficients):
  n = len(coefficients)
  return np.array([[coefficients[i - j] if i >= j else 0.0 for j in range(n)]
                   for i in range(n)])


def worst(matrix, patterns):
  """Largest norm of what one client, at norm 1 a round, moves."""
  return max(np.linalg.norm(matrix[:, list(p)].sum(1)) for p in patterns if p)


@pytest.mark.parametrize('bands', [0, 1, 3])
def test_the_root_squares_to_the_prefix_sums(bands):
  root = dense(strategies.square_root_coefficients(8, bands))
  square = root @ root
  span = bands or 8
  rows, columns = np.indices((8, 8))
  near = (rows >= columns) & (rows - columns < span)
  np.testing.assert_allclose(square[near], 1, rtol=1e-12)


@pytest.mark.parametrize('bands', [0, 2, 5])
def test_the_error_is_that_of_the_dense_matrices(bands):
  coefficients = strategies.square_root_coefficients(12, bands)
  error = np.tri(12) @ np.linalg.inv(dense(coefficients))
  by_hand = np.sqrt((error**2).sum(1).mean())
  assert strategies.prefix_sum_rmse(coefficients) == pytest.approx(by_hand)


def test_independent_noise_grows_as_a_random_walk():
  one = np.eye(1, 99)[0]
  assert strategies.prefix_sum_rmse(one) == pytest.approx(np.sqrt(50))


@pytest.mark.parametrize(('separation', 'most'), [(1, 2), (2, 3), (3, 9)])
def test_the_worst_client_comes_early_and_often(separation, most):
  coefficients = strategies.square_root_coefficients(9)
  patterns = [
    p for size in range(1, most + 1)
    for p in itertools.combinations(range(9), size)
    if all(b - a >= separation for a, b in itertools.pairwise(p))]
  assert strategies.min_separation_sensitivity(
      coefficients, separation, most) == pytest.approx(
          worst(dense(coefficients), patterns))


@pytest.mark.parametrize('bands', [0, 1, 4])
def test_once_an_epoch_is_bounded_wherever_a_client_comes(bands):
  epoch, n = 3, 11  # The last epoch is cut short.
  coefficients = strategies.square_root_coefficients(n, bands)
  epochs = [range(start, min(start + epoch, n)) for start in range(0, n, epoch)]
  exact = worst(dense(coefficients), itertools.product(*epochs))
  bound = strategies.once_an_epoch_sensitivity(coefficients, epoch)
  assert exact <= bound * (1 + 1e-12)
  assert bound < 1.35 * exact  # And it is not a bound of nothing.


def test_optimised_bands_err_less_than_the_root_and_keep_their_number():
  for bands in (1, 4, 8):
    best = strategies.banded_coefficients(400, bands)
    root = strategies.square_root_coefficients(400, bands)

    def error(c):
      return np.linalg.norm(c) * strategies.prefix_sum_rmse(c)
    assert best[0] == 1 and not best[bands:].any()
    assert error(best) <= error(root)
  assert error(best) < 0.92 * error(root)


def test_a_strategy_without_a_known_worst_client_is_refused():
  with pytest.raises(ValueError, match='must not'):
    strategies.min_separation_sensitivity(np.array([1.0, -0.1]), 1, 2)
