"""`fedjaxrec sweep` on the command line, up to where it would train."""

import pathlib
import subprocess
import sys

import pytest

from fedjaxrec import cli, config
from fedjaxrec.flags import read_config
from fedjaxrec.orchestration import grid

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRESETS = {
    path.name: path for path in sorted((ROOT / 'scripts').glob('*.flags'))
    if '--sweep.' in path.read_text()}


def parse(*arguments):
  values = cli._flag_values('sweep')
  values(['fedjaxrec sweep', *arguments])
  return values


def members_of(path):
  values = parse(f'--flagfile={path}')
  return grid.make_members(
      read_config(values), grid.parse_axes(values['sweep.grid'].value),
      grid.parse_seeds(values['sweep.seeds'].value))


def test_there_are_presets_of_real_ablations():
  assert len([name for name in PRESETS if name.startswith('ablate_')]) >= 3


@pytest.mark.parametrize('name', PRESETS)
def test_a_preset_says_what_it_is_and_parses(name):
  text = PRESETS[name].read_text()
  assert text.startswith('# ')
  assert f'#   fedjaxrec sweep --flagfile=scripts/{name}' in text
  members = members_of(PRESETS[name])
  assert len(members) >= 6
  assert len({repr(m.config) for m in members}) == len(members)


def test_the_presets_ask_what_their_names_say():
  optimizers = members_of(PRESETS['ablate_server_optimizer.flags'])
  assert {m.config.server.optimizer for m in optimizers} == set(
      config.OPTIMIZERS)
  cohorts = members_of(PRESETS['ablate_cohort.flags'])
  assert {m.config.cohort.size * m.config.rounds for m in cohorts} == {75_000}
  assert {len({m.config.seed for m in members_of(path)})
          for name, path in PRESETS.items()
          if name.startswith('ablate_')} == {8}


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--sweep.grid=client.learning_rat=3'], 'Did you mean'),
    (['--sweep.grid=model.dim=x'], 'not a whole number'),
    (['--sweep.grid=model.dim=3,3'], 'twice'),
    (['--sweep.grid='], 'nothing to vary'), ([], 'nothing to vary'),
    (['--sweep.seeds=0,0'], 'twice'),
    (['--seed=3', '--sweep.seeds=0,1'], '--sweep.seeds=3'),
    (['--sweep.grid=rounds=0,1'], 'rounds=0'),
    (['--sweep.gird=rounds=1'], 'Did you mean --sweep.grid'),
    (['--resume'], '--resume needs --workdir'),
    (['--sweep.members_per_program=-1', '--sweep.seeds=0,1'],
     'sweep.members_per_program'),
    (['--sweep.seeds=0,1', '--synthetic.num_users=9'],
     '--data.source=synthetic')])
def test_a_wrong_command_line_is_one_line(
    capsys, monkeypatch, tmp_path, arguments, message):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['fedjaxrec', 'sweep', *arguments]) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1 and message in err
  assert not list(tmp_path.iterdir())


def test_it_is_refused_before_jax_is_imported():
  code = ('import sys\nfrom fedjaxrec import cli\n'
          'code = cli.main(["fedjaxrec", "sweep", "--sweep.grid=model.dim=x"])'
          '\nsys.exit(code != 2 or "jax" in sys.modules)')
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True,
                          capture_output=True)
  assert result.returncode == 0, result.stderr


def test_the_help_has_a_group_for_what_is_varied(capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  assert cli.main(['fedjaxrec', 'sweep', '--help']) == 0
  out = capsys.readouterr().out
  assert 'What is varied\n  --sweep.grid' in out
  assert '--server.learning_rate=' in out
