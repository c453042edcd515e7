"""A benchmark of users and items that nobody trained on, end to end."""

import json

import numpy as np
import pytest

from fedjaxrec.orchestration import experiment
from tests.orchestration import benchmark_test
from tests.orchestration.benchmark_test import METHODS, run, value
from tests.small_runs import make_config

# The presets and the CSV file of the other tests.
folder = benchmark_test.folder
USERS = {'split.name': 'user_holdout', 'split.test_fraction': 0.2,
         'split.fold_in_fraction': 0.999}


def test_users_who_never_trained_are_asked_by_every_method(folder):
  """And EASE's rows are those of what they show, as counted by hand."""
  workdir = folder / 'cold_users'
  assert run(folder, workdir, '--benchmark.seeds=0',
             '--benchmark.protocols=full',
             *(f'--{name}={value}' for name, value in USERS.items())) == 0
  assert METHODS.keys() == {
      path.parent.parent.name
      for path in workdir.glob('runs/*/*/0/summary.json')}
  split = experiment.load_data(make_config({
      'data.source': f'csv:{folder}/mine.csv', 'data.user_column': 'who',
      'data.item_column': 'what', 'data.timestamp_column': 'when',
      'data.rating_column': '', **USERS}))
  train = np.zeros((split.num_users, split.num_items))
  train[split.train.users, split.train.items] = 1
  shown = np.zeros_like(train)
  shown[split.fold_in.users, split.fold_in.items] = 1
  inverse = np.linalg.inv(train.T @ train + 20 * np.eye(split.num_items))
  weights = -inverse / np.diag(inverse)
  np.fill_diagonal(weights, 0)
  scores = np.where(shown > 0, -np.inf, shown @ weights)
  gains = []
  for user, item in zip(split.test.users, split.test.items):
    # Ties stand before the item; scores are of order 0.1.
    rank = int(np.sum(scores[user] >= scores[user, item] - 1e-6)) - 1
    gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
  assert len(gains) == 6 and max(gains) > 0
  assert value(workdir, 'full', 'ease', 'personalised', '0', 'ndcg@10') == (
      pytest.approx(np.mean(gains), abs=1e-6))


def test_who_reads_no_features_is_refused_cold_items_and_recorded(folder):
  workdir = folder / 'cold_items'
  assert run(folder, workdir, '--benchmark.seeds=0',
             '--split.name=item_holdout', '--benchmark.protocols=full') == 0
  for name in ('ease', 'small'):
    path, = workdir.glob(f'runs/*/{name}/0/failed.json')
    found = json.loads(path.read_text())
    assert found['status'] == 'refused'
    assert f'method {name}' in found['message']
    assert 'use two_tower' in found['message']
  assert list(workdir.glob('runs/*/popularity/0/summary.json'))
