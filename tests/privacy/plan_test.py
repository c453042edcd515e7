"""A run's privacy, settled before it starts, and what is refused there."""

import functools
import json
import math

import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.config import CohortConfig, Config, PrivacyConfig, ServerConfig
from fedjaxrec.privacy import accounting, local, plan, scope
from fedjaxrec.privacy.schedules import Cohort, make_schedule
from fedjaxrec.reports import privacy as privacy_facts

N = 1000
POISSON = Cohort(20, 'poisson', cap=80)
FIXED = Cohort(20, 'uniform')
SHUFFLED = Cohort(20, 'shuffled')


def config_of(**privacy):
  privacy = {'epsilon': 1.0, 'l2_clip_norm': 2.0, **privacy}
  return Config(rounds=40, privacy=PrivacyConfig(**privacy))


@functools.cache
def plan_of(cohort=SHUFFLED, num_clients=N, **privacy):
  """Shuffled cohorts are one plain Gaussian here, and so are cheap."""
  return plan.make_privacy_plan(
      config_of(**privacy), num_clients, cohort, verify=False)


@pytest.mark.parametrize(('cohort', 'neighboring'), [
  (POISSON, 'add_or_remove_one'), (FIXED, 'replace_one'),
  (SHUFFLED, 'replace_special'), (Cohort(N, 'uniform'), 'replace_special')])
def test_the_noise_keeps_to_the_budget_and_uses_it_up(cohort, neighboring):
  found = plan_of(cohort)
  assert 0.99 < found.epsilon() <= 1
  assert found.schedule.neighboring == neighboring
  assert found.delta == pytest.approx(N**-1.1)
  assert found.noise_stddev_items == pytest.approx(
      2 * found.calibration.noise_multiplier)
  assert found.divisor == cohort.size


def test_the_summary_has_what_scripts_read():
  summary = plan_of(POISSON).summary()
  assert {'unit', 'neighboring', 'epsilon', 'delta', 'noise_multiplier',
          'l2_clip_norm', 'sampling_prob', 'accountant',
          'fidelity'} <= summary.keys()
  assert json.loads(json.dumps(summary, allow_nan=False)) == summary
  assert summary['unit'] == 'client'
  assert summary['sampling_prob'] == 0.02
  assert summary['l2_clip_norm'] == 2.0
  for part in ('epsilon = ', 'unit client', 'add_or_remove_one', 'PLD'):
    assert part in summary['guarantee']


def test_clipped_rows_change_neither_noise_nor_epsilon():
  """Clipping rows first never makes a whole delta longer."""
  plain, rows = plan_of(), plan_of(row_clip_norm=0.5)
  assert rows.noise_stddev_items == plain.noise_stddev_items
  assert rows.summary()['l2_clip_norm'] == 2.0
  assert rows.summary()['row_clip_norm'] == 0.5
  assert plain.summary()['row_clip_norm'] is None
  assert dict(privacy_facts.facts(rows.summary()))['Rows'].startswith(
      'each item row is clipped to 0.5 before')
  assert 'Rows' not in dict(privacy_facts.facts(plain.summary()))


def test_a_given_multiplier_gives_the_epsilon():
  found = plan_of(epsilon=0.0, noise_multiplier=5.0)
  assert found.noise_multiplier == 5.0
  assert found.epsilon() == pytest.approx(found.calibration.epsilon, abs=1e-6)


# Samplers.

def test_independent_noise_and_one_visit_an_epoch_is_one_gaussian_an_epoch():
  schedule = make_schedule('gaussian', 100, Cohort(30, 'shuffled'), 9, 1e-5)
  release = schedule.make_release(3.0).for_rounds(0, 8)
  assert (release.times, release.event) == (3, accounting.gaussian(3.0))


def test_a_rare_cap_is_paid_from_delta_and_a_tight_one_is_counted_exactly():
  rare = make_schedule('gaussian', N, POISSON, 40, 1e-4)
  assert not rare.cap_note
  assert 0 < rare.make_release(1.0).tail_probability < 1e-7
  tight = make_schedule('gaussian', N, POISSON._replace(cap=25), 40, 1e-4)
  assert 'cohort.cap=25' in tight.cap_note
  release = tight.make_release(1.0)
  assert release.event == accounting.truncated_poisson(1.0, 0.02, N, 25)
  assert release.tail_probability == 0


def test_a_poisson_cohort_without_a_cap_has_no_tail():
  schedule = make_schedule('gaussian', N, Cohort(20, 'poisson'), 40, 1e-4)
  assert schedule.make_release(1.0).tail_probability == 0


def test_bands_with_groups_in_turn_are_amplified_by_their_number():
  schedule = make_schedule(
      'banded', N, Cohort(20, 'cyclic_poisson'), 41, 1e-4, bands=4)
  release = schedule.make_release(1.0).for_rounds(0, 40)
  assert release.event == accounting.poisson(1.0, 20 / 250)
  assert release.times == 11
  assert schedule.participation == (4, 11)


@pytest.mark.parametrize('mechanism', ['banded', 'blt'])
def test_correlated_noise_is_one_gaussian_for_the_run(mechanism):
  cohort = SHUFFLED._replace(min_separation=50)
  schedule = make_schedule(mechanism, N, cohort, 120, 1e-4, bands=8)
  release = schedule.make_release(1.5)
  assert release.for_rounds(0, 119).times == 1
  assert release.for_rounds(0, 9).times == 1
  assert release.for_rounds(10, 119).times == 0
  assert release.event == accounting.gaussian(1.5)
  assert schedule.participation == (50, 3)


def test_an_order_shuffled_afresh_lets_a_client_come_twice_in_a_row():
  found = plan_of(mechanism='blt')
  assert found.schedule.participation == (1, 1)
  assert any('two rounds in a row' in warning for warning in found.warnings)


@pytest.mark.parametrize(('mechanism', 'cohort', 'options', 'message'), [
  ('gaussian', Cohort(20, 'weighted'), {}, "cohort.sampler='weighted'"),
  ('blt', POISSON, {}, "privacy.mechanism='blt' with cohort.sampler='poisson'"),
  ('banded', FIXED, {}, "privacy.mechanism='banded'"),
  ('gaussian', Cohort(20, 'cyclic_poisson'), {}, "mechanism='gaussian'"),
  ('banded', SHUFFLED, {'bands': 2}, 'privacy.bands=2'),
  ('blt', SHUFFLED, {'min_separation': 2}, 'privacy.min_separation=2'),
  ('banded', Cohort(300, 'cyclic_poisson'), {'bands': 4},
   'cohort.size=300 with privacy.bands=4'),
  ('gaussian', Cohort(0, 'poisson'), {}, 'cohort.size=0'),
  ('gaussian', Cohort(N + 1, 'poisson'), {}, f'cohort.size={N + 1}')])
def test_a_mechanism_without_a_bound_under_a_sampler_is_refused(
    mechanism, cohort, options, message):
  with pytest.raises(ValueError) as error:
    make_schedule(mechanism, N, cohort, 40, 1e-4, **options)
  assert message in str(error.value)


# What would not be private.

@pytest.mark.parametrize(('changes', 'message'), [
  ({'cohort': CohortConfig(weighting='examples')},
   "cohort.weighting='examples'"),
  ({'server': ServerConfig(row_normalization='contributors')},
   "server.row_normalization='contributors'"),
  ({'privacy': PrivacyConfig()}, 'privacy.epsilon=0'),
  ({'privacy': PrivacyConfig(epsilon=1.0, l2_clip_norm=1.0,
                             release_counts=True)},
   'privacy.release_counts=True')])
def test_an_unsound_combination_is_refused_with_the_way_out(changes, message):
  config = Config(**{
      'privacy': PrivacyConfig(epsilon=1.0, l2_clip_norm=1.0),
      **changes})
  with pytest.raises(ValueError) as error:
    plan.make_privacy_plan(config, N, SHUFFLED)
  assert message in str(error.value)
  assert str(error.value).endswith('.')


def test_what_is_sound_is_not_refused():
  scope.refuse_unsound(config_of())
  scope.refuse_unsound(Config(
      privacy=PrivacyConfig(epsilon=1.0, l2_clip_norm=1.0),
      server=ServerConfig(row_normalization='sum')))


def test_nobody_hides_alone():
  with pytest.raises(ValueError, match='num_clients=1'):
    plan_of(Cohort(1, 'uniform'), num_clients=1)


@pytest.mark.parametrize(('delta', 'warns'), [
  (1e-3, True), (0.5, True), (9.9e-4, False), (1e-9, False)])
def test_a_delta_of_one_over_the_clients_warns_and_names_them(delta, warns):
  warnings = plan.check_delta(delta, N)
  assert bool(warnings) == warns
  assert all('1,000' in warning for warning in warnings)
  assert tuple(warnings) == plan_of(delta=delta).warnings


# Parts of a round.

def test_the_bits_of_adaptive_clipping_are_folded_into_the_noise():
  plain = plan_of(SHUFFLED._replace(size=200))
  adaptive = plan_of(SHUFFLED._replace(size=200), clipping='adaptive')
  assert adaptive.calibration[:2] == plain.calibration[:2]
  assert adaptive.bit_noise_stddev == 10.0  # A twentieth of 200 clients.
  z = plan_of().noise_multiplier
  assert z > 2 * 20 / 20  # A twentieth would be too little for 20 clients.
  assert plan_of(clipping='adaptive').bit_noise_stddev == z
  with pytest.raises(ValueError, match='bit_noise_stddev=0.9'):
    plan_of(clipping='adaptive', bit_noise_stddev=0.9)
  wide = plan_of(clipping='adaptive', bit_noise_stddev=3.0)
  # By hand, from Andrew et al., 2021, theorem 1.
  assert wide.noise_multiplier == pytest.approx(
      (z**-2 - (2 * 3.0)**-2)**-0.5)


def test_parts_with_their_own_norms_have_half_of_the_budget_each():
  found = plan_of(l2_clip_norm=0.0, item_clip_norm=3.0, shared_clip_norm=4.0)
  z = found.calibration.noise_multiplier
  assert found.l2_clip_norm == 5.0
  # In units of its own norm each part has noise z_g; 1 / z^2 is their sum.
  parts = (found.noise_stddev_items / 3, found.noise_stddev_shared / 4)
  assert parts[0] == pytest.approx(parts[1])
  assert sum(part**-2 for part in parts) == pytest.approx(z**-2)


def test_counts_are_paid_for_from_the_round():
  config = Config(
      rounds=40, server=ServerConfig(row_normalization='contributors'),
      privacy=PrivacyConfig(epsilon=1.0, l2_clip_norm=1.0, release_counts=True,
                            count_share=0.25, count_clip_norm=8.0))
  found = plan.make_privacy_plan(config, N, SHUFFLED, verify=False)
  z = found.calibration.noise_multiplier
  assert found.count_noise_stddev == pytest.approx(8 * 2 * z)
  assert found.noise_multiplier**-2 + (
      found.count_noise_stddev / 8)**-2 == pytest.approx(z**-2)
  assert found.calibrated(config).privacy.noise_multiplier == pytest.approx(
      found.noise_multiplier)


def test_a_private_choice_of_head_items_is_part_of_the_budget():
  found = plan_of(head_items=50, head_source='private', head_epsilon_share=0.5)
  alone = accounting.epsilon(
      found.initial_releases, found.delta, neighboring='replace_special')
  assert 0.49 < alone <= 0.5
  assert 0.99 < found.epsilon() <= 1.0
  assert found.noise_multiplier > plan_of().noise_multiplier
  public = plan_of(head_items=50)
  assert not public.initial_releases
  assert any('declared public' in line for line in public.uncovered)
  assert not any('declared public' in line for line in found.uncovered)


# A small simulation of a large deployment.

def test_the_deployment_has_its_own_clients_delta_and_noise_on_the_mean():
  found = plan_of(POISSON, deployment_cohort=2000)
  assert (found.num_clients, found.cohort.size) == (100_000, 2000)
  assert found.delta == pytest.approx(100_000**-1.1)
  assert found.schedule.sampling_prob == 0.02  # As in the simulation.
  z, clip = found.calibration.noise_multiplier, 2.0
  in_deployment = z * clip / 2000
  assert found.noise_stddev_items / found.divisor == pytest.approx(
      in_deployment)
  assert found.divisor == 20
  assert 'not for the clients of this simulation' in found.guarantee()
  assert any('the epsilon is that of the deployment' in line
             for line in found.uncovered)


def test_a_deployment_of_the_same_size_changes_no_noise():
  assert plan_of(deployment_cohort=20).noise_stddev_items == pytest.approx(
      plan_of().noise_stddev_items)


def test_a_deployment_smaller_than_its_simulation_is_refused():
  with pytest.raises(ValueError, match='privacy.deployment_cohort=19'):
    plan_of(deployment_cohort=19)


def test_the_calibrated_config_asks_for_the_same_noise():
  config = config_of(clipping='adaptive', deployment_cohort=2000)
  found = plan.make_privacy_plan(config, N, SHUFFLED, verify=False)
  privacy = found.calibrated(config).privacy
  assert privacy.enabled and privacy.epsilon == 0
  scale = 20 / 2000
  assert privacy.bit_noise_stddev == pytest.approx(2000 / 20)
  assert privacy.bit_noise_stddev * scale == pytest.approx(
      found.bit_noise_stddev)
  of_deltas = accounting.split_noise_multiplier(
      privacy.noise_multiplier, 2 * privacy.bit_noise_stddev)
  assert of_deltas * scale * 2.0 == pytest.approx(found.noise_stddev_items)
  again = plan.make_privacy_plan(
      found.calibrated(config), N, SHUFFLED, verify=False)
  assert again.epsilon() == pytest.approx(found.epsilon())


def test_what_is_left_out_follows_the_config():
  joined = ' '.join(plan_of().uncovered)
  for word in ('Personal', 'joint', 'Seeds', 'Statistics', 'Selection'):
    assert word in joined
  last = config_lib.EvaluationConfig(selection='last')
  assert 'Selection' not in ' '.join(
      scope.what_is_uncovered(Config(evaluation=last), N))


@pytest.mark.parametrize('lines', [
    lambda config: scope.what_is_uncovered(config, N), local._uncovered],
    ids=['central', 'local'])
def test_what_a_grown_run_copies_is_left_out(lines):
  model = config_lib.ModelConfig(name='two_tower')
  data = config_lib.DataConfig(item_features='published')

  def starts(start):
    return [line for line in lines(Config(
        model=model, data=data,
        two_tower=config_lib.TwoTowerConfig(start=start)))
            if 'two_tower.start' in line]

  assert not starts('')
  assert len(starts('old')) == 1 and "'old'" in starts('old')[0]


def test_whose_server_keeps_personal_parameters_is_said():
  def said(name):
    return scope.what_is_uncovered(
        Config(algorithm=config_lib.AlgorithmConfig(name=name)), N)[0]

  assert 'stay on the device' in said('fedavg')
  assert 'with the server' in said('metamf')
  assert 'on the device' not in said('metamf')


def test_longer_runs_need_more_noise_and_rdp_asks_for_more():
  pld, rdp = (plan_of(accountant=name) for name in ('pld', 'rdp'))
  assert rdp.noise_multiplier > pld.noise_multiplier
  longer = plan.make_privacy_plan(
      config_of(), N, SHUFFLED, rounds=400, verify=False)
  assert longer.noise_multiplier > 2 * pld.noise_multiplier
  assert math.isfinite(pld.calibration.cross_epsilon)
