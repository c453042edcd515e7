"""scripts/plot_runs.py: separate runs in one plot."""

import json
import pathlib
import runpy

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'scripts' / 'plot_runs.py'


def make_run(folder, seed, ndcg):
  folder.mkdir()
  (folder / 'summary.json').write_text(json.dumps(
      {'seed': seed, 'test': {'personalised': {'ndcg@10': ndcg}}}))


def test_runs_that_differ_in_the_seed_are_one_row_of_the_plot(tmp_path):
  main = runpy.run_path(str(SCRIPT))['main']
  for name, seed, ndcg in (
      ('banded-0', 0, 0.02), ('banded-1', 1, 0.03), ('blt-0', 0, 0.04)):
    make_run(tmp_path / name, seed, ndcg)
  out = tmp_path / 'plot.svg'
  main([*map(str, sorted(tmp_path.glob('b*'))), f'--out={out}'])
  text = out.read_text()
  assert text.count('run=banded') == text.count('run=blt') == 1
  # A small dot a seed, a large one a mean.
  assert text.count('r="3"') == 3 and text.count('r="5.5"') == 2
  assert 'seed 1: 0.0300' in text


def test_a_folder_without_a_finished_run_is_named(tmp_path):
  main = runpy.run_path(str(SCRIPT))['main']
  out = tmp_path / 'plot.svg'
  with pytest.raises(ValueError, match=r'folder=.* --resume'):
    main([str(tmp_path), f'--out={out}'])
  assert not out.exists()
