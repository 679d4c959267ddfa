"""The README's two commands, which .ci/run runs as they stand there."""

import re
import subprocess

import pytest

from helpers import tree


def _command(name):
  text = (tree.ROOT / 'README.md').read_text()
  blocks = re.findall(
    rf'^<!-- ci: {name} -->\n+```\w*\n(.*?)^```$', text, re.M | re.S
  )
  assert len(blocks) == 1, f'README.md: one block under <!-- ci: {name} -->'
  return blocks[0]


@pytest.mark.parametrize(
  ('name', 'goal'),
  [('rank', 'experiments.rank --model=llava_flax'), ('test', 'pytest')],
)
def test_each_command_does_all_of_its_own_set_up(name, goal):
  command = _command(name)
  made = re.search(r'python3 -m venv (\S+)', command)
  assert made, command
  assert f'{made[1]}/bin/pip install' in command
  assert f'{made[1]}/bin/python -m {goal}' in command
  assert subprocess.run(['bash', '-n', '-c', command]).returncode == 0


def test_the_two_commands_share_no_environment():
  rank, test = (
    re.search(r'venv (\S+)', _command(name))[1] for name in ('rank', 'test')
  )
  assert rank != test


def test_ci_script_is_sound():
  script = tree.ROOT / '.ci/run'
  assert script.stat().st_mode & 0o111
  assert subprocess.run(['bash', '-n', script]).returncode == 0
  assert 'set -euo pipefail' in script.read_text()
