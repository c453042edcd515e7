"""Ids, ratings and times: what is understood, and what is refused where."""

import numpy as np
from absl.testing import parameterized

from fedjaxrec.data import columns
from fedjaxrec.data import interactions as interactions_lib

Interactions = interactions_lib.Interactions


class ColumnsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('strings', ['b', 'a', 'c'], ['a', 'b', 'c']),
      ('bytes', [b'b', b'a', b'\xc3\xa9'], ['a', 'b', 'é']),
      ('objects', np.array(['b', 'a'], object), ['a', 'b']),
      ('object integers', np.array([3, 1], object), [1, 3]),
      ('whole floats', [3.0, 1.0], [1, 3]),
      ('sparse', [2**62, 5, -7], [-7, 5, 2**62]),
      ('unsigned', np.array([2**64 - 1, 0], np.uint64), [0, 2**64 - 1]))
  def test_ids_are_dense_in_the_sorted_order_of_the_source(self, ids, expected):
    found, index = columns.dense_ids(ids)
    self.assertEqual(found.tolist(), expected)
    self.assertEqual(index.dtype, np.int32)
    self.assertEqual(
        found[index].tolist(),
        [i.decode() if isinstance(i, bytes) else i for i in list(ids)])

  @parameterized.named_parameters(
      ('none', np.array([1, None], object)), ('nan', [1.0, np.nan]),
      ('fraction', [1.0, 2.5]), ('infinite', [1.0, np.inf]),
      ('empty', ['a', '']), ('object nan', np.array(['a', np.nan], object)))
  def test_a_bad_id_is_refused_with_its_row(self, ids):
    with self.assertRaisesRegex(ValueError, r'f\.csv: item: id=.* in row 1 '):
      Interactions.from_columns([1, 1], ids, source='f.csv')

  @parameterized.named_parameters(
      ('nan', dict(ratings=[1, np.nan]), 'rating=nan in row 1 '),
      ('infinite', dict(ratings=[-np.inf, 1]), 'rating=-inf in row 0 '),
      ('word', dict(ratings=['3', 'x']), 'not all numbers'),
      ('negative', dict(timestamps=[1, -1]), 'timestamp=-1 in row 1 '),
      ('not a time', dict(timestamps=np.array(['2020', 'NaT'], 'M8[s]')),
       'timestamp=NaT in row 1 '),
      ('nan time', dict(timestamps=[np.nan, 1.]), 'timestamp=nan in row 0 '),
      ('text time', dict(timestamps=['a', 'b']), 'not all times'),
      ('length', dict(ratings=[1.0]), 'equal length'))
  def test_a_bad_value_is_refused_with_its_row(self, columns, message):
    with self.assertRaisesRegex(ValueError, f'f.csv.*{message}'):
      Interactions.from_columns([1, 1], [1, 2], source='f.csv', **columns)

  def test_datetimes_are_seconds(self):
    data = Interactions.from_columns(
        [1], [1], timestamps=np.array(['1970-01-02T00:00:01.9'], 'M8[ns]'))
    self.assertEqual(data.timestamps[0], 86401)

  @parameterized.parameters(
      (['2001-02-03 04:05:06'],), (['2001-02-03T04:05:06.7'],),
      (['981173106'],), ([981173106.9],), ([b'981173106'],))
  def test_text_and_fractions_are_seconds(self, times):
    data = Interactions.from_columns([1], [1], timestamps=times)
    self.assertEqual(data.timestamps[0], 981_173_106)
