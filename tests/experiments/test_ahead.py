"""`rank --compile_only`: shapes, arithmetic, refusals; one small compilation.

Real sizes for real targets: tests/experiments/test_ahead_aot.py.
"""

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import masks
from corejax.data import sources
from corejax.experiments import ahead
from corejax.experiments import ahead_report
from corejax.experiments import buckets
from corejax.experiments import cli
from corejax.experiments import features
from corejax.experiments import flops
from corejax.experiments import measure
from corejax.experiments import rank
from corejax.experiments import resources as resources_lib
from corejax.experiments import step
from corejax.kernels import targets
from corejax.models import registry
from corejax.models.organisms import embedded
from helpers import released
from helpers import tiny_tiled

_GIB = 2**30
_V5E = targets.parse('v5e:4x4')


@pytest.mark.parametrize(
  'argv, said',
  [
    (['--compile_only'], 'go together'),
    (['--target=v5e:4x4'], 'go together'),
    (['--compile_only', '--target=v9:2x2'], 'no such target'),
    (['--compile_only', '--target=v5e:4'], 'no such target'),
    (['--compile_only', '--target=v5p:4x4'], 'no such target'),
    (['--compile_only', '--target=v5e:0x4'], 'no such target'),
    (['--compile_only', '--target=cpu', '--length=0'], '--length=0'),
    (['--compile_only', '--target=cpu', '--picture=-3'], '--picture=-3'),
    (
      ['--compile_only', '--target=v5e:4x4', '--mesh=data:1,model:16'],
      '8 heads cannot be split over model:16; give model: one of 1, 2, 4, 8',
    ),
    (
      ['--compile_only', '--target=v5e:4x4', '--mesh=data:3,model:2'],
      '--batch_size=8: does not divide over data:3',
    ),
    (
      ['--compile_only', '--target=cpu', '--mesh=data:1,model:8'],
      '8 devices, and --target=cpu has 4',
    ),
  ],
)
def test_refused_in_one_line(argv, said, capsys):
  assert rank.cli(['rank', *argv]) == cli.EX_USER
  err = capsys.readouterr().err
  assert said in err and err.count('\n') == 1


@pytest.mark.parametrize(
  'target, said',
  [
    ('v6e:2x4', "pip install --no-deps --target libtpu 'libtpu==0"),
    ('h100', f'jax-cuda13-pjrt=={jax.__version__}'),
  ],
)
def test_a_missing_compiler_says_what_to_install(monkeypatch, target, said):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='is missing') as caught:
    targets.parse(target).devices()
  assert said in str(caught.value) and '\n' not in str(caught.value)


def _program(name, gib, **changes):
  sizes = [int(n * _GIB) for n in gib]
  program = ahead_report.Program(
    name, ('tpu_pallas',), *sizes, flops=2.5e15, seconds=3.0
  )
  return dataclasses.replace(program, **changes)


def _report(tower, step_, chip=_V5E.chip):
  return ahead_report.Report(('model    m',), tower, step_, _GIB, chip)


def test_arithmetic_of_the_report():
  tower = _program('tower', (0.5, 0.1, 0.2, 0.0))
  step_ = _program('step', (4.0, 1.0, 2.0, 0.5))
  report = _report(tower, step_)
  assert step_.total == int(7.5 * _GIB)
  # The step, the tower's weights beside it, and 256 MiB of features.
  assert report.at_once == pytest.approx((7.5 + 0.5 + 0.25) * _GIB)
  assert report.fits
  lines = report.text().splitlines()
  assert lines[-1] == 'fits     yes: 8.25 of 15.75 GiB a device'
  row = next(line for line in lines if line.split()[0] == 'step').split()
  assert row[1:8] == '4.00 1.00 2.00 0.50 7.50 tpu_pallas 2500'.split()
  # A tower that takes more than the step.
  wide = _report(_program('tower', (0.5, 9.0, 1.0, 0.0)), step_)
  assert wide.at_once == pytest.approx((10.5 + 4.0 + 0.25) * _GIB)
  assert (
    _report(tower, _program('step', (12, 2, 2, 0)))
    .verdict()
    .startswith('fits     no: 16.75 of 15.75 GiB')
  )


@pytest.mark.parametrize(
  'message, gib',
  [
    (
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory '
      'in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity '
      'by 4.75G.',
      20.5,
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (53.67G) exceeds available HBM (15.75G).',
      53.67,
    ),
    ('RESOURCE_EXHAUSTED: in other words', 15.75),
  ],
)
def test_a_program_that_the_compiler_refuses_does_not_fit(message, gib):
  """Both messages as libtpu 0.0.42 words them."""
  beyond = ahead._beyond(message, _V5E.chip.memory)
  assert beyond == pytest.approx(gib * _GIB, abs=1)
  refused = _program('step', (0, 0, 0, 0), beyond=beyond)
  report = _report(_program('tower', (0.5, 0.1, 0.2, 0)), refused)
  assert refused.total == beyond and not report.fits
  assert f'no: {gib + 0.75:.2f} of 15.75' in report.verdict()


def test_a_compiler_that_fails_otherwise_is_no_verdict():
  assert ahead._beyond('INTERNAL: no such thing', 1) is None


def test_on_a_gpu_jax_takes_a_share_by_itself():
  chip = targets.parse('h100').chip
  tower = _program('tower', (0, 0, 0, 0))
  for gib, said in (
    (50, 'yes: 50.25 of 79.11 GiB a device'),
    (65, 'XLA_PYTHON_CLIENT_MEM_FRACTION=0.95'),
    (78, 'no: 78.25'),
  ):
    verdict = _report(tower, _program('step', (gib, 0, 0, 0)), chip).verdict()
    assert said in verdict


def test_flops_are_those_of_the_products():
  n = 8
  x = jax.ShapeDtypeStruct((n, n), jnp.float32)

  def layers(x):
    def body(x, _):
      return jnp.tanh(x @ x), None

    x = jax.lax.scan(body, x, None, length=5)[0]
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

  assert flops.of(jax.make_jaxpr(layers)(x)) == 6 * 2 * n**3

  def image(x, kernel):
    return jax.lax.conv(x, kernel, (2, 2), 'VALID')

  args = jnp.zeros((1, 3, 8, 8)), jnp.zeros((5, 3, 2, 2))
  assert flops.of(jax.make_jaxpr(image)(*args)) == 2 * 5 * 16 * 3 * 4

  def loop(x):
    return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x)

  with pytest.raises(ValueError, match='unknown length'):
    flops.of(jax.make_jaxpr(loop)(x))


def test_flops_of_attention_are_those_of_the_pairs_that_are_seen():
  q = jax.ShapeDtypeStruct((2, 6, 4, 8), jnp.float32)
  k = jax.ShapeDtypeStruct((2, 6, 2, 8), jnp.float32)

  def count(mask):
    return flops.of(
      jax.make_jaxpr(lambda q, k, v: flops.counted(q, k, v, mask).out_BTNH)(
        q, k, k
      )
    )

  each = 2 * 4 * 2 * 2 * 8  # batch, heads, two products, two operations, H
  assert count(masks.AttnMask()) == each * 6 * 7 / 2
  assert count(masks.AttnMask(causal=False)) == each * 6 * 6


class _CalledError(Exception):
  """Carries what `step` was called with."""


def _called(monkeypatch, outline, processor, dtype='float32'):
  """(what rank calls the tower with, what it calls the step with).

  A run of two examples whose jitted functions are caught before they start:
  the model has shapes in place of arrays, so no weights are needed.
  """
  looked = []

  def look_at(model, vision, *, see, attend, mesh):
    looked.append(vision)
    seen = jax.eval_shape(functools.partial(see), model, vision)
    return tuple(
      jnp.zeros(seen.shape[1:], seen.dtype) for _ in range(len(seen))
    )

  def caught(model, inputs, probe, answer_BA, **options):
    raise _CalledError((inputs, probe, answer_BA))

  monkeypatch.setattr(features, 'look_at', look_at)
  monkeypatch.setattr(step, 'step', caught)
  text = outline.config.text
  loaded = registry.Loaded(
    key=outline.key,
    model=outline.model,
    forward=outline.forward,
    see=outline.see,
    new_cache=lambda model, batch, size: jnp.zeros((batch, size)),
    processor=processor,
    config=outline.config,
    n_layers=text.n_layers,
    n_heads=text.n_heads,
    n_kv_heads=text.n_kv_heads,
    max_length=text.max_length,
    fingerprint='',
    eos_ids=(),
  )
  resources = resources_lib.Resources(
    loaded=loaded,
    source=sources.load('scenes_pages', pages=2),
    attend=attention.reference,
    tower_attend=attention.reference,
    mesh=None,
    precision=resources_lib.precision(dtype),
    embedded='',
  )
  options = measure.Options(2, 'question', False, False, 0)
  batch = measure.prepare_batch(resources, [0, 1], options)
  assert not batch.rejected, batch.rejected
  with pytest.raises(_CalledError) as caught_:
    measure.start_batch(step.Runner(resources, 2), batch, options)
  return looked[0], caught_.value.args[0]


def _kinds(tree):
  leaves, shape = jax.tree.flatten(tree)
  return shape, [(x.shape, np.dtype(x.dtype)) for x in leaves]


def _folder(family, path):
  if family == 'llava_flax':
    return embedded.folder(embedded.DEFAULT)
  if family == 'internvl_flax':
    return tiny_tiled.internvl(path)
  if family == 'llava_onevision_flax':
    return tiny_tiled.anyres(path, model_type='llava_onevision')
  from helpers import tiny_qwen

  tiny_qwen.folder(path, 'qwen3_vl', most=12)
  return path


@pytest.mark.parametrize(
  'family',
  ['llava_flax', 'internvl_flax', 'llava_onevision_flax', 'qwen3_vl_flax'],
)
def test_shapes_are_those_that_rank_calls_with(family, tmp_path, monkeypatch):
  key = registry.get(family)
  folder = _folder(family, tmp_path / 'model')
  outline = key.outline(folder, dtype='float32')
  vision, (inputs, probe, answer_BA) = _called(
    monkeypatch, outline, key.load_processor(folder)
  )
  batch, length = inputs.tokens_BT.shape
  spec = ahead.Spec(targets.parse('cpu'), '', 'float32', batch, length)
  place = ahead.Place(spec, outline)
  n_features = vision['pixel_values'].shape[1] // 4  # counts for Qwen-VL alone
  _, looking = ahead.look_arguments(place, None, outline, n_features)
  assert _kinds(looking) == _kinds(vision)
  # A table that has more rows than the batch has tokens is rank's own choice.
  n_rows, width = inputs.features_ID.shape
  assert n_rows == batch * length
  _, *stepping = ahead.step_arguments(
    place,
    outline.model,
    outline,
    buckets.Bucket(length, answer_BA.shape[1]),
    batch,
    width,
    'question',
  )
  assert _kinds(stepping) == _kinds([inputs, probe, answer_BA])


def test_a_model_for_this_machine(capsys):
  argv = ['--compile_only', '--target=cpu', '--length=9', '--batch_size=1']
  assert rank.cli(['rank', '--checkpoint=scenes-4x8', *argv]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('model    llava_flax: 4 layers x 8 heads')
  assert '1 x 16 tokens' in lines[2]
  step_ = next(line for line in lines if line.split()[0] == 'step').split()
  assert step_[6] == 'xla' and float(step_[7]) > 0
  assert lines[-1].startswith('fits     yes: 0.2')


@pytest.mark.parametrize(
  'name, n_heads, meshes',
  [
    ('Qwen2.5-VL-7B-Instruct', 28, ('data:4,model:4', 'data:1,model:16')),
    ('InternVL3-38B', 40, ('data:2,model:8', 'data:1,model:16')),
  ],
)
def test_a_tower_need_not_divide(tmp_path, name, n_heads, meshes):
  """25 heads of a tower go with any mesh; the decoder's must divide."""
  key, content, *_ = released.RELEASED[name]
  (tmp_path / 'config.json').write_text(json.dumps(content))
  outline = registry.get(key).outline(tmp_path, dtype='bfloat16')
  spec = ahead.Spec(_V5E, meshes[0], 'bfloat16', 16, 64)
  ahead._check_heads(spec, outline, int(meshes[0].rpartition(':')[2]))
  with pytest.raises(ValueError, match=f'{n_heads} heads cannot be split'):
    ahead._check_heads(spec, outline, int(meshes[1].rpartition(':')[2]))
