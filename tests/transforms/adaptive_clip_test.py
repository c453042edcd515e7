"""The norm finds the quantile, and both releases cost what was promised."""

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting import rdp

from fedjaxrec.transforms.adaptive_clip import (
  LARGEST_CLIP_NORM,
  SMALLEST_CLIP_NORM,
  AdaptiveClipState,
  Reported,
  add_noise_and_adapt,
  clip_and_report,
  delta_noise_multiplier,
  init_adaptive_clip,
  update_clip_norm,
)

NUM_DRAWS = 10**6


@pytest.mark.parametrize(('delta', 'report'), [
  ([3.0, 4.0], -0.5), ([0.3, 0.4], 0.5), ([0.0, 0.0], 0.5),
  ([0.6, 0.8], 0.5), ([3e30, 4e30], -0.5), ([np.nan, 0.0], 0.0),
  ([np.inf, 0.0], 0.0),
])
def test_the_report_says_whether_the_delta_was_within_the_norm(delta, report):
  out = clip_and_report({'a': jnp.array(delta)}, 1.001)
  assert out.report == report
  assert np.linalg.norm(np.asarray(out.update['a'], np.float64)) <= 1.00101


def test_a_client_changes_the_sum_of_reports_by_at_most_a_half():
  reports = [float(clip_and_report(jnp.array([x]), 1.0).report)
             for x in (0.0, 0.5, 2.0, np.nan, np.inf)]
  assert max(np.abs(reports)) == 0.5


def test_the_norm_moves_by_the_formula_of_the_paper():
  state = init_adaptive_clip(2.0, jax.random.key(0))
  # 70 of 100 expected clients within, 30 above, by hand: b = 0.7.
  moved, share = update_clip_norm(
      state, jnp.float32(70 * 0.5 - 30 * 0.5), 100, quantile=0.5,
      learning_rate=0.2, report_noise_stddev=0.0)
  np.testing.assert_allclose(share, 0.7, rtol=1e-6)
  np.testing.assert_allclose(
      moved.clip_norm, 2.0 * np.exp(-0.2 * (0.7 - 0.5)), rtol=1e-6)
  # Fewer came than expected: divided by the expected cohort all the same.
  _, share = update_clip_norm(
      state, jnp.float32(40 * 0.5 - 10 * 0.5), 100, report_noise_stddev=0.0)
  np.testing.assert_allclose(share, 15 / 100 + 0.5, rtol=1e-6)


def test_the_norm_settles_at_the_quantile_of_the_clients_norms():
  norms = jnp.asarray(
      np.random.default_rng(0).lognormal(0, 1, 400), jnp.float32)

  def body(state, _):
    reports = jax.vmap(lambda x: clip_and_report(x[None], state.clip_norm))(
        norms).report
    state, _ = update_clip_norm(
        state, reports.sum(), 400, quantile=0.8, learning_rate=0.2,
        report_noise_stddev=20.0)
    return state, state.clip_norm

  state = init_adaptive_clip(0.01, jax.random.key(0))
  _, history = jax.lax.scan(body, state, None, 300)
  # At rest log C does an autoregressive walk: a step moves it by 0.2 times the
  # noise 20 / 400, and pulls by 0.2 times the density of log C, 0.28 there.
  # stddev = 0.2 * 0.05 / sqrt(2 * 0.2 * 0.28) = 0.03; a mean of 100 steps, with
  # a memory of 1 / 0.056 = 18 steps, has 0.03 * sqrt(36 / 100) = 0.018.
  reached = np.log(np.asarray(history[-100:])).mean()
  assert abs(reached - np.log(np.quantile(norms, 0.8))) < 6 * 0.018


def test_the_noise_on_the_reports_has_the_stddev_it_was_asked_for():
  keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
  shares = jax.jit(jax.vmap(lambda key: update_clip_norm(
      AdaptiveClipState(jnp.float32(1.0), jax.random.key_data(key)),
      jnp.float32(3.0), 10.0, report_noise_stddev=4.0)[1]))(keys)
  noise = (np.asarray(shares) - 0.5) * 10.0 - 3.0
  assert abs(noise.std() / 4.0 - 1) < 6 / np.sqrt(2 * NUM_DRAWS)


def test_the_server_noises_the_sum_by_the_norm_the_cohort_clipped_to():
  transform = add_noise_and_adapt(
      1.0, 2.0, 40.0, jax.random.key(0), initial_clip_norm=0.3)
  sums = Reported({'a': jnp.full(NUM_DRAWS, 5.0)}, jnp.float32(-20.0))
  state = transform.init(None)
  out, state = transform.update(sums, state)
  told = delta_noise_multiplier(1.0, 2.0) * 0.3
  noise = np.asarray(out.update['a'], np.float64) - 5.0
  assert abs(noise.std() / told - 1) < 6 / np.sqrt(2 * NUM_DRAWS)
  # All were above: the norm grows, and the next noise with it.
  assert state.clip_norm > 0.3
  again, _ = transform.update(sums, state)
  second = np.asarray(again.update['a'], np.float64) - 5.0
  np.testing.assert_allclose(
      second.std() / noise.std(), state.clip_norm / 0.3,
      rtol=6 * np.sqrt(2) / np.sqrt(2 * NUM_DRAWS))
  assert abs(np.corrcoef(noise, second)[0, 1]) < 6 / np.sqrt(NUM_DRAWS)


def test_reports_and_deltas_draw_from_keys_of_their_own():
  transform = add_noise_and_adapt(
      1.0, 2.0, 40.0, jax.random.key(0), initial_clip_norm=1.0)
  sums = Reported(jnp.zeros(()), jnp.float32(0.0))
  step = jax.jit(lambda s: transform.update(sums, s))
  state, draws = transform.init(None), []
  for _ in range(300):
    clip_norm = state.clip_norm
    out, state = step(state)
    draws.append((out.update / clip_norm, out.report))
  draws = np.array(draws)
  assert len(np.unique(draws)) == draws.size
  assert abs(np.corrcoef(draws.T)[0, 1]) < 6 / np.sqrt(300)


def test_state_is_plain_arrays_that_survive_a_checkpoint():
  transform = add_noise_and_adapt(
      1.0, 2.0, 40.0, jax.random.key(0), initial_clip_norm=1.0)
  sums = Reported(jnp.zeros(4), jnp.float32(0.0))
  _, state = transform.update(sums, transform.init(None))
  stored = jax.tree.map(np.asarray, state)
  assert all(type(x) is np.ndarray for x in jax.tree.leaves(stored))
  restored = jax.tree.map(jnp.asarray, stored)
  jax.tree.map(
      np.testing.assert_array_equal, transform.update(sums, state),
      transform.update(sums, restored))


@pytest.mark.parametrize(('noise_multiplier', 'stddev'), [
  (1.0, 0.6), (0.74, 5.0), (2.5, 2.0)])
def test_deltas_and_reports_together_cost_the_noise_multiplier(
    noise_multiplier, stddev):
  of_deltas = delta_noise_multiplier(noise_multiplier, stddev)
  assert of_deltas > noise_multiplier

  def epsilon(*multipliers):
    accountant = rdp.RdpAccountant()
    for z in multipliers:
      accountant.compose(dp_accounting.GaussianDpEvent(z))
    return accountant.get_epsilon(1e-5)

  np.testing.assert_allclose(
      epsilon(of_deltas, 2 * stddev), epsilon(noise_multiplier), rtol=1e-9)
  # Positive control: without the correction both would cost more.
  assert epsilon(noise_multiplier, 2 * stddev) > epsilon(noise_multiplier)


def test_the_norm_stays_a_usable_number():
  state = init_adaptive_clip(1.0, jax.random.key(0))
  for report_sum, bound in (
      (1e9, SMALLEST_CLIP_NORM), (-1e9, LARGEST_CLIP_NORM)):
    moved, _ = update_clip_norm(
        state, jnp.float32(report_sum), 1.0, report_noise_stddev=1.0)
    np.testing.assert_allclose(moved.clip_norm, bound, rtol=1e-6)


@pytest.mark.parametrize(('call', 'message'), [
  (lambda: delta_noise_multiplier(1.0, 0.5), 'report_noise_stddev=0.5'),
  (lambda: delta_noise_multiplier(-1.0, 9.0), 'noise_multiplier=-1.0'),
  (lambda: init_adaptive_clip(0.0, jax.random.key(0)), 'initial_clip_norm=0'),
  (lambda: init_adaptive_clip(np.nan, jax.random.key(0)), 'clip_norm=nan'),
  (lambda: add_noise_and_adapt(
      1.0, 2.0, 0.0, jax.random.key(0), initial_clip_norm=1.0),
   'expected_cohort=0.0'),
  (lambda: add_noise_and_adapt(
      1.0, 2.0, 9.0, jax.random.key(0), initial_clip_norm=1.0, quantile=1.5),
   'quantile=1.5'),
  (lambda: add_noise_and_adapt(
      1.0, 2.0, 9.0, jax.random.key(0), initial_clip_norm=1.0,
      learning_rate=-1), 'learning_rate=-1'),
])
def test_parameters_that_promise_nothing_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_no_privacy_needs_no_noise_on_the_deltas():
  assert delta_noise_multiplier(0.0, 1.0) == 0.0


def test_settings_may_be_traced_and_give_the_same():
  sums = Reported(jnp.zeros(50), jnp.float32(3.0))

  def step(noise_multiplier, stddev, clip_norm, quantile):
    transform = add_noise_and_adapt(
        noise_multiplier, stddev, 40.0, jax.random.key(0),
        initial_clip_norm=clip_norm, quantile=quantile)
    return transform.update(sums, transform.init(None))

  settings = 1.0, 2.0, 0.3, 0.6
  # The same few float32 operations, which a compiler may fuse.
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
      jax.jit(step)(*settings), step(*settings))
  # Reports that cost more than both may: nothing usable is released.
  noisy, _ = jax.jit(step)(1.0, 0.4, 0.3, 0.6)
  assert np.isnan(noisy.update).all()


def test_no_two_updates_share_the_noise_on_the_reports():
  state, noises = init_adaptive_clip(1.0, jax.random.key(0)), []
  keys = [np.asarray(state.key_data).tobytes()]
  for _ in range(4):
    state, share = update_clip_norm(
        state, jnp.float32(0.0), 10.0, report_noise_stddev=1.0)
    noises.append(float(share))
    keys.append(np.asarray(state.key_data).tobytes())
  assert len(set(noises)) == 4 and len(set(keys)) == 5
