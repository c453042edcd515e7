"""What a guarantee cannot be given for, and what it leaves out."""

from fedjaxrec.algorithms.travels import with_the_server
from fedjaxrec.config import Config


def refuse_unsound(config: Config) -> None:
  """Refuses what would let a client pass its bound, or show who was there."""
  privacy, server = config.privacy, config.server
  if not privacy.enabled:
    raise ValueError(
        'privacy.epsilon=0 and privacy.noise_multiplier=0: there is no budget '
        'to plan for; give --privacy.epsilon.')
  if config.cohort.weighting == 'examples':
    raise ValueError(
        "cohort.weighting='examples' with a privacy budget: the weight would "
        "undo the bound on a client's delta, and is private itself; use "
        'cohort.weighting=equal.')
  by_counts = server.row_normalization == 'contributors'
  if by_counts and not privacy.release_counts:
    raise ValueError(
        "server.row_normalization='contributors' with a privacy budget: who "
        'touched a row is private; use server.row_normalization=mean, or '
        'release the counts with noise by --privacy.release_counts=true.')
  if privacy.release_counts and not by_counts:
    raise ValueError(
        'privacy.release_counts=True with server.row_normalization='
        f'{server.row_normalization!r}, which reads no counts: they would be '
        'paid for and not used; use server.row_normalization=contributors.')


def start_uncovered(config: Config) -> list[str]:
  """A line on the run that a private run grows from, if it does."""
  if not config.two_tower.start:
    return []
  return [
      f'Start: what is copied from two_tower.start={config.two_tower.start!r} '
      'was made from data, some perhaps of these clients, and has no part in '
      'this epsilon: without noise where that run had none, otherwise the '
      'epsilons of both runs add up.']


def what_is_uncovered(config: Config, num_clients: int) -> list[str]:
  """What the epsilon of a run says nothing about, in words for the report."""
  privacy, name = config.privacy, config.algorithm.name
  where = with_the_server(name, secure=config.secure.is_on)
  where = (f'{where} (algorithm.name={name}), and the guarantee is not against '
           'the server' if where else 'stay on the device')
  found = [
      'Personal parameters: each depends on its own client without noise. They '
      f'{where}; towards the others the guarantee is joint differential '
      'privacy.',
      'Evaluation: test and validation metrics, metrics.jsonl and the report '
      'are computed from the data without noise.',
      'Statistics of a cohort that are logged (loss, clients that reported, '
      'examples) are released without noise: keep them inside the simulation.',
      'Seeds: the noise is reproducible by whoever knows the seed, and float32 '
      'noise is not the ideal one (Mironov, 2012).',
      'Tuning: other runs on the same data, whose results led to this config, '
      'are not in this ledger.',
      'The number of clients, the catalogue and who can take part (a client '
      'with an interaction) count as public.',
  ]
  if config.evaluation.selection == 'best':
    found.append(
        'Selection: the best round is chosen on validation data without noise; '
        'evaluation.selection=last needs no such choice.')
  if privacy.head_items and privacy.head_source == 'public':
    found.append(
        f'Head items: the choice of the {privacy.head_items:,} trained rows '
        'is declared public.')
  if privacy.deployment_cohort:
    found.append(
        f'Simulation: the {num_clients:,} clients of this run see noise for a '
        f'cohort of {privacy.deployment_cohort:,}; the epsilon is that of the '
        'deployment and not theirs.')
  if config.data.path or config.data.source.startswith(('csv:', 'parquet:')):
    found.append(
        'Filters of the data (minimum numbers of interactions) look at all '
        'clients without noise.')
  return found + start_uncovered(config)
