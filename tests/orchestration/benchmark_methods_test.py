"""What a benchmark compares: files of flags, checked before anything runs."""

import pathlib
import shutil

import pytest
from absl import flags

from fedjaxrec import benchmark_cli
from fedjaxrec.config.references import REFERENCES
from fedjaxrec.orchestration import benchmark_methods as methods_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'scripts' / 'benchmark'
PRESETS = methods_lib.open_presets('scripts/benchmark')
FILES = sorted(FOLDER.glob('*/*.flags'))


def overrides(*arguments):
  values = flags.FlagValues()
  benchmark_cli.define(values)
  values(['', *arguments])
  return values


def dataset(name='movielens-100k', presets=PRESETS, given=()):
  return methods_lib.read_dataset(presets, name, overrides(*given))


def method(name, presets=PRESETS, given=(), data=None):
  return methods_lib.read_method(
      presets, data or dataset(presets=presets), name, overrides(*given))


@pytest.fixture
def presets(tmp_path):
  shutil.copytree(FOLDER, tmp_path / 'presets')
  return methods_lib.open_presets(str(tmp_path / 'presets'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: f'{path.parent.name}-'
                         f'{path.stem}')
def test_a_stored_method_says_what_it_is_reads_and_can_be_tuned(path):
  assert path.read_text().startswith('# ')
  name = 'movielens-100k' if path.parent.name == 'default' else path.parent.name
  data = dataset(name)
  read = method(path.stem, data=data)
  assert read.path.resolve() == path or path.parent.name == 'default'
  assert read.config.data.source == data.config.data.source
  assert not read.config.objective.leaks
  assert read.counterpart in ('', *PRESETS.methods(data))
  axes = methods_lib.read_space(PRESETS, read)
  for axis in axes:
    for setting in axis.settings[:1]:
      read.with_values(dict(zip(axis.fields, setting)))


def test_all_references_are_compared_and_the_line_of_a_method_is_used():
  data = dataset()
  found = [method(name, data=data) for name in PRESETS.methods(data)]
  assert {m.reference for m in found} - {''} == set(REFERENCES)
  lines = (FOLDER / methods_lib.SPACE).read_text().splitlines()
  named = [line.partition(':')[0] for line in lines if line[0] != '#']
  assert sorted(named) == sorted(PRESETS.methods(data))


def test_a_new_method_is_one_file(presets):
  (presets.folder / 'default' / 'mine.flags').write_text(
      '# Mine.\n--algorithm.name=fedavg\n--rounds=7\n')
  read = method('mine', presets)
  assert read.config.rounds == 7 and not read.reference
  assert read.config.evaluation.protocol == 'full'


def test_a_data_set_has_settings_of_its_own_before_the_default(presets):
  (presets.folder / 'ncf').mkdir(exist_ok=True)
  (presets.folder / 'ncf' / 'ease.flags').write_text(
      '--benchmark.reference=ease\n--ease.l2=1234\n')
  assert method('ease', presets).settings.ease.l2 != 1234
  own = method('ease', presets, data=dataset('ncf', presets))
  assert own.settings.ease.l2 == 1234
  assert own.config.split.name == 'published'


def test_a_csv_of_ones_own_is_a_data_set(tmp_path):
  data = dataset(f'csv:{tmp_path}/mine.csv', given=[
      '--data.user_column=u', '--split.name=user_ratio'])
  assert data.name == 'csv:mine.csv'
  assert data.config.data.user_column == 'u'
  read = method('fedavg', data=data, given=['--data.user_column=u'])
  assert read.config.data.source == f'csv:{tmp_path}/mine.csv'


def test_the_command_line_comes_last_and_changes_references_where_it_can():
  given = ['--rounds=3', '--evaluation.ks=10']
  assert method('fedavg', given=given).config.rounds == 3
  data = dataset(given=given)
  assert method('ease', data=data).config.evaluation.ks == (10,)


def test_fields_are_all_that_results_depend_on():
  one = method('fedavg')
  assert one.fields() == method('fedavg', given=[
      '--data.path=/a', '--engine.block_size=4']).fields()
  assert one.fields() != one.with_seed(1).fields()
  assert one.fields() != one.with_values({'client.epochs': 9}).fields()
  ease = method('ease')
  assert ease.fields()['ease.l2'] == ease.settings.ease.l2
  assert ease.fields() != ease.with_values({'ease.l2': 7.0}).fields()
  # What a reference does not read is no part of it.
  assert not [name for name in ease.fields() if name.startswith('client.')]


@pytest.mark.parametrize(('text', 'message'), [
    ('--client.learning_rat=3\n', 'Did you mean --client.learning_rate'),
    ('--rounds=x\n', 'not a whole number'), ('--rounds=0\n', 'rounds=0'),
    ('rounds=3\n', "'rounds=3' is no flag"),
    ('--benchmark.reference=magic\n', "benchmark.reference='magic'"),
    ('--benchmark.reference=ease\n--client.epochs=2\n', 'client.epochs'),
    ('--benchmark.reference=ease\n--ease.l2=-1\n', 'ease.l2=-1'),
    ('--benchmark.counterpart=eaze\n', 'Did you mean ease'),
    # These would do nothing: the data set and the benchmark say so for all.
    ('--data.min_rating=4\n', "move the flag to the data set's file"),
    ('--split.name=user_ratio\n', 'split.name=user_ratio'),
    ('--synthetic.num_users=9\n', 'synthetic.num_users=9'),
    ('--seed=3\n', '--benchmark.seeds'),
    ('--evaluation.protocol=sampled-99\n', '--benchmark.protocols')])
def test_a_wrong_file_is_named_with_what_is_wrong(presets, text, message):
  path = presets.folder / 'default' / 'mine.flags'
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    method('mine', presets)
  assert str(path) in str(error.value) and message in str(error.value)


@pytest.mark.parametrize('name', ['default/mine.flags', 'search_space.txt',
                                  'mine.flags'])
def test_what_is_no_text_is_named(presets, name):
  path = presets.folder / name
  path.write_bytes(b'\xff\xfe--rounds=3\n')
  with pytest.raises(ValueError) as error:
    if name == 'mine.flags':
      dataset('mine', presets)
    elif name == methods_lib.SPACE:
      methods_lib.read_space(presets, method('fedavg', presets))
    else:
      method('mine', presets)
  assert path.stem in str(error.value) and 'is no text' in str(error.value)


def test_a_folder_that_is_called_like_a_method_is_named(presets):
  (presets.folder / 'default' / 'mine.flags').mkdir()
  with pytest.raises(ValueError, match='mine.flags: .* cannot be read'):
    method('mine', presets)


def test_one_guess_is_made_of_what_was_meant(presets):
  (presets.folder / 'default' / 'mine.flags').write_text('--round=3\n')
  with pytest.raises(ValueError) as error:
    method('mine', presets)
  assert str(error.value).count('Did you mean') == 1
  assert str(error.value).endswith('Did you mean --rounds?')


def test_an_unknown_method_is_told_the_known():
  with pytest.raises(ValueError, match='Did you mean fedavg') as error:
    method('fedavgg')
  assert 'ease' in str(error.value) and 'mine' not in str(error.value)


@pytest.mark.parametrize(('name', 'given', 'message'), [
    ('movielens', (), 'movielens-100k'), ('none.flags', (), 'no such file')])
def test_an_unknown_data_set_is_refused(name, given, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    dataset(name, given=given)


@pytest.mark.parametrize('name', ['fedavg', 'ease', 'two_tower', 'popularity'])
def test_cold_items_are_for_who_reads_their_features(name):
  read = method(name, data=dataset('movielens-100k-cold-items'))
  methods_lib.check_split(method(name, data=dataset(
      'movielens-100k-cold-users')))
  if name in ('two_tower', 'popularity'):
    methods_lib.check_split(read)
  else:
    with pytest.raises(ValueError, match=f'method {name}: .* use two_tower'):
      methods_lib.check_split(read)


def test_the_cold_items_of_citeulike_are_refused_alike(tmp_path):
  file = tmp_path / 'cite.flags'
  file.write_text('--data.source=citeulike-a\n--split.name=published\n')
  with pytest.raises(ValueError, match='citeulike-a with method fedavg'):
    methods_lib.check_split(method('fedavg', data=dataset(str(file))))


def test_towers_without_features_of_items_are_refused_cold_ones():
  read = method('two_tower', data=dataset('movielens-100k-cold-items'))
  with pytest.raises(ValueError, match='data.item_features'):
    methods_lib.check_split(read.with_values({'data.item_features': ''}))


def test_a_protocol_in_the_file_of_a_data_set_is_refused(tmp_path):
  file = tmp_path / 'mine.flags'
  file.write_text('--data.source=movielens-100k\n'
                  '--evaluation.protocol=sampled-99\n')
  with pytest.raises(ValueError, match='mine.flags.*--benchmark.protocols'):
    dataset(str(file))


def test_a_folder_without_methods_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='benchmark.presets'):
    methods_lib.open_presets(str(tmp_path))


@pytest.mark.parametrize(('line', 'message'), [
    ('', 'no line for fedavg'), ('fedavg: nothing=3', "fedavg: 'nothing'"),
    ('fedavg: rounds=1,x', 'not a whole number')])
def test_a_wrong_search_space_is_refused(presets, line, message):
  (presets.folder / methods_lib.SPACE).write_text(line + '\n')
  with pytest.raises(ValueError, match=message):
    methods_lib.read_space(presets, method('fedavg', presets))


@pytest.mark.parametrize('names', [['sampled-99'], ['full', 'x'], []])
def test_other_protocols_are_refused(names):
  with pytest.raises(ValueError, match='benchmark.protocols'):
    methods_lib.parse_protocols(names)
  assert methods_lib.parse_protocols(['sampled-99', 'full']) == (
      'full', 'sampled-99')


@pytest.mark.parametrize(('name', 'words'), [
    ('small', 'best of 12'), ('other', 'stored')])
def test_a_file_that_a_search_wrote_says_so_of_its_data_set(
    name, words, tmp_path):
  path = tmp_path / 'small' / 'fedavg.flags'
  path.parent.mkdir()
  path.write_text('\n'.join([
      *methods_lib.write_header('fedavg', 'small', 12, 20, 'seed 0: 0.1'),
      '--rounds=3', '']))
  found = methods_lib.describe_settings(path, name)
  assert found['settings'] == words and found['file'] == 'small/fedavg.flags'
  assert 'budget 20' in found['about'] and '--rounds' not in found['about']


def test_a_file_without_a_header_is_a_stored_one(tmp_path):
  path = tmp_path / 'x.flags'
  path.write_text('--rounds=3\n')
  assert methods_lib.describe_settings(path, 'small')[
      'settings'] == 'stored'
