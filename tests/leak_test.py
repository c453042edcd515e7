"""Invariant 7: test items are no secret help in training, nor in selection.

The published leak: negatives for training that spare a client's held-out items,
so that these are the only unseen items which are never pushed down. Here it is
planted on purpose, and what is said to be sound must be told apart from it.

On data of pure noise, where a user's test item is uniform over what the user
has not seen, nothing that is sound can find it more often than by chance.
"""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec import examples
from fedjaxrec.algorithms import fedavg
from fedjaxrec.data.sources import load_split
from fedjaxrec.orchestration import evaluator, experiment
from fedjaxrec.simulation import make_simulation
from tests.small_runs import (
  chance_bound,
  make_config,
  random_split,
  read_arrays,
  read_lines,
  with_test_items,
)

K = 10
NUM_USERS, NUM_ITEMS, NUM_TRAIN = 300, 130, 12
# What a user is asked for stands among so many that the user has not seen.
NUM_UNSEEN = NUM_ITEMS - NUM_TRAIN - 1
# Rates at which a few rounds teach a client all that it can learn.
FAST = {
    'rounds': 10, 'cohort.size': 0, 'objective.num_negatives': 4,
    'client.learning_rate': 1.0, 'client.item_learning_rate': 20.0,
    'server.optimizer': 'sgd', 'server.learning_rate': 1.0,
    'server.row_normalization': 'contributors', 'evaluation.every': 5,
    'checkpoint.every': 0}


def leaky_draw(split):
  """`draw_examples` as published: negatives spare all of the user's items."""
  held_out = jnp.asarray(np.sort(np.stack(
      [split.validation.items, split.test.items], 1), 1))

  def draw_examples(client, key, num_items, num_negatives):
    sound = examples.draw_examples(client, key, num_items, num_negatives)
    present = jnp.sort(jnp.concatenate(
        [client.items, held_out.at[client.client_id].get(mode='clip')]))
    count, num_present = client.num_examples, client.num_examples + 2
    place = jnp.arange(client.items.shape[0])
    draw = place[:, None] + count * jnp.arange(num_negatives)[None, :]
    absent = examples.permute(key, draw, num_items - num_present, stream=1)
    negatives = jnp.where(
        (place < count)[:, None],
        examples.nth_absent(present, num_present, absent), num_items)
    rows = jnp.concatenate([sound.rows[:, :1], negatives], 1)
    return examples.Examples(rows, sound.labels, rows < num_items)

  return draw_examples


def assert_sound(metrics):
  """Raises where a recommender finds more in noise than chance allows."""
  users = metrics['num_users']
  hits = round(metrics[f'hit_rate@{K}'] * users)
  bound = chance_bound(users * K / NUM_UNSEEN)
  assert hits <= bound, (
      f'{hits} of {users} users found their test item in the first {K}, where '
      f'chance gives {users * K / NUM_UNSEEN:.0f} and at most {bound:.0f}')


class TestNoise:

  @pytest.fixture
  def split(self, monkeypatch):
    split = random_split(NUM_USERS, NUM_ITEMS, NUM_TRAIN)
    monkeypatch.setattr(experiment, 'load_split', lambda config: split)
    return split

  def train(self, workdir):
    return experiment.train(
        make_config({**FAST, 'evaluation.local_only': True}), workdir,
        progress=False).summary

  def test_nobody_finds_what_cannot_be_known(self, split, tmp_path):
    summary = self.train(tmp_path / 'run')
    for metrics in (*summary['controls'].values(),
                    summary['test']['personalised'],
                    summary['test']['aggregated']):
      assert metrics['num_users'] == NUM_USERS
      assert_sound(metrics)

  def test_a_planted_leak_is_caught_by_the_control(
      self, split, tmp_path, monkeypatch):
    """Without any federation a client seems to know its future."""
    monkeypatch.setattr(fedavg, 'draw_examples', leaky_draw(split))
    summary = self.train(tmp_path / 'run')
    local_only = summary['controls']['local_only']
    # A client's own test item is the one that was never pushed down.
    assert local_only[f'hit_rate@{K}'] > 0.9
    with pytest.raises(AssertionError, match='found their test item'):
      assert_sound(local_only)
    # What learns nothing from negatives is not deceived by them.
    assert_sound(summary['controls']['popularity'])

  def test_a_test_item_that_was_trained_on_is_refused(self, split, tmp_path):
    """The coarsest leak, before anything runs."""
    items = split.test.items.copy()
    items[7] = split.train.items[7 * NUM_TRAIN]
    object.__setattr__(split, 'test', with_test_items(split, items).test)
    with pytest.raises(ValueError, match='user=7, item=.*which is a leak'):
      self.train(tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


class TestSelection:

  def other_test_items(self, split):
    """For each user who is asked, another item that the user has not seen."""
    rng = np.random.default_rng(5)
    items = np.full(split.num_users, -1)
    for u in np.flatnonzero(split.test.counts):
      seen = np.concatenate([
          part.items[part.offsets[u]:part.offsets[u + 1]]
          for part in (split.train, split.validation, split.test)])
      items[u] = rng.choice(np.setdiff1d(np.arange(split.num_items), seen))
    return with_test_items(split, items)

  def test_no_test_item_reaches_the_parameters_or_the_choice_of_the_round(
      self, tmp_path, monkeypatch):
    config = make_config()
    split = load_split(config)
    other = self.other_test_items(split)
    assert not (other.test.items == split.test.items).any()
    summaries = []
    for name, data in (('as it is', split), ('other', other)):
      monkeypatch.setattr(experiment, 'load_split', lambda config, d=data: d)
      summaries.append(experiment.train(
          config, tmp_path / name, progress=False).summary)
    folders = tmp_path / 'as it is', tmp_path / 'other'
    arrays, others = map(read_arrays, folders)
    for name, leaf in arrays.items():
      np.testing.assert_array_equal(leaf, others[name], strict=True)
    # Losses, and every metric of every look at the validation set.
    assert read_lines(folders[0]) == read_lines(folders[1])
    assert sum('validation' in line for line in read_lines(folders[0])) == 3
    assert summaries[0]['selected_round'] == summaries[1]['selected_round']
    assert summaries[0]['communication'] == summaries[1]['communication']
    # Positive control: the test was of other items.
    assert summaries[0]['test'] != summaries[1]['test']
    assert summaries[0]['controls'] != summaries[1]['controls']

  @pytest.mark.parametrize('protocol', ['full', 'sampled-99'])
  def test_validation_ranks_against_test_items_as_against_any_other(
      self, protocol):
    """Its negatives are drawn without a look at the test set."""
    split = random_split(40, NUM_ITEMS, NUM_TRAIN)
    config = make_config({'evaluation.protocol': protocol})
    rng = np.random.default_rng(0)
    parameters = (rng.normal(size=(40, 3)).astype(np.float32),
                  rng.normal(size=(NUM_ITEMS, 3)).astype(np.float32), ())
    simulation = types.SimpleNamespace(
        side=None, algorithm=types.SimpleNamespace(
            score=lambda own, rows, shared: rows @ own, aggregated_score=None,
            not_alone='', numbered=False))
    first, second = (
        evaluator.make_evaluator(config, data, simulation)
        for data in (split, self.other_test_items(split)))
    assert first.validate(*parameters) == second.validate(*parameters)
    assert first.test(*parameters)['test'] != second.test(*parameters)['test']


def test_permuted_test_items_are_found_by_chance(tmp_path, monkeypatch):
  """A model that knows each user's taste knows nothing of another's item.

  Four tastes, 100 users and 25 items each. Hits under a random permutation:
  P(|X - E| >= t) <= 2 exp(-t^2 / (4 E + 2 t)) (Chatterjee, 2007, Stein's method
  for concentration inequalities, Proposition 1.1).
  """
  users, items = 400, 100
  split = random_split(users, items, NUM_TRAIN, num_blocks=4)
  monkeypatch.setattr(experiment, 'load_split', lambda config: split)
  config = make_config({**FAST, 'rounds': 40, 'evaluation.every': 0})
  true = experiment.train(config, tmp_path / 'run', progress=False).summary
  # Who is handed an item that they have seen is not asked.
  permuted = np.random.default_rng(0).permutation(split.test.items)
  for u in range(users):
    seen = {*split.train.items[NUM_TRAIN * u:NUM_TRAIN * (u + 1)],
            split.validation.items[u]}
    if permuted[u] in seen:
      permuted[u] = -1
  monkeypatch.setattr(
      experiment, 'load_split', lambda config: with_test_items(split, permuted))
  # That is another split than the checkpoint's, which is refused elsewhere.
  identity = split.split_fingerprint()
  monkeypatch.setattr(
      type(split), 'split_fingerprint', lambda self: identity)
  control = experiment.evaluate(
      tmp_path / 'run', config.evaluation)['test']['personalised']
  asked = int((permuted >= 0).sum())
  assert control['num_users'] == asked > 300
  hits = round(control[f'hit_rate@{K}'] * asked)
  expected = asked * K / (items - NUM_TRAIN - 1)
  c = math.log(2e9)
  bound = expected + c + math.sqrt(c**2 + 4 * c * expected)
  assert hits <= bound
  # Positive control: of their own items most are found. With 12 items of their
  # taste left, a perfect model finds 10 / 12.
  own = true['test']['personalised']
  assert own['num_users'] * own[f'hit_rate@{K}'] > bound
  assert own[f'hit_rate@{K}'] > 0.6


class TestPool:
  """Held-out items are drawn as negatives, as often as any other item."""

  ROUNDS = 100
  CONFIG = make_config({
      'cohort.size': 0, 'rounds': 100, 'engine.rounds_per_call': 100})

  def count_draws(self, tmp_path):
    """Runs the pipeline's own simulation; int [num_users, num_items]."""
    class Caught(Exception):
      """The pipeline has said what it simulates."""

    def catch(*args, **kwargs):
      raise Caught(args, kwargs)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(experiment, 'make_simulation', catch)
      with pytest.raises(Caught) as caught:
        experiment.train(self.CONFIG, tmp_path / 'run', progress=False)
    args, kwargs = caught.value.args
    change = kwargs.pop('transform_algorithm')

    def with_counts(algorithm):
      algorithm = change(algorithm)

      def init_personal(key):
        return algorithm.init_personal(key), jnp.zeros(args[-1], jnp.int32)

      def client_update(view, drawn, num_examples):
        personal, counts = view.personal
        contribution, personal = algorithm.client_update(
            view._replace(personal=personal), drawn, num_examples)
        return contribution, (personal, jax.vmap(
            lambda c, rows: c.at[rows.reshape(-1)].add(1, mode='drop'))(
                counts, drawn.rows))
      return algorithm._replace(
          init_personal=init_personal, client_update=client_update)

    simulation = make_simulation(
        *args, **kwargs, transform_algorithm=with_counts)
    state, _ = simulation.run(simulation.init(), 0, self.ROUNDS)
    return simulation.personal_by_client(state)[1]

  def assert_pool_is_sound(self, counts, split):
    """Raises where held-out items are drawn less, or more, than others."""
    num_train = split.train.counts
    num_absent = split.num_items - num_train
    # In a round, an item is drawn with this probability.
    share = np.minimum(2 * num_train, num_absent) / num_absent
    for part in (split.validation, split.test):
      draws = counts[part.users, part.items].sum()
      mean = self.ROUNDS * share[part.users]
      variance = (mean * (1 - share[part.users])).sum()
      # Bernstein's inequality, to either side: 2e-9 in all.
      c = math.log(1e9)
      margin = c / 3 + math.sqrt(c**2 / 9 + 2 * c * variance)
      assert margin < mean.sum() / 2
      assert abs(draws - mean.sum()) <= margin, (draws, mean.sum(), margin)

  def test_held_out_items_stay_among_the_negatives(self, tmp_path):
    split = load_split(self.CONFIG)
    counts = self.count_draws(tmp_path)
    num_train = split.train.counts
    assert counts.shape == (split.num_users, split.num_items)
    # A training item is a positive once a round, and never a negative.
    assert (counts[split.train.users, split.train.items] == self.ROUNDS).all()
    np.testing.assert_array_equal(counts.sum(1), self.ROUNDS * (
        num_train + np.minimum(2 * num_train, split.num_items - num_train)))
    self.assert_pool_is_sound(counts, split)

  def test_a_pool_without_them_is_noticed(self, tmp_path, monkeypatch):
    """Everybody has a validation and a test item here, as the leak needs."""
    split = random_split(40, 60, 8)
    monkeypatch.setattr(experiment, 'load_split', lambda config: split)
    monkeypatch.setattr(fedavg, 'draw_examples', leaky_draw(split))
    counts = self.count_draws(tmp_path)
    assert (counts[split.test.users, split.test.items] == 0).all()
    with pytest.raises(AssertionError):
      self.assert_pool_is_sound(counts, split)
