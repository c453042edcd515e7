"""SECURITY.md speaks of levels, flags and refusals that the program has."""

import pathlib
import re

import pytest

from fedjaxrec import cli
from fedjaxrec.aggregation.messages import Reason
from fedjaxrec.config.sections import SECTIONS
from fedjaxrec.config.secure import LEVELS
from fedjaxrec.flags import config_fields

PAGE = (pathlib.Path(__file__).resolve().parent.parent
        / 'SECURITY.md').read_text()
# Modules and files that are written like flags.
NO_FLAGS = {'jax.random', 'metrics.jsonl'}


def unknown_flags(text: str) -> set[str]:
  """The flags of a text, `--section.field` or `section.field`, that are none.

  Whole sections, `section.*`, are flags where there is such a section.
  """
  known = {field.name for field in config_fields()} | {
      f'{section}.*' for section in SECTIONS}
  for command in cli.COMMANDS:
    known |= set(cli._flag_values(command))
  named = set(re.findall(r'--([a-z][a-z_.0-9]*)', text)) | set(
      re.findall(r'`([a-z_]+\.[a-z_0-9.*]+)(?:=[^`]*)?`', text))
  return {name.rstrip('.') for name in named} - known - NO_FLAGS


def test_every_flag_named_exists():
  assert unknown_flags(PAGE) == set()
  assert PAGE.count('secure.') > 5  # There are some.


@pytest.mark.parametrize('text', [
    'give --secure.lvl', 'see `secure.lvl`', '`secure.lvl=he`', '`secrecy.*`'])
def test_a_flag_that_does_not_exist_is_found(text):
  assert len(unknown_flags(text)) == 1


def test_every_level_has_its_name_in_the_table_and_a_section():
  table = PAGE.partition('## The levels')[2].partition('\n\n## ')[0]
  first = re.findall(r'^\| `([a-z]+)`', table, re.MULTILINE)
  assert first == [level for level in LEVELS if level != 'none']
  titles = re.findall(r'^## `([a-z]+)`', PAGE, re.MULTILINE)
  assert titles == first


def test_every_refusal_named_is_one_and_all_are_named():
  named = PAGE.partition('**What is refused, by name**')[2].partition('\n\n')[0]
  assert set(re.findall(r'`([a-z_]+)`', named)) == {
      reason.value for reason in Reason}
