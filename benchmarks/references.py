"""What do the references outside the federation reach, and in what time?

Each is fitted on the training part of a split and ranked twice, fully and among
99 negatives, by the same harness as a federated run. With --budget above 1 the
configuration is chosen by NDCG@10 of the full ranking of validation, among so
many drawn from `fedjaxrec.references.tuning.SEARCH_SPACES`; otherwise it is the
one that such a search has found for the data set. The NCF files have no
validation part: for choosing, the last training row of each user is taken, and
the choice is fitted on the whole.

  python benchmarks/references.py --path=FOLDER_OF_ML_100K
  python benchmarks/references.py --source=ncf --split=published --path=FOLDER
"""

import dataclasses
import time

import harness
import jax
from absl import app, flags

from fedjaxrec import config as config_lib
from fedjaxrec.data.sources import load_split
from fedjaxrec.evaluation import groups, metrics
from fedjaxrec.evaluation.ranking import make_ranker
from fedjaxrec.references import tuning
from fedjaxrec.references.registry import CONFIGS, fit_reference

_SOURCE = flags.DEFINE_string('source', 'movielens-100k', 'Data set.')
_PATH = flags.DEFINE_string('path', '', 'Its files; empty: fetched.')
_SPLIT = flags.DEFINE_string('split', 'leave_one_out', 'How it is split.')
# Not every source has the times of sequences, which have their own file.
_NAMES = flags.DEFINE_list(
    'names', [name for name in CONFIGS if name != 'sequential'], 'References.')
_BUDGET = flags.DEFINE_integer('budget', 1, 'Configurations tried for each.')
_SEEDS = flags.DEFINE_integer('seeds', 1, 'Fits of each, from seed 0 on.')


def choose(name, split):
  """The configuration that is fitted, and what it had on validation."""
  stored = tuning.tuned_config(name, _SOURCE.value)
  if _BUDGET.value == 1:
    return stored, None
  if not split.validation.num_interactions:
    split = tuning.carve_validation(split)
  trials = []
  for trial in tuning.try_configs(
      name, split, tuning.sample_configs(name, _BUDGET.value)):
    harness.print_row(trial=name, ndcg=trial.ndcg, hit_rate=trial.hit_rate,
                      config=dataclasses.asdict(trial.config))
    trials.append(trial)
  best = tuning.best(trials)
  return best.config, best.ndcg


def main(_):
  """One row a reference, protocol and seed."""
  harness.print_row(machine=harness.describe_machine())
  split = load_split(config_lib.Config(
      data=config_lib.DataConfig(source=_SOURCE.value, path=_PATH.value),
      split=config_lib.SplitConfig(name=_SPLIT.value)))
  known = [split.train, split.validation, split.fold_in]
  activity = split.train.counts + split.fold_in.counts
  rows = []
  for name in _NAMES.value:
    config, validation = choose(name, split)
    for seed in range(_SEEDS.value):
      begin = time.perf_counter()
      fitted = fit_reference(name, split.train, config, split.fold_in, seed)
      jax.block_until_ready(fitted.parameters)
      fit_s = time.perf_counter() - begin
      for protocol in ('full', 'sampled-99'):
        ranks = make_ranker(
            fitted.score, split.test, known, split.num_items,
            protocol=protocol, batch_size=512, seed=seed,
            negatives=split.negatives, top_k=10,
            candidates=split.test_candidates)(*fitted.parameters)
        per_user = metrics.per_user_metrics(ranks, (10,))
        rows.append(harness.print_row(
            dataset=_SOURCE.value, protocol=protocol, method=name, seed=seed,
            hit_rate=per_user['hit_rate@10'].mean(),
            ndcg=per_user['ndcg@10'].mean(),
            **{key.removesuffix('@10'): value for key, value in (
                groups.worst_group(ranks, activity, (10,))
                | metrics.catalogue_metrics(
                    ranks.top, (10,), split.num_items)).items()},
            fit_s=fit_s, validation_ndcg=validation))
    harness.print_row(config=name, **dataclasses.asdict(config))
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
