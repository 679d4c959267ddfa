"""Flags, exit codes and run folders, without a model."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

from absl import flags
import pytest

from corejax import errors
from corejax.data import sources
from corejax.experiments import cli
from corejax.experiments import config as config_lib
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import rank
from corejax.experiments import resources
from corejax.experiments import runs
from corejax.experiments import session
from corejax.models import registry


def test_defaults_come_from_one_table():
  assert config_lib.parse(rank.Config, ['rank']) == rank.Config()


def test_flags_reach_the_config():
  config = config_lib.parse(
    rank.Config, ['rank', '--norm=lift', '--limit', '7', '--noprofiles']
  )
  assert (config.norm, config.limit, config.profiles) == ('lift', 7, False)


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--lmit=3'], 'lmit'),
    (['--limit=x'], 'limit'),
    (['--limit=-1'], 'negative'),
    (['--norm=sum'], 'mass, share, lift, excess'),
    (['--max_bad=2'], '0 to 1'),
    (['--batch_size=0'], '1 or more'),
    (['stray'], 'not a flag'),
  ],
)
def test_bad_flags_are_one_line_and_exit_2(argv, words, capsys):
  assert rank.cli(['rank', *argv]) == cli.EX_USER
  err = capsys.readouterr().err
  assert words in err and err.count('\n') == 1


def test_videos_are_clips_where_the_family_reads_them():
  def handed(**settings):
    return resources.video_as(config_lib.Shared(**settings))

  assert handed(model='internvl_flax') == 'clip'
  assert handed(model='internvl_flax', video_as='pictures') == 'pictures'
  assert handed(model='llava_flax') == 'pictures'
  for model in ('llava_flax', 'llava_next_flax'):
    with pytest.raises(errors.UserError, match='reads no videos') as caught:
      handed(model=model, video_as='clip')
    assert '\n' not in str(caught.value)


def test_how_videos_are_handed_over_is_said():
  for model, said in (
    ('llava_flax', 'as several pictures (--video_as=pictures)'),
    ('llava_onevision_flax', 'as clips (--video_as=clip)'),
  ):
    config = config_lib.Shared(model=model, data='scenes_video', limit=3)
    source = resources.load_source(config)
    assert said in session.describe(source, config.limit)
    assert bool(source[0].clips) == ('clips' in said)
  pages = resources.load_source(config_lib.Shared(data='scenes_pages'))
  assert 'video' not in session.describe(pages, 400)


def test_boxes_are_written_as_the_family_was_trained(monkeypatch, tmp_path):
  (tmp_path / 'preprocessor_config.json').write_text(
    '{"image_processor_type": "Qwen2VLImageProcessor"}'
  )

  def asked(model='llava_flax', **settings):
    config = config_lib.Shared(
      model=model, checkpoint=str(tmp_path), data='refcocog', **settings
    )
    return resources.load_source(config)

  monkeypatch.setattr(sources, 'load', lambda name, **options: options)
  assert {key: asked(key)['box_answers'] for key in registry.keys()} == {
    'llava_flax': 'square',
    'llava_next_flax': 'share',
    'llava_onevision_flax': 'share',
    'internvl_flax': 'thousand',
    'qwen2_vl_flax': 'thousand',
    'qwen2_5_vl_flax': 'resized',
    'qwen3_vl_flax': 'thousand',
    'qwen3_vl_moe_flax': 'thousand',
  }
  # 22.86 and 17.14 cells of 28 pixels.
  assert asked('qwen2_5_vl_flax')['resized']((640, 480)) == (644, 476)
  assert asked(box_answers='pixel')['box_answers'] == 'pixel'
  with pytest.raises(errors.UserError, match='do not keep their shape'):
    asked(box_answers='resized')


def test_help_names_every_flag(capsys):
  for module, config_class in (
    (rank, rank.Config),
    (inspect_lib, inspect_lib.Config),
  ):
    assert module.cli(['x', '--help']) == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(config_class):
      assert f'--{field.name} ' in text


def test_no_flag_is_registered_and_a_foreign_model_flag_lives():
  before = set(flags.FLAGS)
  config_lib.parse(rank.Config, ['rank', '--model=llava_flax'])
  assert set(flags.FLAGS) == before
  code = (
    'from absl import flags\n'
    'import corejax.experiments.rank, corejax.experiments.inspect\n'
    "flags.DEFINE_string('model', 'mine', '')\n"
    "flags.FLAGS(['p', '--model=yours'])\n"
    'from corejax.experiments import config, rank\n'
    "assert config.parse(rank.Config, ['r']).model == 'llava_flax'\n"
    "assert flags.FLAGS.model == 'yours'\n"
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_help_imports_nothing_heavy():
  code = (
    'import sys\n'
    'from corejax.experiments import inspect, rank\n'
    "rank.cli(['rank', '--help']); inspect.cli(['inspect', '-h'])\n"
    "heavy = {'jax', 'numpy', 'transformers', 'flax', 'matplotlib'}\n"
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
  'text', ['data', 'data:0', 'data:2,data:2', 'x:2', 'data:-1', ':', 'data:2,']
)
def test_bad_mesh(text):
  with pytest.raises(errors.UserError, match='--mesh='):
    resources.parse_mesh(text)


def test_mesh():
  assert resources.parse_mesh('model:4') == {'data': 1, 'model': 4}
  with pytest.raises(errors.UserError, match='needs 10000 devices'):
    resources.make_mesh('data:100,model:100')


def open_run(path, identity=None, resume=True):
  return runs.open_run(path, identity or {'a': 1}, {}, resume)


def state(path):
  return json.loads((path / 'run.json').read_text())['state']


def test_run_states(tmp_path):
  with open_run(tmp_path):
    assert state(tmp_path) == 'running'
  assert state(tmp_path) == 'done'
  with pytest.raises(ZeroDivisionError), open_run(tmp_path):
    raise ZeroDivisionError
  assert state(tmp_path) == 'bug'
  assert 'ZeroDivisionError' in (tmp_path / 'traceback.txt').read_text()
  with pytest.raises(cli.Preempted), open_run(tmp_path):
    raise cli.Preempted
  assert state(tmp_path) == 'preempted'
  with pytest.raises(errors.UserError), open_run(tmp_path):
    raise errors.UserError('x')
  assert state(tmp_path) == 'failed'


def test_another_run_in_the_folder_is_refused_by_name(tmp_path):
  with open_run(tmp_path, {'seed': 1, 'data': 'x'}):
    pass
  with pytest.raises(errors.UserError, match='seed was 1, is 2'):
    with open_run(tmp_path, {'seed': 2, 'data': 'x'}):
      pass
  with open_run(tmp_path, {'seed': 2, 'data': 'x'}, resume=False):
    pass
  assert state(tmp_path) == 'done'


def test_second_run_on_a_held_folder_says_who_holds_it(tmp_path):
  with open_run(tmp_path):
    with pytest.raises(errors.UserError, match=f'process {os.getpid()} on'):
      with open_run(tmp_path):
        pass


def test_unreadable_run_json(tmp_path):
  (tmp_path / 'run.json').write_text('{')
  with pytest.raises(errors.UserError, match='--noresume'):
    with open_run(tmp_path):
      pass


def test_out_is_a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='run folder'):
    with open_run(tmp_path / 'file'):
      pass


def test_sigterm_becomes_exit_75(capsys):
  def run(config):
    with cli.Stop() as stop:
      os.kill(os.getpid(), signal.SIGTERM)
      stop.check()

  assert cli.main(['x'], rank.Config, run, '') == cli.EX_PREEMPTED
  assert 'continues' in capsys.readouterr().err
