"""References by name: all rank by the harness; what does not fit is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.config.references import (
    REFERENCES,
    CentralizedConfig,
    CentralizedSequenceConfig,
    EaseConfig,
    IALSConfig,
    ItemKNNConfig,
)
from fedjaxrec.data import movielens, splits
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.evaluation.metrics import per_user_metrics
from fedjaxrec.evaluation.ranking import make_ranker
from fedjaxrec.references import registry, tuning
from tests.references import slow

SMALL = {
    'popularity': None,
    'item_knn': ItemKNNConfig(num_neighbors=20),
    'ease': EaseConfig(l2=100.0),
    'ials': IALSConfig(dim=4, sweeps=5, regularization=0.01),
    'mf': CentralizedConfig(
        dim=4, epochs=30, batch_size=64, learning_rate=0.02, l2=0.0),
    'sequential': CentralizedSequenceConfig(
        dim=8, max_length=12, num_blocks=1, epochs=60, batch_size=16,
        learning_rate=0.02),
}


def two_tastes(num_users=60, num_items=120, shown=12):
  """Users like one half of the catalogue; popularity cannot tell which."""
  generator = np.random.default_rng(0)
  half = num_items // 2
  items = np.concatenate([
      generator.permutation(half)[:shown] + half * (user % 2)
      for user in range(num_users)])
  return Interactions.from_columns(
      np.repeat(np.arange(num_users), shown), items,
      timestamps=np.tile(np.arange(shown), num_users))


def auc(reference, split, protocol='full'):
  rank = make_ranker(
      reference.score, split.test,
      [split.train, split.validation, split.fold_in], split.num_items,
      protocol=protocol, batch_size=16, seed=0)
  return per_user_metrics(rank(*reference.parameters), (10,))['auc'].mean()


def test_the_tables_and_the_names_agree():
  assert set(registry.CONFIGS) == set(REFERENCES) == set(SMALL)
  assert set(tuning.SEARCH_SPACES) == set(REFERENCES)


@pytest.mark.parametrize('name', REFERENCES)
def test_all_but_popularity_learn_taste(name):
  split = splits.leave_one_out(two_tastes())
  fitted = registry.fit_reference(name, split.train, SMALL[name])
  worth = auc(fitted, split)
  # Knowing the half and nothing else: close to 0.75 + 0.25 * 12 / 60.
  assert worth < 0.6 if name == 'popularity' else 0.65 < worth < 0.9, worth


@pytest.mark.parametrize('name', REFERENCES)
def test_held_out_users_are_known_by_what_they_show(name):
  data = two_tastes()
  split = splits.user_holdout(data, 0.1, 0.3, 0.8)
  fitted = registry.fit_reference(
      name, split.train, SMALL[name], split.fold_in)
  worth = auc(fitted, split)
  assert worth < 0.6 if name == 'popularity' else 0.65 < worth < 0.9, worth
  if name != 'popularity':
    blind = registry.fit_reference(name, split.train, SMALL[name])
    assert auc(blind, split) < 0.6


def test_sampled_ranking_reads_the_same_scores():
  split = splits.leave_one_out(two_tastes())
  fitted = registry.fit_reference('ease', split.train, SMALL['ease'])
  np.testing.assert_allclose(
      auc(fitted, split, 'sampled-99'), auc(fitted, split), atol=0.05)


@pytest.mark.parametrize('name, config', [
    ('ease', EaseConfig()),
    ('ials', IALSConfig(
        dim=32, regularization=0.01, unobserved_weight=1.0,
        frequency_exponent=0.5, precision='float32'))])
def test_ml_100k_is_recommended_as_well_as_is_known(name, config, shared_data):
  """A tuned iALS of another make: full 0.140 / 0.072, sampled 0.63 / 0.37."""
  split = splits.make_split(
      movielens.load_path('movielens-100k', str(shared_data / 'ml-100k')),
      config_lib.SplitConfig())
  fitted = registry.fit_reference(name, split.train, config)
  for protocol, hit_rate, ndcg in (
      ('full', 0.140, 0.072), ('sampled-99', 0.63, 0.37)):
    rank = make_ranker(
        fitted.score, split.test, [split.train, split.validation],
        split.num_items, protocol=protocol, batch_size=512, seed=0)
    found = per_user_metrics(rank(*fitted.parameters), (10,))
    # Three standard deviations of a mean over 943 users; a gain's is at most
    # that of a hit.
    room = 3 * np.sqrt(hit_rate * (1 - hit_rate) / 943)
    assert abs(found['hit_rate@10'].mean() - hit_rate) < room
    assert abs(found['ndcg@10'].mean() - ndcg) < room


def test_a_fit_is_made_again_from_its_seed():
  random, ordered = slow.make_interactions(0), two_tastes(8, 40, 6)
  quick = dataclasses.replace(SMALL['sequential'], epochs=2)
  for name, data, config in (
      ('ials', random, SMALL['ials']), ('mf', random, SMALL['mf']),
      ('sequential', ordered, quick)):
    one, again, other = (
        jax.tree.leaves(registry.fit_reference(
            name, data, config, seed=seed).item_table)[0]
        for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_what_cannot_be_fitted_is_refused():
  data = slow.make_interactions(0)
  fit = registry.fit_reference
  with pytest.raises(ValueError, match="reference='als'.*choose one of.*ials"):
    fit('als', data)
  with pytest.raises(ValueError, match='has_timestamps=False.*ials or ease'):
    fit('sequential', Interactions.from_columns([0, 0], [0, 1]))
  with pytest.raises(ValueError, match='no user has two'):
    fit('sequential', Interactions.from_columns(
        [0, 1], [0, 1], timestamps=[0, 1]))
  with pytest.raises(ValueError, match='config=EaseConfig.*takes a IALSConfig'):
    fit('ials', data, EaseConfig())
  empty = data.take(np.zeros(data.num_interactions, bool))
  with pytest.raises(ValueError, match='num_interactions=0'):
    fit('ease', empty)
  with pytest.raises(ValueError, match='fold_in has 8 users'):
    fit('ease', data, fold_in=data)
  with pytest.raises(ValueError, match='one id space'):
    fit('ease', data, fold_in=slow.make_interactions(0, num_items=15))


class TestTuning:

  def test_the_best_on_validation_is_chosen_and_the_test_is_not_read(self):
    split = splits.leave_one_out(two_tastes())
    configs = [EaseConfig(l2=1e9), EaseConfig(l2=5.0)]
    trials = list(tuning.try_configs('ease', split, configs))
    assert [t.config for t in trials] == configs
    assert tuning.best(trials).ndcg == max(t.ndcg for t in trials)
    blind = dataclasses.replace(split, test=None)
    assert list(tuning.try_configs('ease', blind, configs)) == trials

  def test_a_budget_is_kept_and_the_defaults_come_first(self):
    configs = tuning.sample_configs('ials', 10)
    assert configs[0] == IALSConfig() and len(set(configs)) == 10
    assert configs == tuning.sample_configs('ials', 10)
    assert configs[1:] != tuning.sample_configs('ials', 10, seed=1)[1:]
    assert len(tuning.sample_configs('popularity', 10)) == 1
    with pytest.raises(ValueError, match='budget=0'):
      tuning.sample_configs('ials', 0)

  def test_what_was_found_for_a_data_set_is_its_reference_s(self):
    for (name, source), config in tuning._TUNED.items():
      assert isinstance(config, registry.CONFIGS[name])
      assert config == tuning.tuned_config(name, source)
    for name in REFERENCES:
      assert tuning.tuned_config(name, 'synthetic') == registry.CONFIGS[name]()

  def test_carving_takes_the_last_training_row_of_every_user(self):
    data = slow.make_interactions(0)
    split = splits._from_masks('published', data, *[
        np.zeros(data.num_interactions, bool)] * 2)
    with pytest.raises(ValueError, match='carve_validation'):
      next(tuning.try_configs('ease', split, [EaseConfig()]))
    carved = tuning.carve_validation(split)
    for user, count in enumerate(data.counts):
      mine = data.items[data.offsets[user]:data.offsets[user + 1]].tolist()
      taken = carved.validation.items[
          carved.validation.offsets[user]:
          carved.validation.offsets[user + 1]].tolist()
      assert taken == (mine[-1:] if count >= 2 else [])
      assert carved.train.counts[user] == count - len(taken)
