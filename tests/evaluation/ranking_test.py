"""Ranking against a slow oracle, with ties, NaN and planted leaks."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec.data import ncf
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.evaluation import candidates, metrics, ranking
from fedjaxrec.population import ByItem

NUM_USERS, NUM_ITEMS, DIM = 11, 130, 4


def make_interactions(rows, num_items=NUM_ITEMS):
  """Interactions of one item list a user."""
  counts = np.array([len(row) for row in rows])
  size = int(counts.sum())
  return Interactions(
      offsets=np.concatenate([[0], np.cumsum(counts)]),
      items=np.concatenate([np.empty(0), *rows]).astype(np.int32),
      ratings=np.ones(size, np.float32), timestamps=np.zeros(size, np.int64),
      user_ids=np.arange(len(rows)), item_ids=np.arange(num_items))


def make_parts(seed, relevant=(0, 1, 3), num_users=NUM_USERS, seen=12):
  """(train, validation, test); some users have no test item."""
  generator = np.random.default_rng(seed)
  rows = [generator.permutation(NUM_ITEMS) for _ in range(num_users)]
  sizes = generator.choice(relevant, num_users)
  sizes[0] = max(relevant)
  return (make_interactions([row[20:20 + seen] for row in rows]),
          make_interactions([row[19:20] for row in rows]),
          make_interactions([row[:n] for row, n in zip(rows, sizes)]))


def make_parameters(seed, num_users=NUM_USERS):
  """Small whole numbers: sums are exact, and ties are many."""
  generator = np.random.default_rng(seed)
  draw = lambda *shape: generator.integers(-2, 3, shape).astype(np.float32)
  return ({'user': draw(num_users, DIM)},
          {'item': draw(NUM_ITEMS, DIM), 'bias': draw(NUM_ITEMS)},
          {'bias': draw()})


def score(personal, item_rows, shared):
  return item_rows['item'] @ personal['user'] + item_rows['bias'] + (
      shared['bias'])


def score_everything(personal, item_table, shared):
  return (personal['user'] @ item_table['item'].T + item_table['bias'][None]
          + shared['bias'])


def oracle(scores, targets, excluded, chosen=None):
  """Ranks by the definition: one user, one item, one candidate at a time."""
  result = []
  for user in range(targets.num_users):
    relevant, *seen = (
        list(part.items[part.offsets[user]:part.offsets[user + 1]])
        for part in (targets, *excluded))
    gone = set(relevant).union(*seen)
    pool = range(targets.num_items) if chosen is None else chosen[user]
    others = [item for item in pool if item not in gone]
    ranks = []
    for place, item in enumerate(relevant):
      mine = scores[user, item]
      ranks.append(
          sum(scores[user, other] >= mine for other in others)
          + sum(scores[user, other] > mine
                or (scores[user, other] == mine and earlier < place)
                for earlier, other in enumerate(relevant)))
    result += [(user, rank, len(others)) for rank in sorted(ranks)]
  return np.array(result)


def as_rows(ranks):
  return np.stack([ranks.user, ranks.rank, ranks.num_candidates], 1)


def make_ranker(targets, excluded, protocol='full', batch_size=4, **kwargs):
  kwargs = dict(seed=0, top_k=0) | kwargs
  return ranking.make_ranker(
      score, targets, excluded, NUM_ITEMS, protocol=protocol,
      batch_size=batch_size, **kwargs)


class TestOracle:

  @pytest.mark.parametrize('protocol', ['full', 'sampled-99'])
  def test_rows_of_a_clients_own_are_read_beside_the_items(self, protocol):
    """score(own + shared) equals a matrix that was made of the sums before."""
    _, _, test = make_parts(2)
    personal, table, shared = make_parameters(2)
    own = np.random.default_rng(9).integers(
        -2, 3, (NUM_USERS, NUM_ITEMS)).astype(np.float32)
    chosen = np.tile(np.arange(0, NUM_ITEMS, 2), (NUM_USERS, 1))
    ranks = ranking.make_ranker(
        lambda mine, rows, rest: score(mine[0], rows, rest) + mine[1].rows,
        test, [], NUM_ITEMS, protocol=protocol, batch_size=4, seed=0,
        negatives=chosen)((personal, ByItem(own)), table, shared)
    expected = oracle(
        score_everything(personal, table, shared) + own, test, [],
        None if protocol == 'full' else chosen)
    np.testing.assert_array_equal(as_rows(ranks)[:, :2], expected[:, :2])

  @pytest.mark.parametrize(('width', 'top_k', 'gathered'), [
      (NUM_ITEMS - 1, 0, True), (NUM_ITEMS, 0, False), (3, 5, False)])
  def test_a_few_items_are_read_off_where_all_are_scored(
      self, width, top_k, gathered):
    _, _, test = make_parts(2)
    rng = np.random.default_rng(5)
    # Whole numbers, so that no order of additions matters.
    personal, table = (rng.integers(-2, 3, (n, width)).astype(np.float32)
                       for n in (NUM_USERS, NUM_ITEMS))
    chosen = np.tile(np.arange(0, NUM_ITEMS, 2), (NUM_USERS, 1))
    sizes = set()

    def count_rows(mine, rows, rest):
      sizes.add(len(rows))
      return rows @ mine

    ranks = ranking.make_ranker(
        count_rows, test, [], NUM_ITEMS, protocol='sampled-99', batch_size=4,
        seed=0, negatives=chosen, top_k=top_k)(personal, table, ())
    np.testing.assert_array_equal(
        as_rows(ranks)[:, :2],
        oracle(personal @ table.T, test, [], chosen)[:, :2])
    assert (sizes != {NUM_ITEMS}) == gathered

  @pytest.mark.parametrize('passes', [256, 0], ids=['counting', 'sorting'])
  @pytest.mark.parametrize('relevant', [(1,), (0, 1, 3, 9)])
  def test_full_ranking_equals_the_oracle(self, relevant, passes, monkeypatch):
    monkeypatch.setattr(ranking, '_MAX_COUNTING_PASSES', passes)
    train, validation, test = make_parts(1, relevant)
    parameters = make_parameters(2)
    ranks = make_ranker(test, [train, validation])(*parameters)
    scores = score_everything(*parameters)
    expected = oracle(scores, test, [train, validation])
    np.testing.assert_array_equal(as_rows(ranks), expected)
    # Positive control: the oracle notices a tie rule that is kind to the model.
    kind = oracle(scores + 1e-3 * np.arange(NUM_ITEMS), test,
                  [train, validation])
    assert (kind != expected).any()

  @pytest.mark.parametrize('passes', [256, 0], ids=['counting', 'sorting'])
  @pytest.mark.parametrize('relevant', [(1,), (0, 1, 3, 9)])
  def test_published_negatives_equal_the_oracle(
      self, relevant, passes, monkeypatch):
    monkeypatch.setattr(ranking, '_MAX_COUNTING_PASSES', passes)
    train, validation, test = make_parts(1, relevant)
    parameters = make_parameters(2)
    generator = np.random.default_rng(0)
    negatives = np.stack([
        generator.permutation(NUM_ITEMS)[:30] for _ in range(NUM_USERS)])
    negatives[0, 0] = test.items[0]  # A positive among its own negatives.
    rank_fn = make_ranker(test, [], 'sampled-99', negatives=negatives)
    np.testing.assert_array_equal(
        as_rows(rank_fn(*parameters)),
        oracle(score_everything(*parameters), test, [], negatives))

  def test_drawn_negatives_equal_the_oracle(self):
    train, validation, test = make_parts(1)
    parameters = make_parameters(2)
    users = np.flatnonzero(test.counts)
    chosen = np.zeros((NUM_USERS, 99), np.int64)
    chosen[users] = candidates.sample_negatives(
        [test, train, validation], users, NUM_ITEMS, 99, seed=5)
    rank_fn = make_ranker(test, [train, validation], 'sampled-99', seed=5)
    np.testing.assert_array_equal(
        as_rows(rank_fn(*parameters)),
        oracle(score_everything(*parameters), test, [train, validation],
               chosen))

  @pytest.mark.parametrize('passes', [256, 0], ids=['counting', 'sorting'])
  def test_infinite_scores_and_signed_zeros_tie(self, passes, monkeypatch):
    monkeypatch.setattr(ranking, '_MAX_COUNTING_PASSES', passes)
    values = np.array([-np.inf, -0.0, 0.0, np.inf], np.float32)
    scores = np.random.default_rng(0).choice(values, (3, 40))
    scores = scores.astype(np.float32)
    test = make_interactions([range(4), range(8), range(2, 6)], 40)
    train = make_interactions([range(10, 15), [], [0]], 40)
    rank_fn = ranking.make_ranker(
        lambda personal, item_rows, shared: personal[item_rows], test, [train],
        40, protocol='full', batch_size=2, seed=0)
    ranks = rank_fn(scores, np.arange(40), ())
    np.testing.assert_array_equal(as_rows(ranks), oracle(scores, test, [train]))


class TestInvariance:

  @pytest.mark.parametrize('protocol', ['full', 'sampled-99'])
  @pytest.mark.parametrize('batch_size', [1, 3, 100])
  def test_batch_size_never_changes_the_result(self, protocol, batch_size):
    train, validation, test = make_parts(3)
    parameters = make_parameters(4)
    expected, ranks = (
        make_ranker(test, [train, validation], protocol, size, top_k=5)(
            *parameters) for size in (4, batch_size))
    np.testing.assert_array_equal(as_rows(ranks), as_rows(expected))
    np.testing.assert_array_equal(ranks.top, expected.top)

  def test_all_batches_and_calls_share_one_compilation(self):
    traces = []
    def counted(*arguments):
      traces.append(1)
      return score(*arguments)
    train, validation, test = make_parts(3)
    rank_fn = ranking.make_ranker(
        counted, test, [train, validation], NUM_ITEMS, protocol='full',
        batch_size=4, seed=0, top_k=5)
    rank_fn(*make_parameters(4))
    first = len(traces)
    changed = rank_fn(*make_parameters(5))
    assert len(traces) == first
    # Positive control: the new parameters were used, not baked in.
    assert (as_rows(changed) != as_rows(rank_fn(*make_parameters(4)))).any()

  def test_moves_nothing_behind_the_caller_s_back(self):
    train, _, test = make_parts(3)
    parameters = jax.device_put(make_parameters(4))
    with jax.transfer_guard('disallow'):
      make_ranker(test, [train], top_k=5)(*parameters)

  def test_a_model_without_personal_parameters_is_ranked(self):
    train, _, test = make_parts(3)
    popularity = np.bincount(train.items, minlength=NUM_ITEMS)
    rank_fn = ranking.make_ranker(
        lambda personal, item_rows, shared: item_rows, test, [train],
        NUM_ITEMS, protocol='full', batch_size=4, seed=0)
    scores = np.tile(popularity, (NUM_USERS, 1))
    np.testing.assert_array_equal(
        as_rows(rank_fn((), popularity.astype(np.float32), ())),
        oracle(scores, test, [train]))


class TestSoundness:

  @pytest.mark.parametrize('protocol', ['full', 'sampled-99'])
  @pytest.mark.parametrize('passes', [256, 0], ids=['counting', 'sorting'])
  @pytest.mark.parametrize('value', [0.0, np.nan, -np.inf, np.inf])
  def test_a_constant_model_finds_nothing(
      self, value, passes, protocol, monkeypatch):
    monkeypatch.setattr(ranking, '_MAX_COUNTING_PASSES', passes)
    train, validation, test = make_parts(6, (1,))
    rank_fn = ranking.make_ranker(
        lambda personal, item_rows, shared: item_rows, test,
        [train, validation], NUM_ITEMS, protocol=protocol, batch_size=4,
        seed=0)
    ranks = rank_fn((), np.full(NUM_ITEMS, value, np.float32), ())
    np.testing.assert_array_equal(ranks.rank, ranks.num_candidates)

  @pytest.mark.parametrize('passes', [256, 0], ids=['counting', 'sorting'])
  def test_one_nan_among_the_scores_never_helps(self, passes, monkeypatch):
    monkeypatch.setattr(ranking, '_MAX_COUNTING_PASSES', passes)
    test = make_interactions([[0], [0]], 4)
    scores = np.array([[np.nan, 1, 2, 3], [9, np.nan, 2, 3]], np.float32)
    rank_fn = ranking.make_ranker(
        lambda personal, item_rows, shared: personal[item_rows], test, [], 4,
        protocol='full', batch_size=2, seed=0, top_k=2)
    ranks = rank_fn(scores, np.arange(4), ())
    np.testing.assert_array_equal(ranks.rank, [3, 1])
    np.testing.assert_array_equal(ranks.top, [[3, 2], [0, 3]])

  def test_forgetting_to_exclude_train_is_seen(self):
    # The model loves what it was trained on, then the test item.
    train = make_interactions([[0, 1, 2], [3, 4, 5]], 8)
    test = make_interactions([[6], [7]], 8)
    scores = np.zeros((2, 8), np.float32)
    scores[0, :3] = scores[1, 3:6] = 9
    scores[0, 6] = scores[1, 7] = 5
    honest, leaky = (
        ranking.make_ranker(
            lambda personal, item_rows, shared: personal[item_rows], test,
            excluded, 8, protocol='full', batch_size=2, seed=0, top_k=2)(
                scores, np.arange(8), ())
        for excluded in ([train], []))
    np.testing.assert_array_equal(honest.rank, [0, 0])
    np.testing.assert_array_equal(honest.num_candidates, [4, 4])
    np.testing.assert_array_equal(leaky.rank, [3, 3])
    np.testing.assert_array_equal(honest.top[:, 0], [6, 7])
    np.testing.assert_array_equal(leaky.top[:, 0], [0, 3])

  def test_a_target_that_was_trained_on_is_refused(self):
    train = make_interactions([[0, 1], [2]], 8)
    test = make_interactions([[5], [2]], 8)
    with pytest.raises(ValueError, match=r'user=1, item=2.* leak'):
      ranking.make_ranker(score, test, [train], 8, protocol='full',
                          batch_size=2, seed=0)

  def test_a_permuted_test_item_is_found_by_chance(self):
    # 400 users with random scores: HR@10 among 100 is binomial(400, 0.1) / 400,
    # standard deviation 0.015.
    train, validation, test = make_parts(7, (1,), num_users=400)
    scores = np.random.default_rng(0).random((400, NUM_ITEMS))
    rank_fn = ranking.make_ranker(
        lambda personal, item_rows, shared: personal[item_rows], test,
        [train, validation], NUM_ITEMS, protocol='sampled-99', batch_size=64,
        seed=0)
    ranks = rank_fn(scores.astype(np.float32), np.arange(NUM_ITEMS), ())
    hits = metrics.per_user_metrics(ranks, (10,))['hit_rate@10']
    assert abs(hits.mean() - 0.1) < 4 * 0.015


class TestCandidates:

  @pytest.mark.parametrize('passes', [256, 0], ids=['counting', 'sorting'])
  def test_each_rank_says_whose_it_is(self, passes, monkeypatch):
    monkeypatch.setattr(ranking, '_MAX_COUNTING_PASSES', passes)
    train, _, test = make_parts(1, (0, 1, 3, 9))
    parameters = make_parameters(2)
    ranks = make_ranker(test, [train])(*parameters)
    scores = score_everything(*parameters)
    expected = []
    for user in range(NUM_USERS):
      mine = test.items[test.offsets[user]:test.offsets[user + 1]]
      expected += list(mine[np.argsort(-scores[user, mine], kind='stable')])
    np.testing.assert_array_equal(ranks.item, expected)

  @pytest.mark.parametrize('protocol', ['full', 'sampled-99'])
  def test_only_candidates_are_ranked_and_listed(self, protocol):
    train, validation, test = make_parts(1)
    parameters = make_parameters(2)
    chosen = np.random.default_rng(0).random(NUM_ITEMS) < 0.9
    chosen[test.items] = True
    pools = None
    users = np.flatnonzero(test.counts)
    if protocol == 'full':
      pools = [np.flatnonzero(chosen)] * NUM_USERS
    else:
      drawn = candidates.sample_negatives(
          [test, train], users, NUM_ITEMS, 80, 0, chosen)
      assert chosen[drawn].all()
      pools = np.zeros((NUM_USERS, 80), np.int64)
      pools[users] = drawn
    ranks = make_ranker(
        test, [train], protocol, candidates=chosen, top_k=20,
        negatives=None if protocol == 'full' else pools)(*parameters)
    np.testing.assert_array_equal(
        as_rows(ranks),
        oracle(score_everything(*parameters), test, [train], pools))
    assert chosen[ranks.top].all() and (ranks.top >= 0).all()

  def test_negatives_among_candidates_are_uniform_over_what_is_left(self):
    num_users = 6000
    part = make_interactions([[0, 4, 5, 9]] * num_users, 20)
    chosen = np.arange(20) % 2 == 0  # 0 and 4 are had: 2, 6, 8, ..., 18 left.
    drawn = candidates.sample_negatives(
        [part], np.arange(num_users), 20, 3, 0, chosen)
    times = np.bincount(drawn.ravel(), minlength=20)
    free = [2, 6, 8, 10, 12, 14, 16, 18]
    assert times.sum() == times[free].sum()
    deviation = np.sqrt(num_users * 15 / 64)
    assert np.abs(times[free] - num_users * 3 / 8).max() < 4 * deviation

  def test_a_target_that_is_no_candidate_is_refused(self):
    _, _, test = make_parts(1)
    chosen = np.ones(NUM_ITEMS, bool)
    chosen[test.items[0]] = False
    with pytest.raises(ValueError, match=f'item={test.items[0]}.*candidate'):
      make_ranker(test, [], candidates=chosen)
    with pytest.raises(ValueError, match=r'bool\[130\]'):
      make_ranker(test, [], candidates=np.ones(3, bool))


class TestLists:

  @pytest.mark.parametrize('protocol', ['full', 'sampled-99'])
  def test_lists_are_the_best_items_that_are_not_excluded(self, protocol):
    train, validation, test = make_parts(8)
    parameters = make_parameters(9)
    ranks = make_ranker(test, [train, validation], protocol, top_k=20)(
        *parameters)
    scores = score_everything(*parameters)
    users = metrics.evaluated_users(ranks)
    for row, user in zip(ranks.top, users, strict=True):
      seen = [part.items[part.offsets[user]:part.offsets[user + 1]]
              for part in (train, validation)]
      allowed = np.setdiff1d(np.arange(NUM_ITEMS), np.concatenate(seen))
      best = allowed[np.argsort(-scores[user, allowed], kind='stable')]
      np.testing.assert_array_equal(row, best[:20])

  def test_a_list_runs_out_and_never_holds_an_excluded_item(self):
    train = make_interactions([[0, 1, 2], []], 5)
    test = make_interactions([[3], [4]], 5)
    rank_fn = ranking.make_ranker(
        lambda personal, item_rows, shared: item_rows, test, [train], 5,
        protocol='full', batch_size=2, seed=0, top_k=4)
    top = rank_fn((), np.array([9, 8, 7, -np.inf, np.nan], np.float32), ()).top
    np.testing.assert_array_equal(top, [[3, 4, -1, -1], [0, 1, 2, 3]])


class TestNegatives:

  @hypothesis.given(st.integers(0, 2**31), st.integers(1, 4))
  def test_distinct_and_never_an_interaction(self, seed, spare):
    generator = np.random.default_rng(seed)
    num_items = 30
    rows = [generator.permutation(num_items)[:num_items - 5 - spare * u]
            for u in range(4)]
    part = make_interactions(rows, num_items)
    users = np.array([0, 2, 3])
    drawn = candidates.sample_negatives([part], users, num_items, 5, seed)
    assert drawn.shape == (3, 5)
    for row, user in zip(drawn, users, strict=True):
      assert len(set(row)) == 5
      assert not set(row) & set(rows[user])
      assert 0 <= row.min() and row.max() < num_items
    # User 0 has exactly five items left; they are all drawn.
    assert set(drawn[0]) == set(range(num_items)) - set(rows[0])

  def test_uniform_over_what_is_left(self):
    num_users, left = 6000, 8
    part = make_interactions([[0, 4, 5, 9]] * num_users, 4 + left)
    drawn = candidates.sample_negatives(
        [part], np.arange(num_users), 4 + left, 3, seed=0)
    times = np.bincount(drawn.ravel(), minlength=4 + left)
    np.testing.assert_array_equal(times[[0, 4, 5, 9]], 0)
    # Each of 8 items is drawn by a user with probability 3/8: binomial.
    expected, deviation = num_users * 3 / 8, np.sqrt(num_users * 15 / 64)
    assert np.abs(np.delete(times, [0, 4, 5, 9]) - expected).max() < (
        4 * deviation)
    # Pairs as well: a subset is uniform, not only its members.
    both = sum(((drawn == a).any(1) & (drawn == b).any(1)).sum()
               for a, b in [(1, 2), (1, 11), (10, 11)])
    pair = 3 / 8 * 2 / 7
    assert abs(both - 3 * num_users * pair) < 4 * np.sqrt(
        3 * num_users * pair * (1 - pair))

  def test_seeded(self):
    part = make_interactions([[0]] * 5)
    draw = lambda seed: candidates.sample_negatives(
        [part], np.arange(5), NUM_ITEMS, 9, seed)
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()


class TestErrors:

  def setup_method(self):
    self.train, self.validation, self.test = make_parts(0)

  @pytest.mark.parametrize('kwargs, message', [
      (dict(protocol='all'), "evaluation.protocol='all'"),
      (dict(batch_size=0), 'evaluation.batch_size=0'),
      (dict(top_k=NUM_ITEMS + 1), f'evaluation.ks={NUM_ITEMS + 1}'),
      (dict(protocol='sampled-99', negatives=np.zeros((2, 3), np.int32)),
       r'negatives.shape=\(2, 3\)'),
      (dict(protocol='sampled-99',
            negatives=np.full((NUM_USERS, 3), NUM_ITEMS)), 'outside 0..129'),
  ])
  def test_settings(self, kwargs, message):
    with pytest.raises(ValueError, match=message):
      make_ranker(self.test, [self.train], **kwargs)

  def test_no_targets(self):
    with pytest.raises(ValueError, match='targets.num_interactions=0'):
      make_ranker(make_interactions([[]] * NUM_USERS), [self.train])

  def test_too_few_items_for_the_negatives(self):
    train = make_parts(0, seen=40)[0]
    with pytest.raises(ValueError, match='protocol=full'):
      make_ranker(self.test, [train], 'sampled-99')

  def test_another_id_space(self):
    other = make_interactions([[0]] * NUM_USERS, NUM_ITEMS + 1)
    with pytest.raises(ValueError, match=r'excluded\[0\].*num_items=131'):
      make_ranker(self.test, [other])

  def test_parameters_of_another_size(self):
    rank_fn = make_ranker(self.test, [self.train])
    personal, item_table, shared = make_parameters(0)
    with pytest.raises(ValueError, match=r"personal\['user'\].*num_users=11"):
      rank_fn({'user': personal['user'][1:]}, item_table, shared)
    with pytest.raises(ValueError, match=r"item_table\['bias'\].*=130"):
      rank_fn(personal, item_table | {'bias': np.zeros(131)}, shared)

  def test_a_score_of_the_wrong_shape(self):
    rank_fn = ranking.make_ranker(
        lambda personal, item_rows, shared: item_rows.sum(), self.test, [],
        NUM_ITEMS, protocol='full', batch_size=4, seed=0)
    with pytest.raises(ValueError, match=r'one score a row, \(130,\)'):
      rank_fn((), np.zeros(NUM_ITEMS, np.float32), ())


def test_popularity_reproduces_the_published_files_figure(shared_data):
  split = ncf.load(str(shared_data / 'ncf' / 'ml-1m'))
  num_items = split.train.num_items
  popularity = np.bincount(split.train.items, minlength=num_items)
  rank_fn = ranking.make_ranker(
      lambda personal, item_rows, shared: item_rows, split.test, [split.train],
      num_items, protocol='sampled-99', batch_size=1024, seed=0,
      negatives=split.negatives)
  ranks = rank_fn((), popularity.astype(np.float32), ())

  def figures(rank):
    result = metrics.per_user_metrics(ranks._replace(rank=rank), (10,))
    return [round(result[f'{name}@10'].mean(), 4)
            for name in ('hit_rate', 'ndcg')]

  # 156 users have their positive among their own negatives. Our rule: it is no
  # candidate. The figure in circulation for ties against the positive ranks it
  # below its own copy.
  copies = split.negatives == split.test.items[:, None]
  assert copies.sum() == 156
  np.testing.assert_array_equal(99 - ranks.num_candidates, copies.sum(1))
  assert figures(ranks.rank) == [0.4531, 0.2541]
  assert figures(ranks.rank + copies.sum(1)) == [0.4520, 0.2526]
