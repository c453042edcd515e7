"""What correlated noise adds, against dense matrices, and what is kept."""

import itertools

import numpy as np
import pytest

from fedjaxrec import jax_privacy_bridge
from fedjaxrec.privacy import noise_matrices, strategies

COLUMN = np.array([1.0, 0.5, 0.3, 0.1])


def dense(column, n):
  column = np.pad(column, (0, n))[:n]
  return np.array([[column[i - j] if i >= j else 0.0 for j in range(n)]
                   for i in range(n)])


@pytest.mark.parametrize('n', [1, 3, 12])
def test_the_stddevs_are_those_of_the_dense_matrices(n):
  inverse = np.linalg.inv(dense(COLUMN, n))
  np.testing.assert_allclose(
      noise_matrices.inverse_coefficients(COLUMN, n), inverse[:, 0], rtol=1e-9)
  np.testing.assert_allclose(
      noise_matrices.round_noise_stddevs(COLUMN, n),
      np.linalg.norm(inverse, axis=1), rtol=1e-9)
  np.testing.assert_allclose(
      noise_matrices.prefix_sum_noise_stddevs(COLUMN, n),
      np.linalg.norm(np.tri(n) @ inverse, axis=1), rtol=1e-9)


def test_both_rooms_mean_the_same_error():
  column = strategies.square_root_coefficients(30, 5)
  stddevs = noise_matrices.prefix_sum_noise_stddevs(column, 30)
  np.testing.assert_allclose(
      np.sqrt(np.mean(stddevs**2)), strategies.prefix_sum_rmse(column))


def test_the_coefficients_of_buffers_are_their_geometric_series():
  got = noise_matrices.coefficients_of_buffers(
      np.array([0.5, 0.1]), np.array([0.3, 0.2]), 4)
  np.testing.assert_allclose(
      got, [1, 0.5, 0.3 * 0.5 + 0.2 * 0.1, 0.3 * 0.25 + 0.2 * 0.01])


@pytest.fixture(scope='module')
def optimized(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('strategies'))
  return noise_matrices.buffered_parameters(12, 3, 4, 1, folder), folder


def test_the_optimised_matrix_is_worth_its_sensitivity(optimized):
  (decay, scale), _ = optimized
  assert decay.dtype == np.float64 and decay.shape == scale.shape == (1,)
  for x in (decay, scale):  # What the device computes with.
    np.testing.assert_array_equal(x, np.float32(x))
  column = noise_matrices.coefficients_of_buffers(decay, scale, 12)
  sensitivity = strategies.min_separation_sensitivity(column, 3, 4)
  patterns = [p for size in range(1, 5)
              for p in itertools.combinations(range(12), size)
              if all(b - a >= 3 for a, b in itertools.pairwise(p))]
  matrix = dense(column, 12)
  np.testing.assert_allclose(sensitivity, max(
      np.linalg.norm(matrix[:, list(p)].sum(1)) for p in patterns))
  error = noise_matrices.prefix_sum_noise_stddevs(column, 12).max()
  independent = strategies.min_separation_sensitivity(
      np.eye(1, 12)[0], 3, 4) * np.sqrt(12)
  assert sensitivity * error < 0.9 * independent


def test_what_was_optimised_once_is_read_again(optimized, monkeypatch):
  (decay, scale), folder = optimized

  def never(*_):
    raise AssertionError('it was optimised again')

  monkeypatch.setattr(jax_privacy_bridge, 'optimize_buffered', never)
  again = noise_matrices.buffered_parameters(12, 3, 4, 1, folder)
  np.testing.assert_array_equal(again, (decay, scale))
  with pytest.raises(AssertionError, match='again'):
    noise_matrices.buffered_parameters(13, 3, 4, 1, folder)


@pytest.mark.parametrize('damage', ['text', 'cut', 'shape', 'nan'])
def test_a_damaged_file_is_set_aside_and_made_anew(
    damage, tmp_path, monkeypatch):
  wanted = np.array([0.9, 0.5]), np.array([0.2, 0.1])
  monkeypatch.setattr(
      jax_privacy_bridge, 'optimize_buffered', lambda *_: wanted)
  ask = lambda: noise_matrices.buffered_parameters(9, 1, 9, 2, str(tmp_path))
  ask()
  path, = (tmp_path / 'strategies').glob('*.npz')
  if damage == 'text':
    path.write_text('not a matrix')
  elif damage == 'cut':
    path.write_bytes(path.read_bytes()[:100])
  elif damage == 'shape':
    np.savez(path, np.ones(3), np.ones(3))
  else:
    np.savez(path, np.array([np.nan, 1.0]), np.ones(2))
  np.testing.assert_array_equal(ask(), wanted)
  assert len(list(path.parent.glob('*.damaged-1'))) == 1
  assert len(list(path.parent.iterdir())) == 2
  # Who may read other new files may read this one: a cache is shared.
  other = tmp_path / 'other'
  other.write_text('')
  assert path.stat().st_mode == other.stat().st_mode


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
  wanted = np.ones(1), np.ones(1)
  monkeypatch.setattr(
      jax_privacy_bridge, 'optimize_buffered', lambda *_: wanted)
  (tmp_path / 'strategies').write_text('a file where the folder should be')
  np.testing.assert_array_equal(
      noise_matrices.buffered_parameters(9, 1, 9, 1, str(tmp_path)), wanted)


@pytest.mark.parametrize(('arguments', 'message'), [
  ((0, 1, 1), 'num_rounds=0'), ((9, 0, 1), 'min_separation=0'),
  ((9, 1, 0), 'max_participations=0'), ((9, 1, 1, 0), 'num_buffers=0'),
  ((9, 1, 1, 11), 'num_buffers=11')])
def test_what_no_client_can_do_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    noise_matrices.buffered_parameters(*arguments)
