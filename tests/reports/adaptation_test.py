"""The curve of new users, as the table and the page show it."""

import copy

from fedjaxrec.reports import adaptation, html
from tests.reports.html_test import LINES, SUMMARY, make_metrics

POINTS = [{'interactions': n, 'metrics': make_metrics(0.01 * (n + 1)),
           'ratings': {'rmse': 1.0 / (n + 1), 'mae': 0.5}} for n in (0, 3)]
POINTS[1]['finetuned'] = {'metrics': make_metrics(0.07),
                          'ratings': {'rmse': 0.2, 'mae': 0.1}}
CURVE = {'num_users': 1204, 'points': POINTS}


def test_a_row_a_point_with_what_fine_tuning_adds():
  head, *rows = adaptation.curve_rows({'adaptation': CURVE})
  assert head == ['Interactions', 'HR@10', 'NDCG@10', 'Recall@20', 'RMSE',
                  'MAE']
  assert [row[0] for row in rows] == ['0', '3', '3, fine-tuned']
  assert [row[2].partition(' ')[0] for row in rows] == [
      '0.0100', '0.0400', '0.0700']
  assert [row[4] for row in rows] == ['1.0000', '0.2500', '0.2000']


def test_the_page_has_it_where_the_run_does():
  with_curve = html.render_report(
      {}, LINES, copy.deepcopy(SUMMARY) | {'adaptation': CURVE})
  assert 'New users' in with_curve and '1,204 users who never' in with_curve
  assert '3, fine-tuned' in with_curve
  assert 'New users' not in html.render_report({}, LINES, SUMMARY)
  assert adaptation.curve_rows(SUMMARY) == []
  assert adaptation.curve_figure(SUMMARY) is None
  figure = adaptation.curve_figure({'adaptation': CURVE})
  assert figure['data'][0]['x'] == [0, 3]
  assert figure['data'][1]['x'] == [3]
