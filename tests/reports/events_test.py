"""TensorBoard events, read back."""

import glob

from fedjaxrec.reports import events


def read(folder):
  """(step, tag, value) of all scalars, and the purged steps, of all files."""
  from tensorboardX.proto import event_pb2
  scalars, purged = [], []
  for path in sorted(glob.glob(str(folder / 'events.out.tfevents.*'))):
    data = open(path, 'rb').read()
    while data:
      # A record: length (8), its checksum (4), the event, its checksum (4).
      size = int.from_bytes(data[:8], 'little')
      event = event_pb2.Event.FromString(data[12:12 + size])
      data = data[16 + size:]
      scalars += [(event.step, value.tag, value.simple_value)
                  for value in event.summary.value]
      if event.HasField('session_log'):
        purged.append(event.step)
  return scalars, purged


def test_numbers_are_written_at_their_round_and_groups_by_name(tmp_path):
  with events.open_events(tmp_path) as writer:
    writer.write({'round': 3, 'loss': 0.5, 'note': 'no number', 'none': None,
                  'validation': {'ndcg@10': 0.25}})
  scalars, purged = read(tmp_path)
  assert scalars == [(3, 'loss', 0.5), (3, 'validation/ndcg_at_10', 0.25)]
  assert not purged


def test_a_resumed_run_forgets_the_rounds_that_it_runs_again(tmp_path):
  with events.open_events(tmp_path, first_round=7) as writer:
    writer.write({'round': 8, 'loss': 0.5})
  scalars, purged = read(tmp_path)
  assert purged == [8]
  assert scalars == [(8, 'loss', 0.5)]
