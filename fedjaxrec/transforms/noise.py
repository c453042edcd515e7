"""Noise on the sum of the clients' deltas."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class GaussianNoiseState(NamedTuple):
  """The key of the next draw: part of a checkpoint, never used twice.

  Attributes:
    key_data: uint32 [...]: a plain array, as checkpoints store it.
  """
  key_data: jax.Array


def add_gaussian_noise(
    noise_stddev: float | jax.Array, key: jax.Array
) -> optax.GradientTransformation:
  """Adds independent Gaussian noise to every entry.

  On the server: first in the chain, on the raw sum, before any scaling.

  Formal guarantee: with inputs whose sum has L2 sensitivity C under adding or
  removing one client, one update is the Gaussian mechanism with noise
  multiplier noise_stddev / C; unit of privacy: the client. The entries are
  float32 draws: the guarantee is that of real-valued noise, not of a discrete
  mechanism (Mironov, 2012).

  Wire cost: none; shapes and dtypes are kept. Time: one normal draw an entry,
  the whole table included, whoever touched it. Error: stddev noise_stddev in
  every entry.

  Args:
    noise_stddev: Absolute standard deviation, not negative; may be traced.
    key: Typed key of the first draw; each update uses a fresh one.

  Raises:
    ValueError: For a negative or NaN stddev that is known before tracing.

  References:
    Dwork and Roth, 2014, The Algorithmic Foundations of Differential Privacy,
    appendix A.
  """
  if isinstance(noise_stddev, (int, float)) and not noise_stddev >= 0:
    raise ValueError(
        f'noise_stddev={noise_stddev} must be a number of at least 0; it is '
        'the standard deviation in the units of the delta.')

  def init(params):
    del params
    return GaussianNoiseState(jax.random.key_data(key))

  def update(updates, state, params=None):
    del params
    next_key, draw_key = jax.random.split(
        jax.random.wrap_key_data(state.key_data))
    noisy = jax.tree.map(
        lambda x, k: x + jnp.asarray(noise_stddev, x.dtype)
        * jax.random.normal(k, x.shape, x.dtype),
        updates, optax.tree.split_key_like(draw_key, updates))
    return noisy, GaussianNoiseState(jax.random.key_data(next_key))

  return optax.GradientTransformation(init, update)
