"""The optimizers by name, step by step against the papers' formulas."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec.config import OPTIMIZERS, ServerConfig
from fedjaxrec.optimizers import build_optimizer, make_schedule
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
