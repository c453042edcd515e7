"""From a config to what makes a client's whole delta private on the device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.config.local_privacy import LocalPrivacyConfig
from fedjaxrec.transforms.local_privacy import (
    add_local_gaussian_noise,
    add_local_laplace_noise,
)
from fedjaxrec.transforms.priv_unit import priv_unit

PyTree = Any


def build_local_privacy(
    config: LocalPrivacyConfig, open_rows: Any, run_key: jax.Array
) -> Callable[..., optax.GradientTransformation]:
  """Builds what a client does to its delta, (item table, shared), whole.

  Formal guarantee: that of the mechanism, of one upload: any two deltas are
  (epsilon, delta)-indistinguishable for gaussian, epsilon for laplace and
  priv_unit. Unit of privacy: one upload of one user; a user pays for each of
  its participations (`privacy.local`).

  Wire cost: every open row and the shared parameters, dense. Error: see the
  mechanism, with d the numbers that travel.

  Args:
    config: Switched on; with mechanism=gaussian its delta is settled.
    open_rows: bool [num_items], concrete: the rows that travel, a public
      choice; the others become zeros. None: all.
    run_key: Of the run's noise (`protection.noise_key`): runs of other configs
      draw other noise, of the same clients too.

  Returns:
    make(client's key of the round, *ignored) -> transform.

  Raises:
    ValueError: For a delta that is not settled.
  """
  if config.mechanism == 'gaussian' and not config.delta:
    raise ValueError(
        'local_privacy.delta=0 with local_privacy.mechanism=gaussian: it is '
        'settled before a simulation is built; use fedjaxrec.train, or give '
        'local_privacy.delta.')
  rows = None if open_rows is None else np.flatnonzero(np.asarray(open_rows))

  def make(key, *ignored):
    del ignored
    for word in jax.random.key_data(run_key).reshape(-1):
      key = jax.random.fold_in(key, word)
    mechanism = {
        'gaussian': lambda: add_local_gaussian_noise(
            config.clip_norm, config.epsilon, config.delta, key),
        'laplace': lambda: add_local_laplace_noise(
            config.clip_norm, config.epsilon, key),
        'priv_unit': lambda: priv_unit(config.clip_norm, config.epsilon, key),
    }[config.mechanism]()
    return mechanism if rows is None else _on_rows(mechanism, rows)

  return make


def _on_rows(mechanism, rows):
  """The mechanism on some rows of the table and the shared leaves; others: 0.
  """
  def update(updates, state, params=None):
    del params
    table, shared = updates
    (open_part, shared), state = mechanism.update(
        (jax.tree.map(lambda x: x[rows], table), shared), state)
    return (jax.tree.map(
        lambda x, part: jnp.zeros_like(x).at[rows].set(part), table, open_part),
            shared), state

  return optax.GradientTransformation(mechanism.init, update)
