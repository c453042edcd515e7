"""What a user pays for uploads that are randomised on the device."""

import dataclasses
import math

import numpy as np
import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.privacy import accounting, explain, ledger, local
from fedjaxrec.transforms.local_privacy import gaussian_delta

COUNTS = np.array([3, 0, 5, 1, 2])
# Client 1 has nothing to send. Client 2 comes in rounds 0, 2, 3 and 5.
COHORTS = [[0, 2], [1, 3], [2, 1], [2, 4], [0, 1], [2, 0]]


def plan_of(rounds=6, dimension=50, **changes):
  config = config_lib.Config(
      rounds=rounds, local_privacy=config_lib.LocalPrivacyConfig(**{
          'mechanism': 'laplace', 'epsilon': 0.5, 'delta': 1e-5, **changes}))
  return local.make_local_plan(
      config, COUNTS, lambda r: np.array(COHORTS[r]), dimension), config


def test_the_busiest_user_is_found_by_counting_who_was_invited():
  found, _ = plan_of()
  assert found.totals == (1, 1, 2, 3, 3, 4)
  assert found.participations == 4
  # 9 invitations, of which those of client 1 (three) are to nobody.
  assert found.mean_participations == 9 / 4
  assert found.num_clients == 4


@pytest.mark.parametrize('mechanism', ['laplace', 'priv_unit'])
def test_pure_uploads_cost_what_randomized_response_costs(mechanism):
  """The exact delta of T answers of one bit, summed by hand."""
  found, _ = plan_of(mechanism=mechanism)
  epsilon = found.epsilon(interval=1e-4)

  def delta_at(eps, times, each=0.5):
    p = math.exp(each) / (1 + math.exp(each))
    return sum(
        math.comb(times, k) * max(
            0, p**k * (1 - p)**(times - k)
            - math.exp(eps) * (1 - p)**k * p**(times - k))
        for k in range(times + 1))

  assert delta_at(epsilon, 4) <= 1e-5 < delta_at(epsilon - 1e-2, 4)
  assert epsilon <= 4 * 0.5 + 1e-3  # Never worse than adding up.
  # The control: one participation more is dearer.
  assert delta_at(epsilon, 5) > 1e-5


def test_gaussian_uploads_cost_a_gaussian_of_twice_the_clip_norm():
  found, _ = plan_of(mechanism='gaussian', clip_norm=3.0)
  z = found.noise_multiplier  # In clip norms; neighbours are two apart.
  assert gaussian_delta(z / 2, 0.5) <= 1e-5 < gaussian_delta(z / 2, 0.499)
  spent = found.epsilon(interval=1e-4)
  assert gaussian_delta(z / 2 / math.sqrt(4), spent) <= 1e-5
  assert gaussian_delta(z / 2 / math.sqrt(4), spent - 0.01) > 1e-5


def test_a_report_of_an_item_comes_on_top():
  without, _ = plan_of(head_items=5)
  found, _ = plan_of(head_items=5, head_choice='one_hot', head_epsilon=0.25)
  assert not without.initial_releases
  assert accounting.epsilon(
      found.initial_releases, 1e-9, neighboring='replace_one'
  ) == pytest.approx(0.25, abs=1e-3)
  assert found.epsilon() > without.epsilon() + 0.1
  assert found.epsilon(0) == pytest.approx(0.25, abs=1e-3)
  said = found.summary()
  assert said['local']['epsilon_by_adding_up'] == 4 * 0.5 + 0.25
  assert any('declared public' in line for line in without.uncovered)
  assert not any('declared public' in line for line in found.uncovered)


def test_the_summary_says_unit_participations_and_no_central_epsilon():
  said = plan_of()[0].summary()
  assert said['epsilon'] is None
  assert said['local']['participations'] == 4
  assert 'local' in said['unit'] and 'user' in said['unit']
  for words in ('busiest user', '4 uploads', 'epsilon 0.5 each', 'unit user'):
    assert words in said['local']['guarantee']


def test_the_ledger_charges_the_busiest_users_uploads(tmp_path):
  found, config = plan_of(head_items=5, head_choice='hadamard')
  book = ledger.create(tmp_path, ledger.make_header(found, config))
  for release in found.initial_releases:
    assert book.spend(release)
  for first, last in ((0, 1), (2, 3), (4, 5)):
    assert book.spend(found.round_release, first, last)
  assert [entry.release.times for entry in book.entries] == [1, 1, 2, 1]
  assert book.epsilon() == pytest.approx(found.epsilon())
  said = explain.explain(tmp_path)
  assert said['within_budget'] and said['unit'] == local.UNIT
  assert 'adversary who sees each upload' in said['covers'][0]
  # Another mechanism is another run.
  other, config = plan_of(epsilon=0.6)
  with pytest.raises(ledger.LedgerError, match='config_digest'):
    ledger.resume(tmp_path, ledger.make_header(other, config))


def test_delta_is_settled_and_warned_of():
  found, _ = plan_of(delta=0.0)
  assert found.delta == pytest.approx(4**-1.1)
  loud, _ = plan_of(delta=0.5)
  assert 'local_privacy.delta=0.5' in loud.warnings[0]
  with pytest.raises(ValueError, match='a direction needs four'):
    plan_of(mechanism='priv_unit', dimension=3)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'epsilon': 0.0}, 'local_privacy.epsilon=0'),
    ({'epsilon': -1.0}, 'local_privacy.epsilon=-1'),
    ({'clip_norm': 0.0}, 'local_privacy.clip_norm=0'),
    ({'delta': 1.0}, 'local_privacy.delta=1'),
    ({'mechanism': 'none'}, 'nothing is randomised'),
    ({'mechanism': 'exponential'}, 'local_privacy.mechanism'),
    ({'head_choice': 'one_hot'}, 'local_privacy.head_items=0'),
    ({'head_items': 3, 'head_epsilon': 2.0}, 'nobody reports'),
    ({'head_items': 3, 'head_choice': 'one_hot', 'head_epsilon': 16.0},
     'head_epsilon=16'),
])
def test_a_section_that_makes_no_sense_is_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    plan_of(**changes)


@pytest.mark.parametrize(('section', 'value', 'words'), [
    ('privacy', config_lib.PrivacyConfig(epsilon=1.0, l2_clip_norm=1.0),
     'needs no noise on the sum'),
    ('privacy', config_lib.PrivacyConfig(l2_clip_norm=1.0), 'its own bound'),
    ('secure', config_lib.SecureConfig(level='ideal'), 'secure.level=ideal'),
    ('compression', config_lib.CompressionConfig(sparsify='top_k'),
     'compression.sparsify=top_k'),
    ('cohort', config_lib.CohortConfig(weighting='examples'),
     'cohort.weighting=examples'),
    ('algorithm', config_lib.AlgorithmConfig(name='ials'),
     'algorithm.name=ials'),
])
def test_what_would_undo_it_is_refused_by_name(section, value, words):
  _, config = plan_of()
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(config, **{section: value})
