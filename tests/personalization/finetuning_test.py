"""Fine-tuning is the oracle's local training, on a copy, for each client."""

import jax
import numpy as np
import pytest

from fedjaxrec.orchestration import experiment
from fedjaxrec.personalization.finetuning import make_finetuning
from fedjaxrec.refit import _STREAM
from fedjaxrec.simulation import make_simulation
from tests import draws, oracles
from tests.small_runs import make_config, random_split

STEPS, FRACTION = 3, 0.5
CHANGES = {
    'cohort.size': 0, 'model.init_scale': 0.5, 'client.batch_size': 4,
    'objective.l2': 0.01,
    'personalization.finetune_steps': STEPS,
    'personalization.finetune_fraction': FRACTION}
CONFIG = make_config(CHANGES)
SPLIT = random_split(6, 40, 7)


def test_every_client_takes_the_steps_on_a_copy_of_its_own():
  train = SPLIT.train
  simulation = make_simulation(
      CONFIG, train.offsets, train.items, train.ratings, train.num_items)
  server, personal = draws.make_start(simulation.algorithm, train.num_users)
  score, tune = make_finetuning(CONFIG, train, simulation)
  own = tune(personal, server.item_table, server.shared)
  population = oracles.Population(
      train.offsets, train.items, train.ratings, train.num_items)
  # The stream stands where a round's index does.
  draw = draws.make_draw(population, simulation.key, 2)
  found = jax.vmap(lambda mine: score(mine, server.item_table, server.shared))(
      own)
  before = jax.vmap(lambda mine: simulation.algorithm.score(
      mine, server.item_table, server.shared))(personal)
  atol = oracles.tolerance(STEPS, 40, gain=8)
  for c in range(train.num_users):
    table, shared, layer = (
        {n: np.float64(x) for n, x in tree.items()} for tree in (
            server.item_table, server.shared,
            {n: x[c] for n, x in personal.items()}))
    sent, layer = oracles.train_client(
        table, shared, layer, *draw(_STREAM, c), l2=0.01,
        learning_rate=FRACTION * CONFIG.client.learning_rate,
        item_learning_rate=FRACTION * CONFIG.client.item_learning_rate,
        batch_size=4, steps=STEPS)
    table = oracles.add(table, sent.table)
    shared = oracles.add(shared, sent.shared)
    expected = [oracles.score(table, shared, layer, i) for i in range(40)]
    np.testing.assert_allclose(found[c], expected, rtol=0, atol=8 * atol)
    assert np.abs(found[c] - before[c]).max() > 0.01


def test_a_run_says_what_it_is_worth_before_and_after(tmp_path, monkeypatch):
  monkeypatch.setattr(experiment, 'load_split', lambda config: SPLIT)
  test = experiment.train(
      make_config(CHANGES), tmp_path / 'run',
      progress=False).summary['test']
  assert test['finetuned'].keys() == test['personalised'].keys()
  assert test['finetuned'] != test['personalised']


@pytest.mark.parametrize(('changes', 'message'), [
    ({'algorithm.name': 'pfedrec'}, 'use 0, or algorithm.name=fedavg'),
    ({'personalization.table_limit_gib': 1e-9}, 'raise that'),
])
def test_what_cannot_be_tuned_is_refused(changes, message):
  config = make_config({
      **CHANGES, 'personalization.table_limit_gib': 1.0, **changes})
  train = SPLIT.train
  simulation = make_simulation(
      make_config({
          'cohort.size': 0, 'algorithm.name': config.algorithm.name}),
      train.offsets, train.items, train.ratings, train.num_items)
  with pytest.raises(ValueError, match=message):
    make_finetuning(config, train, simulation)
