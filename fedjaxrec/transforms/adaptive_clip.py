"""A clip norm that follows a quantile of the clients' norms, under noise.

Every client clips to the norm that the server sent and reports in one bit
whether its delta was within it. The server noises the sum of the bits, and
moves the norm geometrically towards the wanted quantile. The bit's noise costs
privacy: `delta_noise_multiplier` says how much more noise the deltas need so
that both releases together cost what one would.

In the engine: the norm and the key are state of the server's transform; the
report is a whole leaf beside the shared parameters, and is summed like them.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.transforms.clip import clip_by_l2, is_finite_update, l2_norm
from fedjaxrec.transforms.noise import add_gaussian_noise

PyTree = Any

# The norm stays a usable float32 whatever the noise on the bits does.
SMALLEST_CLIP_NORM = 1e-8
LARGEST_CLIP_NORM = 1e8


class Reported(NamedTuple):
  """A delta and the client's report, or sums of both.

  Attributes:
    update: The clipped delta, or the sum of the cohort's.
    report: float32 []: 1/2 if the delta was within the norm, -1/2 if it was
      above, 0 if it was not finite; or the sum of the cohort's.
  """
  update: PyTree
  report: jax.Array


class AdaptiveClipState(NamedTuple):
  """What the server carries: plain arrays, part of a checkpoint.

  Attributes:
    clip_norm: float32 []: the norm that the next cohort clips to.
    key_data: uint32 [...]: of the next draw; never used twice.
  """
  clip_norm: jax.Array
  key_data: jax.Array


def clip_and_report(delta: PyTree, clip_norm: float | jax.Array) -> Reported:
  """Clips one client's delta and reports whether it was within the norm.

  Formal guarantee: the clipped delta has an L2 norm of at most clip_norm, and
  the report an absolute value of at most 1/2: the L2 sensitivities of their
  sums under adding or removing one client. A client that is absent adds 0 to
  both, so the half is right only if the reports are summed as they are: a sum
  of bits 0 and 1 has sensitivity 1. Unit of privacy: the client.

  Wire cost: one bit beside the delta. Time: one pass more than clipping.

  Args:
    delta: Any tree of arrays.
    clip_norm: The norm the server sent, not negative; may be traced.

  References:
    Andrew et al., 2021, `Differentially Private Learning with Adaptive Clipping
    <https://arxiv.org/abs/1905.03871>`_, algorithm 1 and section 3.2.
  """
  clip = clip_by_l2(clip_norm)
  clipped, _ = clip.update(delta, clip.init(delta))
  within = jnp.where(l2_norm(delta) <= clip_norm, 0.5, -0.5)
  return Reported(clipped, jnp.where(is_finite_update(delta), within, 0.0))


def init_adaptive_clip(
    initial_clip_norm: float, key: jax.Array
) -> AdaptiveClipState:
  """The state before the first round.

  Args:
    initial_clip_norm: The norm of the first round, above 0. It is public: not
      to be chosen by looking at the clients' norms.
    key: Typed key of the first draw.

  Raises:
    ValueError: For a norm outside [SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM].
  """
  if _is_known(initial_clip_norm) and not (
      SMALLEST_CLIP_NORM <= initial_clip_norm <= LARGEST_CLIP_NORM):
    raise ValueError(
        f'initial_clip_norm={initial_clip_norm} must lie in '
        f'[{SMALLEST_CLIP_NORM}, {LARGEST_CLIP_NORM}]; the norm changes by '
        'factors, so it cannot start from 0.')
  return AdaptiveClipState(
      jnp.asarray(initial_clip_norm, jnp.float32), jax.random.key_data(key))


def update_clip_norm(
    state: AdaptiveClipState,
    report_sum: jax.Array,
    expected_cohort: float,
    *,
    quantile: float = 0.5,
    learning_rate: float = 0.2,
    report_noise_stddev: float,
) -> tuple[AdaptiveClipState, jax.Array]:
  """Noises the sum of the reports and moves the norm: C exp(-eta (b - gamma)).

  Formal guarantee: the noisy sum is the Gaussian mechanism with noise
  multiplier 2 * report_noise_stddev on reports of sensitivity 1/2, under adding
  or removing one client; the norm is computed from it alone. Divides by the
  expected cohort, which is public, never by who came.

  Args:
    state: Norm and key.
    report_sum: float32 []: the cohort's reports, summed as they are.
    expected_cohort: Clients expected in a round: sampling_prob * num_clients.
    quantile: Share of the clients whose delta should be within the norm.
    learning_rate: eta; 0 keeps the norm.
    report_noise_stddev: Absolute stddev of the noise on the sum of reports;
      the paper's sigma_b, of which it recommends expected_cohort / 20.

  Returns:
    The next state, and the noisy estimate of the share within the norm (float32
    [], it may leave [0, 1]): free to be logged.

  Raises:
    ValueError: For a quantile outside [0, 1], or a negative rate or stddev.
  """
  _check_rule(expected_cohort, quantile, learning_rate, report_noise_stddev)
  noise = add_gaussian_noise(
      report_noise_stddev, jax.random.wrap_key_data(state.key_data))
  noisy_sum, noise_state = noise.update(report_sum, noise.init(report_sum))
  share = noisy_sum / expected_cohort + 0.5
  clip_norm = jnp.clip(
      state.clip_norm * jnp.exp(-learning_rate * (share - quantile)),
      SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM)
  return AdaptiveClipState(clip_norm, noise_state.key_data), share


def add_noise_and_adapt(
    noise_multiplier: Any,
    report_noise_stddev: Any,
    expected_cohort: float,
    key: jax.Array,
    *,
    initial_clip_norm: Any,
    quantile: float = 0.5,
    learning_rate: float = 0.2,
) -> optax.GradientTransformation:
  """The server's side: noise on the sum, noise on the reports, the next norm.

  A transform of `Reported` sums; the norm to send is `state.clip_norm`, the one
  that the cohort whose sum comes next must clip to.

  Formal guarantee: one update is, as a whole, the Gaussian mechanism with noise
  multiplier noise_multiplier under adding or removing one client; its outputs,
  the next norm included, may be published. Unit of privacy: the client. The
  norm depends on earlier outputs only, so rounds compose adaptively.

  Noise on the sum: stddev delta_noise_multiplier(noise_multiplier,
  report_noise_stddev) * state.clip_norm in every entry. Wire cost: none.

  Args:
    noise_multiplier: Of the whole: what the accountant is told. Settings may be
      traced, so that one compiled function serves a sweep.
    report_noise_stddev: As for `update_clip_norm`; above noise_multiplier / 2.
    expected_cohort: As for `update_clip_norm`.
    key: Typed key of the first draw.
    initial_clip_norm: As for `init_adaptive_clip`.
    quantile: As for `update_clip_norm`.
    learning_rate: As for `update_clip_norm`.

  Raises:
    ValueError: For parameters out of range.
  """
  _check_rule(expected_cohort, quantile, learning_rate, report_noise_stddev)
  multiplier = delta_noise_multiplier(noise_multiplier, report_noise_stddev)
  first = init_adaptive_clip(initial_clip_norm, key)

  def update(sums, state, params=None):
    del params
    noise_key, next_key = jax.random.split(
        jax.random.wrap_key_data(state.key_data))
    noise = add_gaussian_noise(multiplier * state.clip_norm, noise_key)
    noisy, _ = noise.update(sums.update, noise.init(sums.update))
    state, share = update_clip_norm(
        state._replace(key_data=jax.random.key_data(next_key)), sums.report,
        expected_cohort, quantile=quantile, learning_rate=learning_rate,
        report_noise_stddev=report_noise_stddev)
    return Reported(noisy, (share - 0.5) * expected_cohort), state

  return optax.GradientTransformation(lambda params: first, update)


def delta_noise_multiplier(
    noise_multiplier: Any, report_noise_stddev: Any
) -> Any:
  """The noise on the deltas so that, with the reports', z is noise_multiplier.

  Two Gaussian releases of multipliers z_delta and 2 sigma_b (the reports have
  sensitivity 1/2) are together one of (z_delta^-2 + (2 sigma_b)^-2)^(-1/2);
  solved for z_delta.

  Args:
    noise_multiplier: z of both together: what the accountant is told; 0 asks
      for no privacy and gives 0. May be traced.
    report_noise_stddev: sigma_b, absolute, on the sum of the reports. May be
      traced.

  Returns:
    z_delta, above z: in units of the clip norm.

  Raises:
    ValueError: If the reports alone cost more than noise_multiplier allows, and
      that is known before tracing; NaN if it is not.

  References:
    Andrew et al., 2021, `Differentially Private Learning with Adaptive Clipping
    <https://arxiv.org/abs/1905.03871>`_, theorem 1.
  """
  if not (_is_known(noise_multiplier) and _is_known(report_noise_stddev)):
    # A multiplier that the reports do not leave room for makes the noise, and
    # with it all that is released, NaN.
    return noise_multiplier / jnp.sqrt(
        1 - jnp.square(noise_multiplier / (2 * report_noise_stddev)))
  if not noise_multiplier >= 0:
    raise ValueError(
        f'noise_multiplier={noise_multiplier} must be a number of at least 0.')
  if noise_multiplier == 0:
    return 0.0
  if not 2 * report_noise_stddev > noise_multiplier:
    raise ValueError(
        f'report_noise_stddev={report_noise_stddev} must be above half of '
        f'noise_multiplier={noise_multiplier}: with less the reports alone '
        'cost more than both may. Take a twentieth of the expected cohort, and '
        'a larger cohort if that is too little.')
  return (noise_multiplier**-2 - (2 * report_noise_stddev)**-2) ** -0.5


def _is_known(value):
  """Whether a setting is a number already, and not one that is traced."""
  return isinstance(value, (int, float))


def _check_rule(expected_cohort, quantile, learning_rate, report_noise_stddev):
  if _is_known(expected_cohort) and not (
      expected_cohort > 0 and math.isfinite(expected_cohort)):
    raise ValueError(
        f'expected_cohort={expected_cohort} must be a finite number above 0: '
        'sampling_prob times the number of clients.')
  if _is_known(quantile) and not 0 <= quantile <= 1:
    raise ValueError(
        f'quantile={quantile} must lie in [0, 1]; it is the share of clients '
        'whose delta is within the clip norm.')
  for name, value in (('learning_rate', learning_rate),
                      ('report_noise_stddev', report_noise_stddev)):
    if _is_known(value) and not (value >= 0 and math.isfinite(value)):
      raise ValueError(
          f'{name}={value} must be a finite number of at least 0.')
