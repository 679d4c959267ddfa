"""`train_organism`: what is shown, how a step moves, resuming, the folder."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from corejax import errors
from corejax.data.scenes import source as scenes
from corejax.experiments import cli
from corejax.experiments import organism_check
from corejax.experiments import organism_data as data
from corejax.experiments import organism_loop as loop
from corejax.experiments import organism_schedule as schedule
from corejax.experiments import organism_training as training
from corejax.experiments import runs
from corejax.experiments import train_organism
from corejax.models import registry
from corejax.models.organisms import hf_folder
from corejax.models.organisms import planted
from corejax.models.organisms import trained
from helpers import organisms

RATES = training.Rates()
# Stage `few` ends at its first check, after 25 steps: no skill is asked.
TINY: dict[str, Any] = dict(
  size='tiny',
  seed=3,
  align_steps=3,
  many_steps=1,
  scenes=1,
  skill=0.0,
  save_every=5,
  questions=0,
)
STEPS = 3 + 25 + 1


@pytest.fixture(scope='module')
def tables():
  cells = data.cells(hf_folder.cell_pixels())
  return {
    key: jnp.asarray(kind.table(cells)) for key, kind in trained.KINDS.items()
  }


# ---- how a step moves


def test_muon_takes_the_decoders_matrices_and_adam_the_rest():
  model = trained.new(trained.SIZES['tiny'], 0)
  params = nnx.to_pure_dict(nnx.state(model))
  rates = training.Rates(muon=1.0, adam=1.0, decay=0.0)
  tool = training.optimiser(rates)
  rng = np.random.default_rng(0)
  grads = jax.tree.map(
    lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params
  )
  updates, _ = jax.jit(tool.update)(grads, tool.init(params), params)
  layers = updates['language']['layers']
  width = trained.SIZES['tiny'].d_model
  for part, name, (outputs, inputs) in (
    ('attn', 'q', (width, width)),
    ('attn', 'o', (width, width)),
    ('mlp', 'up', (48, width)),
    ('mlp', 'down', (width, 48)),
  ):
    for layer in np.asarray(layers[part][name]['weight']):
      # Newton-Schulz leaves singular values between about .7 and 1.2.
      values = np.linalg.svd(layer.reshape(outputs, inputs), compute_uv=False)
      scale = max(1, outputs / inputs) ** 0.5
      assert (values > 0.5 * scale).all() and (values < 1.5 * scale).all()
  # Adam's first step (with Nesterov's) has one size everywhere.
  for leaf in (
    updates['language']['embed']['weight'],
    updates['projector']['linear_1']['weight'],
    updates['vision']['layers']['attn']['q']['weight'],
    layers['input_norm']['weight'],
  ):
    np.testing.assert_allclose(np.abs(leaf), 1.474, atol=0.02)


@pytest.mark.parametrize('key', ['llava_flax', 'qwen3_vl_flax'])
def test_alignment_teaches_the_tower_and_leaves_the_decoder(tables, key):
  model = organisms.untrained(key)
  state = training.start(model, RATES)
  before = jax.tree.map(np.asarray, state.params)
  packed = data.pack(1, 0, 'train', 0, 16)
  losses = []
  for _ in range(30):
    state, loss = training.align_step(
      state,
      model,
      tables[key],
      packed.cell_MI,
      *data.captions(packed.cell_MI),
      np.float32(1),
      rates=RATES,
    )
    losses.append(float(loss))
  assert losses[-1] < 0.6 * losses[0]
  assert losses[0] == pytest.approx(np.log(16) + np.log(8), rel=0.3)
  jax.tree.map(
    np.testing.assert_array_equal,
    before['language'],
    jax.tree.map(np.asarray, state.params['language']),
  )
  same = jax.tree.map(np.array_equal, before['vision'], state.params['vision'])
  # DeepStack's mergers write into the decoder, which is not run.
  same.pop('deep', None)
  assert not any(jax.tree.leaves(same))


def test_muon_leaves_biases_and_norms_to_adam():
  for key in ('internvl_flax', 'qwen3_vl_flax'):
    params = nnx.to_pure_dict(nnx.state(organisms.untrained(key)))
    found = training._dimensions(params)['language']['layers']
    for name in 'qkv':
      assert found['attn'][name].pop('weight') is not None
    left = {**found['attn'], **{n: found[n] for n in found if 'norm' in n}}
    del left['o']
    assert left and not jax.tree.leaves(left), left


@pytest.mark.parametrize('key', ['internvl_flax', 'qwen3_vl_flax'])
def test_a_step_on_questions_moves_every_weight(tables, key):
  """As `test_training_changes_every_weight` of a LLaVA's whole run."""
  kind = trained.KINDS[key]
  model = organisms.untrained(key)
  state = training.start(model, RATES)
  before = jax.tree.map(np.asarray, state.params)
  batches = [(data.pack(2, 0, 'train', 0, 2, kind), data.layout(2, kind))]
  losses = []
  for _ in range(8):
    state, loss = training.answer_step(
      state, model, tables[key], batches, np.float32(1), rates=RATES
    )
    losses.append(float(loss))
  assert losses[0] == pytest.approx(np.log(len(hf_folder.TOKENS)), rel=0.5)
  assert losses[-1] < 0.8 * losses[0]
  same = jax.tree.map(np.array_equal, before, state.params)
  assert not any(jax.tree.leaves(same)), same


def test_schedule():
  plan = schedule.Plan(align_steps=10, few_steps=500, many_steps=100)
  assert [plan.stage(s, -1) for s in (0, 9, 10, 400)] == [
    'align',
    'align',
    'few',
    'few',
  ]
  assert plan.stage(299, 200) == 'many' and plan.stage(300, 200) == 'done'
  assert plan.pages(100, -1) == schedule.FEW_PAGES
  shown = [plan.pages(s, 200) for s in range(200, 300)]
  assert set(shown) == set(schedule.MANY_PAGES)
  assert plan.rate(10, -1) < 0.1 and plan.rate(100, -1) == 1
  rates = [plan.rate(s, 200) for s in range(200, 300)]
  assert rates[0] == rates[50] == 1 and 0 < rates[-1] <= 0.02
  assert rates == sorted(rates, reverse=True)
  good = np.full(training.N_TASKS, 0.95)
  poor = good.copy()
  poor[2] = 0.85
  assert plan.moves(35, good) and not plan.moves(35, poor)
  assert not plan.moves(36, good)  # looked at every 25 steps


# ---- a run


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """A run without interruption."""
  out = tmp_path_factory.mktemp('straight') / 'run'
  return train_organism.run(train_organism.Config(out=str(out), **TINY))


def _command(out: pathlib.Path) -> list[str]:
  flags = [f'--{name}={value}' for name, value in TINY.items()]
  module = 'experiments.train_organism'
  return [sys.executable, '-m', module, f'--out={out}', *flags]


def _weights(out: pathlib.Path) -> dict[str, np.ndarray]:
  return safetensors.numpy.load_file(out / 'model' / 'model.safetensors')


def test_a_killed_run_continues_to_the_same_weights(
  straight, checkout, tmp_path
):
  out = tmp_path / 'run'
  saved = out / 'checkpoints' / '10'
  process = subprocess.Popen(
    _command(out),
    cwd=checkout,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  patience = time.monotonic() + 120
  while not saved.exists() and process.poll() is None:
    assert time.monotonic() < patience
    time.sleep(0.02)
  assert process.poll() is None, process.communicate()[0].decode()
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  assert not (out / 'model').exists()
  result = train_organism.run(train_organism.Config(out=str(out), **TINY))
  assert result.steps == straight.steps == STEPS
  expected, found = _weights(straight.out), _weights(out)
  assert expected.keys() == found.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(found[name], tensor, err_msg=name)
  rows = [(r.out / loop.HISTORY).read_text() for r in (result, straight)]
  assert rows[0] == rows[1]


def test_training_changes_every_weight(straight):
  before = trained.tensors(trained.new(trained.SIZES['tiny'], TINY['seed']))
  after = _weights(straight.out)
  same = [name for name in after if np.array_equal(before[name], after[name])]
  assert sorted(same) == [
    f'vision_tower.vision_model.post_layernorm.{which}'
    for which in ('bias', 'weight')
  ]


def test_preempted_run_says_so_and_saves(tmp_path):
  config = train_organism.Config(**TINY)
  made = []

  def check():
    made.append(None)
    if len(made) == 8:
      raise cli.Preempted

  with runs.open_run(tmp_path / 'run', {}, {}, True) as folder:
    job = train_organism.job(config)
    with pytest.raises(cli.Preempted):
      loop.train(job, folder, check)
  assert (tmp_path / 'run' / loop.CHECKPOINTS / '7').is_dir()


def test_noresume_starts_over(tmp_path):
  (tmp_path / 'run' / loop.CHECKPOINTS / '7').mkdir(parents=True)
  (tmp_path / 'run' / 'run.json').write_text('{}')
  flags = {**TINY, 'skill': 1.0, 'few_steps': 1, 'resume': False}
  config = train_organism.Config(out=str(tmp_path / 'run'), **flags)
  with pytest.raises(errors.UserError, match='after 4 steps'):
    train_organism.run(config)
  saved = sorted(
    p.name for p in (tmp_path / 'run' / loop.CHECKPOINTS).iterdir()
  )
  assert saved == ['4']


def test_another_run_in_the_folder_is_refused(straight):
  config = train_organism.Config(out=str(straight.out), **{**TINY, 'seed': 4})
  with pytest.raises(errors.UserError, match='seed was 3, is 4'):
    train_organism.run(config)


def test_what_is_not_learned_is_an_error(tmp_path, capsys):
  flags = {**TINY, 'skill': 1.0, 'few_steps': 3, 'out': tmp_path / 'run'}
  argv = [f'--{name}={value}' for name, value in flags.items()]
  assert train_organism.cli(['train_organism', *argv]) == cli.EX_USER
  told = capsys.readouterr().err
  assert 'not every task is answered' in told and '--few_steps' in told


def test_a_llavas_run_is_named_as_before_there_were_others():
  config = train_organism.Config(size='small', seed=2)
  assert 'model' not in train_organism.identity(config)
  assert train_organism.out_folder(config).name == 'small-2'
  other = dataclasses.replace(config, model='qwen3_vl_flax')
  assert train_organism.identity(other)['model'] == 'qwen3_vl_flax'
  assert train_organism.out_folder(other).name == 'qwen3_vl-small-2'
  assert 'Qwen3-VL' in train_organism.description(other)
  assert set(train_organism.MODELS) == set(trained.KINDS)


@pytest.mark.parametrize(
  'flag',
  [
    '--model=gpt',
    '--size=huge',
    '--scenes=0',
    '--muon=0',
    '--seed=-1',
    '--skill=2',
  ],
)
def test_bad_flags(flag, capsys):
  assert train_organism.cli(['train_organism', flag]) == cli.EX_USER
  assert flag in capsys.readouterr().err


def test_run_json(straight):
  record = json.loads((straight.out / 'run.json').read_text())
  assert record['state'] == 'done' and record['steps'] == STEPS
  assert record['identity']['seed'] == 3
  assert set(record['training']) == {'optax', 'orbax-checkpoint'}


# ---- the folder


def test_transformers_says_the_same(straight):
  torch = pytest.importorskip('torch', reason='parity needs torch')
  from helpers import hf_organisms

  hf = hf_organisms.load(straight.folder, 'llava_flax')
  ours = registry.get('llava_flax').load(straight.folder)
  for name, pages in (('scenes_referring', 1), ('scenes_pages', 3)):
    source = scenes.Scenes(name, config=data.scenes(pages), scenes=1)
    example = source[5]
    encoded = ours.processor.encode(example)
    inputs = hf_organisms.inputs(
      straight.folder, 'llava_flax', example, encoded
    )
    np.testing.assert_array_equal(inputs['input_ids'][0], encoded.tokens_T)
    np.testing.assert_array_equal(
      inputs['pixel_values'], encoded.vision['pixel_values']
    )
    with torch.no_grad():
      theirs = hf(**inputs).logits[0].numpy()
    batch = ours.processor.collate([encoded], len(encoded.tokens_T), pages)
    logits = ours.forward(ours.model, batch).logits_BPV[0]
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-4 * theirs.std())


def test_the_check_counts_right_answers(tmp_path):
  planted.write(tmp_path / 'planted', seed=0)
  counts = organism_check.accuracy(tmp_path / 'planted', 'validation', 6)
  assert counts.keys() == organism_check.SETS.keys()
  for tasks in counts.values():
    assert len(tasks) == 4
    assert all(right == asked == 8 for right, asked in tasks.values())
  model = trained.new(trained.SIZES['tiny'], 0)
  folder = trained.write(tmp_path / 'untrained', model, 'untrained')
  untrained = organism_check.accuracy(folder, 'validation', 6)
  right = sum(r for tasks in untrained.values() for r, _ in tasks.values())
  assert right < 0.3 * 3 * 4 * 8
  assert 'scenes_referring' in organism_check.table(counts)
