"""What a report says of personal parameters and of what travels is so."""

import html
import re

import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.algorithms.travels import TRAVELS, with_the_server
from fedjaxrec.config import Config
from fedjaxrec.privacy import scope
from fedjaxrec.reports import figures, tables, travels
from fedjaxrec.reports import html as report

SECURE = {'rows': 'dense'}
TRAFFIC = {'uplink_bytes_per_client': 100.0,
           'downlink_bytes_per_client': 90.0,
           'dense_uplink_bytes_per_client': 300.0, 'total_bytes': 1e6}
# Where personal parameters are not on the client alone.
WITH_THE_SERVER = {
    'ials', 'dpals', 'fcf', 'fedmf', 'fedease', 'pfedrec', 'metamf', 'gpfedrec',
    'cofedrec', 'reptile', 'fomaml', 'perfedavg'}


def page(name, local=None, secure=None, **sections):
  """The text of a report: (what travels, the whole of it)."""
  summary = {'algorithm': name, 'communication': TRAFFIC,
             'test': {'personalised': {'ndcg@10': 0.1}},
             'privacy': {'local': local} if local else None}
  config = {'algorithm': {'name': name}, **sections}
  # The section on sums needs all its facts; what travels, none of them.
  parts = {}
  part = report._traffic(summary | {'secure': secure}, config, parts)
  whole = '' if secure else report.render_report(config, [], summary)
  bars = parts['traffic']['data'][0]['y']
  return html.unescape(re.sub('<[^>]*>', '', part)), whole, bars


def test_every_algorithm_says_what_travels():
  assert set(TRAVELS) == set(config_lib.ALGORITHMS)
  for name, line in TRAVELS.items():
    assert line.moves.startswith('A client ') and line.moves[-1] != '.', name


@pytest.mark.parametrize('name', config_lib.ALGORITHMS)
def test_only_who_keeps_personal_parameters_is_said_to(name):
  text, whole, bars = page(name)
  stays = name not in WITH_THE_SERVER
  assert ('stay on the client' in text) == stays
  assert ('stay on the client' in whole) == stays
  assert 'never left' not in whole and 'never leave' not in whole
  assert bars[1:] == [f'{way}, {TRAVELS[name].rows}'
                      for way in ('Download', 'Upload')]


@pytest.mark.parametrize(('name', 'words'), [
    ('fedavg', 'rows of the item table that its examples touch'),
    ('ials', "a statistic that holds the client's vector"),
    ('dpals', 'before the noise'), ('metamf', 'keeps the vector of every user'),
    ('gpfedrec', 'sends its own whole table'),
    ('pfedrec', 'all but the score layer'), ('fcf', 'the whole item table'),
    ('fedpergnn', 'pseudo-items')])
def test_the_words_are_those_of_the_algorithm(name, words):
  assert words in page(name)[0]


@pytest.mark.parametrize(('name', 'stays'), [
    ('ials', 'those of its items'), ('fedavg', 'can reveal them')])
def test_uploads_that_name_a_clients_items_are_said_to(name, stays):
  assert stays in page(name)[1]


def test_a_secure_sum_hides_the_upload_that_holds_them():
  text, _, bars = page('pfedrec', secure=SECURE)
  assert 'opens the sum alone' in text and 'stay on the client' in text
  assert bars[2] == 'Upload, all rows'
  assert 'touched' not in ''.join(bars)
  assert "union of the cohort's" in page('fedavg', secure={'rows': 'union'})[0]


def test_local_privacy_sends_rows_that_no_example_touches():
  text, whole, bars = page('fedavg', local={'guarantee': 'epsilon = 1'})
  assert 'all rows, whichever its examples touch' in text
  assert 'noisy before' in text and bars[2] == 'Upload, all rows'
  text, _, bars = page('pfedrec', local={'guarantee': 'epsilon = 1'},
                       local_privacy={'head_items': 200})
  assert bars[2] == 'Upload, the 200 head rows'
  assert 'stay on the client' in text


def test_head_rows_and_control_variates_are_named():
  assert '200 head rows alone' in page(
      'fedavg', privacy={'head_items': 200})[0]
  assert 'Control variates' in page(
      'fedavg', client={'control_variates': True})[0]


def test_a_compressed_upload_is_called_so():
  found = figures.communication(
      TRAFFIC | {'uncompressed_uplink_bytes_per_client': 200.0}, 'all rows')
  assert found['data'][0]['y'][2] == 'Upload, all rows, compressed'


def test_a_run_of_an_unknown_algorithm_claims_nothing():
  for summary in ({}, {'algorithm': 'newer'}):
    assert travels.words_of(summary).personal == ''
  rows = tables.comparison_rows({'test': {'personalised': {'ndcg@10': 1.0}}})
  assert rows[0].meaning.endswith('personal parameters.')


@pytest.mark.parametrize('name', ['dpals', 'metamf', 'pfedrec', 'fedavg'])
def test_a_guarantee_says_what_the_server_has(name):
  model = 'metamf' if name == 'metamf' else 'mf'
  extra = {}
  if name == 'metamf':
    extra['client'] = config_lib.ClientConfig(steps=1)
  if name == 'dpals':
    extra['privacy'] = config_lib.PrivacyConfig(l2_clip_norm=1.0)
    extra['cohort'] = config_lib.CohortConfig(size=0, sampler='uniform')
  said = scope.what_is_uncovered(Config(
      algorithm=config_lib.AlgorithmConfig(name=name),
      model=config_lib.ModelConfig(name=model), **extra), 100)[0]
  assert ('on the device' in said) == (name not in WITH_THE_SERVER)
  assert (with_the_server(name) in said) and (
      'not against the server' in said) == (name in WITH_THE_SERVER)
