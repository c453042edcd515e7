"""Where data and tables lie, from the command line down to the checkpoint."""

import json

import numpy as np
import pytest

from fedjaxrec import cli
from fedjaxrec.orchestration import experiment
from tests.small_runs import (
  as_flags,
  assert_same_run,
  make_config,
  read_arrays,
)

SHORT = {'rounds': 4}


def train(workdir, **changes):
  assert cli.main([
      'fedjaxrec', 'train', f'--workdir={workdir}', '--progress=false',
      *as_flags({**SHORT, **changes})]) in (0, None)


def is_mapped(array):
  """Whether it is a view of a file."""
  while isinstance(array, np.ndarray):
    if isinstance(array, np.memmap):
      return True
    array = array.base
  return False


def test_data_on_the_host_are_the_same_run_bit_for_bit(
    tmp_path, monkeypatch):
  monkeypatch.setenv('FEDJAXREC_CACHE', str(tmp_path / 'cache'))
  given = []
  real = experiment.make_simulation

  def make_simulation(config, offsets, items, ratings, *args, **kwargs):
    given.append((items, ratings))
    return real(config, offsets, items, ratings, *args, **kwargs)

  monkeypatch.setattr(experiment, 'make_simulation', make_simulation)
  for place in ('device', 'host'):
    train(tmp_path / place, **{'engine.data': place})
  assert_same_run(tmp_path / 'device', tmp_path / 'host')
  mapped = [is_mapped(x) for pair in given for x in pair]
  assert mapped == [False, False, True, True]


def test_a_table_of_16_bits_is_trained_saved_and_continued(tmp_path):
  half = {'model.table_dtype': 'bfloat16', 'evaluation.local_only': True,
          'evaluation.local_only_rounds': 1}
  train(tmp_path / 'whole', **half)
  train(tmp_path / 'parts', **half, rounds=2)
  experiment.train(
      make_config({**SHORT, **half}), tmp_path / 'parts', resume=True,
      progress=False)
  assert_same_run(tmp_path / 'whole', tmp_path / 'parts')
  types = {str(leaf.dtype) for leaf in read_arrays(tmp_path / 'whole').values()}
  assert 'bfloat16' in types and 'float32' in types
  summary = json.loads((tmp_path / 'whole' / 'summary.json').read_text())
  sent = summary['communication']
  # dim 4 and a bias: 5 numbers a row; one shared number.
  rows = (sent['downlink_bytes_per_client'] - 4) / (5 * 2)
  assert sent['uplink_bytes_per_client'] == pytest.approx(
      rows * (5 * 4 + 4) + 4, rel=1e-6)
  assert sent['dense_uplink_bytes_per_client'] == summary['data'][
      'num_items'] * 5 * 4 + 4
