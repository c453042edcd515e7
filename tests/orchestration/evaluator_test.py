"""What is ranked against what, and by whose parameters."""

import dataclasses
import types

import numpy as np
import pytest

from fedjaxrec.evaluation import controls
from fedjaxrec.orchestration import evaluator
from tests.small_runs import (
  make_config,
  make_interactions,
  random_split,
  with_test_items,
)

NUM_USERS, NUM_ITEMS = 6, 30


def score(personal, item_rows, shared):
  """A user's favourite stands first, and then the larger ids."""
  favourite = (item_rows == personal).astype(np.float32)
  return 1000 * favourite + item_rows + 0 * shared


ITEMS = np.arange(NUM_ITEMS, dtype=np.float32)


def algorithm_of(score_fn):
  return types.SimpleNamespace(
      score=score_fn, aggregated_score=None, not_alone='', numbered=False)


# All that the evaluator asks of a simulation, but for the control.
SIMULATION = types.SimpleNamespace(algorithm=algorithm_of(score), side=None)


def make(split, changes=None, simulation=SIMULATION):
  return evaluator.make_evaluator(make_config(changes), split, simulation)


class TestSelectUsers:

  def test_rows_follow_their_users_in_the_order_given(self):
    interactions = make_interactions([[3, 1], [], [4], [0, 2, 1]], 5)
    chosen = evaluator.select_users(interactions, np.array([3, 1, 0]))
    assert chosen.items.tolist() == [0, 2, 1, 3, 1]
    assert chosen.offsets.tolist() == [0, 3, 3, 5]
    assert chosen.user_ids.tolist() == [3, 1, 0]
    assert chosen.timestamps.tolist() == [0, 1, 2, 0, 1]
    assert chosen.num_items == 5

  def test_all_and_none(self):
    interactions = make_interactions([[3, 1], [], [4]], 5)
    everybody = evaluator.select_users(interactions, np.arange(3))
    assert everybody.fingerprint() == interactions.fingerprint()
    nobody = evaluator.select_users(interactions, np.arange(0))
    assert (nobody.num_users, nobody.num_interactions) == (0, 0)


def test_cutoffs_hold_those_of_the_table_and_of_selection():
  assert evaluator.cutoffs(make_config({'evaluation.ks': [50, 1]})) == (
      1, 10, 20, 50)
  assert evaluator.cutoffs(make_config({'evaluation.ks': [10]})) == (10, 20)


def test_personalised_is_each_with_its_own_aggregated_all_with_the_mean():
  """Positive parameters prefer larger ids, negative ones smaller."""
  split = random_split(NUM_USERS, NUM_ITEMS, 4)
  # User 5 has nothing to train on, so is no part of the mean: it is above 0.
  train = split.train.take(split.train.users != 5)
  object.__setattr__(split, 'train', train)
  personal = np.array([3, -1, 3, -1, 3, -100], np.float32)
  sections = make(split, simulation=types.SimpleNamespace(
      side=None, algorithm=algorithm_of(
          lambda own, rows, shared: own * rows + shared))).test(
              personal, ITEMS, np.float32(0))['test']

  def mrr(signs):
    result = []
    for u, sign in enumerate(signs):
      seen = {*train.items[train.users == u], split.validation.items[u]}
      others = set(range(NUM_ITEMS)) - seen - {split.test.items[u]}
      above = [i for i in others if sign * i > sign * split.test.items[u]]
      result.append(1 / (len(above) + 1))
    return np.mean(result)

  assert sections['personalised']['mrr'] == pytest.approx(mrr(personal))
  assert sections['aggregated']['mrr'] == pytest.approx(mrr([1] * NUM_USERS))
  assert len({mrr(personal), mrr([1] * NUM_USERS), mrr([-1] * NUM_USERS)}) == 3


def test_held_out_users_are_fitted_before_they_are_ranked(monkeypatch):
  """Both times to the parameters that are evaluated."""
  split = random_split(NUM_USERS, NUM_ITEMS, 4)
  fits = []

  def make_fold_in(config, fold_in, side):
    assert fold_in is split.fold_in and side is None

    def fit(personal, item_table, shared):
      fits.append((personal, item_table, shared))
      return favourites
    return fit

  monkeypatch.setattr(evaluator, 'make_fold_in', make_fold_in)
  evaluate = make(split)
  parameters = np.full(NUM_USERS, -1, np.float32), ITEMS, np.float32(0)
  favourites = split.validation.items.astype(np.float32)
  assert evaluate.validate(*parameters)['mrr'] == 1
  favourites = split.test.items.astype(np.float32)
  assert evaluate.test(*parameters)['test']['personalised']['mrr'] == 1
  for fitted in fits:
    assert all(a is b for a, b in zip(fitted, parameters))
  assert len(fits) == 2


def test_validation_ranks_the_test_item_and_test_not_the_validation_item():
  """To selection a test item is an item like any other."""
  split = random_split(NUM_USERS, NUM_ITEMS, 4)
  evaluate = make(split)
  # Everybody prefers their test item: it stands above the validation item.
  favourites = split.test.items.astype(np.float32)
  first = evaluate.validate(favourites, ITEMS, np.float32(0))['mrr']
  assert first <= 0.5
  # Everybody prefers their validation item, which the test leaves out.
  favourites = split.validation.items.astype(np.float32)
  assert evaluate.validate(favourites, ITEMS, np.float32(0))['mrr'] == 1
  liked = evaluate.test(favourites, ITEMS, np.float32(0))['test']
  indifferent = evaluate.test(
      np.full(NUM_USERS, -1, np.float32), ITEMS, np.float32(0))['test']
  assert liked['personalised']['mrr'] == indifferent['personalised']['mrr']


def test_validation_does_not_know_the_test_items():
  split = random_split(NUM_USERS, NUM_ITEMS, 4)
  other = with_test_items(split, [
      next(i for i in range(NUM_ITEMS) if i not in {
          *split.train.items[4 * u:4 * u + 4], split.validation.items[u],
          split.test.items[u]}) for u in range(NUM_USERS)])
  results = [make(s).validate(
      np.arange(NUM_USERS, dtype=np.float32), ITEMS, np.float32(0))
             for s in (split, other)]
  assert results[0] == results[1]


class TestLocalOnly:
  """The control's sample; what it trains is tested with the control."""

  @pytest.fixture
  def asked(self, monkeypatch):
    """Stands in for training alone, and notes what is asked of it."""
    calls = []

    def train_local_only(algorithm, server, personal, train, clients, rounds,
                         batch_size, key, labels=None):
      calls.append(types.SimpleNamespace(
          personal=personal, train=train, clients=clients, rounds=rounds))
      return np.tile(ITEMS, (len(clients), 1))
    monkeypatch.setattr(controls, 'train_local_only', train_local_only)
    return calls

  def simulate(self, num_users):
    state = types.SimpleNamespace(server=np.zeros(1))
    return types.SimpleNamespace(
        algorithm=algorithm_of(score), key=None, side=None,
        init=lambda: state,
        personal_by_client=lambda _: np.arange(num_users, dtype=np.float32))

  def sections(self, split, changes=None):
    return make(
        split, {'evaluation.local_only': True, **(changes or {})},
        self.simulate(split.num_users)).test(
            np.zeros(split.num_users, np.float32), ITEMS, np.float32(0))

  def test_a_few_are_all_asked_and_many_are_sampled(self, asked, monkeypatch):
    split = random_split(12, NUM_ITEMS, 4)
    split = with_test_items(split, [-1, *split.test.items[1:]])
    sections = self.sections(split)
    everybody = sections['controls']['local_only']
    # All compared models are there by the popularity of the test item.
    for group in sections['item_groups']:
      assert {'personalised', 'popularity', 'aggregated',
              'local_only'} <= group.keys()
    # Asked by the ids of all users: the 11 hits are the row's.
    assert sum(group['local_only']['recall@10'] * group['num_pairs']
               for group in sections['item_groups']) == pytest.approx(
                   11 * everybody['hit_rate@10'])
    assert asked[-1].clients.tolist() == list(range(1, 12))
    assert everybody['num_users'] == 11
    monkeypatch.setattr(evaluator, '_LOCAL_ONLY_CLIENTS', 5)
    for _ in range(2):
      sections = self.sections(split)
      some = sections['controls']['local_only']
      assert some['num_users'] == 5
      # Other items than everybody's: no groups of them.
      assert not any('local_only' in g for g in sections['item_groups'])
    sampled = asked[-1].clients
    assert len(set(sampled)) == 5 and 0 not in sampled
    np.testing.assert_array_equal(sampled, asked[-2].clients)
    # Each with its own initial parameters, and its own row of scores.
    np.testing.assert_array_equal(asked[-1].personal, sampled)
    self.sections(split, {'seed': 3})
    assert set(asked[-1].clients) != set(sampled)

  @pytest.mark.parametrize(('changes', 'rounds'), [
      # A cohort of 3 of 12 in 6 rounds: each takes part 1.5 times.
      ({'cohort.size': 3}, 2),
      ({'cohort.size': 0}, 6),
      ({'cohort.size': 0, 'rounds': 50}, 20),
      ({'cohort.size': 3, 'evaluation.local_only_rounds': 33}, 33),
  ])
  def test_it_trains_as_long_as_a_client_does(self, changes, rounds, asked):
    self.sections(random_split(12, NUM_ITEMS, 4), changes)
    assert asked[-1].rounds == rounds

  def test_its_sample_is_asked_about_the_same_candidates(
      self, asked, monkeypatch):
    """With drawn negatives, a row of the table is comparable with the next."""
    split = random_split(12, 130, 4)
    candidates = {}
    real = evaluator.make_ranker

    def make_ranker(score_fn, targets, *args, negatives=None, **kwargs):
      if targets.items.tolist() != split.validation.items.tolist():
        candidates.setdefault(score_fn, (targets.user_ids, negatives))
      return real(score_fn, targets, *args, negatives=negatives, **kwargs)

    monkeypatch.setattr(evaluator, 'make_ranker', make_ranker)
    monkeypatch.setattr(evaluator, '_LOCAL_ONLY_CLIENTS', 5)
    monkeypatch.setattr(controls, 'train_local_only', lambda *args: np.zeros(
        (5, 130), np.float32))
    sections = make(
        split, {'evaluation.local_only': True,
                'evaluation.protocol': 'sampled-99'}, self.simulate(12)).test(
        np.zeros(12, np.float32), np.arange(130, dtype=np.float32),
        np.float32(0))
    # Each row has its estimate of the full ranking beside it.
    for row in (*sections['controls'].values(),
                sections['test']['personalised']):
      assert np.isfinite(row['corrected_ndcg@10'])
    everybody, whole = candidates[score]
    assert whole.shape == (12, 99) and everybody.tolist() == list(range(12))
    for row, seen in zip(whole, split.train.items.reshape(12, 4)):
      assert len(set(row)) == 99 and not set(row) & set(seen)
    users, sampled = candidates[controls.score_from_matrix]
    assert len(users) == 5
    np.testing.assert_array_equal(sampled, whole[users])
    _, popular = candidates[controls.score_popularity]
    np.testing.assert_array_equal(popular, whole)

  def test_nobody_to_ask(self, asked):
    split = random_split(NUM_USERS, NUM_ITEMS, 4)
    asked_users = split.test.users >= 3
    object.__setattr__(split, 'test', split.test.take(asked_users))
    object.__setattr__(
        split, 'train', split.train.take(split.train.users < 3))
    sections = self.sections(split)
    assert sections['controls']['local_only'] is None and not asked
    assert sections['test']['personalised']['num_users'] == 3


class TestChoiceByRatings:

  RATED = {'objective.name': 'squared_error', 'evaluation.select_by': 'rmse'}

  @staticmethod
  def rated(split, seed=0):
    rng = np.random.default_rng(seed)
    def rate(part):
      return dataclasses.replace(part, ratings=rng.integers(
          1, 6, part.num_interactions).astype(np.float32))
    return dataclasses.replace(
        split, train=rate(split.train), validation=rate(split.validation),
        test=rate(split.test))

  def test_validation_says_how_far_predictions_are_off(self):
    split = self.rated(random_split(NUM_USERS, NUM_ITEMS, 5))
    personal = np.arange(NUM_USERS, dtype=np.float32)
    found = make(split, self.RATED).validate(
        personal, ITEMS / 10, np.float32(0))
    asked = split.validation
    # The scores of the file's model, one by one.
    off = [1000.0 * (np.float32(item) / 10 == user) + np.float32(item) / 10
           - rating
           for user in range(NUM_USERS)
           for item, rating in zip(
               asked.items[asked.offsets[user]:asked.offsets[user + 1]],
               asked.ratings[asked.offsets[user]:asked.offsets[user + 1]])]
    assert off
    # float32 scores of at most 1,003.
    assert found['rmse'] == pytest.approx(np.sqrt(np.mean(np.square(off))),
                                          rel=1e-5)
    assert found['mae'] == pytest.approx(np.mean(np.abs(off)), rel=1e-5)

  def test_a_model_that_only_ranks_has_no_errors(self):
    found = make(random_split(NUM_USERS, NUM_ITEMS, 5)).validate(
        np.arange(NUM_USERS, dtype=np.float32), ITEMS, np.float32(0))
    assert 'rmse' not in found

  def test_a_model_that_only_ranks_is_not_chosen_by_them(self):
    with pytest.raises(ValueError, match='select_by=rmse with objective.name'):
      make_config({'evaluation.select_by': 'rmse'})

  def test_data_without_ratings_are_refused(self):
    with pytest.raises(ValueError, match='select_by=rmse on data without'):
      make(random_split(NUM_USERS, NUM_ITEMS, 5), self.RATED)
