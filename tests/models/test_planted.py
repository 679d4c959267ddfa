"""The planted model: answers, heads, and whether ranking finds them."""

import io
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from scipy import special
import transformers

from corejax import heads as heads_lib
from corejax import probe as probe_lib
from corejax import ranking
from corejax import regions
from corejax.data import sources
from corejax.data.scenes import scene
from corejax.data.scenes import source as scenes
from corejax.data.scenes import vocab
from corejax.models import registry
from corejax.models.organisms import hf_folder
from corejax.models.organisms import planted
from corejax.models.organisms import planted_space as space
from helpers import planted_runs

N_SEEDS = 100


def _examples(name, n, **settings):
  source = sources.load(name, limit=n, **settings)
  return [source[i] for i in range(n)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('planted')
  planted.write(path, seed=0)
  return path


@pytest.fixture(scope='module')
def loaded(folder):
  return planted_runs.load(folder)


@pytest.fixture(scope='module')
def known(folder):
  return planted.known_heads(0)


@pytest.fixture(scope='module')
def referring(loaded):
  examples = _examples('scenes_referring', 64, twins=True)
  return planted_runs.encode(loaded.processor, examples, 24)


@pytest.fixture(scope='module')
def paged(loaded):
  examples = _examples('scenes_pages', 64, twins=True)
  return planted_runs.encode(loaded.processor, examples, 64)


def test_the_folder_says_what_is_planted_and_repeats(folder, known, tmp_path):
  again = planted.write(tmp_path, seed=0)
  assert again == known
  names = sorted(path.name for path in folder.iterdir())
  assert names == sorted(path.name for path in tmp_path.iterdir())
  assert 'config.json' in names
  for name in names:
    assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()
  said = json.loads((folder / 'corejax.json').read_text())
  assert heads_lib.HeadSet.parse(said['planted']) == known.planted
  for name, heads in {**known.decoys, **known.helpers}.items():
    written = said['decoys'].get(name, said['helpers'].get(name))
    assert heads_lib.HeadSet.parse(written) == heads
  assert heads_lib.HeadSet.parse(said['resting']) == known.resting
  assert (len(known.planted), len(known.resting)) == (4, 6)
  groups = [known.planted, *known.decoys.values(), *known.helpers.values()]
  groups.append(known.resting)
  assert sum(map(len, groups)) == 22
  union = heads_lib.HeadSet(head for group in groups for head in group)
  assert len(union) == 22  # no head has two parts


def test_helpers_come_in_pairs_and_share_no_layer_with_planted_heads(known):
  assert set(known.helpers) == {'page', 'verb', 'noun', 'ground'}
  for heads in known.helpers.values():
    assert len(heads) == 2 and {layer for layer, _ in heads} == {0}
  assert {layer for layer, _ in known.planted} <= {1, 2, 3}


def test_another_seed_is_another_model(known):
  others = [planted.known_heads(seed) for seed in range(1, 9)]
  assert all(other != known for other in others)
  assert len({str(other.planted) for other in others}) == 8
  a, b = planted.weights(1), planted.weights(2)
  assert a.keys() == b.keys()
  assert all(a[name].dtype == np.float32 for name in a)


def test_writing_needs_no_torch(checkout, tmp_path):
  code = (
    'import sys\n'
    'from corejax.models.organisms import planted\n'
    'planted.write(sys.argv[1])\n'
    'assert "torch" not in sys.modules\n'
  )
  subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    cwd=checkout,
    env={'PYTHONPATH': str(checkout), 'JAX_PLATFORMS': 'cpu'},
    check=True,
  )


def _features(pixels_MCYX):
  """What the projector writes, in plain numpy: [M, 16, 128]."""
  tensors = {k: v.astype(np.float64) for k, v in planted.weights(0).items()}
  tower = 'vision_tower.vision_model.'
  cells = pixels_MCYX.reshape(-1, 3, 4, 14, 4, 14).astype(np.float64)
  x = np.einsum(
    'mcyvxw,dcvw->myxd',
    cells,
    tensors[tower + 'embeddings.patch_embedding.weight'],
  ).reshape(len(cells), 16, -1)
  x = x + tensors[tower + 'embeddings.position_embedding.weight'][1:]
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  x = x * tensors[tower + 'pre_layrnorm.weight']

  def linear(name, x):
    name = f'multi_modal_projector.{name}'
    return x @ tensors[name + '.weight'].T + tensors[name + '.bias']

  hidden = linear('linear_1', x)
  hidden = hidden * (1 + special.erf(hidden / np.sqrt(2))) / 2
  return linear('linear_2', hidden)


def test_the_projector_writes_what_the_cells_show(referring):
  features = _features(
    np.concatenate([e.vision['pixel_values'] for e in referring.encoded])
  )
  config = scene.SceneConfig()
  for example, found in zip(referring.examples[::16], features[::16]):
    made = scene.make(config, 0, 'test', example.meta['scene'])
    wanted = np.zeros((16, space.SIZE))
    wanted[:, space.VISUAL] = 1
    wanted[:, space.ONE] = space.ONE_HEIGHT
    wanted[[5, 6, 9, 10], space.CENTRE] = 1
    wanted[:, space.TINT[vocab.COLOURS.index(made.ground)]] = 1
    for mark in made.marks:
      cell = wanted[4 * mark.row + mark.column]
      cell[space.GLYPH[vocab.GLYPHS.index(mark.glyph)]] = 1
      cell[space.COLOUR[vocab.COLOURS.index(mark.colour)]] = 1
      cell[space.OBJECT] = 1
    np.testing.assert_allclose(found, wanted, atol=1e-3)


_TASKS = {
  'scenes_referring': ['colour', 'colour_twin', 'shape', 'shape_twin'],
  'scenes_pages': ['colour', 'colour_twin', 'page', 'page_twin'],
}


def test_it_answers_every_task_and_twin(loaded, referring, paged):
  for name, batch in (('scenes_referring', referring), ('scenes_pages', paged)):
    accuracy = planted_runs.accuracy(loaded, batch)
    assert accuracy == dict.fromkeys(_TASKS[name], 1.0)


@pytest.mark.parametrize('pages', [2, 8])
def test_it_answers_about_more_or_fewer_pages(loaded, pages):
  examples = _examples('scenes_pages', 32, twins=True, pages=pages)
  batch = planted_runs.encode(loaded.processor, examples, 18 * pages + 8)
  accuracy = planted_runs.accuracy(loaded, batch)
  assert accuracy == dict.fromkeys(_TASKS['scenes_pages'], 1.0)


def test_it_answers_noisy_pictures(loaded):
  config = scene.SceneConfig(noise=8)
  source = scenes.Scenes('scenes_referring', config=config, twins=True)
  examples = [source[i] for i in range(64)]
  batch = planted_runs.encode(loaded.processor, examples, 24)
  accuracy = planted_runs.accuracy(loaded, batch)
  assert accuracy == dict.fromkeys(_TASKS['scenes_referring'], 1.0)


def test_it_answers_in_bfloat16(folder, paged):
  loaded = registry.get('llava_flax').load(
    folder, dtype='bfloat16', mesh=None, image_policy='checkpoint'
  )
  accuracy = planted_runs.accuracy(loaded, paged)
  assert accuracy == dict.fromkeys(_TASKS['scenes_pages'], 1.0)


def test_without_its_heads_a_task_fails_and_no_other(
  loaded, known, referring, paged
):
  for task, served in (('shape', ['shape']), ('colour', ['colour', 'page'])):
    for name, batch in (
      ('scenes_referring', referring),
      ('scenes_pages', paged),
    ):
      accuracy = planted_runs.accuracy(loaded, batch, off=known.tasks[task])
      for tested, value in accuracy.items():
        if tested in served:
          # Guessing colours is right in 1 of 8, pages in 1 of 3.
          assert value <= (0.65 if tested == 'page' else 0.4), (task, accuracy)
        else:
          assert value == 1, (name, task, accuracy)


def test_one_planted_head_of_two_is_enough(loaded, known, referring):
  for heads in known.tasks.values():
    for head in heads:
      accuracy = planted_runs.accuracy(
        loaded, referring, off=heads_lib.HeadSet([head])
      )
      assert accuracy == dict.fromkeys(_TASKS['scenes_referring'], 1.0)


# What each helper serves: without it these questions find no answer.
_SERVED = {
  'page': {'page'},
  'verb': {'page', 'page_twin', 'shape_twin'},
  'noun': {'colour', 'colour_twin', 'shape'},
  'ground': {'colour_twin'},
}


@pytest.mark.parametrize('name', list(_SERVED))
def test_one_helper_of_two_is_enough(loaded, known, referring, paged, name):
  for head in known.helpers[name]:
    for data, batch in (
      ('scenes_referring', referring),
      ('scenes_pages', paged),
    ):
      accuracy = planted_runs.accuracy(
        loaded, batch, off=heads_lib.HeadSet([head])
      )
      assert accuracy == dict.fromkeys(_TASKS[data], 1.0), head


@pytest.mark.parametrize('name', list(_SERVED))
def test_without_both_copies_of_a_helper_its_tasks_fail_and_no_other(
  loaded, known, referring, paged, name
):
  # Guessing is right for one page of three; one ground of eight, but there are
  # four scenes only.
  most = {'page': 0.5, 'ground': 0.75}.get(name, 0.3)
  for batch in (referring, paged):
    accuracy = planted_runs.accuracy(loaded, batch, off=known.helpers[name])
    for tested, value in accuracy.items():
      if tested in _SERVED[name]:
        assert value <= most, accuracy
      else:
        assert value == 1, accuracy


@pytest.mark.parametrize('data', list(_TASKS))
def test_one_copy_of_every_head_at_once_is_enough(
  loaded, known, referring, paged, data
):
  batch = {'scenes_referring': referring, 'scenes_pages': paged}[data]
  pairs = [
    *known.helpers.values(),
    *(known.tasks[t] for t in ('colour', 'shape')),
  ]
  for copy in (0, 1):
    off = heads_lib.HeadSet(sorted(pair)[copy] for pair in pairs)
    accuracy = planted_runs.accuracy(loaded, batch, off=off)
    assert accuracy == dict.fromkeys(_TASKS[data], 1.0)


def test_no_answer_needs_the_decoys_and_the_rest(
  loaded, known, referring, paged
):
  needed = known.planted
  for heads in known.helpers.values():
    needed = needed | heads
  everything = heads_lib.HeadSet((l, n) for l in range(4) for n in range(8))
  for name, batch in (('scenes_referring', referring), ('scenes_pages', paged)):
    accuracy = planted_runs.accuracy(loaded, batch, off=everything - needed)
    assert accuracy == dict.fromkeys(_TASKS[name], 1.0)


def _weights(loaded, batch):
  """float32 [L, B, N, T, S], every head's attention."""
  shape = batch.inputs.tokens_BT.shape
  probe = probe_lib.Probe(
    rows_BP=jnp.zeros((shape[0], 1), jnp.int32),
    set_PQ=jnp.zeros((1, len(regions.QUERY_SETS))),
    region_BS=jnp.zeros(shape, jnp.int8),
    weights=True,
  )
  _, measured = planted_runs.run(loaded, batch, probe)
  return np.asarray(measured.weights_BNTS)


def test_decoys_look_where_they_are_said_to(loaded, known):
  examples = _examples('scenes_referring', 16)
  batch = planted_runs.encode(loaded.processor, examples, 24)
  a_LBNTS = _weights(loaded, batch)

  def of(name):
    ((layer, head),) = known.decoys[name]
    return a_LBNTS[layer, :, head]

  for b, encoded in enumerate(batch.encoded):
    rows = np.arange(*encoded.question)
    visual = encoded.visual_I
    centre = of('centre')[b][np.ix_(rows, visual[[5, 6, 9, 10]])]
    assert 0.4 < centre.sum(1).min() < centre.sum(1).max() < 0.9
    assert np.ptp(centre, axis=1).max() < 0.04  # empty cells a little more
    example = examples[b]
    marks = [
      round(box.y0 * 4) * 4 + round(box.x0 * 4)
      for box in (*example.evidence, *example.distractors)
    ]
    salient = of('saliency')[b][np.ix_(rows, visual[marks])]
    assert 0.3 < salient.sum(1).min() < salient.sum(1).max() < 0.9
    assert np.ptp(salient, axis=1).max() < 0.005
    assert of('sink')[b][rows, 0].min() > 0.9
    for layer, head in known.resting:
      # Nothing is left that float16 profiles could hold.
      assert 1 - 1e-6 < a_LBNTS[layer, b, head][:, 0].min()
      assert a_LBNTS[layer, b, head][np.ix_(rows, visual)].max() < 1e-12
    for row in rows:
      assert of('recency')[b][row, row - 3 : row + 1].sum() > 0.9


def test_visual_tokens_read_their_own_pages_number(loaded, known):
  batch = planted_runs.encode(
    loaded.processor, _examples('scenes_pages', 1, pages=8), 152
  )
  (encoded,) = batch.encoded
  a_LNTS = _weights(loaded, batch)[:, 0]
  for row, page in zip(encoded.visual_I, encoded.layout.media_I):
    number = 2 + 18 * page  # <s> page N, 16 cells, page N, ..
    assert encoded.tokens_T[number] == hf_folder.ID[vocab.PAGES[page]]
    for layer, head in known.helpers['page']:
      assert a_LNTS[layer, head, row, number] > 0.95


@pytest.mark.parametrize('name', list(_TASKS))
def test_planted_heads_look_at_the_evidence_or_rest(
  loaded, known, referring, paged, name
):
  batch = {'scenes_referring': referring, 'scenes_pages': paged}[name]
  a_LBNTS = _weights(loaded, batch)
  for b, (example, encoded) in enumerate(zip(batch.examples, batch.encoded)):
    at_LNS = a_LBNTS[:, b, :, encoded.prompt_len - 1]
    (place,) = [
      encoded.visual_I[encoded.layout.tokens([box])] for box in example.evidence
    ] or [[0]]
    for layer, head in known.planted:
      if (layer, head) in known.tasks.get(example.task, ()):
        assert at_LNS[layer, head, place].sum() > 0.99
      else:  # another task's heads, and all of them in a twin
        assert at_LNS[layer, head, 0] > 0.95


def test_transformers_gives_the_same_attention_and_logits(folder, loaded):
  torch = pytest.importorskip('torch', reason='transformers runs on torch')
  hf = transformers.LlavaForConditionalGeneration.from_pretrained(
    folder, attn_implementation='eager', dtype=torch.float32
  ).eval()
  processor = transformers.AutoProcessor.from_pretrained(folder)
  for name, settings in (('scenes_referring', {}), ('scenes_pages', {})):
    example = _examples(name, 5, **settings)[4]
    batch = planted_runs.encode(
      loaded.processor, [example], 24 if name == 'scenes_referring' else 64
    )
    (encoded,) = batch.encoded
    inputs = processor(
      text=encoded.text,
      images=[Image.open(io.BytesIO(data)) for data in example.media],
      return_tensors='pt',
    )
    t = encoded.prompt_len
    assert inputs['input_ids'][0].tolist() == encoded.tokens_T.tolist()
    with torch.no_grad():
      out = hf(**inputs, output_attentions=True)
    logits_BV, _ = planted_runs.run(loaded, batch)
    wanted = out.logits[0, -1].numpy()
    np.testing.assert_allclose(
      logits_BV[0], wanted, rtol=0, atol=1e-4 * wanted.std()
    )
    ours = _weights(loaded, batch)[:, 0, :, :t, :t]
    theirs = torch.stack(out.attentions)[:, 0].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def _by_ram(scores):
  """Heads by RAM under the query set `last`, best first."""
  last = regions.QUERY_SETS.index('last')
  ram_LN = scores.mass_ELNQR[..., last, regions.EVIDENCE].mean(0)
  return [
    divmod(int(x), scores.n_heads) for x in np.argsort(-ram_LN, axis=None)
  ]


def _has_the_order_of_the_readme(order, known) -> bool:
  helpers = {head for heads in known.helpers.values() for head in heads}
  return (
    set(order[:2]) == set(known.tasks['colour'])
    and set(order[18:26]) == helpers
    and set(order[26:]) == set(known.resting)
  )


@pytest.mark.parametrize('name', list(_TASKS))
def test_helpers_are_late_by_ram_and_resting_heads_last(tmp_path, name):
  # Where the heads for shapes would be before one of those for colours, were
  # all equally firm.
  known = planted.write(tmp_path, seed=1)
  loaded = planted_runs.load(tmp_path)
  examples = _examples(name, 64, seed=3)
  batch = planted_runs.encode(loaded.processor, examples, 64)
  order = _by_ram(planted_runs.measure(loaded, batch, 'last'))
  assert _has_the_order_of_the_readme(order, known)
  if name == 'scenes_referring':
    assert set(order[:4]) == set(known.planted)
    rest = {*known.decoys['recency'], *known.decoys['sink']}
    assert set(order[16:18]) == rest


@pytest.mark.slow
def test_ranking_finds_the_planted_heads_over_a_hundred_seeds(tmp_path):
  """Ranks first; q < .01 for >= 95% of planted heads and <= 1% of decoys."""
  first, flagged, decoys, rest, ordered, resting = [], [], [], [], [], []
  for seed in range(N_SEEDS):
    known = planted.write(tmp_path, seed=seed)
    loaded = planted_runs.load(tmp_path)
    examples = _examples('scenes_referring', 80, seed=seed)
    batch = planted_runs.encode(loaded.processor, examples, 24)
    scores = planted_runs.measure(loaded, batch, 'question')
    assert scores.correct_E.all()
    # Both tasks at once, and each of them by all three query sets.
    result = ranking.rank(scores, bootstrap=0, permutations=5000, seed=seed)
    ordered.append(_has_the_order_of_the_readme(_by_ram(scores), known))
    first.append(set(result.heads[:4]) == set(known.planted))
    tasks_E = np.array(scores.tasks)
    for task in ('colour', 'shape'):
      for q in range(len(regions.QUERY_SETS)):
        mass = scores.mass_ELNQR[tasks_E == task, :, :, q, regions.EVIDENCE]
        order = np.argsort(-mass.mean(0).reshape(-1))
        best = {divmod(int(i), loaded.n_heads) for i in order[:2]}
        first.append(best == set(known.tasks[task]))
    below_LN = result.grid('q_value') < 0.01
    for layer, head in np.ndindex(below_LN.shape):
      if (layer, head) in known.planted:
        flagged.append(below_LN[layer, head])
      elif any((layer, head) in heads for heads in known.decoys.values()):
        decoys.append(below_LN[layer, head])
      elif (layer, head) in known.resting:
        resting.append(below_LN[layer, head])
      else:
        rest.append(below_LN[layer, head])
  assert all(first) and all(ordered)
  assert (len(flagged), len(decoys)) == (4 * N_SEEDS, 4 * N_SEEDS)
  assert np.mean(flagged) >= 0.95
  assert np.mean(decoys) <= 0.01
  assert np.mean(rest) <= 0.01
  assert len(resting) == 6 * N_SEEDS and not any(resting)


def test_pages_are_found_too(loaded, known):
  examples = _examples('scenes_pages', 64, seed=5)
  batch = planted_runs.encode(loaded.processor, examples, 64)
  scores = planted_runs.measure(loaded, batch, 'last')
  result = ranking.rank(
    scores, query='last', bootstrap=0, permutations=5000, seed=0
  )
  assert set(result.heads[:2]) == set(known.tasks['page'])
  assert result.grid('ram')[tuple(zip(*known.tasks['page']))].min() > 0.95
  q_LN = result.grid('q_value')
  below = {(int(l), int(n)) for l, n in np.argwhere(q_LN < 0.01)}
  assert below == set(known.tasks['page'])
