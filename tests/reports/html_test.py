"""The report: complete, self-contained, escaped, and drawn by a browser."""

import copy
import html.parser
import json
import re
import shutil
import subprocess

import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.reports import html as report
from fedjaxrec.reports import run_directory, tables


def make_metrics(ndcg):
  values = {'hit_rate@10': 2 * ndcg, 'ndcg@10': ndcg, 'mrr': 0.9 * ndcg,
            'recall@20': 3 * ndcg, 'coverage@10': 0.25}
  ends = {name: [0.8 * value, 1.2 * value] for name, value in values.items()}
  return values | {'num_users': 943, 'ci95': ends}


SUMMARY = {
    'command': 'fedjaxrec train --workdir=runs/a',
    'versions': {'fedjaxrec': '0.1.0', 'jax': '0.10.2'},
    'device': '1 x cpu (single)', 'seed': 7,
    'data': {'name': 'movielens-100k', 'num_users': 943, 'num_items': 1682,
             'num_interactions': 100000, 'split': 'leave_one_out',
             'fingerprint': 'ab12'},
    'rounds': 40, 'selected_round': 30, 'wall_s': 41.34, 'compile_s': 6.2,
    'train_s': 20.5, 'clients_per_s': 9021.3, 'examples_per_s': 5.1e6,
    'model': {'name': 'mf', 'dim': 32},
    'test': {'protocol': 'full', 'personalised': make_metrics(0.0712),
             'aggregated': make_metrics(0.0466)},
    'controls': {'popularity': make_metrics(0.0431),
                 'local_only': make_metrics(0.0033)},
    'privacy': None,
    'communication': {
        'uplink_bytes_per_client': 54321.0, 'downlink_bytes_per_client': 51000,
        'dense_uplink_bytes_per_client': 222024, 'total_bytes': 2.1e9},
    'groups': [
        {'label': f'{n}-{2 * n} interactions', 'num_users': 10 * n,
         'personalised': make_metrics(0.5 / n),
         'popularity': make_metrics(0.01)}
        for n in (18, 37, 75)],
}
LINES = [
    {'round': r, 'loss': 1 / r} | (
        {'validation': {'ndcg@10': r / 1000, 'hit_rate@10': r / 500}}
        if r % 10 == 0 else {}) for r in range(1, 41)]
PLOTS = ['comparison-0', 'comparison-1', 'comparison-2', 'comparison-3',
         'loss', 'validation', 'groups', 'traffic']


class Page(html.parser.HTMLParser):
  """Collects the elements, their attributes, the text and the scripts."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text, self.scripts = [], '', []
    self._stack = []
    self.feed(text)
    self.close()
    assert not self._stack

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in ('meta', 'br', 'img'):
      self._stack.append(tag)

  def handle_endtag(self, tag):
    assert self._stack.pop() == tag

  def handle_data(self, data):
    if self._stack and self._stack[-1] == 'script':
      self.scripts.append(data)
    elif self._stack and self._stack[-1] != 'style':
      self.text += data

  @property
  def ids(self):
    return [attrs['id'] for _, attrs in self.elements if 'id' in attrs]

  @property
  def figures(self):
    return json.loads(self.scripts[0])


def render(summary=SUMMARY, lines=LINES, config=None):
  return Page(report.render_report(
      config or config_lib.to_dict(config_lib.Config()), lines, summary))


def write_run(folder, summary=SUMMARY, lines=LINES):
  run_directory.write_json(
      folder / 'config.json', config_lib.to_dict(config_lib.Config()))
  run_directory.write_json(folder / 'summary.json', summary)
  with run_directory.open_metrics(folder) as log:
    for line in lines:
      log.append(line)
  return report.write_report(folder)


class TestContent:

  def test_holds_the_numbers_of_the_summary(self):
    page = render()
    for row in tables.comparison_rows(SUMMARY):
      assert row.label in page.text
      for name in tables.METRICS:
        assert tables.format_metric(row.metrics, name) in page.text
    for fact in ('100,000 interactions', 'leave_one_out', 'full ranking',
                 '943 test users', 'ab12', 'jax 0.10.2', '1 x cpu (single)',
                 '41.3 s', 'round 30', 'matrix factorisation, dim 32',
                 '54.3 kB', '2.1 GB', 'fedjaxrec train --workdir=runs/a',
                 '"learning_rate"', 'Privacy: none', 'Coverage@10'):
      assert fact in page.text, fact

  def test_every_plot_has_its_place_and_its_numbers(self):
    page = render()
    assert list(page.figures) == PLOTS
    assert set(PLOTS) <= set(page.ids)
    ndcg = page.figures['comparison-1']['data'][0]
    assert ndcg['x'] == [0.0712, 0.0466, 0.0033, 0.0431]
    assert abs(ndcg['error_x']['array'][0] - 0.2 * 0.0712) < 1e-12
    assert page.figures['loss']['data'][0]['x'] == list(range(1, 41))
    shown = page.figures['validation']
    assert shown['data'][0]['x'] == [10, 20, 30, 40]
    assert shown['layout']['shapes'][0]['x0'] == 30
    assert [len(trace['y']) for trace in page.figures['groups']['data']] == [
        3, 3]
    assert page.figures['traffic']['data'][0]['x'] == [222024, 51000, 54321]

  def test_a_long_curve_is_thinned_and_keeps_its_last_round(self):
    lines = [{'round': r, 'loss': 0.5} for r in range(1, 10_001)]
    rounds = render(lines=lines).figures['loss']['data'][0]['x']
    assert len(rounds) <= 2000 and rounds[-1] == 10_000

  @pytest.mark.parametrize('ours, words', [
      (0.0712, '1.65 times the 0.0431 of popularity.'),
      (0.0450, 'with 95 % intervals that overlap.'),
      (0.0400, 'does not beat popularity.')])
  def test_the_headline_claims_no_more_than_the_numbers(self, ours, words):
    summary = copy.deepcopy(SUMMARY)
    summary['test']['personalised'] = make_metrics(ours)
    assert report.headline(summary).endswith(words)

  def test_a_privacy_guarantee_is_shown(self):
    text = render(SUMMARY | {'privacy': {
        'unit': 'client', 'epsilon': 3.5, 'delta': 1e-05}}).text
    assert 'epsilon = 3.5 at delta = 1e-05, unit client' in text
    assert 'add_or_remove_one' not in text
    text = render(SUMMARY | {'privacy': {
        'guarantee': 'epsilon = 2', 'epsilon': 2.0, 'deployment_cohort': 9000,
        'noise_scale': 0.01, 'rejected': 3, 'uncovered': ['The moon.'],
        'warnings': ['Look out.'], 'neighboring': 'add_or_remove_one'}}).text
    for words in ('epsilon = 2.', 'cohorts of 9,000', '3 deltas', 'The moon.',
                  'does not cover', 'Look out.'):
      assert words in text
    assert 'Privacy: none' not in text


class TestGroupsAndRatings:

  GROUPS = [{'label': f'{n} interactions', 'num_pairs': 9,
             'personalised': {'recall@10': n / 10},
             'aggregated': {'recall@10': n / 20},
             'popularity': {'recall@10': 0.01}} for n in (1, 2)]
  RATINGS = {'personalised': {'rmse': 0.9123, 'mae': 0.7}, 'user_mean': {
      'rmse': 1.0456, 'mae': 0.8}, 'global_mean': {'rmse': 1.2, 'mae': 0.9}}

  def test_whom_it_serves_is_shown_by_item_and_by_user(self):
    page = render(SUMMARY | {'item_groups': self.GROUPS})
    shown = page.figures['items']['data']
    assert [trace['name'] for trace in shown] == [
        'Popularity', 'Federated (aggregated)', 'Federated (personalised)']
    assert shown[2]['y'] == [0.1, 0.2] and shown[1]['y'] == [0.05, 0.1]
    assert shown[0]['x'][1] == '2 interactions<br>9 test items'
    for words in ('Fairness and reach', 'Worst decile', 'Items of 2', '0.2500'):
      assert words in page.text
    head, *rows = tables.reach_cells(SUMMARY | {'item_groups': self.GROUPS})
    assert len(head) == 6
    assert rows[-1][-2:] == ['0.1000', '0.2000']
    assert rows[1][0] == 'Local only' and rows[1][-2:] == ['-', '-']

  def test_predicted_ratings_are_shown_beside_what_needs_no_model(self):
    lines = [line | ({'validation': line['validation'] | {
        'rmse': 1.1, 'mae': 0.8}} if 'validation' in line else {})
             for line in LINES]
    page = render(SUMMARY | {'ratings': self.RATINGS}, lines)
    for words in ('0.9123', '1.0456', '1.2000', 'RMSE', "Users' means"):
      assert words in page.text
    assert [t['name'] for t in page.figures['errors']['data']] == [
        'RMSE', 'MAE']
    assert 'RMSE of 0.9123' in report.headline(
        SUMMARY | {'ratings': self.RATINGS})

  def test_what_only_ranks_has_no_ratings(self):
    page = render()
    assert 'RMSE' not in page.text and 'errors' not in page.figures

  def test_labels_of_items_are_text(self):
    groups = [{'label': '<b>x', 'num_pairs': 1,
               'personalised': {'recall@10': 0.5}}]
    page = render(SUMMARY | {'item_groups': groups})
    assert '&lt;b&gt;' in page.figures['items']['data'][0]['x'][0]
    assert 'b' not in {tag for tag, _ in page.elements}


class TestSelfContained:

  def test_loads_nothing(self):
    page = render()
    for tag, attrs in page.elements:
      assert tag not in ('link', 'iframe', 'img', 'object', 'base'), tag
      assert not {'src', 'href', 'srcset', 'action'} & set(attrs), (tag, attrs)
    policy = [attrs['content'] for tag, attrs in page.elements
              if attrs.get('http-equiv') == 'Content-Security-Policy']
    assert len(policy) == 1 and "default-src 'none'" in policy[0]
    assert 'http' not in policy[0]

  def test_the_styles_load_nothing(self):
    text = report.render_report({}, [], {})
    styles = re.findall(r'<style>(.*?)</style>', text, re.DOTALL)
    assert len(styles) == 1
    assert 'url(' not in styles[0] and '@import' not in styles[0]

  def test_what_comes_from_a_run_is_text(self):
    evil = '</script><script>alert(1)</script><img src="http://x/" onerror="a">'
    summary = copy.deepcopy(SUMMARY)
    summary['data'] |= {'name': evil, 'split': evil, 'fingerprint': evil}
    summary |= {'command': evil, 'device': evil, 'versions': {evil: evil},
                'model': {'name': evil, evil: evil}, 'selected_round': 30,
                'privacy': {evil: evil}}
    summary['test']['protocol'] = evil
    summary['test']['personalised'][evil] = 0.5
    summary['groups'][0]['label'] = evil
    page = render(summary, config={'data': {'source': evil}})
    clean = render()
    tags = lambda p: {tag for tag, _ in p.elements}
    assert tags(page) == tags(clean)
    assert len(page.scripts) == len(clean.scripts)
    assert evil in page.text
    label = page.figures['groups']['data'][0]['x'][0]
    assert '<script' not in label and '&lt;script' in label


class TestMissingPieces:

  @pytest.mark.parametrize('key', sorted(SUMMARY))
  def test_any_part_of_the_summary_may_be_absent(self, key):
    for value in ({}, {key: None}):
      rest = {name: part for name, part in SUMMARY.items() if name != key}
      assert 'config.json' in render(rest | value).text

  def test_an_empty_run(self):
    page = render({}, [], {})
    assert page.figures == {}
    assert 'no test result' in page.text
    assert 'logged no training loss' in page.text
    assert 'logged no validation result' in page.text

  def test_numbers_that_are_none(self):
    summary = copy.deepcopy(SUMMARY)
    summary['test']['personalised'] |= {'ndcg@10': None, 'mrr': float('nan')}
    summary['test']['aggregated']['ci95'] = {'ndcg@10': [None, 0.1]}
    summary['groups'][0]['personalised'] = {}
    summary['controls']['local_only'] = None
    lines = [{'round': 1, 'loss': 0.7}, {'round': 2, 'loss': float('nan')},
             {'round': 3, 'loss': None, 'validation': {}},
             {'round': 4, 'validation': {'ndcg@10': None, 'hit_rate@10': 0.1}}]
    figures = render(summary, lines).figures
    assert figures['loss']['data'][0]['y'] == [0.7, None, None, None]
    assert len(figures['validation']['data']) == 1
    assert len(figures['comparison-1']['data'][0]['x']) == 2
    assert [len(t['x']) for t in figures['groups']['data']] == [3, 2]


class TestFile:

  def test_is_written_into_the_run_directory(self, tmp_path):
    path = write_run(tmp_path)
    assert path == tmp_path / 'report.html'
    assert 'Federated (personalised)' in path.read_text()

  @pytest.mark.parametrize('name', ['config.json', 'summary.json'])
  def test_a_missing_file_is_named(self, tmp_path, name):
    write_run(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
      report.write_report(tmp_path)

  def test_a_browser_draws_every_plot(self, tmp_path):
    browser = shutil.which('chromium')
    if browser is None:
      pytest.skip('no chromium on the path to draw the report with.')
    path = write_run(tmp_path)
    result = subprocess.run(
        [browser, '--headless', '--no-sandbox', '--disable-gpu',
         '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync',
         f'--user-data-dir={tmp_path / "browser"}',
         '--virtual-time-budget=10000', '--dump-dom', path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True)
    # What is drawn into each plot: text, id, text, id, text ...
    _, *parts = re.split(
        r'<div class="plot[ \w-]*js-plotly-plot"[^>]*? id="([\w-]+)"',
        result.stdout)
    drawn = dict(zip(parts[::2], parts[1::2]))
    assert list(drawn) == PLOTS
    for name, content in drawn.items():
      assert 'class="main-svg"' in content, name
    bars = {name: content.count('<g class="point">')
            for name, content in drawn.items()}
    assert bars['comparison-1'] == 4
    assert bars['groups'] == 2 * 3 and bars['traffic'] == 3
    assert '0.0712' in drawn['comparison-1']
    assert 'class="js-line"' in drawn['loss']
    assert 'selected: round 30' in drawn['validation']
