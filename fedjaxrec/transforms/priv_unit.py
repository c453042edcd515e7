"""PrivUnit: a private direction, much better than noise for large epsilon.

A unit vector u in d dimensions becomes, with probability p, a uniform draw from
the cap {v : <v, u> >= gamma} of the sphere, and otherwise one from the rest of
the sphere. Against a uniform draw the output's density is p / c on the cap, of
mass c, and (1 - p) / (1 - c) off it; so for any two inputs the densities of an
output differ by a factor of at most

  p (1 - c) / ((1 - p) c) = e^epsilon,

and the last equality is how p follows from gamma and epsilon. The paper bounds
that ratio; here it is met exactly, and gamma is the one of least error.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from fedjaxrec.transforms.clip import clip_by_l2, l2_norm
from fedjaxrec.transforms.local_privacy import above_zero, round_prob_down

# Draws of <v, u> made at once; the first that fits is taken.
_CANDIDATES = 16
# Below this mass candidates for the cap are drawn near it.
_SMALL_CAP = 0.2
# Above it float32 would not tell the cap's border well (in few dimensions).
_LARGEST_THRESHOLD = 0.999


class PrivUnitParameters(NamedTuple):
  """What the mechanism does in d dimensions.

  Attributes:
    cap_prob: p, the chance of an output on the cap.
    threshold: gamma, the cosine at the cap's border; a float32 value.
    cap_mass: c, the share of the sphere that the cap is.
    mean_cosine: m = E<v, u>: dividing by it makes the output unbiased. The
      output's norm is 1 / m for every input.
  """
  cap_prob: float
  threshold: float
  cap_mass: float
  mean_cosine: float


def priv_unit(
    l2_clip_norm: float, epsilon: float, key: jax.Array
) -> optax.GradientTransformation:
  """Clips a client's delta and sends a private vector with the delta as mean.

  The direction goes through PrivUnit. A delta shorter than l2_clip_norm keeps
  its direction with probability (1 + norm / l2_clip_norm) / 2 and is turned
  round otherwise, before PrivUnit: so the mean is the clipped delta, its length
  included, at no cost in privacy. A delta of zeros (one that is not finite
  becomes zeros) goes as either sign of a fixed direction.

  Formal guarantee: epsilon local differential privacy of one report: for any
  two deltas of one shape the densities of the output differ by a factor of at
  most e^epsilon everywhere. Unit of privacy: one report of one client. That of
  real-valued draws: float32 rounds which side of the cap's border a draw lies
  on by a relative 1e-7.

  Wire cost: the whole table, dense. Error: E[output] is the clipped delta; the
  output's norm is always l2_clip_norm / m, with m = `priv_unit_parameters(
  epsilon, d).mean_cosine`, so the mean squared error is (l2_clip_norm / m)^2
  less the squared norm. Time: one normal draw an entry, three passes.

  Args:
    l2_clip_norm: A client's bound, above 0.
    epsilon: Of one report, above 0.
    key: Typed key. One key is one draw: give every client and round its own.

  Raises:
    ValueError: For parameters out of range; in the update, for a delta of
      fewer than four entries.

  References:
    Bhowmick et al., 2018, `Protection Against Reconstruction and Its
    Applications in Private Federated Learning
    <https://arxiv.org/abs/1812.00984>`_, algorithm 1. Asi, Feldman and Talwar,
    2022, `Optimal Algorithms for Mean Estimation under Local Differential
    Privacy <https://arxiv.org/abs/2205.02466>`_, on the choice of p and gamma.
  """
  above_zero('l2_clip_norm', l2_clip_norm)
  above_zero('epsilon', epsilon)
  clip = clip_by_l2(l2_clip_norm)

  def update(updates, state, params=None):
    del params
    leaves, treedef = jax.tree.flatten(updates)
    parameters = priv_unit_parameters(epsilon, sum(x.size for x in leaves))
    clipped, _ = clip.update(leaves, clip.init(leaves))
    length = l2_norm(clipped)
    # Few calls of the generator: they are most of what there is to compile.
    choose_key, cosine_key, normal_key = jax.random.split(key, 3)
    turn, choose = jax.random.uniform(choose_key, (2,))

    # A direction for zeros: the first entry of the first leaf that has one.
    at = next(i for i, x in enumerate(leaves) if x.size)
    fixed = [
        jnp.zeros(x.shape).at[(0,) * x.ndim].set(1.0) if i == at
        else jnp.zeros(x.shape) for i, x in enumerate(leaves)]
    sign = jnp.where(
        2 * turn < 1 + length / l2_clip_norm, 1.0, -1.0)
    unit = [
        sign * jnp.where(length > 0, x / jnp.where(length > 0, length, 1), f)
        for x, f in zip(clipped, fixed)]

    cosine = _draw_cosine(
        parameters, sum(x.size for x in leaves), choose < parameters.cap_prob,
        cosine_key)
    # Uniform on the sphere of what is orthogonal to unit. Taking the part along
    # it off twice leaves float32 rounding only.
    normal = [
        jax.random.normal(k, x.shape)
        for k, x in zip(jax.random.split(normal_key, len(leaves)), leaves)]
    for _ in range(2):
      along = sum(jnp.sum(n * u) for n, u in zip(normal, unit))
      normal = [n - along * u for n, u in zip(normal, unit)]
    sine = jnp.sqrt(1 - cosine**2) / l2_norm(normal)
    factor = l2_clip_norm / parameters.mean_cosine
    return jax.tree.unflatten(treedef, [
        (factor * (cosine * u + sine * n)).astype(x.dtype)
        for u, n, x in zip(unit, normal, leaves)]), state

  return optax.GradientTransformation(optax.init_empty_state, update)


@functools.lru_cache(maxsize=256)
def priv_unit_parameters(
    epsilon: float, num_entries: int
) -> PrivUnitParameters:
  """The parameters of least error that are exactly epsilon private.

  Of the p from e^(epsilon/40) / (1 + ...) to e^epsilon / (1 + e^epsilon) in
  forty steps of the log-odds, with the gamma that belongs to each, the ones of
  the largest mean_cosine.

  Args:
    epsilon: Above 0.
    num_entries: d, at least 4.

  Raises:
    ValueError: For parameters out of range.
  """
  above_zero('epsilon', epsilon)
  if num_entries < 4:
    raise ValueError(
        f'num_entries={num_entries} must be at least 4; for fewer numbers add '
        'Laplace noise.')
  thresholds = [
      _threshold_of_mass(scipy.special.expit(odds - epsilon), num_entries)
      for odds in np.linspace(0, epsilon, 41)[1:]]
  return max(
      (parameters_of_threshold(epsilon, num_entries, threshold)
       for threshold in thresholds if threshold <= _LARGEST_THRESHOLD),
      key=lambda choice: choice.mean_cosine)


def parameters_of_threshold(
    epsilon: float, num_entries: int, threshold: float
) -> PrivUnitParameters:
  """The epsilon private parameters for a given gamma in [0, 1).

  Exactly epsilon but for p, which is rounded down to what the device can draw.

  With T = <v, u> of a uniform v, of density proportional to (1 - t^2)^((d-3)/2)
  and mu = E[T; T >= gamma] = (1 - gamma^2)^((d-1)/2) / ((d - 1) B(1/2,
  (d-1)/2)), the mean cosine is mu (p / c - (1 - p) / (1 - c)).
  """
  # What the device compares with, so that mass and probability belong to it.
  threshold = float(np.float32(threshold))
  half = (num_entries - 1) / 2
  mass = _cap_mass(threshold, num_entries)
  cap_prob = round_prob_down(
      float(scipy.special.expit(epsilon + scipy.special.logit(mass))))
  log_mean = (
      half * math.log1p(-threshold**2) - math.log(num_entries - 1)
      - float(scipy.special.betaln(0.5, half)))
  mean_cosine = math.exp(log_mean) * (
      cap_prob / mass - (1 - cap_prob) / (1 - mass))
  return PrivUnitParameters(cap_prob, threshold, mass, mean_cosine)


def _cap_mass(threshold, num_entries):
  """P(T >= threshold): (1 - T) / 2 has a symmetric beta distribution."""
  half = (num_entries - 1) / 2
  return float(scipy.special.betainc(half, half, (1 - threshold) / 2))


def _threshold_of_mass(mass, num_entries):
  """The threshold, in [0, 1), whose cap has the mass, at most 1/2."""
  half = (num_entries - 1) / 2
  return max(0.0, 1 - 2 * float(scipy.special.betaincinv(half, half, mass)))


def _draw_cosine(parameters, num_entries, on_cap, key):
  """Draws <v, u> of a v that is uniform on the cap, or off it, by rejection.

  T of a uniform v has a density proportional to (1 - t^2)^a, a = (d - 3) / 2:
  below the normal exp(-a t^2), which proposes it. Where the cap is small few
  such draws land on it; there w = 1 - T^2, of density proportional to w^a (1 -
  w)^(-1/2) on [0, 1 - gamma^2], is proposed without its second factor, and
  accepted with probability gamma / T. Either way a half or more is accepted.
  """
  power, threshold = (num_entries - 3) / 2, parameters.threshold

  def draw(step):
    first, second = jax.random.uniform(
        jax.random.fold_in(key, step), (2, _CANDIDATES), minval=2.0**-24)
    chance = jnp.log(second)
    cosine = jax.lax.erf_inv(2 * first - 1) / math.sqrt(power)
    squared = jnp.minimum(cosine**2, 1)
    fits = ((chance < power * (jnp.log1p(-squared) + squared))
            & ((cosine >= threshold) == on_cap))
    if parameters.cap_mass < _SMALL_CAP:
      # 1 - u^(1 / (a + 1)), without cancellation where it is small.
      beyond = -jnp.expm1(jnp.log(first) / (power + 1))
      near = jnp.sqrt(threshold**2 + (1 - threshold**2) * beyond)
      accepted = chance < jnp.log(threshold / near)
      fits = jnp.where(on_cap, accepted, fits)
      cosine = jnp.where(on_cap, near, cosine)
    return fits.any(), cosine[jnp.argmax(fits)]

  def body(carry):
    step, _, _ = carry
    return step + 1, *draw(step)

  return jax.lax.while_loop(
      lambda carry: ~carry[1], body,
      (jnp.int32(0), jnp.bool_(False), jnp.float32(0)))[2]
