"""Files that are whole or absent, and directories that stay the user's."""

import json
import os
import pathlib
import stat

import numpy as np
import pytest

from fedjaxrec.reports import (
  benchmark_directory,
  run_directory,
  sweep_directory,
)

CONFIG = {'seed': 0, 'rounds': 3, 'data': {}, 'model': {}}


def make_run(folder):
  folder.mkdir(parents=True, exist_ok=True)
  run_directory.write_json(folder / 'config.json', CONFIG)
  (folder / 'checkpoints' / '3').mkdir(parents=True)
  for name in ('metrics.jsonl', 'summary.json', 'report.html',
               'events.out.tfevents.1.host'):
    (folder / name).write_text('old')


def names(folder):
  return sorted(path.name for path in folder.iterdir())


class TestJson:

  def test_numpy_and_what_json_lacks(self, tmp_path):
    path = tmp_path / 'a.json'
    run_directory.write_json(path, {
        'a': np.float32(0.5), 'b': np.arange(2), 'c': float('nan'),
        'd': [np.int64(3), float('inf')], 'e': (1, None, True, 'x'), 4: 'key'})
    assert json.loads(path.read_text()) == {
        'a': 0.5, 'b': [0, 1], 'c': None, 'd': [3, None],
        'e': [1, None, True, 'x'], '4': 'key'}
    assert run_directory.read_json(path)['b'] == [0, 1]

  def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path):
    path = tmp_path / 'a.json'
    run_directory.write_json(path, {'a': 1})
    with pytest.raises(TypeError):
      run_directory.write_json(path, {'a': object()})
    assert run_directory.read_json(path) == {'a': 1}
    assert names(tmp_path) == ['a.json']

  def test_a_process_killed_while_writing_leaves_the_old_file(
      self, tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    run_directory.write_json(path, {'a': 1})
    def killed(*args):
      raise KeyboardInterrupt
    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
      run_directory.write_json(path, {'a': 2})
    assert run_directory.read_json(path) == {'a': 1}

  def test_the_file_can_be_read_by_those_whom_the_umask_lets(self, tmp_path):
    before = os.umask(0o022)
    try:
      run_directory.write_json(tmp_path / 'a.json', {})
    finally:
      os.umask(before)
    assert stat.S_IMODE((tmp_path / 'a.json').stat().st_mode) == 0o644

  @pytest.mark.parametrize('text', ['{"a": 1', '', '[1]'])
  def test_a_damaged_file_is_named(self, tmp_path, text):
    path = tmp_path / 'summary.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'summary.json.*--overwrite'):
      run_directory.read_json(path)

  def test_a_missing_file_is_named(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='summary.json'):
      run_directory.read_json(tmp_path / 'summary.json')


  def test_a_torn_file_is_not_whole_and_is_warned_of(self, tmp_path, caplog):
    path = tmp_path / 'a.json'
    run_directory.say_damaged(path)
    assert not run_directory.is_whole(path)
    run_directory.write_json(path, {'a': [1, 2]})
    run_directory.say_damaged(path)
    assert run_directory.is_whole(path) and not caplog.text
    path.write_text(path.read_text()[:-4])
    assert not run_directory.is_whole(path)
    run_directory.say_damaged(path)
    assert 'a.json' in caplog.text and 'damaged' in caplog.text


class TestMetrics:

  def write(self, folder, rounds):
    with run_directory.open_metrics(folder) as log:
      for r in rounds:
        log.append({'round': r, 'loss': np.float32(1 / r)})

  def test_lines_come_back_and_each_is_out_at_once(self, tmp_path):
    with run_directory.open_metrics(tmp_path) as log:
      log.append({'round': 1, 'loss': float('nan')})
      assert run_directory.read_metrics(tmp_path) == [
          {'round': 1, 'loss': None}]
      log.append({'round': 2, 'validation': {'ndcg@10': np.float64(0.5)}})
    assert run_directory.read_metrics(tmp_path)[1] == {
        'round': 2, 'validation': {'ndcg@10': 0.5}}

  def test_no_file_has_no_lines(self, tmp_path):
    assert run_directory.read_metrics(tmp_path) == []
    run_directory.truncate_metrics(tmp_path, 5)
    assert names(tmp_path) == []

  @pytest.mark.parametrize('rest', ['{"round": 4, "lo', '{"round"', '{', '7'])
  def test_a_resume_continues_after_whole_lines(self, tmp_path, rest):
    self.write(tmp_path, [1, 2, 3])
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
      file.write(rest)
    assert len(run_directory.read_metrics(tmp_path)) == 3
    run_directory.truncate_metrics(tmp_path, 2)
    self.write(tmp_path, [3, 4])
    rounds = [line['round'] for line in run_directory.read_metrics(tmp_path)]
    assert rounds == [1, 2, 3, 4]

  def test_appending_without_truncating_would_be_noticed(self, tmp_path):
    # Positive control: the half-written line is then in the middle.
    self.write(tmp_path, [1])
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
      file.write('{"round": 2, "lo')
    self.write(tmp_path, [2, 3])
    with pytest.raises(ValueError, match='metrics.jsonl.*line 2'):
      run_directory.read_metrics(tmp_path)


KINDS = {'run': run_directory.RUN, 'sweep': sweep_directory.KIND,
         'benchmark': benchmark_directory.KIND}


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
class TestKinds:

  def make(self, folder, kind):
    run_directory.make_workdir(folder, kind)
    run_directory.write_json(folder / kind.marker, dict.fromkeys(kind.keys))
    for name in kind.files:
      (folder / name).write_text('old')

  def test_each_is_known_made_and_emptied(self, tmp_path, kind):
    folder = tmp_path / 'a' / 'b'
    self.make(folder, kind)
    assert [name for name, other in KINDS.items()
            if run_directory.holds(folder, other)] == [kind.what]
    (folder / 'notes.txt').write_text('mine')
    (folder / '.fedjaxrec-abc').write_text('of one that was killed')
    run_directory.make_workdir(folder, kind)
    assert names(folder) == ['notes.txt']

  def test_a_linked_folder_is_unlinked_and_not_emptied(self, tmp_path, kind):
    self.make(tmp_path / 'here', kind)
    (tmp_path / 'far' / '0').mkdir(parents=True)
    name = min(kind.files)
    (tmp_path / 'here' / name).unlink()
    (tmp_path / 'here' / name).symlink_to(tmp_path / 'far')
    run_directory.make_workdir(tmp_path / 'here', kind)
    # Nothing of the old one may be taken for the new one's.
    assert names(tmp_path / 'here') == []
    assert names(tmp_path / 'far') == ['0']

  def test_what_is_none_of_ours_loses_nothing(self, tmp_path, kind):
    (tmp_path / min(kind.files)).write_text('mine')
    run_directory.make_workdir(tmp_path, kind)
    assert names(tmp_path) == [min(kind.files)]

  def test_a_torn_marker_is_named_with_the_way_out(self, tmp_path, kind):
    self.make(tmp_path, kind)
    text = (tmp_path / kind.marker).read_text()
    (tmp_path / kind.marker).write_text(text[:-5])
    before = names(tmp_path)
    for flags in ({'resume': True}, {'overwrite': True}):
      with pytest.raises(ValueError, match=f'not a {kind.what} directory: its '
                         f'{kind.marker} is damaged.*from a copy'):
        run_directory.check_workdir(
            tmp_path, **{'resume': False, 'overwrite': False} | flags,
            kind=kind)
    assert names(tmp_path) == before

  def test_an_old_file_that_cannot_be_removed_is_named(
      self, tmp_path, kind, monkeypatch):
    self.make(tmp_path, kind)

    def refuse(path):
      raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(pathlib.Path, 'unlink', refuse)
    with pytest.raises(ValueError, match='cannot be removed .Permission'):
      run_directory.make_workdir(tmp_path, kind)
    assert run_directory.holds(tmp_path, kind)  # The marker goes last.


class TestWorkdir:

  def prepare(self, folder, resume=False, overwrite=False):
    return run_directory.prepare_workdir(
        folder, resume=resume, overwrite=overwrite)

  @pytest.mark.parametrize('resume', [False, True])
  def test_a_new_or_empty_directory_is_made_ready(self, tmp_path, resume):
    assert not self.prepare(tmp_path / 'a' / 'b', resume=resume)
    assert (tmp_path / 'a' / 'b').is_dir()
    assert not self.prepare(tmp_path / 'a' / 'b', resume=resume)

  def test_checking_changes_nothing(self, tmp_path):
    run_directory.check_workdir(
        tmp_path / 'a', resume=False, overwrite=False)
    assert names(tmp_path) == []
    make_run(tmp_path / 'a')
    before = names(tmp_path / 'a')
    run_directory.check_workdir(tmp_path / 'a', resume=False, overwrite=True)
    assert names(tmp_path / 'a') == before

  def test_a_run_is_not_replaced_unasked(self, tmp_path):
    make_run(tmp_path)
    before = names(tmp_path)
    with pytest.raises(ValueError, match='--resume.*--overwrite'):
      self.prepare(tmp_path)
    assert names(tmp_path) == before

  def test_a_run_is_resumed_untouched(self, tmp_path):
    make_run(tmp_path)
    before = names(tmp_path)
    assert self.prepare(tmp_path, resume=True)
    assert names(tmp_path) == before

  def test_overwriting_removes_the_run_and_nothing_of_the_user_s(
      self, tmp_path):
    make_run(tmp_path)
    (tmp_path / 'notes.txt').write_text('mine')
    (tmp_path / 'plots').mkdir()
    assert not self.prepare(tmp_path, overwrite=True)
    assert names(tmp_path) == ['notes.txt', 'plots']

  @pytest.mark.parametrize('name, text', [
      ('thesis.tex', 'mine'), ('config.json', '{"editor": "mine"}'),
      ('config.json', 'not json'), ('metrics.jsonl', '')])
  @pytest.mark.parametrize('flags', [
      dict(), dict(overwrite=True), dict(resume=True)])
  def test_what_is_not_a_run_is_never_touched(
      self, tmp_path, name, text, flags):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match='not a run directory'):
      self.prepare(tmp_path, **flags)
    assert (tmp_path / name).read_text() == text

  def test_a_run_killed_while_it_began_may_begin_again(self, tmp_path):
    (tmp_path / '.fedjaxrec-abc').write_text('{"se')
    assert not self.prepare(tmp_path, resume=True)
    assert names(tmp_path) == []

  def test_a_linked_checkpoint_folder_is_unlinked_and_not_emptied(
      self, tmp_path):
    (tmp_path / 'far').mkdir()
    (tmp_path / 'far' / 'precious').write_text('mine')
    make_run(tmp_path / 'run')
    (tmp_path / 'run' / 'checkpoints' / '3').rmdir()
    (tmp_path / 'run' / 'checkpoints').rmdir()
    (tmp_path / 'run' / 'checkpoints').symlink_to(tmp_path / 'far')
    self.prepare(tmp_path / 'run', overwrite=True)
    assert names(tmp_path / 'run') == []
    assert names(tmp_path / 'far') == ['precious']

  def test_a_file_is_no_directory(self, tmp_path):
    (tmp_path / 'file').write_text('mine')
    for workdir in (tmp_path / 'file', tmp_path / 'file' / 'run'):
      with pytest.raises(ValueError, match='is a file'):
        self.prepare(workdir)

  def test_resume_and_overwrite_contradict_each_other(self, tmp_path):
    with pytest.raises(ValueError, match='contradict'):
      self.prepare(tmp_path, resume=True, overwrite=True)
