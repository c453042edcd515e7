"""Every algorithm sums securely, at every level, or is refused by its name.

The compiled halves of a round are the same at all levels that sum on the host,
so each algorithm compiles once, and its messages go through all the levels.
"""

import jax
import numpy as np
import pytest

from fedjaxrec.algorithms.registry import ALGORITHMS
from fedjaxrec.hosted_rounds import HostSum
from fedjaxrec.orchestration import secure
from fedjaxrec.simulation import make_simulation
from tests.small_runs import make_config, make_interactions

NUM_ITEMS = 24
TRAIN = make_interactions(
    [list(range(i % 5, NUM_ITEMS, 5)) for i in range(12)], NUM_ITEMS)
SMALL = {'rounds': 1, 'cohort.size': 6, 'model.dim': 2,
         'secure.l2_clip_norm': 2.0, 'secure.bits': 16}
LEVELS = ('masked', 'protocol', 'shares')
# What an algorithm asks of a run before anything secure is looked at.
NEEDS = {
    'fedease': {'cohort.size': 0, 'model.name': 'mf'},
    'sequential': {'model.name': 'sasrec'},
    'metamf': {'model.name': 'metamf'},
}
# What they send is no delta, or their server looks at each client.
REFUSED = {'ials', 'dpals', 'fcf', 'fedease', 'gpfedrec', 'cofedrec', 'metamf'}
# They compile for long, and their uploads are made like those of reptile.
COSTLY = {'fomaml', 'perfedavg'}


def make(name, level, **changes):
  config = make_config({**SMALL, 'algorithm.name': name, 'secure.level': level,
                        **NEEDS.get(name, {}), **changes})
  return config, secure.prepare(config, TRAIN, NUM_ITEMS)


def play(run, sum_on_host):
  """The model before and after a round, and who was counted."""
  simulation = make_simulation(
      run.config, TRAIN.offsets, TRAIN.items, TRAIN.ratings, NUM_ITEMS,
      sum_on_host=sum_on_host)
  state = simulation.init()
  before = [np.array(x) for x in jax.tree.leaves(
      (state.server.item_table, state.server.shared))]
  state, metrics = simulation.run(state, 0, 1)
  return before, [np.array(x) for x in jax.tree.leaves(
      (state.server.item_table, state.server.shared))], int(
          metrics.reported[0])


def all_levels(name, levels):
  """A sum on the host that every level must take alike."""
  sums = [make(name, level)[1].sums for level in levels]

  def call(messages, round_index):
    plain = sum(messages.values()) & np.uint32(2**16 - 1)
    found = [one(dict(messages), round_index) for one in sums]
    for level, one in zip(levels, found, strict=True):
      np.testing.assert_array_equal(one.total, plain, err_msg=level)
      assert sorted(one.counted) == sorted(messages), level
    return HostSum(plain, len(messages), tuple(messages))
  return call


@pytest.mark.parametrize('name', sorted(set(ALGORITHMS) - REFUSED - COSTLY))
def test_an_algorithm_sums_alike_at_every_level(name):
  _, run = make(name, 'masked')
  before, after, reported = play(run, all_levels(name, LEVELS))
  assert reported == 6
  assert max(np.abs(a - b).max() for a, b in zip(before, after) if a.size) > 0
  assert all(np.isfinite(x).all() for x in after)


@pytest.mark.parametrize('level', ['ideal', 'masked', 'he'])
@pytest.mark.parametrize('name', sorted(REFUSED & set(ALGORITHMS)))
def test_who_sends_no_deltas_or_is_looked_at_is_refused_by_name(name, level):
  def attempt():
    _, run = make(name, level)
    play(run, run.sums)

  with pytest.raises(ValueError, match=name) as refusal:
    attempt()
  assert any(word in str(refusal.value) for word in ('secure', 'level'))


def test_fedmf_through_the_ring_is_fedmf_up_to_rounding():
  """And under masks and encrypted: FedMF sends gradients like deltas."""
  ring, plain = (
      play(make('fedmf', 'ideal', **{'secure.bits': 32})[1], None),
      play(secure.SecureRun(make_config({
          **SMALL, 'algorithm.name': 'fedmf',
          'privacy.l2_clip_norm': 2.0, 'secure.l2_clip_norm': 0.0}),
          None, None, None), None))
  # 2^31 / 6 clients: a step of 2 / 2^28; Adam's root of eps makes of a step
  # near zero at most 1 / eps = 1e3 times as much, times the rate of 0.05.
  for a, b in zip(ring[1], plain[1], strict=True):
    np.testing.assert_allclose(a, b, atol=0.05 * 1e3 * 6 * 2 / 2**28 + 1e-5)
  levels = ('masked',)
  try:
    make('fedmf', 'he')
    levels += ('he',)
  except ValueError:  # Without the extra.
    pass
  _, run = make('fedmf', 'masked')
  before, after, reported = play(run, all_levels('fedmf', levels))
  assert reported == 6 and np.isfinite(after[0]).all()
  assert np.abs(after[0] - before[0]).max() > 0


@pytest.mark.parametrize('level', ['ideal', 'masked', 'he'])
@pytest.mark.parametrize(('field', 'value'), [
    ('sparsify', 'top_k'), ('sparsify', 'random_k'), ('quantize', 'qsgd'),
    ('sketch', 'low_rank')])
def test_compression_that_would_save_nothing_is_refused(level, field, value):
  """A ring's message has all its numbers, whatever was left out of it."""
  with pytest.raises(ValueError, match=(
      f'compression.{field}={value}.*secure.level={level}.*secure.bits')):
    make_config({**SMALL, 'secure.level': level, f'compression.{field}': value})
  make_config({**SMALL, 'secure.level': 'none', 'secure.l2_clip_norm': 0.0,
               f'compression.{field}': value})
