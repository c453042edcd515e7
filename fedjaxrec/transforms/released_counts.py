"""Contributors of the item rows, released with noise beside the deltas.

What a round releases is then one vector: the clients' deltas, each clipped to
its norm, and their 0/1 vectors of touched rows, each scaled down to a norm of
its own. With the noise multiplier z of the whole, and the share s of 1 / z^2
for the counts, the deltas have the multiplier z / sqrt(1 - s) and the counts
z / sqrt(s), each in units of its own norm: one Gaussian mechanism of z.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.config.privacy import PrivacyConfig
from fedjaxrec.transforms.noise import add_gaussian_noise


def count_noise_stddev(privacy: PrivacyConfig, noise_scale: Any) -> Any:
  """Stddev of the noise on every item's number of contributors.

  Args:
    privacy: With privacy.noise_multiplier that of the deltas, z / sqrt(1 - s);
      it may be traced.
    noise_scale: Factor on all noise: cohort over deployment cohort, or 1.
  """
  share = privacy.count_share
  return (privacy.noise_multiplier * ((1 - share) / share) ** 0.5
          * privacy.count_clip_norm * noise_scale)


def count_floor(stddev: Any) -> jax.Array:
  """The least that a noisy count is read as: twice its noise, and at least 1.

  A function of public numbers: what it does to released counts costs nothing.
  """
  return jnp.maximum(1.0, 2 * stddev)


def with_counts(
    noise: optax.GradientTransformation, stddev: Any, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
  """Noise on (item table, shared, counts): the given one's, and the counts'.

  Formal guarantee: where a client's part of the pair and of the counts have L2
  norms of at most C and C_n, and noise of multiplier z_1 (in units of C) is on
  the pair, an update is one Gaussian mechanism of multiplier (z_1^-2 + (C_n /
  stddev)^2)^-1/2; unit of privacy: the client, under adding or removing one.

  Wire cost: none; the server knows which rows an upload is about. Error: stddev
  in every count, of items that nobody touched too.

  Args:
    noise: On the pair; extra arguments are handed on to it.
    stddev: Of the counts' noise; may be traced.
    key: Typed key of the counts' first draw; another one than the pair's.
  """
  noise = optax.with_extra_args_support(noise)
  of_counts = add_gaussian_noise(stddev, key)

  def init(params):
    return noise.init(params[:2]), of_counts.init(params[2])

  def update(updates, state, params=None, **extra):
    deltas, deltas_state = noise.update(updates[:2], state[0], params, **extra)
    counts, counts_state = of_counts.update(updates[2], state[1])
    return (*deltas, counts), (deltas_state, counts_state)

  return optax.GradientTransformationExtraArgs(init, update)
