"""With the noise on the claim stands, with the noise off it falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import jax_privacy_bridge
from fedjaxrec.privacy.audit import (
  area_under_curve,
  audit,
  audit_ceiling,
  measure_item_leak,
)
from fedjaxrec.transforms.clip import clip_by_l2
from fedjaxrec.transforms.local_privacy import (
  add_local_gaussian_noise,
  add_local_laplace_noise,
  gaussian_stddev,
)
from fedjaxrec.transforms.noise import add_gaussian_noise

CLIP_NORM, DELTA_DP = 0.5, 6.932e-5


def make_release(noise_multiplier, clips=True):
  """Central DP: each canary's delta clipped, one sum, Gaussian noise."""
  clip = clip_by_l2(CLIP_NORM)

  @jax.jit
  def release(deltas, key):
    if clips:
      deltas = jax.vmap(lambda x: clip.update(x, clip.init(x))[0])(deltas)
    noise = add_gaussian_noise(noise_multiplier * CLIP_NORM, key)
    return noise.update(deltas, noise.init(deltas))[0]

  return lambda deltas, seed: release(deltas, jax.random.key(seed))


@pytest.mark.parametrize(('epsilon', 'num_canaries'), [
  (1.0, 250), (4.0, 500), (8.0, 2500)])
def test_the_claim_stands_with_the_noise_and_falls_without(
    epsilon, num_canaries):
  noise_multiplier = gaussian_stddev(1.0, epsilon, DELTA_DP)
  audits = {
    name: audit(release, num_canaries, 2, epsilon, DELTA_DP, 0,
                canary_norm=2 * CLIP_NORM, dim=2)
    for name, release in (
      ('on', make_release(noise_multiplier)), ('off', make_release(0.0)),
      ('a tenth', make_release(noise_multiplier / 10)))}
  on = audits.pop('on')
  assert not on.refuted and on.lower_bound < epsilon
  assert on.num_canaries == 2 * num_canaries
  # Scores of the right noise: P(N(1, z) > N(0, z)). An area over n and n has a
  # variance of at most 1 / (6 n).
  from_noise = float(jax.scipy.stats.norm.cdf(1 / noise_multiplier / 2**0.5))
  assert abs(on.auc - from_noise) < 6 / np.sqrt(6 * num_canaries)
  for result in audits.values():  # Positive controls.
    assert result.refuted and epsilon < result.lower_bound <= result.ceiling
  assert audits['off'].auc == 1.0
  assert audits['off'].lower_bound == audits['off'].ceiling


def test_an_audit_is_far_below_the_claim_only_where_little_leaks():
  tight = audit(make_release(gaussian_stddev(1.0, 4.0, DELTA_DP)), 2500, 2, 4.0,
                DELTA_DP, 1, canary_norm=CLIP_NORM)
  assert 1.0 < tight.lower_bound < 4.0


def test_a_mechanism_that_forgets_to_clip_is_caught():
  release = make_release(gaussian_stddev(1.0, 1.0, DELTA_DP), clips=False)
  assert not audit(release, 500, 1, 1.0, DELTA_DP, 0,
                   canary_norm=CLIP_NORM).refuted
  assert audit(release, 500, 1, 1.0, DELTA_DP, 0,
               canary_norm=20 * CLIP_NORM).refuted


@pytest.mark.parametrize('made_for', [1.0, 8.0])
def test_pure_local_privacy_is_audited_without_the_gaussian_claim(made_for):
  @jax.jit
  def each(deltas, key):
    # A report of each canary's own: absent is a report of zeros, so the
    # sensitivity is one clip norm and the noise of epsilon 2 keeps 1.
    one = lambda x, k: add_local_laplace_noise(
        CLIP_NORM, 2 * made_for, k).update(x, None)[0]
    return jax.vmap(one)(deltas, jax.random.split(key, len(deltas)))

  release = lambda deltas, seed: each(deltas, jax.random.key(seed))
  result = audit(release, 1000, 2, 1.0, 1e-6, 0, canary_norm=CLIP_NORM,
                 assume_gaussian=False)
  assert result.refuted == (made_for == 8.0)
  assert result.epsilon_one_run_fdp == 0.0


def test_two_bounds_share_the_chance_of_a_false_alarm():
  result = audit(make_release(0.0), 200, 1, 1.0, DELTA_DP, 3)
  takes_part = np.random.default_rng(3).random(200) < 0.5
  scores = np.sort(takes_part.astype(float))
  each = {share: jax_privacy_bridge.epsilons_of_one_run(
      scores[scores > 0], scores[scores == 0], 0.05 * share, DELTA_DP, 3)
          for share in (0.5, 1.0)}
  assert (result.epsilon_one_run, result.epsilon_one_run_fdp) == each[0.5]
  assert result.lower_bound == max(each[0.5]) < max(each[1.0])


def test_false_alarms_are_as_rare_as_promised():
  # Nothing of the canaries is released: any claim holds. Of 30 audits at 5 %
  # more than 7 would be refuted once in ten thousand times.
  release = lambda deltas, seed: np.random.default_rng(seed).normal(
      size=deltas.shape)
  refuted = [audit(release, 100, 1, 1e-3, 1e-5, seed).refuted
             for seed in range(30)]
  assert sum(refuted) <= 7


def test_too_few_canaries_can_refute_nothing_and_the_ceiling_says_so():
  ceilings = [audit_ceiling(m, DELTA_DP) for m in (50, 200, 1000)]
  assert ceilings == sorted(ceilings)
  assert ceilings[1] < 8
  result = audit(make_release(0.0), 200, 1, 8.0, DELTA_DP, 0)
  assert not result.refuted and result.ceiling < 8  # Though the noise is off.
  assert audit_ceiling(1000, DELTA_DP, assume_gaussian=False) < 5
  assert audit_ceiling(1000, DELTA_DP, 0.01) < ceilings[2]


@pytest.mark.parametrize(('changes', 'message'), [
  ({'num_canaries': 1}, 'num_canaries=1'), ({'num_trials': 0}, 'num_trials=0'),
  ({'claimed_epsilon': 0.0}, 'claimed_epsilon=0.0'),
  ({'delta_dp': 0.0}, 'delta_dp=0.0'), ({'delta_dp': 1.0}, 'delta_dp=1.0'),
  ({'significance': 0.0}, 'significance=0.0'),
  ({'release_fn': lambda deltas, seed: deltas.sum(0)}, 'release_fn returned'),
])
def test_what_measures_nothing_is_refused(changes, message):
  arguments = {
    'release_fn': lambda deltas, seed: deltas, 'num_canaries': 20,
    'num_trials': 1, 'claimed_epsilon': 1.0, 'delta_dp': 1e-5, 'seed': 0}
  with pytest.raises(ValueError, match=message):
    audit(**{**arguments, **changes})


def test_the_area_under_the_curve_counts_pairs():
  rng = np.random.default_rng(0)
  for _ in range(5):
    scores, is_in = rng.integers(0, 6, 30), rng.random(30) < 0.4
    pairs = [(a > b) + (a == b) / 2
             for a in scores[is_in] for b in scores[~is_in]]
    np.testing.assert_allclose(area_under_curve(scores, is_in), np.mean(pairs))


@pytest.fixture(scope='module')
def cohort():
  """100 clients with about 67 of 3,706 items of a long tail, deltas of norm 1.

  Returns their row deltas [clients, items, 4], who touched what, and counts.
  """
  rng = np.random.default_rng(0)
  clients, items = 100, 3706
  weight = 1 / np.arange(10, items + 10) ** 0.8
  touched = rng.random((clients, items)) < np.minimum(
      67 * weight / weight.sum(), 0.9)
  deltas = rng.normal(size=(clients, items, 4)) * touched[..., None]
  deltas /= np.linalg.norm(deltas, axis=(1, 2), keepdims=True)
  return deltas.astype(np.float32), touched, weight


def test_what_each_view_tells_of_the_items_that_a_client_touched(cohort):
  deltas, touched, popularity = cohort
  norms = lambda table: np.linalg.norm(table, axis=-1)
  noise = add_gaussian_noise(1.0, jax.random.key(0))
  total = deltas.sum(0)
  noisy, _ = noise.update(jnp.asarray(total), noise.init(total))
  local = jax.jit(jax.vmap(lambda x, k: add_local_gaussian_noise(
      1.0, 8.0, DELTA_DP, k).update(x, None)[0]))
  views = {
    'raw': deltas, 'sum': total, 'central': np.asarray(noisy),
    'local': np.asarray(local(deltas, jax.random.split(
        jax.random.key(1), len(deltas))))}
  leaks = {name: measure_item_leak(norms(view), touched, popularity, 0)
           for name, view in views.items()}
  assert leaks['raw'].auc == 1.0 and leaks['raw'].tpr == 1.0
  # The sum of 100 hides less than the popularity: it leaks.
  assert leaks['sum'].auc_interval[0] > leaks['sum'].popularity_auc > 0.6
  # Guessing has an area of a half with, for k items of a client against many
  # others, the variance 1 / (12 k): over all clients 1 / sqrt(12 * 6,700). The
  # central view is one for all, and the items' popularity makes its clients
  # alike, so it may stray a few times as far; both stay below popularity.
  for name, far in (('central', 0.06), ('local', 0.025)):
    leak = leaks[name]
    assert abs(leak.auc - 0.5) < far
    assert leak.auc_interval[1] < leak.popularity_auc
    assert leak.auc_interval[0] <= leak.auc <= leak.auc_interval[1]
    assert leak.tpr < 0.05


def test_a_view_that_is_the_popularity_tells_what_the_popularity_tells(cohort):
  _, touched, popularity = cohort
  leak = measure_item_leak(popularity, touched, popularity, 0)
  assert leak.auc == leak.popularity_auc


def test_clients_without_two_kinds_of_items_do_not_count():
  touched = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
  leak = measure_item_leak(np.array([3.0, 2, 1]), touched, np.ones(3), 0)
  assert leak.auc == 1.0 and leak.popularity_auc == 0.5
  with pytest.raises(ValueError, match='touched of shape'):
    measure_item_leak(np.ones(3), touched[1:], np.ones(3), 0)
