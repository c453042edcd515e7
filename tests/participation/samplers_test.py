"""Samplers: who is drawn, how often, and always the same at a round."""

import numpy as np
import pytest
import scipy.stats

from fedjaxrec.config import SAMPLERS, CohortConfig
from fedjaxrec.participation.samplers import (
  build_sampler,
  poisson_cap,
  read_weights,
)

# Clients 0, 7, 14, ... have nothing to train on.
NUM_EXAMPLES = np.where(np.arange(60) % 7 == 0, 0, np.arange(60) % 5 + 1)
ELIGIBLE = np.flatnonzero(NUM_EXAMPLES)
ROUNDS = 4000


@pytest.fixture
def weights_path(tmp_path):
  path = tmp_path / 'weights.npy'
  np.save(path, np.arange(60) % 4)  # Every fourth client never.
  return str(path)


def make(name, weights_path, size=10, seed=0, **kwargs):
  if name == 'cyclic_poisson':
    kwargs.setdefault('groups', 1)
  return build_sampler(
      CohortConfig(
          size=size, sampler=name,
          weights_path=weights_path if name == 'weighted' else '', **kwargs),
      NUM_EXAMPLES, seed)


def appearances(sampler, rounds=ROUNDS):
  counts = np.zeros(len(NUM_EXAMPLES), int)
  for r in range(rounds):
    counts[sampler(r)] += 1
  return counts


@pytest.mark.parametrize('name', SAMPLERS)
class TestEverySampler:

  def test_a_cohort_holds_distinct_eligible_clients(self, name, weights_path):
    sampler, max_cohort = make(name, weights_path)
    for r in range(200):
      cohort = sampler(r)
      assert cohort.dtype == np.int32
      assert len(set(cohort)) == len(cohort) <= max_cohort
      assert set(cohort) <= set(ELIGIBLE)
      if name in ('uniform', 'weighted'):
        assert len(cohort) == 10

  def test_a_round_has_one_cohort_in_any_order_of_asking(
      self, name, weights_path):
    """What makes a resumed run the uninterrupted one."""
    sampler, _ = make(name, weights_path)
    forwards = [sampler(r) for r in range(30)]
    again, _ = make(name, weights_path)
    for r in reversed(range(30)):
      np.testing.assert_array_equal(again(r), forwards[r])

  def test_rounds_and_seeds_differ(self, name, weights_path):
    cohorts = {
        (seed, r): tuple(sorted(make(name, weights_path, seed=seed)[0](r)))
        for seed in (0, 1) for r in range(3)}
    assert len(set(cohorts.values())) == len(cohorts)

  def test_size_0_means_all(self, name, weights_path):
    sampler, max_cohort = make(name, weights_path, size=0)
    eligible = ELIGIBLE
    if name == 'weighted':
      eligible = [c for c in ELIGIBLE if c % 4]
    for r in range(3):
      np.testing.assert_array_equal(sorted(sampler(r)), eligible)
    assert max_cohort == len(eligible)

  def test_a_cohort_larger_than_the_population_is_refused(
      self, name, weights_path):
    with pytest.raises(ValueError, match='cohort.size=59 .*smaller cohort'):
      make(name, weights_path, size=59)

  def test_a_population_with_nothing_to_train_on_is_refused(
      self, name, weights_path):
    config = CohortConfig(
        size=1, sampler=name, groups=int(name == 'cyclic_poisson'),
        weights_path=weights_path if name == 'weighted' else '')
    with pytest.raises(ValueError, match='num_clients=60 .* check'):
      build_sampler(config, np.zeros(60, int), 0)


@pytest.mark.parametrize('name', ['uniform', 'poisson'])
def test_each_client_comes_equally_often(name):
  """Each client's count is binomial: within 5 standard deviations."""
  sampler, _ = make(name, '')
  share = 10 / len(ELIGIBLE)
  counts = appearances(sampler)[ELIGIBLE]
  limit = 5 * np.sqrt(ROUNDS * share * (1 - share))
  assert np.abs(counts - ROUNDS * share).max() < limit
  assert counts.std() > 0


def test_poisson_cohorts_have_the_binomials_mean_and_variance():
  sampler, _ = make('poisson', '')
  sizes = np.array([len(sampler(r)) for r in range(ROUNDS)])
  n, p = len(ELIGIBLE), 10 / len(ELIGIBLE)
  variance = n * p * (1 - p)
  assert abs(sizes.mean() - 10) < 5 * np.sqrt(variance / ROUNDS)
  # The variance of a sample's variance, for a kurtosis near the normal's.
  assert abs(sizes.var() / variance - 1) < 5 * np.sqrt(2 / ROUNDS)


def test_poisson_members_are_independent():
  """Two clients together: p^2, where a fixed size gives less than that."""
  n, p = len(ELIGIBLE), 10 / len(ELIGIBLE)

  def together(name):
    sampler, _ = make(name, '')
    pairs = 0
    for r in range(ROUNDS):
      size = len(sampler(r))
      pairs += size * (size - 1)
    return pairs / ROUNDS / (n * (n - 1))

  assert abs(together('poisson') / p**2 - 1) < 0.02
  assert together('uniform') / p**2 < 0.93  # 9 / 10 * 51 / 50 = 0.918.


def test_a_cap_cuts_larger_draws_and_no_others():
  free, _ = make('poisson', '')
  capped, max_cohort = make('poisson', '', cap=11)
  assert max_cohort == 11
  free_sizes = np.array([len(free(r)) for r in range(300)])
  sizes = np.array([len(capped(r)) for r in range(300)])
  assert (free_sizes > 11).sum() > 20  # The control: there was what to cut.
  np.testing.assert_array_equal(sizes, np.minimum(free_sizes, 11))
  # The cut does not prefer anyone.
  counts = appearances(capped)[ELIGIBLE]
  share = counts.mean() / ROUNDS
  limit = 5 * np.sqrt(ROUNDS * share * (1 - share))
  assert np.abs(counts - counts.mean()).max() < limit


def test_a_cap_below_the_whole_population_is_refused():
  """A size of 0 asks for everyone, which the config alone cannot tell."""
  with pytest.raises(ValueError, match='cohort.cap=5 .* cohort.size=0'):
    make('poisson', '', size=0, cap=5)


@pytest.mark.parametrize(('eligible', 'size'), [
    (1, 1), (50, 10), (50, 50), (10_000, 1), (10_000, 100), (10**6, 1000)])
def test_the_chosen_cap_is_passed_with_probability_below_1e_9(eligible, size):
  cap = poisson_cap(eligible, size)
  assert size <= cap <= eligible
  tail = scipy.stats.binom.sf(cap, eligible, size / eligible)
  assert tail < 1e-9
  # And it is no waste: within a handful of deviations and a few clients.
  deviation = np.sqrt(size * (1 - size / eligible))
  assert cap <= size + 7 * deviation + 16


def test_shuffled_invites_everyone_once_an_epoch():
  sampler, max_cohort = make('shuffled', '', size=8)
  assert max_cohort == 8
  rounds_per_epoch = -(-len(ELIGIBLE) // 8)
  epochs = []
  for epoch in range(3):
    cohorts = [sampler(epoch * rounds_per_epoch + r)
               for r in range(rounds_per_epoch)]
    assert [len(c) for c in cohorts[:-1]] == [8] * (rounds_per_epoch - 1)
    invited = np.concatenate(cohorts)
    np.testing.assert_array_equal(np.sort(invited), ELIGIBLE)
    epochs.append(tuple(invited))
  assert len(set(epochs)) == 3


def test_cyclic_keeps_its_order_so_that_everybody_waits_a_whole_epoch():
  sampler, max_cohort = make('cyclic', '', size=8)
  assert max_cohort == 8
  rounds_per_epoch = -(-len(ELIGIBLE) // 8)
  last = {}
  for r in range(3 * rounds_per_epoch):
    for client in sampler(r):
      assert r - last.get(client, r - rounds_per_epoch) == rounds_per_epoch
      last[client] = r
  assert sorted(last) == list(ELIGIBLE)

  def shortest_wait(name):
    other, _ = make(name, '', size=8)
    seen, wait = {}, ROUNDS
    for r in range(10 * rounds_per_epoch):
      for client in other(r):
        wait = min(wait, r - seen.get(client, -ROUNDS))
        seen[client] = r
    return wait

  assert shortest_wait('cyclic') == rounds_per_epoch
  assert shortest_wait('shuffled') < rounds_per_epoch  # The control.


def test_cyclic_poisson_draws_by_coins_from_one_group_after_the_other():
  groups = 3
  sampler, max_cohort = make('cyclic_poisson', '', size=5, groups=groups)
  assert max_cohort <= -(-len(ELIGIBLE) // groups)
  counts = np.zeros((groups, len(NUM_EXAMPLES)), int)
  sizes = []
  for r in range(ROUNDS):
    cohort = sampler(r)
    counts[r % groups, cohort] += 1
    sizes.append(len(cohort))
  # A client comes in its own group's rounds alone, and the groups are even.
  assert ((counts > 0).sum(0)[ELIGIBLE] == 1).all()
  assert (counts > 0).sum(1).tolist() == [17] * groups
  share, rounds = 5 / 17, ROUNDS / groups
  limit = 5 * np.sqrt(rounds * share * (1 - share)) + 1
  assert np.abs(counts.sum(0)[ELIGIBLE] - rounds * share).max() < limit
  variance = 17 * share * (1 - share)
  assert abs(np.mean(sizes) - 5) < 5 * np.sqrt(variance / ROUNDS)
  assert abs(np.var(sizes) / variance - 1) < 5 * np.sqrt(2 / ROUNDS)


def test_groups_smaller_than_a_cohort_are_refused():
  with pytest.raises(ValueError, match='cohort.groups=6: a group has only 8'):
    make('cyclic_poisson', '', size=10, groups=6)
  for wrong in ({'sampler': 'poisson', 'groups': 2},
                {'sampler': 'cyclic_poisson'}):
    with pytest.raises(ValueError, match='cohort.groups=.*in turn'):
      CohortConfig(size=10, **wrong)


def test_weighted_draws_follow_the_weights(tmp_path):
  """One at a time: the weights' shares; two: by the law of drawing again."""
  weights = np.array([1.0, 2.0, 3.0, 0.0, 5.0])
  path = tmp_path / 'weights.npy'
  np.save(path, weights)
  counts = np.array([1, 1, 1, 1, 0])  # The heaviest has nothing to train on.
  p = np.array([1, 2, 3]) / 6
  second = np.array([
      p[c] + sum(p[o] * p[c] / (1 - p[o]) for o in range(3) if o != c)
      for c in range(3)])
  for size, expected in ((1, p), (2, second)):
    sampler, max_cohort = build_sampler(
        CohortConfig(size=size, sampler='weighted', weights_path=str(path)),
        counts, 0)
    assert max_cohort == size
    seen = np.zeros(5)
    for r in range(ROUNDS):
      seen[sampler(r)] += 1
    assert not seen[3:].any()
    deviation = np.sqrt(ROUNDS * expected * (1 - expected))
    assert (np.abs(seen[:3] - ROUNDS * expected) < 5 * deviation).all()
    # The control: equal shares would be seen.
    assert (np.abs(seen[:3] - ROUNDS * size / 3) > 5 * deviation).any()


def test_weights_of_zero_leave_the_cohort_short(tmp_path):
  path = tmp_path / 'weights.npy'
  np.save(path, np.array([1.0, 0.0, 1.0]))
  with pytest.raises(ValueError, match='cohort.size=3 .* 2 clients'):
    build_sampler(
        CohortConfig(size=3, sampler='weighted', weights_path=str(path)),
        np.ones(3, int), 0)


@pytest.mark.parametrize(('array', 'message'), [
    (np.ones(2), r'shape \(2,\).* 3 clients'),
    (np.ones((3, 1)), r'shape \(3, 1\)'),
    (np.array([1.0, -1.0, 1.0]), 'negative'),
    (np.array([1.0, np.nan, 1.0]), 'not\nfinite|not finite'),
    (np.array([1.0, np.inf, 1.0]), 'finite'),
])
def test_bad_weights_are_refused(tmp_path, array, message):
  path = str(tmp_path / 'weights.npy')
  np.save(path, array)
  with pytest.raises(ValueError, match=message) as error:
    read_weights(path, 3)
  assert f'cohort.weights_path={path!r}' in str(error.value)


def test_files_that_hold_no_weights_are_refused(tmp_path):
  text = tmp_path / 'weights.csv'
  text.write_text('1,2,3')
  objects = tmp_path / 'objects.npy'
  np.save(objects, np.array([1, 'a', None], object), allow_pickle=True)
  words = tmp_path / 'words.npy'
  np.save(words, np.array(['a', 'b', 'c']))
  archive = tmp_path / 'weights.npz'
  np.savez(archive, np.ones(3))
  empty = tmp_path / 'empty.npy'
  empty.touch()
  for path in (tmp_path / 'absent.npy', tmp_path, text, objects, words, archive,
               empty):
    with pytest.raises(ValueError, match='cohort.weights_path='):
      read_weights(str(path), 3)
