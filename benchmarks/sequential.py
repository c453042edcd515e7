"""How far is a federated sequence model from the same one trained centrally?

The same model, negatives, split (leave-one-out by time) and ranking (all items,
training and validation items left out) for both; a pass is every user once: an
epoch of the centralised training, or as many rounds as invite every client once
in turn. Every few passes both are ranked on the validation set; what is
reported of the test set is of the pass with the best NDCG@10 there. The user is
encoded from the training part in both, for validation and test alike. The time
that ranking takes is not counted.

  python benchmarks/sequential.py --path=FILE_OF_ML_1M --passes=40
"""

import time
from collections.abc import Iterator

import harness
from absl import app, flags

from fedjaxrec import config as config_lib
from fedjaxrec.config.references import CentralizedSequenceConfig
from fedjaxrec.data.sources import load_split
from fedjaxrec.data.splits import Split
from fedjaxrec.evaluation import metrics
from fedjaxrec.evaluation.controls import popularity, score_popularity
from fedjaxrec.evaluation.ranking import make_ranker
from fedjaxrec.references.reference import Reference
from fedjaxrec.references.sequential import train_epochs
from fedjaxrec.simulation import make_simulation

_SOURCE = flags.DEFINE_string('source', 'movielens-1m', 'Data set.')
_PATH = flags.DEFINE_string('path', '', 'Its files; empty: fetched.')
_MODEL = flags.DEFINE_enum('model', 'sasrec', ['sasrec', 'gru4rec'], 'Model.')
_WHICH = flags.DEFINE_list(
    'which', ['central', 'federated'], 'Which of the two.')
_DIM = flags.DEFINE_integer('dim', 32, 'Dimension of the vectors.')
_LENGTH = flags.DEFINE_integer('length', 50, 'Items that are read.')
_NEGATIVES = flags.DEFINE_integer('negatives', 4, 'Negatives a place.')
_OBJECTIVE = flags.DEFINE_string('objective', 'bce', 'Loss.')
_COHORT = flags.DEFINE_integer('cohort', 128, 'Clients a round; users a batch.')
_PASSES = flags.DEFINE_integer('passes', 40, 'Passes over all users.')
_EVERY = flags.DEFINE_integer('every', 5, 'Passes between two rankings.')
_RATE = flags.DEFINE_float('rate', 0.01, "Adam's rate, on either side.")
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds.')
_BUDGET_S = flags.DEFINE_float(
    'budget_s', 0.0, 'Seconds of training after which one stops; 0: none.')


def central(split: Split, seed: int) -> Iterator[tuple[int, Reference]]:
  """Yields (passes, the model), trained where all the data lies."""
  config = CentralizedSequenceConfig(
      model=_MODEL.value, dim=_DIM.value, max_length=_LENGTH.value,
      objective=_OBJECTIVE.value, num_negatives=_NEGATIVES.value,
      epochs=_PASSES.value, batch_size=_COHORT.value, learning_rate=_RATE.value)
  for turn, model in enumerate(train_epochs(
      split.train, config, seed=seed, every=_EVERY.value)):
    yield min((turn + 1) * _EVERY.value, _PASSES.value), model


def federated(split: Split, seed: int) -> Iterator[tuple[int, Reference]]:
  """Yields the same of the federation: one local step, Adam on the server."""
  train = split.train
  rounds_a_pass = -(-int((train.counts > 0).sum()) // _COHORT.value)
  config = config_lib.Config(
      seed=seed, rounds=_PASSES.value * rounds_a_pass,
      model=config_lib.ModelConfig(
          name=_MODEL.value, dim=_DIM.value, max_length=_LENGTH.value,
          init_scale=CentralizedSequenceConfig().init_scale),
      algorithm=config_lib.AlgorithmConfig(name='sequential'),
      objective=config_lib.ObjectiveConfig(
          name=_OBJECTIVE.value, num_negatives=_NEGATIVES.value, l2=0.0),
      client=config_lib.ClientConfig(
          learning_rate=1.0, item_learning_rate=1.0, schedule='constant'),
      server=config_lib.ServerConfig(
          optimizer='adam', learning_rate=_RATE.value, b1=0.9,
          b2=CentralizedSequenceConfig().b2, eps=1e-8, schedule='constant'),
      cohort=config_lib.CohortConfig(size=_COHORT.value, sampler='shuffled'),
      engine=config_lib.EngineConfig(rounds_per_call=rounds_a_pass))
  simulation = make_simulation(
      config, train.offsets, train.items, train.ratings, split.num_items)
  state = simulation.init()
  for done in range(_PASSES.value):
    state, _ = simulation.run(state, done * rounds_a_pass, rounds_a_pass)
    if done + 1 == _PASSES.value or (done + 1) % _EVERY.value == 0:
      personal = simulation.refit(
          state.server, simulation.personal_by_client(state))
      yield done + 1, Reference(
          simulation.algorithm.score, personal, state.server.item_table,
          state.server.shared)


def main(_):
  """One row a ranking on validation, and one a method and seed at the end."""
  harness.print_row(machine=harness.describe_machine())
  split = load_split(config_lib.Config(
      data=config_lib.DataConfig(source=_SOURCE.value, path=_PATH.value)))
  rankers = {}

  def ndcg(part, targets, known, score, parameters):
    key = (part, score)
    if key not in rankers:
      rankers[key] = make_ranker(
          score, targets, known, split.num_items, protocol='full',
          batch_size=512, seed=0)
    worth = metrics.per_user_metrics(rankers[key](*parameters), (10,))
    return worth['ndcg@10'].mean(), worth['hit_rate@10'].mean()

  def on_test(model):
    return ndcg('test', split.test, [split.train, split.validation],
                model.score, model.parameters)

  gain, hits = on_test(Reference(
      score_popularity, (), popularity(split.train), ()))
  rows = [harness.print_row(
      method='popularity', test_ndcg=gain, test_hit_rate=hits)]
  for seed in map(int, _SEEDS.value):
    for name in _WHICH.value:
      best, train_s, begin = (-1.0, 0, None), 0.0, time.perf_counter()
      for passes, model in {
          'central': central, 'federated': federated}[name](split, seed):
        train_s += time.perf_counter() - begin
        validation, _ = ndcg('validation', split.validation, [split.train],
                             model.score, model.parameters)
        harness.print_row(
            method=name, seed=seed, passes=passes, validation_ndcg=validation,
            train_s=train_s)
        if validation > best[0]:
          best = (validation, passes, on_test(model))
        if 0 < _BUDGET_S.value < train_s:
          break
        begin = time.perf_counter()
      rows.append(harness.print_row(
          method=name, model=_MODEL.value, seed=seed, best_pass=best[1],
          validation_ndcg=best[0], test_ndcg=best[2][0],
          test_hit_rate=best[2][1], passes=passes, train_s=train_s))
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
