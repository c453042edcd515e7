"""The noise that a budget asks for, against published and closed forms."""

import math

import pytest
from scipy import optimize, special

from fedjaxrec.privacy import accounting, calibration
from fedjaxrec.privacy.accounting import Release

N, COHORT, ROUNDS, DELTA = 6040, 100, 2000, 6.932e-5


def rounds_of(z):
  return [Release(accounting.poisson(z, COHORT / N), ROUNDS)]


@pytest.mark.parametrize(('epsilon', 'expected'), [
  (1.0, 2.556), (4.0, 1.000), (8.0, 0.740)])
def test_movielens_needs_the_known_noise(epsilon, expected):
  found = calibration.calibrate(
      rounds_of, epsilon, DELTA, verify=False, cross_check=False)
  assert found.noise_multiplier == pytest.approx(expected, rel=0.01)
  assert epsilon * (1 - 1e-3) < found.epsilon <= epsilon
  assert found.cross_epsilon > epsilon  # RDP is the looser bound.
  assert 'PLD (dp-accounting 0.6' in found.accountant
  assert 'RDP (dp-accounting 0.6' in found.cross_accountant


def test_the_fine_grid_confirms_and_the_cross_check_asks_for_more():
  found = calibration.calibrate(rounds_of, 1.0, DELTA)
  assert 'interval 0.0001' in found.accountant
  assert 0.99 < found.epsilon <= 1
  assert found.cross_noise_multiplier == pytest.approx(2.793, rel=5e-3)


@pytest.mark.parametrize('epsilon', [0.01, 0.5, 3.0, 12.0])
def test_plain_noise_is_calibrated_to_the_closed_form(epsilon):
  def delta_of(z):
    return (special.ndtr(0.5 / z - epsilon * z)
            - math.exp(epsilon) * special.ndtr(-0.5 / z - epsilon * z))
  exact = optimize.brentq(lambda z: delta_of(z) - 1e-5, 1e-2, 1e3)
  found = calibration.search(
      lambda z: [Release(accounting.gaussian(z))], epsilon, 1e-5)
  # The interval is 1e-3; noise falls no faster than epsilon grows.
  assert exact * (1 - 1e-6) <= found <= exact * (1 + 1e-3 / epsilon + 1e-4)


def test_a_guess_far_off_leads_to_the_same_noise():
  low, high = (calibration.search(
      lambda z: [Release(accounting.gaussian(z), 10)], 2.0, 1e-5, guess=guess)
               for guess in (0.5, 100.0))
  assert low == pytest.approx(high, rel=2e-4)


@pytest.mark.parametrize('epsilon', [0.0, -1.0, math.nan, math.inf])
def test_a_budget_that_is_none_is_refused(epsilon):
  with pytest.raises(ValueError, match=f'epsilon={epsilon}'):
    calibration.calibrate(rounds_of, epsilon, DELTA)


@pytest.mark.parametrize('delta', [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta):
  with pytest.raises(ValueError, match=f'delta={delta}'):
    calibration.calibrate(rounds_of, 1.0, delta)


def test_a_budget_that_other_releases_have_spent_is_refused():
  with pytest.raises(ValueError, match='cannot be kept by any noise'):
    calibration.search(
        lambda z: [Release(accounting.gaussian(z)),
                   Release(accounting.gaussian(0.5))], 1.0, 1e-5)


def test_a_given_multiplier_is_recorded_like_a_found_one():
  found = calibration.evaluate(
      lambda z: [Release(accounting.gaussian(z))], 2.0, 1e-5)
  assert found.noise_multiplier == 2.0
  assert found.epsilon == pytest.approx(
      accounting.epsilon([Release(accounting.gaussian(2.0))], 1e-5), abs=2e-3)
  assert found.cross_epsilon > found.epsilon


def test_where_the_other_accountant_cannot_judge_it_says_nothing():
  found = calibration.evaluate(
      lambda z: [Release(accounting.truncated_poisson(z, 0.1, 100, 15))],
      2.0, 1e-5, verify=False)
  assert found.epsilon > 0
  assert math.isnan(found.cross_epsilon)
