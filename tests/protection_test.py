"""What a config promises of a delta and of the noise, before anything runs."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjaxrec import config
from fedjaxrec.protection import build_protection, noise_key

PRIVATE = config.Config(privacy=config.PrivacyConfig(
    noise_multiplier=1.0, l2_clip_norm=0.5))


def key_of(**sections):
  return np.asarray(jax.random.key_data(noise_key(
      dataclasses.replace(PRIVATE, **sections), 7)))


def test_two_budgets_of_one_seed_draw_different_noise():
  """With the same noise, twice the one minus the other would hold none."""
  keys = [key_of()]
  for changes in (
      {'privacy': dataclasses.replace(PRIVATE.privacy, noise_multiplier=2.0)},
      {'privacy': dataclasses.replace(PRIVATE.privacy, l2_clip_norm=0.25)},
      {'server': dataclasses.replace(PRIVATE.server, learning_rate=0.1)},
      {'cohort': config.CohortConfig(size=7)}, {'rounds': 3}, {'seed': 1},
      {'model': config.ModelConfig(dim=4)}):
    keys.append(key_of(**changes))
  assert len({tuple(key) for key in keys}) == len(keys)


def test_what_does_not_change_a_release_does_not_change_its_noise():
  """A resumed run may have other devices, and must have the same bits."""
  for changes in (
      {'engine': config.EngineConfig(block_size=3)},
      {'parallel': config.ParallelConfig(num_devices=1)},
      {'checkpoint': config.CheckpointConfig(every=1)},
      {'evaluation': config.EvaluationConfig(every=1)}):
    np.testing.assert_array_equal(key_of(**changes), key_of())


def test_a_traced_scalar_has_the_key_of_its_value():
  @jax.jit
  def traced(multiplier):
    from fedjaxrec.study_fields import trace_fields
    return jax.random.key_data(noise_key(trace_fields(
        PRIVATE, {'privacy.noise_multiplier': multiplier}), 7))
  np.testing.assert_array_equal(traced(1.0), key_of())
  assert (np.asarray(traced(2.0)) != key_of()).any()


def test_central_noise_over_rounded_sums_is_refused():
  for changes in ({}, {'privacy': dataclasses.replace(
      PRIVATE.privacy, clipping='adaptive')}):
    with pytest.raises(ValueError, match='rounding to integers lengthens'):
      dataclasses.replace(
          PRIVATE, secure=config.SecureConfig(level='ideal'), **changes)


def test_a_budget_that_is_not_calibrated_builds_no_simulation():
  asked = dataclasses.replace(PRIVATE, privacy=config.PrivacyConfig(
      epsilon=8.0, l2_clip_norm=1.0))
  with pytest.raises(ValueError, match='calibrated before'):
    build_protection(asked, 10.0, 12)
