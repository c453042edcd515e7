"""Epsilon against closed forms, numerical integration and counting by hand."""

import functools
import itertools
import json
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from fedjaxrec.privacy import accounting
from fedjaxrec.privacy.accounting import Release

DELTA = 1e-5


def gaussian_delta(epsilon, distance):
  """Hockey-stick divergence of two unit Gaussians (Balle and Wang, 2018)."""
  return (special.ndtr(distance / 2 - epsilon / distance)
          - math.exp(epsilon) * special.ndtr(-distance / 2
                                             - epsilon / distance))


def gaussian_epsilon(distance, delta=DELTA):
  return optimize.brentq(
      lambda epsilon: gaussian_delta(epsilon, distance) - delta, 0, 500)


@pytest.mark.parametrize(('neighboring', 'sensitivity'), [
  ('add_or_remove_one', 1), ('replace_special', 1), ('replace_one', 2)])
@pytest.mark.parametrize(('z', 'times'), [(1.0, 1), (5.0, 9)])
def test_repeated_gaussian_noise_has_the_closed_form_epsilon(
    z, times, neighboring, sensitivity):
  exact = gaussian_epsilon(sensitivity * math.sqrt(times) / z)
  found = accounting.epsilon([Release(accounting.gaussian(z), times)], DELTA,
                             neighboring=neighboring)
  # Connecting dots that are 1e-3 apart moves a loss by at most that.
  assert exact - 1e-6 <= found <= exact + 1e-3
  by_rdp = accounting.epsilon(
      [Release(accounting.gaussian(z), times)], DELTA, accountant='rdp',
      neighboring=neighboring)
  assert exact <= by_rdp <= 1.25 * exact


def test_rdp_alone_would_forget_that_replacing_moves_a_sum_by_two_norms():
  raw = dp_accounting.rdp.RdpAccountant(
      neighboring_relation=accounting.NEIGHBORING['replace_one'])
  raw.compose(accounting.gaussian(2.0))
  assert raw.get_epsilon(DELTA) < gaussian_epsilon(1.0)  # Wrong: 2 / 2.
  assert accounting.epsilon(
      [Release(accounting.gaussian(2.0))], DELTA, accountant='rdp',
      neighboring='replace_one') >= gaussian_epsilon(1.0)


# Fixed cohorts.

def hockey_stick(p, q, gamma):
  return float(np.maximum(p - gamma * q, 0).sum())


@pytest.mark.parametrize(('z', 'num_clients', 'cohort'), [
  (1.0, 10, 1), (2.0, 5, 2), (0.6, 20, 3)])
def test_no_pair_of_clients_beats_the_bound_of_a_fixed_cohort(
    z, num_clients, cohort):
  """Densities on a grid in the plane: who is replaced, by whom, beside whom."""
  q = cohort / num_clients
  bound = accounting.without_replacement_pld(z, num_clients, cohort, 1e-3)
  axis = np.linspace(-6, 6, 161) * max(z, 1)
  grid = np.stack(np.meshgrid(axis, axis, indexing='ij'), -1)
  step = axis[1] - axis[0]
  area = step**2
  # A sum instead of an integral errs by at most step^2 / 8 times the jump of
  # the slope at the kink of max(., 0); a density's slope is below 0.242 / z^2.
  error = step**2 / 8 * 0.242 / z**2

  @functools.cache
  def normal(*mean):
    return area / (2 * math.pi * z**2) * np.exp(
        -((grid - mean)**2).sum(-1) / (2 * z**2))

  points = [np.array(point) for point in ((1, 0), (-1, 0), (0, 1), (0, 0))]
  nearest = 1.0
  for x, x2, y in itertools.product(points, repeat=3):
    if x is x2:
      continue
    # Beside the same others, either x was drawn, or somebody, y, in its place.
    p = (1 - q) * normal(0, 0) + q * normal(*(x - y))
    r = (1 - q) * normal(0, 0) + q * normal(*(x2 - y))
    for epsilon in (-0.5, -0.1, 0.1, 0.5):
      exact = hockey_stick(p, r, math.exp(epsilon))
      allowed = bound.get_delta_for_epsilon(epsilon)
      assert exact <= allowed + error * (1 + math.exp(epsilon))
      if epsilon > 0 and allowed > 1e-4:
        nearest = min(nearest, 1 - exact / allowed)
  assert nearest < 0.01  # The bound is reached: by opposite clients.


def test_a_fixed_cohort_counted_as_poisson_would_be_too_little():
  """The control of the test above: half the distance does not hold."""
  q, z = 0.1, 1.0
  poisson = pld.privacy_loss_distribution.from_gaussian_mechanism(
      z, sampling_prob=q, value_discretization_interval=1e-3)
  x = np.linspace(-12, 12, 200_001)
  width = x[1] - x[0]
  p = ((1 - q) * stats.norm.pdf(x) + q * stats.norm.pdf(x, 2)) * width
  r = stats.norm.pdf(x) * width
  assert hockey_stick(p, r, math.exp(0.2)) > 1.5 * (
      poisson.get_delta_for_epsilon(0.2))


def test_a_cohort_of_everybody_is_the_plain_gaussian():
  found = accounting.epsilon(
      [Release(accounting.fixed_size(4.0, 10, 10), 3)], DELTA,
      neighboring='replace_one')
  exact = gaussian_epsilon(2 * math.sqrt(3) / 4)
  assert exact - 1e-6 <= found <= exact + 2e-3


def test_a_fixed_cohort_is_bounded_more_tightly_by_pld_than_by_rdp():
  release = [Release(accounting.fixed_size(3.0, 1000, 20), 100)]
  by_pld, by_rdp = (
      accounting.epsilon(release, DELTA, accountant=accountant,
                         neighboring='replace_one')
      for accountant in ('pld', 'rdp'))
  poisson = accounting.epsilon(
      [Release(accounting.poisson(3.0, 0.02), 100)], DELTA)
  assert poisson < by_pld < by_rdp


# Poisson cohorts with a cap.

def cut_poisson(values, q, cap, z, x):
  """Density of a noisy sum whose cohorts are cut to a uniform subset."""
  density = np.zeros_like(x)
  n = len(values)
  for drawn in itertools.product((0, 1), repeat=n):
    members = [i for i in range(n) if drawn[i]]
    prob = q**len(members) * (1 - q)**(n - len(members))
    kept = list(itertools.combinations(members, min(cap, len(members))))
    for some in kept:
      density += prob / len(kept) * stats.norm.pdf(
          x, sum(values[i] for i in some), z)
  return density


@pytest.mark.parametrize(('n', 'cap', 'q', 'z'), [
  (3, 1, 0.3, 0.5), (4, 1, 0.3, 0.5), (5, 1, 0.2, 0.4)])
def test_the_tail_pays_for_the_cap(n, cap, q, z):
  x = np.linspace(-8, 8, 40_001)
  width = x[1] - x[0]
  tail = accounting.truncation_probability(n, q, cap)
  others = [-1.0] * (n - 1)
  with_x = cut_poisson([*others, 1.0], q, cap, z, x) * width
  without = cut_poisson(others, q, cap, z, x) * width
  plain = pld.privacy_loss_distribution.from_gaussian_mechanism(
      z, sampling_prob=q, value_discretization_interval=1e-3)
  violated = False
  for epsilon in np.linspace(0, 6, 13):
    allowed = plain.get_delta_for_epsilon(epsilon)
    for p, r in ((with_x, without), (without, with_x)):
      exact = hockey_stick(p, r, math.exp(epsilon))
      assert exact <= allowed + tail + 1e-6
      violated |= exact > allowed + 1e-6
  assert violated  # The control: without the tail it does not hold.


def test_the_tail_is_the_chance_that_the_others_fill_the_cap():
  n, q, cap = 6, 0.4, 3
  by_hand = sum(
      q**sum(coins) * (1 - q)**(n - 1 - sum(coins))
      for coins in itertools.product((0, 1), repeat=n - 1)
      if sum(coins) >= cap)
  assert accounting.truncation_probability(n, q, cap) == pytest.approx(by_hand)


def test_paying_by_tail_and_the_exact_event_agree_where_the_cap_is_rare():
  z, q, n, cap = 1.0, 100 / 6040, 6040, 172
  tail = accounting.truncation_probability(n, q, cap)
  paid = accounting.epsilon(
      [Release(accounting.poisson(z, q), 2000, tail)], 6.932e-5)
  exact = accounting.epsilon(
      [Release(accounting.truncated_poisson(z, q, n, cap), 2000)], 6.932e-5)
  assert paid == pytest.approx(exact, abs=2e-3)
  assert paid > accounting.epsilon(
      [Release(accounting.poisson(z, q), 2000)], 6.932e-5)


def test_a_tail_above_delta_leaves_no_guarantee():
  release = Release(accounting.poisson(1.0, 0.1), 10, tail_probability=1e-6)
  assert accounting.epsilon([release], 1e-5) == math.inf
  assert accounting.epsilon([release], 1.1e-5) < math.inf


# Local answers.

def repeated_response_epsilon(p, times, delta):
  """By counting: the loss of k truthful answers out of n is (2k - n) loss."""
  truth = 1 - p / 2
  loss = math.log(truth / (1 - truth))
  k = np.arange(times + 1)
  losses = (2 * k - times) * loss
  mass = stats.binom.pmf(k, times, truth)

  def excess(epsilon):
    return (mass * np.maximum(0, 1 - np.exp(epsilon - losses))).sum() - delta
  return 0.0 if excess(0) <= 0 else optimize.brentq(excess, 0, times * loss + 1)


@pytest.mark.parametrize('times', [1, 2, 50])
def test_every_repeated_answer_is_paid_for(times):
  p = 2 / (1 + math.e)  # Each answer alone: epsilon 1.
  exact = repeated_response_epsilon(p, times, DELTA)
  release = accounting.randomized_response(p, 2, times)
  found = accounting.epsilon([release], DELTA, neighboring='replace_one')
  # A loss is rounded up by at most the interval, at every answer.
  assert exact - 1e-6 <= found <= exact + times * accounting.COARSE
  nested = dp_accounting.SelfComposedDpEvent(release.event, times)
  assert accounting.epsilon(
      [Release(nested)], DELTA, neighboring='replace_one') == found


def test_the_accountant_below_forgets_how_often_it_was_answered():
  """Why the test above exists; if this fails, the repair can go."""
  raw = pld.PLDAccountant(accounting.NEIGHBORING['replace_one'], 1e-3)
  release = accounting.randomized_response(0.5, 2, 50)
  raw.compose(release.event, 50)
  assert raw.get_epsilon(DELTA) < 0.1 * accounting.epsilon(
      [release], DELTA, neighboring='replace_one')


@pytest.mark.parametrize(('p', 'buckets', 'expected'), [
  (0.0, 2, math.inf), (0.3, 1, 0.0)])
def test_an_answer_without_noise_is_no_privacy_and_no_choice_is_no_answer(
    p, buckets, expected):
  release = accounting.randomized_response(p, buckets, 7)
  assert accounting.epsilon(
      [release], DELTA, neighboring='replace_one') == expected


# Compositions.

def test_least_squares_statistics_add_up_like_one_gaussian():
  releases = accounting.dpals(
      5, gramian=20.0, scores=60.0, item_gramians=90.0, items_per_client=4,
      counts=50.0)
  inverse = 5 * (20.0**-2 + 4 * 60.0**-2 + 4 * 90.0**-2) + 4 * 50.0**-2
  exact = gaussian_epsilon(math.sqrt(inverse))
  found = accounting.epsilon(releases, DELTA)
  assert exact - 1e-6 <= found <= exact + 4e-3  # Four grids.
  assert len(accounting.dpals(5, 20.0, 60.0, 90.0, 4)) == 3


@given(st.floats(0.3, 5), st.floats(1.1, 10), st.floats(1.1, 10))
def test_the_parts_of_a_round_together_are_what_is_accounted(z, a, b):
  others = (2 * a * z, 2 * b * z)
  of_deltas = accounting.split_noise_multiplier(z, *others)
  assert of_deltas > z
  assert of_deltas**-2 + sum(o**-2 for o in others) == pytest.approx(z**-2)


def test_parts_that_spend_all_are_refused():
  with pytest.raises(ValueError, match='noise_multiplier=1 is spent'):
    accounting.split_noise_multiplier(1.0, 1.2, 1.2)


@settings(max_examples=8)
@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.8, 3))
def test_more_rounds_and_less_noise_never_cost_less(first, second, z):
  few, many = sorted((first, second))

  def epsilon(rounds, z):
    return accounting.epsilon(
        [Release(accounting.poisson(z, 0.05), rounds)], DELTA, interval=1e-2)
  assert epsilon(few, z) <= epsilon(many, z) + 1e-9
  assert epsilon(many, 1.2 * z) <= epsilon(many, z) + 1e-9


@given(st.integers(1, 9), st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_blocks_of_rounds_count_what_the_whole_run_counts(step, blocks):
  release = Release(accounting.gaussian(1.0), rounds_per_count=step)
  first, total = 0, 0
  for length in blocks:
    total += release.for_rounds(first, first + length - 1).times
    first += length
  assert total == -(-first // step)
  assert release.for_rounds(0, first - 1).times == total


def test_nothing_released_costs_nothing():
  assert accounting.epsilon([], DELTA) == 0
  assert accounting.epsilon([Release(accounting.gaussian(1), 0)], DELTA) == 0
  assert accounting.epsilon([Release(accounting.gaussian(0))],
                            DELTA) == math.inf
  assert accounting.epsilon(
      [Release(accounting.fixed_size(0, 10, 2))], DELTA,
      neighboring='replace_one') == math.inf


# On paper.

EVENTS = [
  accounting.gaussian(1.5), accounting.poisson(0.7, 0.01),
  accounting.truncated_poisson(1.0, 0.1, 100, 20),
  accounting.fixed_size(2.0, 100, 10),
  accounting.randomized_response(0.5, 3).event,
  dp_accounting.ComposedDpEvent(
      [accounting.gaussian(1.0), dp_accounting.SelfComposedDpEvent(
          accounting.poisson(2.0, 0.5), 7)]),
]


@pytest.mark.parametrize('event', EVENTS, ids=lambda e: type(e).__name__)
def test_an_event_survives_its_json(event):
  text = json.dumps(accounting.event_to_json(event))
  assert accounting.event_from_json(json.loads(text)) == event


@pytest.mark.parametrize('value', [
  {'module_name': 'os', 'class_name': 'system', 'command': 'true'},
  {'module_name': 'dp_accounting.dp_event', 'class_name': 'typing'},
  {'module_name': 'dp_accounting.dp_event', 'class_name': 'Sequence'},
  {'module_name': 'dp_accounting.dp_event', 'class_name': 'GaussianDpEvent',
   'noise': 1.0},
  {}, [], 'GaussianDpEvent', None])
def test_what_is_no_event_is_refused(value):
  with pytest.raises(ValueError):
    accounting.event_from_json(value)


@pytest.mark.parametrize(('arguments', 'message'), [
  ({'delta': 0.0}, 'delta=0.0'), ({'delta': math.nan}, 'delta=nan'),
  ({'accountant': 'moments'}, "accountant='moments'"),
  ({'neighboring': 'any'}, "neighboring='any'")])
def test_what_cannot_be_accounted_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    accounting.epsilon([Release(accounting.gaussian(1.0))],
                       **{'delta': DELTA, **arguments})


@pytest.mark.parametrize(('event', 'accountant', 'neighboring'), [
  (accounting.fixed_size(1.0, 10, 2), 'pld', 'add_or_remove_one'),
  (accounting.truncated_poisson(1.0, 0.1, 100, 20), 'rdp',
   'add_or_remove_one'),
  (accounting.poisson(1.0, 0.1), 'rdp', 'replace_one'),
  (accounting.randomized_response(0.5, 2).event, 'pld', 'add_or_remove_one')])
def test_an_event_that_a_bound_is_not_valid_for_is_refused(
    event, accountant, neighboring):
  with pytest.raises(ValueError, match=type(event).__name__):
    accounting.epsilon([Release(event, 2)], DELTA, accountant=accountant,
                       neighboring=neighboring)


@pytest.mark.parametrize(('event', 'neighboring'), [
    (accounting.poisson(0.001, 0.1), 'add_or_remove_one'),
    (accounting.truncated_poisson(0.001, 0.1, 1000, 200), 'add_or_remove_one'),
    (accounting.fixed_size(0.001, 1000, 100), 'replace_one'),
    (accounting.gaussian(0.001), 'replace_special')])
def test_noise_too_small_for_a_grid_is_refused_before_it_is_made(
    event, neighboring):
  releases = [accounting.Release(event, 500)]
  with pytest.raises(ValueError, match='noise_multiplier=0.001 in 500 .*=rdp'):
    accounting.epsilon(releases, 1e-5, neighboring=neighboring)
  if 'Truncated' not in type(event).__name__:
    assert 1e6 < accounting.epsilon(
        releases, 1e-5, accountant='rdp', neighboring=neighboring) < np.inf
