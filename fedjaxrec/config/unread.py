"""Settings that a run would not read, refused rather than passed over.

`ROWS` says of fields, or of whole sections, when anything reads them. A field
that is not its default where nobody would read it is refused: whoever set it
meant it to do something. What counts as reading is that a run learns, sends,
reports or refuses something else by it; that blocks and size classes are chosen
by it (`participation/sizes.py`), which changes no result, does not count.

A name that the table does not know counts as a reader. Fields that no row names
are read in every run, or refused by the check of their own section.
"""

import dataclasses
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from fedjaxrec.config.algorithms import FACTORISATIONS, LOOK_AT_EACH

# Whose clients solve, or send gradients to the server's optimizer: none of them
# takes a step on a loss, with batches and negatives.
_CLOSED = (*FACTORISATIONS, 'fedease')
# Whose server solves: it takes no step either.
_SOLVING = ('ials', 'dpals', 'fedease')


class Row(NamedTuple):
  """When some fields are read.

  Attributes:
    fields: Dotted names, or a section for all of its fields.
    is_read: Config -> whether anything reads them. Asks for fields of sections
      alone, and for none of the config's own properties.
    why: What stands in the way, and who reads them: `{c.model.name}` is filled
      in.
    instead: What to set for them to be read.
  """
  fields: tuple[str, ...]
  is_read: Callable[[Any], bool]
  why: str
  instead: str


def _only(decider: str, readers: Collection[str], *fields: str) -> Row:
  """Fields that some values of another field read, and no others."""
  section, name = decider.split('.')
  return Row(
      fields, lambda c: getattr(getattr(c, section), name) in readers,
      f'{decider}={{c.{decider}}}, which does not read it',
      f'{decider}={" or ".join(readers)}')


def _not(
    decider: str, others: Collection[str], instead: str, *fields: str
) -> Row:
  """Fields that some values of another field do not read, and all others do."""
  section, name = decider.split('.')
  return Row(
      fields, lambda c: getattr(getattr(c, section), name) not in others,
      f'{decider}={{c.{decider}}}, which does not read it',
      f'{decider}={instead}')


def _by_lr_eta(name: str) -> Row:
  return Row(
      ('client.item_learning_rate',),
      lambda c: c.algorithm.name != name or not getattr(c, name).lr_eta,
      f'algorithm.name={name} and {name}.lr_eta={{c.{name}.lr_eta}}, from '
      'which the rate of the item rows follows', f'{name}.lr_eta=0')


_ITSELF = (
    'dpals', 'fcf', 'fedmf', 'fedease', 'pfedrec', 'gpfedrec', 'fedrap',
    'fedrecon', 'ditto', 'fedrep', 'apfl', 'metamf', 'fedpergnn', 'cofedrec')

ROWS = (
    # An algorithm's own section, and what of it has conditions.
    *(_only('algorithm.name', (name,), name) for name in _ITSELF),
    _only('algorithm.name', ('ials', 'dpals'), 'ials'),
    _only('algorithm.name', ('reptile', 'fomaml', 'perfedavg'), 'meta'),
    _only('algorithm.name', ('fomaml',), 'meta.epochs'),
    _only('algorithm.name', ('perfedavg',), 'meta.hessian'),
    _only('dpals.sampling', ('adaptive',), 'dpals.adaptive_exponent'),
    Row(('cofedrec.temperature',), lambda c: c.cofedrec.contrast > 0,
        'cofedrec.contrast=0, which switches its loss off',
        'cofedrec.contrast above 0'),
    # The model.
    _not('model.name', ('mf', 'gmf', 'pfedrec', 'metamf', 'two_tower', 'sasrec',
                        'gru4rec'), 'neumf', 'model.hidden'),
    _only('model.name', ('sasrec', 'gru4rec'), 'model.max_length'),
    _only('model.name', ('sasrec',), 'model.num_blocks', 'model.num_heads'),
    _only('model.name', ('metamf',), 'model.memory', 'model.generator_width',
          'model.generator_rank'),
    Row(('model.dim', 'model.init_scale'),
        lambda c: c.algorithm.name != 'fedease',
        'algorithm.name=fedease, whose model is a matrix of items by items and '
        'has no vectors', 'algorithm.name=ials'),
    # The loss and the clients' steps on it.
    _not('algorithm.name', _CLOSED, 'fedavg', 'objective.l2',
         'objective.num_negatives'),
    # Ratings are what fedease refuses, for reasons of its own.
    Row(('objective.name',), lambda c: c.algorithm.name not in _CLOSED or (
        c.algorithm.name == 'fedease' and c.objective.name == 'squared_error'),
        'algorithm.name={c.algorithm.name}, which has a loss of its own',
        'algorithm.name=fedavg'),
    Row(('objective.num_negatives',),
        lambda c: (c.objective.name != 'squared_error'
                   or c.objective.num_negatives == 0),
        'objective.name=squared_error, which draws no negatives',
        'objective.name=bce'),
    # Not client.schedule: with it a run may be continued to more rounds.
    _not('algorithm.name', _CLOSED, 'fedavg', *(
        f'client.{name}' for name in (
            'optimizer', 'item_optimizer', 'learning_rate',
            'item_learning_rate', 'momentum', 'epochs', 'steps', 'batch_size',
            'proximal_mu', 'final_fraction'))),
    Row(('client.batch_size',), lambda c: c.algorithm.name != 'sequential',
        'algorithm.name=sequential, where a sequence is one batch',
        'algorithm.name=fedavg'),
    Row(('client.momentum',),
        lambda c: 'momentum' in (c.client.optimizer, c.client.item_optimizer),
        'client.optimizer={c.client.optimizer} and client.item_optimizer='
        "'{c.client.item_optimizer}', which have no momentum of that kind",
        'client.optimizer=momentum'),
    Row(('client.epochs',), lambda c: c.client.steps == 0,
        'client.steps={c.client.steps}, which says how many steps there are',
        'client.steps=0'),
    _not('client.schedule', ('constant',), 'cosine', 'client.final_fraction'),
    *map(_by_lr_eta, ('pfedrec', 'gpfedrec', 'cofedrec')),
    # The server's step.
    _not('algorithm.name', _SOLVING, 'fedavg', *(
        f'server.{name}' for name in (
            'optimizer', 'learning_rate', 'momentum', 'b1', 'b2', 'eps',
            'lazy_rows', 'final_fraction'))),
    # The plan of privacy asks dpals for it.
    _not('algorithm.name', ('ials', 'fedease'), 'fedavg',
         'server.row_normalization'),
    _not('algorithm.name', ('fcf',), 'fedavg', 'server.lazy_rows'),
    _only('server.optimizer', ('momentum',), 'server.momentum'),
    _only('server.optimizer', ('adam', 'yogi'), 'server.b1', 'server.b2'),
    _only('server.optimizer', ('adam', 'yogi', 'adagrad'), 'server.eps'),
    _not('server.schedule', ('constant',), 'cosine', 'server.final_fraction'),
    Row(('cohort.weighting',), lambda c: c.algorithm.name not in LOOK_AT_EACH,
        'algorithm.name={c.algorithm.name}, whose server makes plain means of '
        "the clients' tables", 'algorithm.name=pfedrec'),
    # What is sent, and how it is protected.
    _only('compression.sparsify', ('top_k', 'random_k'), 'compression.fraction',
          'compression.granularity'),
    _only('compression.sparsify', ('threshold',), 'compression.threshold'),
    _only('compression.quantize', ('qsgd',), 'compression.bits'),
    _only('compression.sketch', ('low_rank',), 'compression.rank'),
    _only('compression.sketch', ('count',), 'compression.sketch_width',
          'compression.sketch_depth'),
    Row(('compression.error_feedback_limit_gib',),
        lambda c: c.compression.error_feedback,
        'compression.error_feedback=False, which keeps no copies',
        'compression.error_feedback=true'),
    Row(('privacy.bands',),
        lambda c: (c.privacy.mechanism == 'banded'
                   or c.cohort.sampler == 'cyclic_poisson'),
        'privacy.mechanism={c.privacy.mechanism}, which has no bands',
        'privacy.mechanism=banded'),
    _only('privacy.mechanism', ('blt',), 'privacy.buffers'),
    _only('privacy.clipping', ('adaptive',), 'privacy.target_quantile',
          'privacy.clip_learning_rate'),
    # A run in which the private choice has been made says head_source=public.
    Row(('privacy.head_epsilon_share',), lambda c: c.privacy.head_items > 0,
        'privacy.head_items=0, by which no rows are chosen',
        'privacy.head_items and privacy.head_source=private'),
    _not('algorithm.name', ('dpals',), 'fedavg', 'privacy.row_clip_norm'),
    # The other fields of the section are refused by itself.
    Row(tuple(f'secure.{name}' for name in (
        'bits', 'l2_clip_norm', 'entry_bound', 'num_neighbors', 'threshold',
        'min_survivors', 'num_servers')), lambda c: c.secure.level != 'none',
        'secure.level=none, which has no secure sums', 'secure.level=ideal'),
    _only('secure.level', ('masked', 'protocol'), 'secure.num_neighbors',
          'secure.threshold'),
    _only('secure.level', ('shares',), 'secure.num_servers'),
    # What is evaluated.
    _only('split.name', ('user_holdout',), 'split.fold_in_fraction',
          'evaluation.fold_in_rounds'),
    _not('split.name', ('leave_one_out', 'published'), 'user_ratio',
         'split.validation_fraction', 'split.test_fraction'),
    Row(('personalization.finetune_fraction',),
        lambda c: c.personalization.finetune_steps > 0,
        'personalization.finetune_steps=0, which tunes nothing',
        'personalization.finetune_steps above 0'),
)


def names(row: Row, config: Any) -> Iterator[tuple[str, str, Any]]:
  """Yields (section, field, its default) of all that a row is about."""
  for name in row.fields:
    section, _, field = name.partition('.')
    for one in dataclasses.fields(getattr(config, section)):
      if not field or one.name == field:
        yield section, one.name, one.default


def find_unread(config: Any) -> Iterator[tuple[str, str, Any, Row]]:
  """Yields (section, field, default, row) of each setting without an effect."""
  for row in ROWS:
    for section, field, default in names(row, config):
      value = getattr(getattr(config, section), field)
      if value != default and not row.is_read(config):
        yield section, field, default, row


def check_unread(config: Any) -> None:
  """Refuses a setting that nothing in the run would read.

  Args:
    config: The whole config.

  Raises:
    ValueError: With who would read it, and the way out.
  """
  for section, field, default, row in find_unread(config):
    value = getattr(getattr(config, section), field)
    raise ValueError(
        f'{section}.{field}={value} with {row.why.format(c=config)}: it would '
        f'be without effect; leave it at {default!r}, or use {row.instead}.')


def drop_unread(
    values: Mapping[str, Any], among: Collection[str] | None = None
) -> dict[str, Any]:
  """The same sections, in which what nobody would read has its default.

  Args:
    values: Every field of a whole config.
    among: Dotted names of the fields that may be changed; None: all.
  """
  result = dict(values)
  while True:
    config = types.SimpleNamespace(**result)
    found: dict[str, dict[str, Any]] = {}
    for section, field, default, _ in find_unread(config):
      if among is None or f'{section}.{field}' in among:
        found.setdefault(section, {})[field] = default
    if not found:
      return result
    for section, fields in found.items():
      result[section] = dataclasses.replace(result[section], **fields)
