"""Every field of the config is a flag, and the flags give the config back."""

import dataclasses

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from fedjaxrec import config as config_lib
from fedjaxrec.flags import (
  attribute_help,
  config_fields,
  define_flags,
  format_flags,
  read_config,
)

FIELDS = list(config_fields())


def parse(*arguments: str, only=None) -> flags.FlagValues:
  values = flags.FlagValues()
  define_flags(flag_values=values, only=only)
  values(['program', *arguments])
  return values


def test_every_leaf_of_the_config_has_a_flag():
  def leaves(value, prefix=''):
    for name, child in value.items():
      if isinstance(child, dict):
        yield from leaves(child, f'{prefix}{name}.')
      else:
        yield prefix + name
  expected = set(leaves(config_lib.to_dict(config_lib.Config())))
  assert {field.name for field in FIELDS} == expected
  assert set(parse()) == expected


@pytest.mark.parametrize('field', FIELDS, ids=lambda field: field.name)
def test_every_flag_has_help(field):
  assert len(field.help) > 5
  assert field.help.endswith('.')


def test_every_documented_attribute_exists():
  sections = [f.type for f in dataclasses.fields(config_lib.Config)
              if dataclasses.is_dataclass(f.type)]
  for cls in [config_lib.Config, *sections]:
    names = [field.name for field in dataclasses.fields(cls)]
    assert list(attribute_help(cls)) == names, cls


def test_the_help_of_an_attribute_joins_its_lines():
  class Sample:
    """One line.

    Attributes:
      first: Starts here
        and ends there: with a colon.
      second: Short.
    """
  assert attribute_help(Sample) == {
    'first': 'Starts here and ends there: with a colon.', 'second': 'Short.'}


def test_no_flag_gives_the_defaults():
  assert read_config(parse()) == config_lib.Config()


def test_each_type_is_read():
  config = read_config(parse(
      '--rounds=7', '--client.learning_rate=1e-2', '--model.hidden=8,4',
      '--model.name=neumf',
      '--noserver.lazy_rows', '--evaluation.local_only=false',
      '--data.source=csv:my file.csv', '--cohort.size', '12'))
  assert config == config_lib.Config(
      rounds=7,
      client=config_lib.ClientConfig(learning_rate=0.01),
      model=config_lib.ModelConfig(name='neumf', hidden=(8, 4)),
      server=config_lib.ServerConfig(lazy_rows=False),
      evaluation=config_lib.EvaluationConfig(local_only=False),
      data=config_lib.DataConfig(source='csv:my file.csv'),
      cohort=config_lib.CohortConfig(size=12))


@given(st.builds(
    config_lib.Config,
    seed=st.integers(0, 2**31 - 1), rounds=st.integers(1),
    model=st.builds(
        config_lib.ModelConfig, name=st.just('neumf'),
        dim=st.integers(1, 65_536),
        init_scale=st.floats(1e-30, 1e30),
        hidden=st.lists(st.integers(1), min_size=1).map(tuple)),
    data=st.builds(config_lib.DataConfig, path=st.text(
        st.characters(blacklist_categories=['Cs', 'Cc']))),
    server=st.builds(config_lib.ServerConfig, lazy_rows=st.booleans()),
    cohort=st.builds(config_lib.CohortConfig, size=st.integers(0))))
def test_flags_round_trip_any_config(config):
  values = flags.FlagValues()
  define_flags(flag_values=values)
  as_dict = config_lib.to_dict(config)
  arguments = ['program']
  for name in values:
    value = as_dict
    for part in name.split('.'):
      value = value[part]
    text = ','.join(map(str, value)) if isinstance(value, list) else str(value)
    arguments.append(f'--{name}={text}')
  values(arguments)
  assert read_config(values) == config


def test_values_that_go_together_are_validated_together():
  config = read_config(parse(
      '--data.source=ncf', '--split.name=published',
      '--cohort.sampler=weighted', '--cohort.weights_path=w.npy'))
  assert config.split.name == 'published'
  with pytest.raises(ValueError, match='--split.name=published'):
    read_config(parse('--data.source=ncf'))


def test_a_value_is_validated_again():
  with pytest.raises(ValueError, match='model.dim=0'):
    read_config(parse('--model.dim=0'))


def test_only_flags_that_were_given_change_the_base():
  base = config_lib.Config(rounds=5, model=config_lib.ModelConfig(dim=4))
  config = read_config(parse('--rounds=200', '--model.init_scale=0.5'), base)
  # 200 is the default of --rounds, but it was given.
  assert config == config_lib.Config(
      rounds=200, model=config_lib.ModelConfig(dim=4, init_scale=0.5))


def test_a_command_may_define_some_sections_only():
  values = parse('--seed=3', only=['seed', 'evaluation'])
  assert 'evaluation.ks' in values
  assert 'rounds' not in values and 'model.dim' not in values
  assert read_config(values).seed == 3


def test_a_preset_file_is_read_and_later_flags_win(tmp_path):
  preset = tmp_path / 'small.flags'
  preset.write_text('# A comment.\n--rounds=3\n--model.dim=8\n')
  config = read_config(parse(f'--flagfile={preset}', '--rounds=4'))
  assert (config.rounds, config.model.dim) == (4, 8)


@pytest.mark.parametrize(('argument', 'message'), [
  ('--rounds=many', '--rounds=many: not a whole number'),
  ('--rounds=1.5', '--rounds=1.5: not a whole number'),
  ('--server.b1=x', '--server.b1=x: not a number'),
  ('--model.hidden=8;4', '--model.hidden=8;4: not a list of whole numbers'),
  ('--server.lazy_rows=maybe', '--server.lazy_rows=maybe: neither true nor'),
])
def test_a_wrong_type_is_refused_by_the_flags_name(argument, message):
  with pytest.raises(flags.IllegalFlagValueError) as error:
    parse(argument)
  assert message in str(error.value)


def test_a_type_that_no_flag_can_hold_is_refused():
  @dataclasses.dataclass
  class Odd:
    """Odd.

    Attributes:
      table: A dict.
    """
    table: dict = dataclasses.field(default_factory=dict)

  with pytest.raises(TypeError, match='Odd.table'):
    list(config_fields(Odd))


def test_the_short_help_keeps_the_choices_and_fits_the_width(monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  text = format_flags(parse(), {'model': 'Model', 'split': 'Split'})
  assert 'gmf, mlp or neumf' in ' '.join(text.split())
  assert '--model.dim=32' in text
  assert '--data.source' not in text
  assert max(map(len, text.splitlines())) <= 80


def test_the_full_help_says_everything():
  text = ' '.join(format_flags(parse(), {'model': 'Model'}, full=True).split())
  for field in FIELDS:
    if field.section == 'model':
      assert field.help in text
