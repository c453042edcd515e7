"""What a run's privacy ledger says, recomputed and in words."""

import math
import os
from typing import Any

import rich.box
import rich.console
import rich.table

from fedjaxrec.privacy import accounting, distributed_plan, ledger, local

_RELATIONS = {
    'add_or_remove_one': 'populations that differ by one client who takes part '
                         'or does not',
    'replace_special': "populations in which one client's data is there or is "
                       'empty; the number of clients is public',
    'replace_one': "populations in which one client's data is replaced by any "
                   'other; the number of clients is public',
}


def explain(
    workdir: str | os.PathLike[str], expected_head: str = ''
) -> dict[str, Any]:
  """Recomputes a run's epsilon from its ledger alone, and explains it.

  Args:
    workdir: The run directory; only its ledger is read.
    expected_head: A head of the ledger that was kept elsewhere.

  Returns:
    A dict of JSON types; `render` makes a text of it.

  Raises:
    FileNotFoundError: If the run has no ledger.
    LedgerError: If the ledger was edited or is damaged.
  """
  book = ledger.read(workdir, expected_head)
  header = book.header
  spent = book.recompute(accounting.FINE)
  other = 'rdp' if header.accountant == 'pld' else 'pld'
  result = {
      'unit': header.unit, 'neighboring': header.neighboring,
      'epsilon': spent.epsilon, 'delta': header.delta,
      'budget_epsilon': header.budget_epsilon,
      'within_budget': spent.epsilon <= header.budget_epsilon * (1 + 1e-9),
      'accountant': accounting.accountant_name(
          header.accountant, accounting.FINE),
      'recorded_accountant': header.accountant_version,
      'cross_check': {
          'accountant': accounting.accountant_name(other, accounting.FINE),
          'epsilon': (spent.cross_epsilon
                      if math.isfinite(spent.cross_epsilon) else None)},
      'rounds': spent.rounds, 'planned_rounds': header.planned_rounds,
      'population': header.population, 'sampling': header.sampling,
      'noise_multiplier': header.noise_multiplier,
      'l2_clip_norm': header.l2_clip_norm,
      'row_clip_norm': header.row_clip_norm or None,
      'deployment_cohort': header.deployment_cohort or None,
      'releases': [
          {'label': release.label, 'count': release.times,
           'event': accounting.event_to_json(release.event),
           'delta_spent_on_cap': release.times * release.tail_probability}
          for release in spent.releases],
      'ledger': {'entries': len(book.entries), 'head': book.head},
      'covers': [
          'Every upload of the user who sends most of them, and everything '
          'computed from it, for an adversary who sees each upload, as the '
          'server does.' if header.unit == local.UNIT else
          'The shared model after every one of these rounds, and everything '
          'computed from it, for an adversary who knows all clients but one.',
          *(_covered(release.label) for release in spent.releases
            if release.label not in ('rounds', local.UPLOADS))],
      'does_not_cover': list(header.uncovered),
  }
  return {**result, 'meaning': _meaning(result)}


def _covered(label: str) -> str:
  if label == distributed_plan.LABEL:
    return ('The sums themselves, as the server of the secure sum sees them: '
            'the clients add the noise, and a client pays for each sum that it '
            'is in.')
  return f'The released {label}.'


def _meaning(result) -> str:
  """What an attacker who guesses whether a client took part can reach."""
  rate = 0.01
  bound = min(1.0, rate * math.exp(min(result['epsilon'], 700.0))
              + result['delta'])
  # The same guarantee from the other side; for a large epsilon it is the one
  # that still says something.
  bound = min(bound, 1 - math.exp(-min(result['epsilon'], 700.0))
              * (1 - rate - result['delta']))
  if bound > 0.9995:
    reach = 'more than 99.9 %'
  else:
    reach = f'at most {bound:.1%}'
  return (f'An attack that tells two neighbouring populations apart and is '
          f'wrong about the one in {rate:.0%} of the cases is right about the '
          f'other in {reach} of them.')


def render(result: dict[str, Any]) -> rich.console.Group:
  """The explanation as text for a terminal."""
  facts = rich.table.Table(box=None, show_header=False, pad_edge=False)
  facts.add_column(style='bold', no_wrap=True)
  facts.add_column(overflow='fold')
  cross = result['cross_check']
  for name, value in (
      ('spent', f'epsilon = {result["epsilon"]:.4g} at delta = '
                f'{result["delta"]:.3g}'),
      ('budget', f'{result["budget_epsilon"]:.4g}, '
       + ('kept' if result['within_budget'] else 'PASSED')),
      ('unit', result['unit']),
      ('neighbours', f'{result["neighboring"]}: '
                     f'{_RELATIONS[result["neighboring"]]}'),
      ('accountant', result['accountant']),
      ('cross-check', f'{cross["accountant"]}: '
       + ('cannot take these events' if cross['epsilon'] is None
          else f'epsilon = {cross["epsilon"]:.4g}')),
      ('rounds', f'{result["rounds"]:,} of {result["planned_rounds"]:,} '
                 'planned'),
      ('sampling', result['sampling']),
      ('noise', f'multiplier {result["noise_multiplier"]:.4g}, clip norm '
                f'{result["l2_clip_norm"]:.4g}, on '
       + ('each upload' if result['unit'] == local.UNIT else 'the sum')),
      ('ledger', f'{result["ledger"]["entries"]} charges, unbroken chain, head '
                 f'{result["ledger"]["head"][:16]}'),
  ):
    facts.add_row(name, value)
  if result['row_clip_norm']:
    facts.add_row(
        'rows', f'each item row was clipped to {result["row_clip_norm"]:.4g} '
        'before the whole was; epsilon rests on the clip norm of the whole '
        'alone')
  if result['deployment_cohort']:
    facts.add_row(
        'deployment', f'a simulated cohort of {result["deployment_cohort"]:,} '
        f'out of {result["population"]:,} clients: the epsilon is theirs, not '
        'that of the clients of this run')
  releases = rich.table.Table('release', 'times', 'event',
                              box=rich.box.SIMPLE_HEAD, pad_edge=False)
  for release in result['releases']:
    releases.add_row(release['label'], f'{release["count"]:,}',
                     _event_text(release['event']))

  def listing(title, lines):
    table = rich.table.Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow='fold')
    for line in lines:
      table.add_row('-', line)
    return rich.console.Group(f'[bold]{title}[/bold]', table, '')
  return rich.console.Group(
      facts, releases, result['meaning'], '',
      listing('It covers', result['covers']),
      listing('It does not cover', result['does_not_cover']))


def _event_text(event: dict[str, Any]) -> str:
  name = event['class_name'].removesuffix('DpEvent')
  parts = [
      f'{key}={_event_text(value)}' if isinstance(value, dict)
      else f'{key}={value:.6g}' if isinstance(value, float)
      else f'{key}={value}'
      for key, value in event.items()
      if key not in ('class_name', 'module_name')]
  return f'{name}({", ".join(parts)})'
