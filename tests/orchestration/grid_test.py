"""What a sweep varies, as it is written on a command line."""

import pytest

from fedjaxrec import config
from fedjaxrec.orchestration import grid

BASE = config.Config()


def test_every_combination_runs_with_every_seed():
  axes = grid.parse_axes(
      ['client.learning_rate=3,7; model.dim=8', 'server.lazy_rows=true,false'])
  assert [axis.fields for axis in axes] == [
      ('client.learning_rate',), ('model.dim',), ('server.lazy_rows',)]
  members = grid.make_members(BASE, axes, grid.parse_seeds('0,5'))
  assert [m.place for m in members] == list(range(8))
  assert [(m.config.client.learning_rate, m.config.model.dim,
           m.config.server.lazy_rows, m.config.seed) for m in members] == [
      (rate, 8, lazy, seed) for rate in (3.0, 7.0) for lazy in (True, False)
      for seed in (0, 5)]
  assert members[0].values == {
      'client.learning_rate': 3.0, 'model.dim': 8, 'server.lazy_rows': True}
  # What is not swept is the base's.
  assert grid.replace_fields(members[0].config, {
      'client.learning_rate': BASE.client.learning_rate, 'seed': BASE.seed,
      'model.dim': BASE.model.dim}) == BASE


def test_fields_joined_by_a_slash_change_together():
  axis, = grid.parse_axes(
      ['server.optimizer/server.learning_rate=sgd/1, adam/0.03'])
  assert axis == (('server.optimizer', 'server.learning_rate'),
                  (('sgd', 1.0), ('adam', 0.03)))
  members = grid.make_members(BASE, [axis], (0,))
  assert [(m.config.server.optimizer, m.config.server.learning_rate)
          for m in members] == [('sgd', 1.0), ('adam', 0.03)]


def test_lists_are_separated_by_a_bar():
  axis, = grid.parse_axes(['model.hidden=64,32|16'])
  assert axis.settings == (((64, 32),), ((16,),))
  assert grid.describe({'model.hidden': (64, 32), 'server.lazy_rows': True,
                        'rounds': 3}) == (
      'model.hidden=64,32, server.lazy_rows=true, rounds=3')


@pytest.mark.parametrize(('text', 'seeds'), [
    ('4', (4,)), ('0,1, 2', (0, 1, 2)), ('0-3', (0, 1, 2, 3)),
    ('7,0-2', (7, 0, 1, 2))])
def test_seeds_are_a_list_or_a_range(text, seeds):
  assert grid.parse_seeds(text) == seeds


@pytest.mark.parametrize(('text', 'message'), [
    ('', "'' is no seed"), ('one', "'one' is no seed"), ('1,,2', 'is no seed'),
    ('-1', "'-1' is no seed"), ('3-1', 'holds no seed'),
    ('0-2,1', 'has 1 twice')])
def test_seeds_that_are_none_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    grid.parse_seeds(text)


@pytest.mark.parametrize(('text', 'parts'), [
    ('client.learning_rat=3', ('client.learning_rat', 'Did you mean',
                               'client.learning_rate')),
    ('learning_rate=3', ('Did you mean', 'server.learning_rate',
                         'client.learning_rate')),
    ('xyzzy=3', ("'xyzzy' is not a field",)),
    ('client=3', ("'client' is not a field",)),
    ('seed=0,1', ('--sweep.seeds',)),
    ('parallel.mode=single,auto', ('parallel.mode does not change',)),
    ('client.learning_rate', ('has no values',)),
    ('client.learning_rate=', ('has no values',)),
    ('client.learning_rate=3,fast', ("='fast' is not a number",)),
    ('model.dim=8,8.5', ("model.dim='8.5' is not a whole number",)),
    ('server.lazy_rows=maybe', ('is not true or false',)),
    ('model.hidden=a|8', ('is not a list of whole numbers',)),
    ('client.learning_rate=3,7,3.0', ('has the value 3.0 twice',)),
    ('model.dim=8;model.dim=16', ('model.dim stands there twice',)),
    ('model.dim/model.name=8', ("'8' has 1 of the 2 values",)),
    ('model.dim=4,,8', ("model.dim='' is not",))])
def test_a_wrong_grid_is_refused_with_what_to_write(text, parts):
  with pytest.raises(ValueError) as error:
    grid.parse_axes([text])
  for part in ('sweep.grid', *parts):
    assert part in str(error.value)


def test_a_combination_that_the_config_refuses_is_named():
  axes = grid.parse_axes(['client.learning_rate=1,-1'])
  with pytest.raises(ValueError, match=(
      r'sweep member client.learning_rate=-1, seed=4: '
      r'client.learning_rate=-1.0 must be')):
    grid.make_members(BASE, axes, (4,))


def test_nothing_to_vary_is_no_sweep():
  with pytest.raises(ValueError, match='nothing to vary'):
    grid.make_members(BASE, (), (0,))
  assert len(grid.make_members(BASE, (), (0, 1))) == 2
