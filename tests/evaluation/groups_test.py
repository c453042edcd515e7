"""Activity groups by hand and by law."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec.evaluation import groups, metrics


def make_ranks(users, rank):
  users = np.asarray(users, np.int32)
  return metrics.Ranks(users, np.asarray(rank, np.int32),
                       np.full(users.size, 99, np.int32))


class TestGroups:

  def test_labels_by_hand(self):
    result = groups.activity_groups(
        np.array([1, 1, 20, 35, 35, 1200]), 3)
    assert result.labels == [
        '1 interaction', '20-35 interactions', '1,200 interactions']
    np.testing.assert_array_equal(result.group_of, [0, 0, 1, 1, 1, 2])

  def test_users_who_never_interacted_are_a_group_too(self):
    assert groups.activity_groups(np.array([0, 0]), 5).labels == [
        '0 interactions']

  @hypothesis.given(
      st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 8))
  def test_groups_are_intervals_and_none_is_empty(self, counts, num_groups):
    counts = np.array(counts)
    labels, index = groups.activity_groups(counts, num_groups)
    assert set(index) == set(range(len(labels)))
    assert len(labels) <= num_groups
    order = np.argsort(counts, kind='stable')
    assert (np.diff(index[order]) >= 0).all()
    for count in counts:
      assert len(set(index[counts == count])) == 1

  def test_distinct_counts_give_groups_of_equal_size(self):
    index = groups.activity_groups(np.arange(50), 5).group_of
    np.testing.assert_array_equal(np.bincount(index), [10] * 5)


class TestGroupMetrics:

  def test_means_by_hand(self):
    # Users 1, 2, 4 and 6 of 8 are evaluated; 1 and 4 are the active ones.
    counts = np.array([9, 30, 5, 9, 31, 9, 6, 9])
    ours = make_ranks([1, 2, 4, 6], [0, 50, 2, 50])
    other = make_ranks([1, 2, 4, 6], [50, 50, 50, 0])
    low, high = groups.group_metrics(
        {'personalised': ours, 'popularity': other}, counts, (10,),
        num_groups=2, bootstrap_samples=100, seed=0)
    assert low['label'] == '5-6 interactions' and low['num_users'] == 2
    assert high['label'] == '30-31 interactions'
    assert low['personalised']['hit_rate@10'] == 0
    assert low['popularity']['hit_rate@10'] == 0.5
    assert high['personalised']['ndcg@10'] == 0.75
    assert high['personalised']['ci95']['hit_rate@10'] == [1, 1]

  def test_different_users_are_refused(self):
    with pytest.raises(ValueError, match="'b'.*'a'"):
      groups.group_metrics(
          {'a': make_ranks([0], [0]), 'b': make_ranks([1], [0])},
          np.ones(2), (10,), num_groups=2, bootstrap_samples=100, seed=0)


class TestWorstGroup:

  def test_the_worst_decile_by_hand(self):
    # 20 users, two a decile; only the deciles of users 4-5 and 6-7 miss.
    counts = np.arange(20)
    rank = np.zeros(20, int)
    rank[[4, 6, 7]] = [50, 50, 50]
    worst = groups.worst_group(make_ranks(np.arange(20), rank), counts, (10,))
    assert worst == {
        'worst_decile_hit_rate@10': 0.0, 'worst_decile_ndcg@10': 0.0}
    rank[[6, 7]] = 2
    worst = groups.worst_group(make_ranks(np.arange(20), rank), counts, (10,))
    # Users 4-5: one hit of two, at the top; users 6-7: both third.
    assert worst == {
        'worst_decile_hit_rate@10': 0.5, 'worst_decile_ndcg@10': 0.5}

  def test_activity_is_read_by_user_id(self):
    counts = np.array([100, 1, 100, 100])
    worst = groups.worst_group(
        make_ranks([1, 3], [50, 0]), counts, (10,), num_groups=2)
    assert worst['worst_decile_hit_rate@10'] == 0.0


class TestPopularityGroups:

  def make(self, users, items, rank):
    return make_ranks(users, rank)._replace(item=np.array(items, np.int32))

  def test_means_by_hand(self):
    popularity = np.array([5, 90, 0, 7])
    # User 0 asks for items 1 and 2, user 1 for item 3, user 2 for item 0.
    ours = self.make([0, 0, 1, 2], [2, 1, 3, 0], [0, 40, 2, 50])
    other = self.make([0, 0, 1, 2], [1, 2, 3, 0], [0, 40, 50, 50])
    rare, common = groups.popularity_groups(
        {'ours': ours, 'other': other}, popularity, (10,), num_groups=2)
    assert rare['label'] == '0-5 interactions'
    assert common['label'] == '7-90 interactions'
    assert rare['num_pairs'] == common['num_pairs'] == 2
    assert rare['num_items'] == 2
    assert rare['ours'] == {'recall@10': 0.5, 'gain@10': 0.5}
    assert common['ours'] == {'recall@10': 0.5, 'gain@10': 0.25}
    assert rare['other'] == {'recall@10': 0.0, 'gain@10': 0.0}
    assert common['other'] == {'recall@10': 0.5, 'gain@10': 0.5}

  def test_what_cannot_be_compared_is_refused(self):
    ours = self.make([0], [1], [0])
    with pytest.raises(ValueError, match="'b'.*'a'"):
      groups.popularity_groups(
          {'a': ours, 'b': self.make([0], [2], [0])}, np.ones(3), (10,))
    with pytest.raises(ValueError, match='item=None'):
      groups.popularity_groups(
          {'a': make_ranks([0], [0])}, np.ones(3), (10,))


@pytest.mark.parametrize('call, message', [
    (lambda: groups.activity_groups(np.ones(3), 0), 'evaluation.num_groups=0'),
    (lambda: groups.activity_groups(np.empty(0), 2), 'no user'),
])
def test_nothing_to_group_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
