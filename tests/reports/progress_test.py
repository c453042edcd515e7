"""The progress display, in a terminal and elsewhere."""

import io

import rich.console

from fedjaxrec.reports import progress


def run(is_terminal, updates, rounds=40, first_round=0, show=True):
  stream = io.StringIO()
  console = rich.console.Console(
      file=stream, force_terminal=is_terminal, width=120)
  with progress.open_progress(rounds, first_round, show, console) as bar:
    for round_index, ndcg in updates:
      bar.update(round_index, loss=0.51237, validation_ndcg=ndcg,
                 clients_per_s=12345.6)
  return stream.getvalue()


def test_a_file_gets_a_line_for_each_new_validation_and_the_last_round():
  text = run(False, [(10, None), (20, 0.05), (30, 0.05), (40, 0.05)])
  lines = text.splitlines()
  assert [line.split(':')[0] for line in lines] == ['round 20/40',
                                                    'round 40/40']
  assert 'loss 0.5124' in lines[0] and 'NDCG@10 0.0500' in lines[0]
  assert '12,346 clients/s' in lines[0] and 's left' in lines[0]
  assert '\x1b' not in text


def test_a_file_gets_a_line_where_nothing_came_for_long(monkeypatch):
  monkeypatch.setattr(progress, '_LINE_EVERY_S', 0.0)
  assert len(run(False, [(r, None) for r in range(1, 6)]).splitlines()) == 5


def test_the_time_left_counts_the_rounds_of_this_run_only(monkeypatch):
  clock = iter([0.0, 20.0])
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
  # Ten rounds in 20 s; ten are left.
  assert '20 s left' in run(False, [(30, 0.1)], first_round=20)


def test_a_terminal_gets_a_bar_with_the_numbers():
  text = run(True, [(20, 0.05), (40, 0.06)])
  assert '40/40' in text and 'NDCG@10 0.0600' in text
  assert '12,346 clients/s' in text


def test_show_false_shows_nothing():
  assert not run(True, [(40, 0.05)], show=False)
  assert not run(False, [(40, 0.05)], show=False)
