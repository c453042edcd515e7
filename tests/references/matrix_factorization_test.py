"""Centralised MF: one step by hand, negatives exactly from the complement."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec import config as config_lib
from fedjaxrec.config.references import CentralizedConfig
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.references import matrix_factorization as mf
from tests.references import slow

CONFIG = CentralizedConfig(
    dim=3, num_negatives=2, epochs=2, batch_size=8, learning_rate=0.1, l2=0.05,
    init_scale=0.5)


@hypothesis.given(st.integers(0, 10_000))
def test_the_nth_absent_item_is_the_nth_of_the_complement(seed):
  data = slow.make_interactions(seed)
  pairs = mf.make_pairs(data)
  users, n, expected = [], [], []
  for user, mine in enumerate(slow.histories(data)):
    absent = [i for i in range(data.num_items) if i not in mine]
    users += [user] * len(absent)
    n += range(len(absent))
    expected += absent
  # One shape for all examples.
  padding = data.num_users * data.num_items - len(users)
  found = jax.jit(mf.nth_absent)(
      pairs._replace(
          users=None, ratings=None,
          items=jnp.pad(pairs.items, (0, 80 - len(pairs.items)))),
      jnp.array(users + [0] * padding), jnp.array(n + [0] * padding))
  np.testing.assert_array_equal(found[:len(expected)], expected)


def slow_loss(params, data, batch, negatives, l2):
  """Mean of -log sigma over the slots, plus l2 of what a pair reads."""
  loss, squares, slots = 0.0, 0.0, 0
  for (user, item), others in zip(batch, negatives):
    mine = {k: v[user] for k, v in params.personal.items()}
    squares += sum((leaf ** 2).sum() for leaf in mine.values())
    for place, row in enumerate([item, *others]):
      v, b = params.item_table['item'][row], params.item_table['item_bias'][row]
      s = mine['user'] @ v + b + mine['user_bias'] + params.shared['bias'][0]
      loss += np.log1p(np.exp(s if place else -s))
      squares += (v ** 2).sum() + b ** 2
      slots += 1
  return loss / slots + l2 * squares / len(batch)


def test_an_epoch_steps_adam_down_the_formulas_gradient():
  """Every batch: numerical gradient, Adam by Optax in float64, same draws."""
  data = slow.make_interactions(6, num_users=5, num_items=10, most=5)
  recommender = build_recommender(
      config_lib.ModelConfig(dim=3, init_scale=0.5), data.num_items)
  params, key = mf._initial(recommender, data.num_users, seed=1)
  init, epoch = mf.make_epoch(recommender, CONFIG, data.num_items)
  pairs = mf.make_pairs(data)
  found, _, mean_loss = epoch(params, init(params), pairs, key)

  order_key, draw_key = jax.random.split(key)
  size = data.num_interactions
  order = np.asarray(jax.random.permutation(order_key, size))
  sets = slow.histories(data)
  leaves, treedef = jax.tree.flatten(params)
  leaves = [np.array(x, np.float64, ndmin=1) for x in leaves]
  state = [[np.zeros_like(x), np.zeros_like(x)] for x in leaves]
  losses = []
  for index in range(-(-size // 8)):
    batch = [(int(pairs.users[p]), int(pairs.items[p]))
             for p in order[index * 8:(index + 1) * 8]]
    absent = [[i for i in range(data.num_items) if i not in sets[u]]
              for u, _ in batch]
    counts = [len(a) for a in absent] + [
        data.num_items - len(sets[int(pairs.users[order[-1]])])] * 8
    drawn = np.asarray(jax.random.randint(
        jax.random.fold_in(draw_key, index), (8, 2), 0,
        np.array(counts[:8])[:, None]))
    negatives = [[a[n] for n in row] for a, row in zip(absent, drawn)]

    def loss(params, batch=batch, negatives=negatives):
      return slow_loss(params, data, batch, negatives, CONFIG.l2)

    losses.append(loss(treedef.unflatten(leaves)))
    gradients = []
    for place, leaf in enumerate(leaves):
      gradient = np.zeros_like(leaf)
      for entry in np.ndindex(leaf.shape):
        ends = []
        for sign in (1, -1):
          moved = [x.copy() for x in leaves]
          moved[place][entry] += sign * 1e-5
          ends.append(loss(treedef.unflatten(moved)))
        gradient[entry] = (ends[0] - ends[1]) / 2e-5
      gradients.append(gradient)
    for place, g in enumerate(gradients):
      first, second = state[place]
      first[...] = 0.9 * first + 0.1 * g
      second[...] = 0.999 * second + 0.001 * g ** 2
      steps = index + 1
      leaves[place] = leaves[place] - 0.1 * first / (1 - 0.9 ** steps) / (
          np.sqrt(second / (1 - 0.999 ** steps)) + 1e-8)
  np.testing.assert_allclose(mean_loss, np.mean(losses), rtol=1e-5)
  # Adam divides by the gradient's own size: its relative error is the step's.
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4),
      jax.tree.map(jnp.atleast_1d, found), treedef.unflatten(leaves))


@pytest.mark.parametrize('model', ['mf', 'gmf', 'mlp', 'neumf'])
def test_every_model_of_the_registry_learns(model):
  data = slow.make_interactions(6)
  first, *_, last = mf.train_epochs(
      data, CentralizedConfig(
          model=model, dim=4, epochs=30, learning_rate=0.03, l2=0.0,
          batch_size=16, num_negatives=1))
  sets = slow.histories(data)

  def order(reference):
    """How often an own item stands above another one."""
    scores = jax.vmap(reference.score, (0, None, None))(*reference.parameters)
    return np.mean([
        scores[u, i] > scores[u, j] for u, mine in enumerate(sets)
        for i in mine for j in range(data.num_items - 1) if j not in mine])

  assert order(last) > 0.8 > order(first)


def test_fold_in_moves_held_out_users_and_nothing_else():
  data = slow.make_interactions(4)
  train, fold_in = data.take(data.users != 2), data.take(data.users == 2)
  alone = mf.fit(train, CONFIG)
  fitted = mf.fit(train, CONFIG, fold_in)
  for one, other in zip(
      jax.tree.leaves((alone.item_table, alone.shared)),
      jax.tree.leaves((fitted.item_table, fitted.shared))):
    np.testing.assert_array_equal(one, other)
  moved = np.any(alone.personal['user'] != fitted.personal['user'], axis=1)
  np.testing.assert_array_equal(moved, np.arange(data.num_users) == 2)


def test_yields_are_the_epochs_asked_for():
  data = slow.make_interactions(4)
  each = list(mf.train_epochs(data, CONFIG))
  assert len(each) == 2
  assert len(list(mf.train_epochs(data, CONFIG, every=5))) == 1
  np.testing.assert_array_equal(
      mf.fit(data, CONFIG).personal['user'], each[-1].personal['user'])


def test_a_loss_that_is_not_finite_stops():
  data = slow.make_interactions(4)
  with pytest.raises(FloatingPointError, match='mf.learning_rate=1e'):
    mf.fit(data, CentralizedConfig(
        dim=3, objective='squared_error', epochs=3, batch_size=4,
        learning_rate=1e30))
