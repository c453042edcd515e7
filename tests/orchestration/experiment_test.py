"""A run from its config to its directory, and what the directory says."""

import copy
import json
import math

import jax
import numpy as np
import pytest

from fedjaxrec import cli
from fedjaxrec import config as config_lib
from fedjaxrec.data.sources import load_split
from fedjaxrec.evaluation import controls
from fedjaxrec.orchestration import evaluator, experiment, training
from tests.small_runs import (
  TIMES,
  make_config,
  make_interactions,
  random_split,
  read_arrays,
  read_lines,
  snapshot,
  timeless,
)

# The whole path: everybody takes part, on two devices, in size classes, and
# there is the control that trains alone.
CONFIG = make_config({
    'rounds': 5, 'seed': 7, 'cohort.size': 0, 'evaluation.local_only': True,
    'evaluation.ks': [3, 10], 'evaluation.num_groups': 2,
    'parallel.mode': 'shard_map', 'parallel.num_devices': 2,
    'engine.num_size_classes': 2, 'checkpoint.keep': 2})
KS = (3, 10, 20)  # Those asked for, and 10 and 20 always.
BY_CUTOFF = ('hit_rate', 'ndcg', 'recall', 'recall_min', 'precision', 'map')
OF_A_USER = {f'{name}@{k}' for name in BY_CUTOFF for k in KS} | {'mrr', 'auc'}
OF_THE_CATALOGUE = {
    f'{name}@{k}' for k in KS for name in (
        'coverage', 'gini', 'worst_decile_hit_rate', 'worst_decile_ndcg')}


@pytest.fixture(scope='module', autouse=True)
def one_class_alone():
  """The clients that train alone are compiled once, not for three sizes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(controls, '_NUM_SIZE_CLASSES', 1)
    yield


@pytest.fixture(scope='module')
def split():
  return load_split(CONFIG)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  return experiment.train(
      CONFIG, tmp_path_factory.mktemp('finished') / 'run', progress=False)


def ranks_by_hand(scores, split, negatives=None):
  """Each test item's rank in scores [users, items], one item after another."""
  users, ranks, num_candidates = [], [], []
  for u in np.flatnonzero(split.test.counts):
    parts = [part.items[part.offsets[u]:part.offsets[u + 1]].tolist()
             for part in (split.train, split.validation, split.fold_in,
                          split.test)]
    seen = {item for part in parts for item in part}
    pool = range(split.num_items) if negatives is None else negatives[u]
    candidates = [item for item in pool if item not in seen]
    for wanted in parts[-1]:
      users.append(u)
      ranks.append(sum(scores[u][item] >= scores[u][wanted]
                       for item in candidates))
      num_candidates.append(len(candidates))
  return np.array(users), np.array(ranks), np.array(num_candidates)


def metrics_by_hand(ranks, num_candidates):
  """Means over users with one test item each."""
  result = {'mrr': np.mean(1 / (ranks + 1)),
            'auc': np.mean(1 - ranks / num_candidates)}
  for k in KS:
    result[f'hit_rate@{k}'] = result[f'recall@{k}'] = np.mean(ranks < k)
    result[f'precision@{k}'] = np.mean(ranks < k) / k
    result[f'ndcg@{k}'] = np.mean((ranks < k) / np.log2(ranks + 2))
    result[f'map@{k}'] = np.mean((ranks < k) / (ranks + 1))
  return result


def assert_metrics(section, expected):
  for name, value in expected.items():
    # summary.json has six digits.
    assert section[name] == pytest.approx(value, abs=1e-6), name


def popularity_by_hand(split):
  counts = [int((split.train.items == item).sum())
            for item in range(split.num_items)]
  return [counts] * split.num_users


class TestRunDirectory:

  def test_it_holds_these_files(self, finished):
    names = {path.name for path in finished.workdir.iterdir()}
    events = {name for name in names
              if name.startswith('events.out.tfevents.')}
    assert len(events) == 1
    assert names - events == {'config.json', 'metrics.jsonl', 'checkpoints',
                              'summary.json', 'report.html'}
    assert '<html' in (finished.workdir / 'report.html').read_text()

  def test_the_config_round_trips(self, finished):
    values = json.loads((finished.workdir / 'config.json').read_text())
    assert config_lib.from_dict(values) == CONFIG

  def test_the_latest_checkpoints_are_kept(self, finished):
    """Every second round and the last: 2, 4 and 5, of which two."""
    folder = finished.workdir / 'checkpoints'
    assert {path.name for path in folder.iterdir()} == {'4', '5'}

  def test_metrics_have_a_line_a_round(self, finished, split):
    lines = read_lines(finished.workdir, times=True)
    assert [line['round'] for line in lines] == [1, 2, 3, 4, 5]
    counts = split.train.counts
    # Everybody with something to train on, and two negatives to each; one
    # client has too few items left for that.
    slots = counts + np.minimum(2 * counts, split.num_items - counts)
    assert 3 * counts.max() > split.num_items
    for line in lines:
      validated = {'validation'} if line['round'] in (2, 4, 5) else set()
      assert line.keys() == {
          'round', 'loss', 'reported', 'num_examples', 'rejected',
          'uplink_bytes', 'downlink_bytes',
          'clients_per_s',
          'examples_per_s', 'train_s'} | validated
      assert line['reported'] == (counts > 0).sum()
      assert line['num_examples'] == slots.sum()
      assert 0 < line['loss'] < 1
      if validated:
        assert line['validation'].keys() == OF_A_USER
    seconds = [line['train_s'] for line in lines]
    assert sorted(seconds) == seconds and seconds[0] > 0


class TestSummary:
  """DESIGN's contract with scripts, key by key."""

  def test_it_is_what_the_function_returns(self, finished):
    text = (finished.workdir / 'summary.json').read_text()
    assert timeless(json.loads(text)) == timeless(finished.summary)

  def test_its_keys_and_types(self, finished, split):
    summary = copy.deepcopy(finished.summary)
    assert summary.pop('command') == 'train'
    assert summary.pop('seed') == CONFIG.seed
    assert summary.pop('rounds') == CONFIG.rounds
    assert summary.pop('privacy') is None
    assert summary.pop('device') == '2 x cpu (shard_map)'
    assert summary.pop('algorithm') == 'fedavg'
    assert summary.pop('model') == {'name': 'mf', 'dim': 4}
    versions = summary.pop('versions')
    assert {'fedjaxrec', 'python', 'jax', 'jaxlib', 'flax', 'optax',
            'numpy'} <= versions.keys()
    assert versions['jax'] == jax.__version__
    assert summary.pop('data') == {
        'name': 'synthetic', 'num_users': split.num_users,
        'num_items': split.num_items, 'split': 'leave_one_out',
        'num_interactions': sum(part.num_interactions for part in (
            split.train, split.validation, split.test)),
        'num_train': split.train.num_interactions,
        'num_validation': split.validation.num_interactions,
        'num_test': split.test.num_interactions,
        'fingerprint': split.fingerprint,
        'split_fingerprint': split.split_fingerprint()}
    for name in TIMES:
      assert isinstance(summary.pop(name), float), name
    assert type(summary.pop('selected_round')) is int
    test, controls = summary.pop('test'), summary.pop('controls')
    assert test.pop('protocol') == 'full'
    assert test.keys() == {'personalised', 'aggregated'}
    assert controls.keys() == {'popularity', 'local_only'}
    num_users = int((split.test.counts > 0).sum())
    for section in (*test.values(), *controls.values()):
      self.check_metrics(section, num_users, OF_THE_CATALOGUE)
    groups = summary.pop('groups')
    assert sum(group['num_users'] for group in groups) == num_users
    for group in groups:
      assert group.keys() == {
          'label', 'num_users', 'personalised', 'popularity'}
      for name in ('personalised', 'popularity'):
        self.check_metrics(group[name], group['num_users'], set())
    item_groups = summary.pop('item_groups')
    assert sum(group['num_pairs'] for group in item_groups) == (
        split.test.num_interactions)
    for group in item_groups:
      assert group.keys() == {
          'label', 'num_pairs', 'num_items', 'personalised', 'popularity',
          'aggregated', 'local_only'}
      assert group['popularity'].keys() == {
          f'{name}@{k}' for name in ('recall', 'gain')
          for k in KS}
    communication = summary.pop('communication')
    assert communication.keys() == {
        'uplink_bytes_per_client', 'downlink_bytes_per_client',
        'dense_uplink_bytes_per_client', 'total_bytes'}
    assert all(isinstance(n, float) and n > 0 for n in communication.values())
    assert summary.pop('secure') is None
    assert summary.pop('rejected') == 0
    assert not summary  # Whoever adds a key says here what it is.

  def check_metrics(self, section, num_users, more):
    assert section.keys() == OF_A_USER | more | {'num_users', 'ci95'}
    assert section['num_users'] == num_users
    assert section['ci95'].keys() == OF_A_USER
    for name in OF_A_USER | more:
      assert isinstance(section[name], float) and 0 <= section[name] <= 1
    for name, (low, high) in section['ci95'].items():
      # The mean of resamples scatters around the mean.
      assert 0 <= low <= section[name] + 1e-6
      assert section[name] - 1e-6 <= high <= 1

  def test_every_number_is_one_in_json(self, finished):
    def refuse(word):
      raise AssertionError(f'{word} is no JSON')
    json.loads((finished.workdir / 'summary.json').read_text(),
               parse_constant=refuse)

    def walk(value):
      if isinstance(value, dict):
        for inner in value.values():
          yield from walk(inner)
      elif isinstance(value, list):
        for inner in value:
          yield from walk(inner)
      else:
        yield value
    numbers = [value for value in walk(finished.summary)
               if not isinstance(value, (str, type(None)))]
    assert len(numbers) > 100
    assert {type(number) for number in numbers} == {int, float}
    assert all(math.isfinite(number) for number in numbers)

  def test_times_and_rates_agree(self, finished):
    summary = finished.summary
    assert summary['wall_s'] > summary['compile_s'] + summary['train_s']
    lines = read_lines(finished.workdir, times=True)
    # Both are rounded to a millionth: of a rate that is nothing, of the time
    # it is one part in train_s * 10^6.
    rel = 2e-6 / summary['train_s']
    assert summary['train_s'] == pytest.approx(lines[-1]['train_s'], rel=rel)
    for rate, count in (('clients_per_s', 'reported'),
                        ('examples_per_s', 'num_examples')):
      total = sum(line[count] for line in lines)
      assert summary[rate] * summary['train_s'] == pytest.approx(
          total, rel=rel)

  def test_the_round_selected_is_the_best_on_validation(self, finished):
    validated = {line['round']: line['validation']['ndcg@10']
                 for line in read_lines(finished.workdir)
                 if 'validation' in line}
    assert finished.summary['selected_round'] == max(
        validated, key=validated.get)

  def test_popularity_by_hand(self, finished, split):
    _, ranks, num_candidates = ranks_by_hand(popularity_by_hand(split), split)
    expected = metrics_by_hand(ranks, num_candidates)
    assert_metrics(finished.summary['controls']['popularity'], expected)
    # Ties exist and count against it: broken in its favour it would be better.
    counts = -np.array(popularity_by_hand(split))
    _, from_below, _ = ranks_by_hand(counts, split)
    assert (num_candidates - from_below > ranks).any() or (
        from_below + ranks > num_candidates).any()

  def test_the_model_by_hand_from_the_checkpoint(self, finished, split):
    """Matrix factorisation's formula on the arrays of the selected round."""
    arrays = read_arrays(finished.workdir)
    # The last leaves are those of Best, each by the name's order: round, NDCG,
    # item table, shared, personal.
    names = sorted(arrays, key=int)
    item, item_bias, bias, user, user_bias = (
        np.float64(arrays[name]) for name in names[-5:])
    assert item.shape == (split.num_items, 4)
    assert user.shape == (split.num_users, 4)
    assert arrays[names[-7]] == finished.summary['selected_round']
    own = user @ item.T + item_bias + (user_bias + bias)[:, None]
    _, *ranks = ranks_by_hand(own, split)
    assert_metrics(
        finished.summary['test']['personalised'], metrics_by_hand(*ranks))
    mean = user[split.train.counts > 0].mean(0) @ item.T + item_bias
    _, *ranks = ranks_by_hand([mean] * split.num_users, split)
    assert_metrics(
        finished.summary['test']['aggregated'], metrics_by_hand(*ranks))
    sections = finished.summary['test']
    assert sections['personalised']['mrr'] != sections['aggregated']['mrr']


  def test_communication_of_full_participation_by_hand(
      self, finished, split):
    down = up = 0
    for count in split.train.counts:
      if count:  # Who has nothing to train on takes no part.
        rows = count + min(2 * count, split.num_items - count)
        # A row is 4 + 1 numbers, the shared bias one more, an index 4 bytes.
        down += rows * 5 * 4 + 4
        up += rows * (5 * 4 + 4) + 4
    clients = int((split.train.counts > 0).sum())
    assert finished.summary['communication'] == pytest.approx({
        'uplink_bytes_per_client': up / clients,
        'downlink_bytes_per_client': down / clients,
        'dense_uplink_bytes_per_client': split.num_items * 5 * 4 + 4,
        'total_bytes': 5 * (up + down)}, abs=1e-6)


class TestEvaluate:

  def test_a_run_evaluated_again_has_the_same_metrics(self, finished):
    before = snapshot(finished.workdir)
    again = experiment.evaluate(finished.workdir, CONFIG.evaluation)
    assert snapshot(finished.workdir) == before
    assert again.keys() == {
        'selected_round', 'rounds_done', 'test', 'controls', 'groups',
        'item_groups'}
    assert again.pop('rounds_done') == finished.summary['rounds']
    assert again == {name: finished.summary[name] for name in again}

  def test_other_cutoffs_are_of_the_same_round(self, finished):
    again = experiment.evaluate(
        finished.workdir, make_config({'evaluation.ks': [1]}).evaluation)
    assert again['selected_round'] == finished.summary['selected_round']
    assert again['controls']['local_only'] is None
    for model in ('personalised', 'aggregated'):
      new, old = again['test'][model], finished.summary['test'][model]
      assert new['mrr'] == old['mrr'] and new['ndcg@10'] == old['ndcg@10']
      assert new['hit_rate@1'] <= old['hit_rate@3']

  def test_a_run_without_a_checkpoint_is_refused_and_left_alone(
      self, finished, tmp_path):
    (tmp_path / 'config.json').write_text(
        (finished.workdir / 'config.json').read_text())
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match='has no checkpoint yet.*--resume'):
      experiment.evaluate(tmp_path, CONFIG.evaluation)
    assert snapshot(tmp_path) == before

  def test_no_run_is_refused(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='config.json'):
      experiment.evaluate(tmp_path / 'none', CONFIG.evaluation)
    assert not (tmp_path / 'none').exists()


# What else can be asked for; each ends in a summary whose numbers are checked.
VARIANTS = {
    'user_holdout': {'split.name': 'user_holdout', 'split.test_fraction': 0.2,
                     'split.validation_fraction': 0.2,
                     'evaluation.local_only': True},
    'user_ratio, squared_error': {
        'split.name': 'user_ratio', 'split.test_fraction': 0.2,
        'objective.name': 'squared_error'},
    'global_time, neumf': {
        'split.name': 'global_time', 'split.test_fraction': 0.2,
        'model.name': 'neumf', 'model.hidden': [4, 3]},
    'sampled, poisson, at the end only': {
        'evaluation.protocol': 'sampled-99', 'synthetic.num_items': 250,
        'cohort.sampler': 'poisson', 'cohort.size': 3,
        'evaluation.every': 0, 'checkpoint.every': 0},
}


@pytest.mark.parametrize('name', VARIANTS)
def test_it_runs_end_to_end(name, tmp_path, capfd):
  config = make_config({'rounds': 4, **VARIANTS[name]})
  split = load_split(config)
  result = experiment.train(config, tmp_path / 'run', progress=False)
  assert capfd.readouterr().out == ''
  lines = read_lines(tmp_path / 'run')
  assert [line['round'] for line in lines] == [1, 2, 3, 4]
  validated = [line['round'] for line in lines if 'validation' in line]
  users = int((split.test.counts > 0).sum())
  sections = [*result.summary['test'].values()][1:]
  sections.append(result.summary['controls']['popularity'])
  for section in sections:
    assert section['num_users'] == users > 0
    assert all(0 <= section[metric] <= 1 for metric in ('mrr', 'auc'))
  selected = result.summary['selected_round']
  communication = result.summary['communication']
  at_the_end = 'at the end' in name
  assert validated == ([4] if at_the_end else [2, 4])
  assert selected in validated
  checkpoints = {path.name for path in (tmp_path / 'run/checkpoints').iterdir()}
  assert checkpoints == ({'4'} if at_the_end else {'2', '4'})
  if 'user_holdout' in name:
    # Held-out users are asked, and none of them trained.
    assert not ((split.test.counts > 0) & (split.train.counts > 0)).any()
    assert result.summary['controls']['local_only']['num_users'] == users
  if 'global_time' in name:
    assert split.train.timestamps.max() < split.test.timestamps.min()
  if 'sampled' in name:
    assert result.summary['test']['protocol'] == 'sampled-99'
    # Of 99 pairs a user, so many are in the right order.
    pairs = sections[0]['auc'] * users * 99
    assert pairs == pytest.approx(round(pairs), abs=users * 99 * 1e-6)
  if 'squared_error' in name:
    # No negatives: the rows of the interactions alone travel.
    assert communication['total_bytes'] == pytest.approx(sum(
        line['num_examples'] * (20 + 24) + line['reported'] * 8
        for line in lines))
  if 'poisson' in name:
    # Each participation is counted, whoever the sampler drew.
    reported = [line['reported'] for line in lines]
    assert len(set(reported)) > 1
    assert communication['total_bytes'] == pytest.approx(sum(reported) * (
        communication['uplink_bytes_per_client']
        + communication['downlink_bytes_per_client']), rel=1e-6)


def test_selection_chooses_what_is_tested(tmp_path, monkeypatch):
  """The same training, the best round and the last: their metrics differ."""
  real = evaluator.make_evaluator

  def falling(*args):
    # A validation that falls from look to look: the first is the best.
    looks = iter([0.9, 0.5, 0.1] * 2)
    return real(*args)._replace(
        validate=lambda *parameters: {'ndcg@10': next(looks)})

  monkeypatch.setattr(experiment, 'make_evaluator', falling)
  summaries = {}
  for selection in ('best', 'last'):
    summaries[selection] = experiment.train(
        make_config({'evaluation.selection': selection}),
        tmp_path / selection, progress=False).summary
  assert summaries['best']['selected_round'] == 2
  assert summaries['last']['selected_round'] == 6
  assert read_lines(tmp_path / 'best') == read_lines(tmp_path / 'last')
  assert summaries['best']['test'] != summaries['last']['test']
  assert summaries['best']['controls'] == summaries['last']['controls']


def write_ncf(folder, split, negatives):
  """A split without validation, as the files of He et al."""
  folder.mkdir()

  def rows(part):
    return ''.join(f'{u}\t{i}\t1\t{n}\n'
                   for n, (u, i) in enumerate(zip(part.users, part.items)))
  (folder / 'x.train.rating').write_text(rows(split.train))
  (folder / 'x.test.rating').write_text(rows(split.test))
  (folder / 'x.test.negative').write_text(''.join(
      f'({u},{i})\t' + '\t'.join(map(str, negatives[u])) + '\n'
      for u, i in enumerate(split.test.items)))


def test_the_published_split_tests_the_last_round_on_its_own_negatives(
    tmp_path):
  split = random_split(20, 150, 8)
  negatives = []
  for u in range(20):
    own = [*split.train.items[8 * u:8 * u + 8], split.test.items[u]]
    others = np.setdiff1d(np.arange(150), own)
    negatives.append(np.random.default_rng(u).permutation(others)[:99])
  # As in the published files, a positive may be among its own negatives.
  negatives[3][0] = split.test.items[3]
  write_ncf(tmp_path / 'ncf', split, negatives)
  config = make_config({
      'rounds': 4, 'data.source': 'ncf', 'data.path': str(tmp_path / 'ncf'),
      'split.name': 'published', 'evaluation.protocol': 'sampled-99'})
  result = experiment.train(config, tmp_path / 'run', progress=False)
  assert all('validation' not in line
             for line in read_lines(tmp_path / 'run'))
  assert result.summary['selected_round'] == 4
  loaded = load_split(config)
  _, ranks, num_candidates = ranks_by_hand(
      popularity_by_hand(loaded), loaded, negatives)
  assert sorted(set(num_candidates)) == [98, 99]
  expected = {name: value for name, value in metrics_by_hand(
      ranks, num_candidates).items() if '@3' not in name}
  assert_metrics(result.summary['controls']['popularity'], expected)


@pytest.fixture
def no_compilation(monkeypatch):
  """Fails a test in which something is compiled or run."""
  # Little programs of JAX's own, which may have been compiled before or not.
  _, _, key = jax.random.split(jax.random.key(0), 3)
  del key
  events = []

  def listen(event, duration, **kwargs):
    # Also where the program comes from the persistent cache. A trace of its
    # own is no compilation: shapes are found that way.
    if event == '/jax/core/compile/backend_compile_duration':
      events.append(kwargs)

  def refuse(*args, **kwargs):
    raise AssertionError('rounds were started')

  monkeypatch.setattr(training, 'compile_rounds', refuse)
  monkeypatch.setattr(training, 'start_afresh', refuse)
  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)
  assert not events


class TestBadInput:

  def test_the_guard_sees_a_compilation(self, no_compilation):
    jax.jit(lambda x: x + 1)(0.0)  # A new function, so traced anew.
    assert no_compilation
    no_compilation.clear()

  @pytest.mark.parametrize(('changes', 'message'), [
      ({'cohort.size': 41}, r'cohort\.size=41 .*40 clients'),
      ({'evaluation.ks': [61]}, r'evaluation\.ks=61 .*catalogue of 59'),
      ({'synthetic.num_items': 19, 'synthetic.mean_interactions': 5.0},
       r'num_items=1\d .*below 20'),
      ({'data.source': 'movielens-100k', 'data.path': 'no/such/folder'},
       r"data\.path='no/such/folder'"),
      ({'data.source': 'ncf', 'split.name': 'published'}, r"data\.path=''"),
      ({'data.source': 'ncf', 'split.name': 'published',
        'data.path': 'no/such/folder'}, r"data\.path='no/such/folder'"),
      ({'data.source': 'csv:no-such-file.csv'}, 'no-such-file.csv'),
      ({'data.min_user_interactions': 50}, r'data\.min_user_interactions=50'),
      ({'parallel.mode': 'shard_map', 'parallel.num_devices': 99},
       r'parallel\.num_devices=99'),
      ({'cohort.sampler': 'weighted', 'cohort.weights_path': 'none.npy'},
       r"cohort\.weights_path='none\.npy'"),
      ({'evaluation.protocol': 'sampled-99'}, 'sampled-99.*protocol=full'),
  ])
  def test_it_is_refused_before_anything_compiles(
      self, changes, message, tmp_path, no_compilation):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      experiment.train(
          make_config(changes), tmp_path / 'run', progress=False)
    assert not (tmp_path / 'run').exists()

  @pytest.mark.parametrize(('source', 'split_name'), [
      ('ncf', 'leave_one_out'), ('synthetic', 'published')])
  def test_the_published_split_goes_with_its_source(self, source, split_name):
    with pytest.raises(ValueError, match=rf'data\.source={source} with split'):
      make_config({'data.source': source, 'split.name': split_name})

  def test_a_test_set_that_cannot_be_ranked_is_refused_before_training(
      self, tmp_path, monkeypatch, no_compilation):
    """100 items are left to a user on validation, and 98 on test."""
    split = random_split(10, 110, 8)
    fuller = np.setdiff1d(np.arange(110), np.r_[
        split.train.items[:8], split.validation.items[0]])[:3]
    rows = [fuller, *split.test.items[1:, None]]
    object.__setattr__(split, 'test', make_interactions(rows, 110))
    monkeypatch.setattr(experiment, 'load_split', lambda config: split)
    with pytest.raises(ValueError, match=r'sampled-99: user=0 has only 98 '):
      experiment.train(
          make_config({'evaluation.protocol': 'sampled-99'}),
          tmp_path / 'run', progress=False)
    assert not (tmp_path / 'run').exists()

  @pytest.mark.parametrize('flags', [
      ['--data.source=movielens-100k', '--data.path=no/such/folder'],
      ['--data.source=synthetic', '--synthetic.num_users=40',
       '--cohort.size=41'],
      ['--data.source=ncf', '--split.name=leave_one_out'],
      ['--data.source=synthetic', '--evaluation.ks=5000'],
  ])
  def test_the_command_line_says_it_in_one_line(
      self, flags, tmp_path, capsys, no_compilation):
    assert cli.main(['fedjaxrec', 'train', *flags,
                     f'--workdir={tmp_path / "run"}']) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('fedjaxrec: ')
    assert err.count('\n') == 1
    named = flags[-1].removeprefix('--').partition('=')[0]
    assert f'{named}=' in err


@pytest.mark.parametrize('name, said', [
    ('fedavg', 'client.learning_rate=7.0, client.item_learning_rate=60.0 or '
               'server.learning_rate=0.028'),
    ('fedmf', 'fedmf.learning_rate=0.01 or server.learning_rate=0.028'),
    ('fcf', 'server.learning_rate=0.028')])
def test_the_rates_that_an_algorithm_steps_by_are_named(name, said):
  error = training._diverged(
      config_lib.Config(algorithm=config_lib.AlgorithmConfig(name=name)),
      'loss=nan in round 3')
  assert f'Lower {said}, and' in str(error)


def test_a_run_that_diverges_says_so_and_what_to_do(tmp_path, capsys):
  config = make_config({
      'client.learning_rate': 1e30, 'client.item_learning_rate': 1e30})
  with pytest.raises(FloatingPointError, match=(
      r'(loss=(inf|nan)|parameters are not finite) in round \d: .*'
      r'Lower client\.learning_rate=1e\+30')):
    experiment.train(config, tmp_path / 'run', progress=False)
  assert not (tmp_path / 'run' / 'summary.json').exists()
  # From the command line: one line and the exit code 1, also when continued.
  assert cli.main([
      'fedjaxrec', 'train', '--resume', f'--workdir={tmp_path / "run"}']) == 1
  _, err = capsys.readouterr()
  assert 'Lower client.learning_rate=1e+30' in err and err.count('\n') == 1
