"""What travels in a run, in words: by its algorithm, and what is around it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjaxrec.algorithms.travels import OWN, TRAVELS, with_the_server

_SECURE_ROWS = {
    'dense': 'all rows', 'union': "the union of the cohort's rows",
    'chosen': 'head rows'}


class Words(NamedTuple):
  """A run's words.

  Attributes:
    rows: What the messages of a client are about.
    moves: What a client receives and sends, a sentence.
    personal: Where personal parameters are, after `personal parameters, which`;
      empty where the run does not say its algorithm.
    names_items: Whether the rows of an upload that the server sees are those of
      the client's items and of no others.
  """
  rows: str
  moves: str
  personal: str
  names_items: bool = False


def algorithm_name(
    summary: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> str:
  """The algorithm of a run, if this version knows it; otherwise empty."""
  name = summary.get('algorithm') or (
      (config or {}).get('algorithm') or {}).get('name', '')
  return name if name in TRAVELS else ''


def words_of(
    summary: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> Words:
  """What a run's report says of what travels.

  Args:
    summary: The content of summary.json.
    config: That of config.json, for the algorithm of an older summary, and for
      head rows and compression.
  """
  config = config or {}

  def section(name):
    return config.get(name) or {}

  name = algorithm_name(summary, config)
  secure = summary.get('secure')
  local = (summary.get('privacy') or {}).get('local') or {}
  reaches = name and with_the_server(
      name, secure=bool(secure), randomised=bool(local))
  personal = reaches or (name and 'stay on the client')
  known = TRAVELS.get(name)
  if secure:
    rows = _SECURE_ROWS.get(secure.get('rows'), 'all rows that travel')
    return Words(
        rows, f'Under a secure sum a client receives and sends {rows}, '
        'whichever its examples touch, and the server opens the sum alone.',
        personal)
  if local:
    head = section('local_privacy').get('head_items')
    rows = f'the {head:,} head rows' if head else 'all rows'
    return Words(
        rows, f'A client receives and sends {rows}, whichever its examples '
        'touch, and makes what it sends noisy before that: local privacy.',
        personal)
  if known is None:
    return Words('', 'This run does not say what travels.', '')
  moves = f'{known.moves}.'
  head = section('privacy').get('head_items')
  if head:
    moves += f' Of these rows it sends the {head:,} head rows alone.'
  if section('client').get('control_variates'):
    moves += ' Control variates of the same size travel beside them.'
  return Words(known.rows, moves, personal, known.rows == OWN)
