"""What a run's privacy section says, in words for a terminal and a page.

Wherever an epsilon is shown, its unit, its neighbours and, for a simulated
deployment, whose it is, stand beside it.
"""

import math
from collections.abc import Mapping
from typing import Any


def facts(privacy: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns (name, words) of a summary's section `privacy`, the epsilon first.

  Args:
    privacy: The section, of central privacy, of local privacy or of both.
  """
  said = []
  if privacy.get('epsilon') is not None:
    said += _central(privacy)
  local = privacy.get('local')
  if local:
    said.append(('Local privacy', f'{local["guarantee"]}.'))
    if privacy.get('epsilon') is None:
      said += _charged(privacy)
  said += [('Warning', warning) for warning in privacy.get('warnings', ())]
  return said


def _short(value):
  """At most four digits, rounded up: less would promise more privacy."""
  if not isinstance(value, float) or len(repr(value)) <= 8:
    return value
  digits = 3 - math.floor(math.log10(value))
  return f'{math.ceil(value * 10.0**digits) / 10.0**digits:.4g}'


def _central(privacy):
  """Only what is there: an older summary says less."""
  get = privacy.get
  guarantee = get('guarantee') or (
      f'epsilon = {_short(get("epsilon"))} at delta = '
      f'{_short(get("delta"))}, unit '
      f'{get("unit")}, neighbouring relation {get("neighboring")}')
  said = [('Guarantee', f'{guarantee}.')]
  if get('deployment_cohort'):
    said.append((
        'Deployment', 'the epsilon is that of a simulated deployment with '
        f'cohorts of {get("deployment_cohort"):,}; the clients of this '
        f'simulation see only {get("noise_scale", 1):.3g} of the noise that '
        'theirs would take'))
  noise = f'{get("mechanism", "Gaussian")} noise on the sum of the deltas'
  for word, key in (('multiplier', 'noise_multiplier'),
                    ('clip norm', 'l2_clip_norm')):
    if get(key) is not None:
      noise += f', {word} {get(key):.4g}'
  if get('min_survivors'):
    noise += (f', added by the clients in shares of which '
              f'{get("min_survivors"):,} make it up')
  if get('head_items'):
    noise += (f'; on the {get("head_items"):,} head rows alone, chosen from '
              f'{get("head_source")} popularity')
  said.append(('Noise', noise))
  if get('row_clip_norm'):
    said.append((
        'Rows', f'each item row is clipped to {get("row_clip_norm"):.4g} '
        'before the whole delta is; the epsilon rests on the clip norm of the '
        'whole alone'))
  if get('sampling'):
    said.append(('Sampling', get('sampling')))
  cross = get('cross_check') or {}
  said.append(('Accountant', str(get('accountant')) + (
      f'; cross-check by {cross["accountant"]}: {cross["epsilon"]:.4g}'
      if cross.get('epsilon') else '')))
  return said + _charged(privacy)


def _charged(privacy):
  """What the ledger says, what was left out, and what the figures are for."""
  get, said = privacy.get, []
  book = get('ledger')
  if book:
    said.append(('Ledger', f'{book["rounds"]:,} rounds in {book["charges"]} '
                 f'charges, epsilon {book["epsilon"]:.4g}, head '
                 f'{book["head"][:16]}'))
  if get('rejected'):
    said.append(('Rejected', f'{get("rejected"):,} deltas that were not '
                 'finite: left out of every sum'))
  said.append(('Fidelity', str(get('fidelity'))))
  return said


def not_covered(privacy: Mapping[str, Any]) -> list[str]:
  """Returns what the epsilon says nothing about."""
  return list(privacy.get('uncovered', ()))
