"""Noise on the sum of the clients' deltas."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class GaussianNoiseState(NamedTuple):
  """The key of the next draw: part of a checkpoint, never used twice.

  Attributes:
    key_data: uint32 [...]: a plain array, as checkpoints store it.
  """
  key_data: jax.Array


def add_gaussian_noise(
    noise_stddev: PyTree, key: jax.Array
) -> optax.GradientTransformation:
  """Adds independent Gaussian noise to every entry.

  On the server: first in the chain, on the raw sum, before any scaling.

  Formal guarantee: with inputs whose sum has L2 sensitivity C under adding or
  removing one client, one update is the Gaussian mechanism with noise
  multiplier noise_stddev / C; unit of privacy: the client. With groups that
  were clipped and are noised apart, the noise multiplier of the whole is
  `groups_noise_multiplier`. The entries are float32 draws: the guarantee is
  that of real-valued noise, not of a discrete mechanism (Mironov, 2012).

  Wire cost: none; shapes and dtypes are kept. Time: one normal draw an entry,
  the whole table included, whoever touched it. Error: stddev noise_stddev in
  every entry.

  Args:
    noise_stddev: Absolute standard deviation, not negative; may be traced. Or a
      tree of them that is a prefix of the updates' tree: one for each group.
    key: Typed key of the first draw; each update uses a fresh one.

  Raises:
    ValueError: For a negative or NaN stddev that is known before tracing.

  References:
    Dwork and Roth, 2014, The Algorithmic Foundations of Differential Privacy,
    appendix A.
  """
  for stddev in jax.tree.leaves(noise_stddev):
    if isinstance(stddev, (int, float)) and not stddev >= 0:
      raise ValueError(
          f'noise_stddev={stddev} must be a number of at least 0; it is the '
          'standard deviation in the units of the delta.')

  def init(params):
    del params
    return GaussianNoiseState(jax.random.key_data(key))

  def update(updates, state, params=None):
    del params
    next_key, draw_key = jax.random.split(
        jax.random.wrap_key_data(state.key_data))

    def add(stddev, group, keys):
      return jax.tree.map(
          lambda x, k: x + jnp.asarray(stddev, x.dtype)
          * jax.random.normal(k, x.shape, x.dtype), group, keys)

    noisy = jax.tree.map(
        add, noise_stddev, updates,
        optax.tree.split_key_like(draw_key, updates))
    return noisy, GaussianNoiseState(jax.random.key_data(next_key))

  return optax.GradientTransformation(init, update)


def groups_noise_multiplier(
    l2_clip_norms: PyTree, noise_stddevs: PyTree
) -> float:
  """The noise multiplier of groups that were clipped and noised apart.

  Dividing each group by its stddev makes the noise standard normal and the L2
  sensitivity sqrt(sum_g (C_g / s_g)^2): the multiplier is its inverse. Infinite
  if all bounds are 0, 0 if a group with a bound above 0 has no noise.

  Args:
    l2_clip_norms: Each group's bound, as for `clip_groups_by_l2`.
    noise_stddevs: Each group's stddev, of the same tree.
  """
  ratios = [
      0.0 if not bound else math.inf if not stddev else bound / stddev
      for bound, stddev in zip(
          jax.tree.leaves(l2_clip_norms), jax.tree.leaves(noise_stddevs),
          strict=True)]
  squared = sum(ratio ** 2 for ratio in ratios)
  return 1 / math.sqrt(squared) if squared else math.inf
