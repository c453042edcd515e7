"""Every source is reached by its name, and filters and splits are applied."""

import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.data import sources
from fedjaxrec.data import tfds as tfds_lib

DataConfig = config_lib.DataConfig
CSV = 'user_id,item_id,rating,timestamp\n' + ''.join(
    f'{user},{item},{1 + item % 5},{item}\n'
    for user in range(5) for item in range(user + 4))


@pytest.fixture
def table(tmp_path):
  (tmp_path / 't.csv').write_text(CSV)
  return f'csv:{tmp_path}/t.csv'


def test_every_source_of_the_config_has_a_loader():
  for source in config_lib.SOURCES:
    assert source == 'synthetic' or sources._find_loader(source)
  for prefix in config_lib.SOURCE_PREFIXES:
    assert sources._find_loader(f'{prefix}x')
  with pytest.raises(ValueError, match="data.source='other' has no loader"):
    sources._find_loader('other')


def test_filters_are_applied(table):
  data = sources.load_interactions(DataConfig(
      source=table, min_rating=2, min_user_interactions=4,
      min_item_interactions=2))
  assert data.ratings.min() == 2
  assert data.counts.min() >= 4
  with pytest.raises(ValueError, match='data.min_rating=6.* leave none'):
    sources.load_interactions(DataConfig(source=table, min_rating=6))


def test_a_split_is_made(table):
  split = sources.load_split(config_lib.Config(data=DataConfig(source=table)))
  assert split.name == 'leave_one_out'
  assert split.test.counts.tolist() == [1] * 5


def test_made_up_interactions_follow_config_and_seed():
  config = DataConfig(source='synthetic')
  shape = config_lib.SyntheticConfig(num_users=20, num_items=30,
                                     mean_interactions=5.0)
  one, same, other = (
      sources.load_interactions(config, shape, seed).fingerprint()
      for seed in (1, 1, 2))
  assert one == same != other


def test_the_split_does_not_follow_the_seed_of_the_run(table):
  config = [config_lib.Config(
      seed=seed, data=DataConfig(source=table),
      split=config_lib.SplitConfig(
          name='user_holdout', fold_in_fraction=0.5)) for seed in (1, 2)]
  one, other = (sources.load_split(c).test.fingerprint() for c in config)
  assert one == other


def test_movielens_from_a_path(tmp_path, capsys):
  (tmp_path / 'u.data').write_text('1\t2\t3\t4\n')
  config = DataConfig(path=str(tmp_path))
  assert sources.load_interactions(config).num_interactions == 1


def test_columns_named_for_tfds_replace_the_usual_ones(monkeypatch):
  seen = []
  monkeypatch.setattr(tfds_lib, 'load', lambda *args: seen.append(args))
  for fields in ({}, {'user_column': 'customer', 'rating_column': ''}):
    sources._find_loader('tfds:a/b')(DataConfig(source='tfds:a/b', **fields))
  usual = tfds_lib.COLUMNS
  assert seen[0] == ('a/b', '', '', usual)
  assert seen[1][3] == (('customer',), usual[1], (), usual[3])


def test_the_published_split_is_taken_whole(shared_data):
  path = str(shared_data / 'ncf')
  split = config_lib.SplitConfig(name='published')
  result = sources.load_split(config_lib.Config(
      data=DataConfig(source='ncf', path=path), split=split))
  assert result.name == 'published'
  with pytest.raises(ValueError, match='data.min_rating=3'):
    sources.load_split(config_lib.Config(
        data=DataConfig(source='ncf', path=path, min_rating=3), split=split))
  with pytest.raises(ValueError, match='load_split'):
    sources.load_interactions(DataConfig(source='ncf', path=path))
