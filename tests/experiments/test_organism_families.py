"""Organisms of every family: what is shown, and what their folders hold."""

import dataclasses
import json
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import inputs as inputs_lib
from corejax import masks
from corejax.data.scenes import source as scenes
from corejax.data.scenes import vocab
from corejax.experiments import organism_data as data
from corejax.experiments import organism_training as training
from corejax.models import registry
from corejax.models.organisms import hf_folder
from corejax.models.organisms import trained
from helpers import organisms

EACH = pytest.mark.parametrize('key', trained.KINDS)


def _redrawn(key: str):
  """A model in which no norm is 1 and no bias 0."""
  graph, state = nnx.split(organisms.untrained(key))
  rng = np.random.default_rng(1)
  return nnx.merge(
    graph,
    jax.tree.map(
      lambda p: p + 0.2 * rng.standard_normal(p.shape).astype(np.float32), state
    ),
  )


@pytest.fixture(scope='module')
def models():
  return {key: _redrawn(key) for key in trained.KINDS}


@pytest.fixture(scope='module')
def folders(models, tmp_path_factory):
  """Untrained models, a family each."""
  root = tmp_path_factory.mktemp('organism')
  return {
    key: trained.write(root / key, model, 'untrained')
    for key, model in models.items()
  }


@pytest.fixture(scope='module')
def loaded(folders):
  return {key: registry.get(key).load(folders[key]) for key in folders}


@pytest.fixture(scope='module')
def tables():
  cells = data.cells(hf_folder.cell_pixels())
  return {
    key: jnp.asarray(kind.table(cells)) for key, kind in trained.KINDS.items()
  }


# ---- what is shown


@EACH
@pytest.mark.parametrize('pages', [1, 3, 8])
def test_scenes_look_as_the_processor_makes_them(loaded, tables, key, pages):
  kind, processor = trained.KINDS[key], loaded[key].processor
  name = 'scenes_referring' if pages == 1 else 'scenes_pages'
  source = scenes.Scenes(
    name, split='train', seed=5, config=data.scenes(pages), scenes=3
  )
  packed = data.pack(pages, 5, 'train', 0, 3, kind)
  shown = kind.show(tables[key], packed.cell_MI)
  plan = data.layout(pages, kind)
  for number in range(3):
    example = source.example(number, 'colour', 0)
    encoded = processor.encode(example)
    assert encoded.vision.keys() == shown.keys()
    for name, array in encoded.vision.items():
      own = np.asarray(shown[name])[number * pages : (number + 1) * pages]
      np.testing.assert_array_equal(own.reshape(array.shape), array)
    start = encoded.question[0]
    np.testing.assert_array_equal(encoded.tokens_T[:start], plan.prefix_T)
    np.testing.assert_array_equal(
      encoded.positions_T, plan.position_T[..., : len(encoded.tokens_T)]
    )
    np.testing.assert_array_equal(
      encoded.feature_T, plan.feature_T[: len(encoded.tokens_T)]
    )


def _read(packed, plan, b, q):
  """(task, words, answer) of a packed question."""
  task = data.TASKS[packed.task_BQ[b, q]]
  at = plan.slot_Q[q]
  ids = packed.tokens_BT[b, at : at + data.n_words(task)]
  return (
    task,
    [hf_folder.TOKENS[i] for i in ids],
    hf_folder.TOKENS[packed.target_BQ[b, q]],
  )


@pytest.mark.parametrize('pages', [1, 4])
def test_answers_are_what_the_cells_show(pages):
  packed = data.pack(pages, 0, 'train', 7, 6)
  plan = data.layout(pages)
  glyph_MI, colour_MI = data.captions(packed.cell_MI)
  seen = set()
  for b in range(6):
    own = slice(b * pages, (b + 1) * pages)
    marks = [
      (
        hf_folder.TOKENS[glyph_MI[own][p, i]],
        hf_folder.TOKENS[colour_MI[own][p, i]],
        p,
      )
      for p, i in zip(*np.nonzero(glyph_MI[own] >= 0))
    ]
    per_ground = 1 + len(vocab.GLYPHS) * len(vocab.COLOURS)
    (ground,) = set((packed.cell_MI[own] // per_ground).ravel())
    for q in range(data.N_QUESTIONS):
      task, words, answer = _read(packed, plan, b, q)
      seen.add(task)
      last = words[-1]
      template = vocab.QUESTIONS[task].lower().split()
      assert words[: len(template)] == [
        last if word == '{}' else word for word in template
      ]
      if task == 'colour':
        wanted = [c for g, c, _ in marks if g == last]
      elif task == 'shape':
        wanted = [g for g, c, _ in marks if c == last]
      elif task == 'page':
        wanted = [vocab.PAGES[p] for g, _, p in marks if g == last]
      elif task == 'colour_twin':
        wanted = [vocab.COLOURS[ground]]
      elif task == 'shape_twin':
        wanted = [vocab.next_glyph(last)]
      else:
        wanted = [str(int(last) + 1)]
      assert wanted == [answer], (task, words)
  third = 'shape' if pages == 1 else 'page'
  assert seen == {'colour', 'colour_twin', third, f'{third}_twin'}


def test_a_batch_is_a_function_of_its_place():
  one, same = (data.pack(2, 0, 'train', 4, 2) for _ in range(2))
  other = data.pack(2, 0, 'train', 6, 2)
  for name in ('cell_MI', 'tokens_BT', 'target_BQ', 'task_BQ'):
    np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
  assert (one.cell_MI != other.cell_MI).any()
  tail = data.pack(2, 0, 'train', 5, 1)
  np.testing.assert_array_equal(one.tokens_BT[1:], tail.tokens_BT)


@EACH
def test_a_packed_question_is_answered_as_if_it_were_alone(tables, key):
  kind, table = trained.KINDS[key], tables[key]
  packed, plan = data.pack(2, 0, 'train', 0, 1, kind), data.layout(2, kind)
  model = organisms.untrained(key, 1)
  together = jax.jit(training.packed_logits)(model, table, packed, plan)
  forward = jax.jit(kind.modeling.forward)
  start = len(plan.prefix_T)
  for q in (0, 7) if key == 'llava_flax' else (7,):
    n = data.n_words(data.TASKS[packed.task_BQ[0, q]])
    at = plan.slot_Q[q]
    tokens_T = np.concatenate([plan.prefix_T, packed.tokens_BT[0, at : at + n]])
    is_visual_T = plan.feature_T[: start + n] >= 0
    inputs = inputs_lib.Inputs(
      tokens_BT=jnp.asarray(tokens_T)[None],
      positions_BT=jnp.asarray(kind.positions(is_visual_T))[None],
      mask=masks.AttnMask(),
      vision=kind.show(table, packed.cell_MI),
      feature_BT=jnp.asarray(plan.feature_T[: start + n])[None],
    )
    alone = forward(model, inputs)
    np.testing.assert_allclose(
      together[0, q], alone.logits_BPV[0, -1], rtol=0, atol=2e-5
    )


# ---- the folder


@EACH
def test_the_folder_is_the_model(models, loaded, key):
  assert loaded[key].config == models[key].config
  jax.tree.map(
    np.testing.assert_array_equal,
    nnx.to_pure_dict(nnx.state(loaded[key].model)),
    nnx.to_pure_dict(nnx.state(models[key])),
  )


def test_a_llavas_folder_is_written_as_it_was(folders):
  """Another byte would be another fingerprint, and so another run."""
  shipped = pathlib.Path(hf_folder.__file__).parent / 'scenes-8x8'
  ours = folders['llava_flax']
  assert {p.name for p in ours.iterdir()} == {p.name for p in shipped.iterdir()}
  for path in shipped.glob('*.json'):
    if path.name not in ('config.json', 'corejax.json'):
      assert (ours / path.name).read_bytes() == path.read_bytes()
  config = trained.LLAVA.config(trained.SIZES['base'])
  written = json.dumps(trained.LLAVA.documents(config)['config.json'], indent=2)
  assert written + '\n' == (shipped / 'config.json').read_text()


@pytest.mark.parametrize('key', ['internvl_flax', 'qwen3_vl_flax'])
def test_transformers_reads_the_other_families_too(folders, loaded, key):
  torch = pytest.importorskip('torch', reason='parity needs torch')
  from helpers import hf_organisms

  hf, ours = hf_organisms.load(folders[key], key), loaded[key]
  example = scenes.Scenes('scenes_pages', config=data.scenes(3), scenes=1)[5]
  encoded = ours.processor.encode(example)
  with torch.no_grad():
    theirs = hf(**hf_organisms.inputs(folders[key], key, example, encoded))
  theirs = theirs.logits[0].numpy()
  batch = ours.processor.collate([encoded], len(encoded.tokens_T), 3)
  logits = jax.jit(ours.forward)(ours.model, batch).logits_BPV[0]
  np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-4 * theirs.std())


def test_sizes_fit_their_budget():
  for name, limit in (('base', 8e6), ('small', 4e6)):
    for kind in trained.KINDS.values():
      model = kind.modeling.abstract(
        kind.config(trained.SIZES[name]), jnp.dtype('float32')
      )
      n = sum(p.size for p in jax.tree.leaves(nnx.state(model)))
      assert 4 * n < limit
  size = trained.SIZES['base']
  assert (size.layers, size.heads) == (8, 8)
  assert dataclasses.astuple(size) != dataclasses.astuple(
    trained.SIZES['small']
  )
