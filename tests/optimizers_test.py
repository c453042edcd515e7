"""The optimizers by name, step by step against the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec.config import OPTIMIZERS, ServerConfig
from fedjaxrec.optimizers import (
    build_item_optimizer,
    build_optimizer,
    make_schedule,
    stands_still,
)
from tests import oracles, plain

# Of all magnitudes against eps, and one parameter that never gets a gradient.
GRADIENTS = [
    {'x': np.array([0.5, -1e-3, 2e-4, 3.0, 0.0])},
    {'x': np.array([-0.2, -2e-3, 0.0, 1.0, 0.0])},
    {'x': np.array([0.125, 4e-3, -1e-4, -2.0, 0.0])},
]


def run(optimizer):
  state = optimizer.init({'x': jnp.zeros(5)})
  steps = []
  for gradient in GRADIENTS:
    step, state = optimizer.update(
        {'x': jnp.asarray(gradient['x'], jnp.float32)}, state)
    steps.append(step['x'])
  return np.array(steps)


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('make_config', [
    lambda name: plain.server(
        optimizer=name, momentum=0.7, b1=0.8, b2=0.95, eps=0.01),
    lambda name: plain.client(optimizer=name, momentum=0.7),
], ids=['server', 'client'])
def test_steps_are_those_of_the_paper(name, make_config):
  config = make_config(name)
  settings = {'momentum': 0.7}
  if isinstance(config, ServerConfig):
    settings.update(b1=0.8, b2=0.95, eps=0.01)
  state = oracles.init_optimizer(GRADIENTS[0])
  expected = []
  for gradient in GRADIENTS:
    step, state = oracles.optimizer_step(
        name, gradient, state, 0.3, **settings)
    expected.append(step['x'])
  # A dozen roundings, relative: nothing cancels here but a moment by a factor
  # of 20 at most.
  np.testing.assert_allclose(
      run(build_optimizer(config, 0.3)), expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_without_a_gradient_nothing_ever_moves(name):
  """What makes touched rows and the whole table the same thing."""
  steps = run(build_optimizer(plain.server(optimizer=name), 1.0))
  np.testing.assert_array_equal(steps[:, -1], 0)
  assert np.abs(steps[0, 0]) > 0


def test_optax_starts_yogi_above_zero_so_it_would_move():
  """The control: why yogi is not taken as Optax has it by default."""
  steps = run(optax.scale_by_yogi(0.9, 0.99, 1e-3))
  assert np.abs(steps[:, -1]).min() > 1e-4


def test_row_wise_adagrad_has_one_number_for_a_row():
  """Two slots of one batch; the second never gets a gradient."""
  optimizer = build_optimizer(plain.client(), 0.3, 'rowwise_adagrad')
  rng = np.random.default_rng(0)
  gradients = [{'item': rng.normal(size=(2, 1, 3)), 'bias': rng.normal(
      size=(2, 1))} for _ in range(3)]
  for gradient in gradients:
    for leaf in gradient.values():
      leaf[1] = 0
  state = optimizer.init(jax.tree.map(jnp.asarray, gradients[0]))
  assert [x.shape for x in jax.tree.leaves(state)] == [(2, 1), (2, 1)]
  sums = {'item': 0.0, 'bias': 0.0}
  for gradient in gradients:
    step, state = optimizer.update(jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32), gradient), state)
    for name, leaf in gradient.items():
      sums[name] += np.mean(leaf[0]**2)
      np.testing.assert_allclose(
          step[name][0], -0.3 * leaf[0] / (np.sqrt(sums[name]) + 1e-3),
          rtol=1e-5)
      np.testing.assert_array_equal(step[name][1], 0)


def test_rows_and_the_rest_may_have_two_optimizers():
  config = plain.client(
      optimizer='adam', item_optimizer='sgd', item_learning_rate=0.5)
  np.testing.assert_allclose(
      run(build_item_optimizer(config))[0], -0.5 * GRADIENTS[0]['x'], rtol=1e-6)
  assert stands_still(config)
  assert not stands_still(plain.client(optimizer='adam'))
  assert stands_still(plain.client(optimizer='adagrad'))


def test_row_wise_steps_refuse_a_pull_on_every_row():
  with pytest.raises(ValueError, match=(
      r'client\.item_optimizer=rowwise_adagrad with client\.proximal_mu=0\.1')):
    plain.client(item_optimizer='rowwise_adagrad', proximal_mu=0.1)
  with pytest.raises(ValueError, match=r'client\.item_optimizer'):
    plain.client(item_optimizer='lamb')


@pytest.mark.parametrize('kind', ['constant', 'cosine', 'exponential'])
@pytest.mark.parametrize('rounds', [1, 2, 5])
def test_schedules_are_those_derived_by_hand(kind, rounds):
  factor = make_schedule(kind, 0.1, rounds)
  for r in range(rounds):
    np.testing.assert_allclose(
        factor(jnp.int32(r)), oracles.schedule(kind, 0.1, r, rounds), rtol=1e-6)


@pytest.mark.parametrize('kind', ['cosine', 'exponential'])
def test_a_schedule_falls_from_1_to_its_end_and_stays_there(kind):
  factors = [float(make_schedule(kind, 0.1, 5)(jnp.int32(r)))
             for r in (0, 1, 2, 3, 4, 9)]
  assert factors[0] == 1
  assert np.all(np.diff(factors[:5]) < 0)
  np.testing.assert_allclose(factors[4:], 0.1, rtol=1e-6)
