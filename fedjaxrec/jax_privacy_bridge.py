"""All that is used of jax-privacy 2.0: the one file that imports it.

It costs seconds to import, so every function imports what it needs. NumPy in
and out where nothing else is said, so that files of the host may ask.

What of the library is not used, and why: its optimiser of buffered Toeplitz
matrices returns float64, which raises outside of x64, so results are rounded to
float32 at once and everything after computes with what was rounded; and
`CanaryScoreAuditor.epsilon_from_gdp` takes the absolute value of a negative
quantity, so it is no lower bound.
"""

from typing import Any

import numpy as np


def optimize_buffered(
    num_rounds: int, min_separation: int, max_participations: int,
    num_buffers: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Parameters of the buffered linear Toeplitz matrix of least largest error.

  Args:
    num_rounds: Rounds whose prefix sums count.
    min_separation: Rounds from a client's participation to its next, at least.
    max_participations: Of one client.
    num_buffers: Pairs of parameters.

  Returns:
    (decay, scale), float64 [num_buffers], of float32 values. 4 s to 15 s.
  """
  import jax
  from jax_privacy.matrix_factorization import buffered_toeplitz
  with jax.enable_x64(True), jax.numpy_rank_promotion('allow'):
    matrix = buffered_toeplitz.optimize(
        n=num_rounds, min_sep=min_separation,
        max_participations=max_participations, min_buffers=num_buffers,
        max_buffers=num_buffers, max_optimizer_steps=100)
    decay, scale = np.asarray(matrix.buf_decay), np.asarray(matrix.output_scale)
  return (decay.astype(np.float32).astype(np.float64),
          scale.astype(np.float32).astype(np.float64))


def banded_privatizer(coefficients: np.ndarray, stddev: Any, key: Any) -> Any:
  """The library's transform that adds C^-1 z, for a banded Toeplitz C."""
  import jax.numpy as jnp
  from jax_privacy import noise_addition
  from jax_privacy.matrix_factorization import toeplitz
  matrix = toeplitz.inverse_as_streaming_matrix(
      jnp.asarray(coefficients, jnp.float32))
  return noise_addition.matrix_factorization_privatizer(
      matrix, stddev=stddev, prng_key=key)


def buffered_privatizer(
    decay: np.ndarray, scale: np.ndarray, stddev: Any, key: Any) -> Any:
  """The library's transform that adds C^-1 z, for a buffered Toeplitz C."""
  import jax
  import jax.numpy as jnp
  import optax
  from jax_privacy import noise_addition
  from jax_privacy.matrix_factorization import buffered_toeplitz
  # The library reads the parameters back as NumPy, so they must not be traced
  # where the transform is made in a compiled function.
  with jax.ensure_compile_time_eval():
    matrix = buffered_toeplitz.BufferedToeplitz.build(
        buf_decay=decay, output_scale=scale, dtype=jnp.float32)
    inverse = matrix.inverse_as_streaming_matrix()
  inner = noise_addition.matrix_factorization_privatizer(
      inverse, stddev=stddev, prng_key=key)

  def update(updates, state, params=None):
    # The library adds an entry to all buffers by rank promotion.
    with jax.numpy_rank_promotion('allow'):
      return inner.update(updates, state, params)

  return optax.GradientTransformation(inner.init, update)


def epsilons_of_one_run(
    in_scores: np.ndarray, out_scores: np.ndarray, significance: float,
    delta_dp: float, split_seed: int, assume_gaussian: bool = True,
) -> tuple[float, float]:
  """Lower bounds on epsilon from the scores of canaries in and out of a run.

  A half of the canaries chooses the threshold, the other half is tested at it.

  Args:
    in_scores: float [n]: of the canaries that took part; higher is more in.
    out_scores: float [m]: of those that did not.
    significance: Chance that a bound is above the truth; of each bound.
    delta_dp: Of the claim.
    split_seed: Which half is which.
    assume_gaussian: Whether the second bound is wanted: it tests the claim that
      the mechanism is as private as the Gaussian one of the same epsilon and
      delta_dp, which says more than epsilon and delta_dp do.

  Returns:
    (one run, one run by f-DP); the second is 0 where it is not wanted.

  References:
    Steinke, Nasr and Jagielski, 2023, `Privacy Auditing with One (1) Training
    Run <https://arxiv.org/abs/2305.08846>`_. Mahloujifar, Melis and Chaudhuri,
    2024, `Auditing f-Differential Privacy in One Run
    <https://arxiv.org/abs/2410.22235>`_.
  """
  from jax_privacy import auditing
  auditor = auditing.CanaryScoreAuditor(in_scores, out_scores)
  strategy = auditing.Split(seed=split_seed)
  one_run = auditor.epsilon_one_run(
      significance, delta_dp, threshold_strategy=strategy)
  by_fdp = auditor.epsilon_one_run_fdp(
      significance, delta_dp, threshold_strategy=strategy
  ) if assume_gaussian else 0.0
  return float(one_run), float(by_fdp)
