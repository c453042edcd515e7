"""A setting that nothing would read is refused, and every other is accepted."""

import dataclasses
import json
import pathlib
import types

import pytest
from absl import flags

from fedjaxrec import config as config_lib
from fedjaxrec.config import Config, unread
from fedjaxrec.flags import define_flags, read_config
from fedjaxrec.orchestration import grid

ROOT = pathlib.Path(__file__).resolve().parent.parent
EASE = {'algorithm.name': 'fedease', 'rounds': 1, 'cohort.size': 0}
DPALS = {'algorithm.name': 'dpals', 'cohort.size': 0,
         'privacy.l2_clip_norm': 1.0, 'privacy.epsilon': 1.0}
SASREC = {'algorithm.name': 'sequential', 'model.name': 'sasrec'}


def name(algorithm):
  return {'algorithm.name': algorithm}


# For each row of the table, in its order: its first field, settings by which it
# is read, and settings by which it is not.
CASES = (
    ('dpals', DPALS | {'dpals.sampling': 'adaptive'}, name('ials')),
    ('fcf', name('fcf'), name('ials')),
    ('fedmf', name('fedmf'), name('fcf')),
    ('fedease', EASE, name('fedavg')),
    ('pfedrec', name('pfedrec'), name('gpfedrec')),
    ('gpfedrec', name('gpfedrec'), name('pfedrec')),
    ('fedrap', name('fedrap'), name('pfedrec')),
    ('fedrecon', name('fedrecon'), name('fedper')),
    ('ditto', name('ditto'), name('fedavg')),
    ('fedrep', name('fedrep'), name('fedper')),
    ('apfl', name('apfl'), name('ditto')),
    ('metamf', name('metamf'), name('fomaml')),
    ('fedpergnn', name('fedpergnn'), name('cofedrec')),
    ('cofedrec', name('cofedrec'), name('fedpergnn')),
    ('ials', name('ials'), name('fcf')),
    ('meta', name('perfedavg'), name('metamf')),
    ('meta.epochs', name('fomaml'), name('reptile')),
    ('meta.hessian', name('perfedavg'), name('fomaml')),
    ('dpals.adaptive_exponent', DPALS | {'dpals.sampling': 'adaptive'}, DPALS),
    ('cofedrec.temperature', name('cofedrec'),
     name('cofedrec') | {'cofedrec.contrast': 0.0}),
    ('model.hidden', {'model.name': 'neumf'}, {}),
    ('model.max_length', SASREC | {'model.name': 'gru4rec'}, {}),
    ('model.num_blocks', SASREC, SASREC | {'model.name': 'gru4rec'}),
    ('model.memory', {'model.name': 'metamf'}, {}),
    ('model.dim', name('ials'), EASE),
    ('objective.l2', {}, name('ials')),
    ('objective.name', {}, EASE),
    ('objective.num_negatives', {}, {'objective.name': 'squared_error'}),
    ('client.optimizer', {}, name('fcf')),
    ('client.batch_size', {}, SASREC),
    ('client.momentum', {'client.item_optimizer': 'momentum'},
     {'client.optimizer': 'adam'}),
    ('client.epochs', {}, {'client.steps': 3}),
    ('client.final_fraction', {'client.schedule': 'exponential'},
     {'client.schedule': 'constant'}),
    *(('client.item_learning_rate',
       name(owner) | {f'{owner}.lr_eta': 0.0}, name(owner))
      for owner in ('pfedrec', 'gpfedrec', 'cofedrec')),
    ('server.optimizer', {}, name('ials')),
    ('server.row_normalization', DPALS, name('ials')),
    ('server.lazy_rows', name('fedmf'), name('fcf')),
    ('server.momentum', {'server.optimizer': 'momentum'}, {}),
    ('server.b1', {'server.optimizer': 'yogi'}, {'server.optimizer': 'sgd'}),
    ('server.eps', {'server.optimizer': 'adagrad'},
     {'server.optimizer': 'momentum'}),
    ('server.final_fraction', {}, {'server.schedule': 'constant'}),
    ('cohort.weighting', {}, name('gpfedrec')),
    ('compression.fraction', {'compression.sparsify': 'random_k'},
     {'compression.sparsify': 'threshold'}),
    ('compression.threshold', {'compression.sparsify': 'threshold'},
     {'compression.sparsify': 'top_k'}),
    ('compression.bits', {'compression.quantize': 'qsgd'},
     {'compression.quantize': 'sign'}),
    ('compression.rank', {'compression.sketch': 'low_rank'}, {}),
    ('compression.sketch_width', {'compression.sketch': 'count'},
     {'compression.sketch': 'low_rank'}),
    ('compression.error_feedback_limit_gib',
     {'compression.error_feedback': True, 'compression.sparsify': 'top_k'},
     {'compression.sparsify': 'top_k'}),
    *((field, {'privacy.epsilon': 1.0, 'privacy.l2_clip_norm': 1.0} | read,
       {'privacy.epsilon': 1.0, 'privacy.l2_clip_norm': 1.0})
      for field, read in (
          ('privacy.bands', {'privacy.mechanism': 'banded'}),
          ('privacy.buffers', {'privacy.mechanism': 'blt'}),
          ('privacy.target_quantile', {'privacy.clipping': 'adaptive'}),
          ('privacy.head_epsilon_share', {
              'privacy.head_items': 5, 'privacy.head_source': 'private'}))),
    ('privacy.row_clip_norm', {'privacy.l2_clip_norm': 1.0}, DPALS),
    ('secure.bits', {'secure.level': 'ideal'}, {}),
    ('secure.num_neighbors', {'secure.level': 'masked'},
     {'secure.level': 'shares'}),
    ('secure.num_servers', {'secure.level': 'shares'},
     {'secure.level': 'masked'}),
    ('split.fold_in_fraction', {'split.name': 'user_holdout'},
     {'split.name': 'user_ratio'}),
    ('split.validation_fraction', {'split.name': 'item_holdout'}, {}),
    ('personalization.finetune_fraction',
     {'personalization.finetune_steps': 2}, {}),
)
# Another value than the default, where half of it or one more would not do.
VALUES = {
    'cohort.weighting': 'examples', 'dpals.sampling': 'uniform',
    'fedpergnn.aggregator': 'attention', 'gpfedrec.similarity': 'as_released',
    'model.hidden': (8, 4), 'model.num_heads': 2, 'objective.name': 'bpr',
    'client.optimizer': 'momentum', 'client.item_optimizer': 'adam',
    'server.optimizer': 'momentum', 'server.row_normalization': 'mean',
    'compression.granularity': 'entries', 'secure.bits': 16,
    'secure.min_survivors': 2, 'secure.num_neighbors': 4,
}
# What a value needs beside it.
WITH = {
    'client.momentum': {'client.optimizer': 'momentum'},
    'fedease.floor': {'fedease.recency': 5.0},
    'meta.epochs': name('fomaml'),
    'secure.num_neighbors': {'secure.level': 'protocol'},
    'secure.num_servers': {'secure.level': 'shares'},
    'secure.threshold': {
        'secure.level': 'protocol', 'secure.num_neighbors': 4},
    'server.momentum': {'server.optimizer': 'momentum'},
}
# What it needs where nothing reads either.
NEEDS = {'fedease.floor': {'fedease.recency': 5.0},
         'secure.threshold': {'secure.num_neighbors': 4}}


def make(changes):
  return grid.replace_fields(Config(), changes)


def another(dotted, default):
  if dotted in VALUES:
    return VALUES[dotted]
  if isinstance(default, bool):
    return not default
  return default + 1 if isinstance(default, int) else default / 2 or 0.5


WALK = [
    pytest.param(row, f'{section}.{field}', another(
        f'{section}.{field}', default), *case[1:], id=f'{section}.{field}')
    for row, case in zip(unread.ROWS, CASES, strict=True)
    for section, field, default in unread.names(row, Config())]


def test_every_row_has_a_case():
  assert [row.fields[0] for row in unread.ROWS] == [case[0] for case in CASES]


@pytest.mark.parametrize(('row', 'field', 'value', 'read', 'not_read'), WALK)
def test_a_setting_is_taken_where_it_is_read_and_refused_elsewhere(
    row, field, value, read, not_read):
  make(read | WITH.get(field, {}) | {field: value})
  make(not_read)
  changes = not_read | NEEDS.get(field, {}) | {field: value}
  with pytest.raises(ValueError, match='would be without effect; leave it at'):
    make(changes)
  # And that for this row's reason.
  sections = vars(Config()) | {
      section: dataclasses.replace(getattr(Config(), section), **{
          other.partition('.')[2]: x for other, x in changes.items()
          if other.partition('.')[0] == section})
      for section in {other.partition('.')[0] for other in changes
                      if '.' in other}}
  found = unread.find_unread(types.SimpleNamespace(**sections))
  assert (field, row) in [(f'{s}.{f}', why) for s, f, _, why in found]


def test_the_refusal_says_what_reads_it_and_the_way_out():
  with pytest.raises(ValueError) as error:
    Config(ditto=config_lib.DittoConfig(pull=0.5))
  assert str(error.value) == (
      'ditto.pull=0.5 with algorithm.name=fedavg, which does not read it: it '
      'would be without effect; leave it at 0.1, or use algorithm.name=ditto.')


@pytest.mark.parametrize(('base', 'field', 'value'), [
    *((base, field, value)
      for base in (name('ials'), name('fcf'), name('fedmf'), DPALS, EASE)
      for field, value in (
          ('client.learning_rate', 0.5), ('objective.num_negatives', 4))),
    *((base, 'server.learning_rate', 0.5)
      for base in (name('ials'), DPALS, EASE)),
    *(({'model.name': model}, 'model.hidden', (8, 4))
      for model in ('mf', 'pfedrec', 'metamf')),
])
def test_nobody_of_several_reads_it(base, field, value):
  make(base)
  with pytest.raises(ValueError, match=f'{field}=.* with .* without effect'):
    make(base | {field: value})


@pytest.mark.parametrize('changes', [
    {'objective.name': 'squared_error', 'objective.num_negatives': 0},
    name('ials') | {'client.schedule': 'constant',
                    'server.schedule': 'constant'},
    {'model.name': 'two_tower', 'data.item_features': 'published'},
    {'privacy.epsilon': 1.0, 'privacy.l2_clip_norm': 1.0,
     'privacy.bands': 4, 'cohort.sampler': 'cyclic_poisson',
     'cohort.groups': 4},
])
def test_what_says_the_same_or_is_read_elsewhere_is_taken(changes):
  make(changes)


def test_a_run_of_before_can_be_read():
  values = config_lib.to_dict(Config(rounds=3))
  values['ditto']['pull'] = 0.5
  values['compression'] |= {'fraction': 1.0, 'bits': 4}
  values['algorithm']['name'] = 'ials'
  values['client']['learning_rate'] = 0.3
  text = json.dumps(values)
  assert config_lib.from_dict(json.loads(text)) == Config(
      rounds=3, algorithm=config_lib.AlgorithmConfig(name='ials'))


def test_what_a_run_makes_of_its_own_config_is_not_refused():
  config = make(name('ials'))
  own = config_lib.with_sections(
      config, client=config_lib.ClientConfig(item_learning_rate=0.0))
  assert own.client.item_learning_rate == 0 and own.ials is config.ials
  assert config.client.item_learning_rate > 0  # The other is what it was.


def members(*texts, **base):
  return grid.make_members(
      make(base), grid.parse_axes(texts), (0,))


class TestSweeps:

  def test_fields_that_change_together_may_be_without_effect_in_some_runs(self):
    top, plain = members(
        'compression.sparsify/compression.fraction/compression.quantize='
        'top_k/0.2/none,none/1/qsgd')
    assert top.config.compression.fraction == 0.2
    assert plain.values['compression.fraction'] == 1
    assert plain.config.compression == config_lib.CompressionConfig(
        quantize='qsgd')

  def test_what_is_not_swept_must_be_read_by_some_run(self):
    sgd, adam = members('server.optimizer=sgd,adam', **{'server.eps': 0.5})
    assert (sgd.config.server.eps, adam.config.server.eps) == (0.01, 0.5)
    with pytest.raises(ValueError, match='server.eps=0.5 would be without eff'):
      members('server.optimizer=sgd,momentum', **{'server.eps': 0.5})

  def test_a_field_swept_by_itself_must_be_read_by_all(self):
    with pytest.raises(ValueError, match='sweep member .*server.b1=0.5 with'):
      members('server.optimizer=sgd,adam', 'server.b1=0.9,0.5')

  def test_linked_fields_that_no_run_reads_are_refused(self):
    with pytest.raises(ValueError, match='server.b1=0.5 would be without effe'):
      members('server.optimizer/server.b1=sgd/0.5,momentum/0.4')


TRAIN = sorted(path for path in (ROOT / 'scripts').glob('*.flags')
               if '--sweep.' not in path.read_text())


@pytest.mark.parametrize('path', TRAIN, ids=lambda path: path.stem)
def test_every_preset_is_a_config(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  values = flags.FlagValues()
  define_flags(flag_values=values)
  values(['', f'--flagfile={path}'])
  assert read_config(values) != Config()
