"""Videos through `rank`, `inspect` and `ablate`, on a tiny random Qwen2.5-VL.

Two films, of which each question shows one behind a picture; the masses, the
answers and the features are those of transformers.
"""

import dataclasses

import jax
import numpy as np
import pytest

from corejax import regions
from corejax.data import example as example_lib
from corejax.experiments import ablate
from corejax.experiments import features
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import measure
from corejax.experiments import prefixes
from corejax.experiments import rank
from corejax.experiments import resources as resources_lib
from corejax.experiments import step
from corejax.kernels import dispatch
from corejax.models import generate as generate_lib
from helpers import pictures

torch = pytest.importorskip('torch', reason='tiny checkpoints need torch')

N_FRAMES = 5


@dataclasses.dataclass(frozen=True)
class Films:
  """A Source."""

  examples: tuple[example_lib.Example, ...]
  name: str = 'films'
  split: str = 'test'
  fingerprint: str = '0'

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    return self.examples[index]


def _films() -> Films:
  rng = np.random.default_rng(0)

  def noise(size, n=1):
    return [pictures.png(pictures.noise(rng, *size)) for _ in range(n)]

  before = noise((40, 70))
  films = [noise(size, N_FRAMES) for size in ((84, 60), (56, 100))]
  made = []
  for index in range(8):
    media = (*before, *films[index // 4])
    made.append(
      example_lib.Example(
        id=f'films/{index}',
        source='films',
        split='test',
        task='colour',
        media=media,
        question=f'What colour is star {index}?',
        answers=(('red', 'blue')[index % 2],),
        cluster=str(index // 2),
        kind='video',
        clips=(example_lib.Clip(1, tuple(0.7 * i for i in range(N_FRAMES))),),
        # In the second frame of a pair, and in the last, which is alone.
        evidence=(example_lib.Box((2, 5)[index % 2], 0.1, 0.0, 0.6, 1.0),),
      )
    )
  return Films(tuple(made))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(settings that name model and data, torch model, a ranking)."""
  from helpers import tiny_qwen

  folder = tmp_path_factory.mktemp('films')
  model = tiny_qwen.folder(folder, 'qwen2_5_vl', most=6)
  shared = dict(model='qwen2_5_vl_flax', checkpoint=str(folder), limit=8)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(resources_lib, 'load_source', lambda *_, **__: _films())
    ranked = rank.run(
      rank.Config(
        out=str(folder / 'run'),
        bootstrap=50,
        permutations=50,
        batch_size=8,
        **shared,
      )
    )
    yield shared, model, ranked


@torch.no_grad()
def _masses(model, arrays) -> np.ndarray:
  """Region masses from transformers' attentions, [L, N, Q, R]."""
  whole = ('input_ids', 'attention_mask', 'position_ids')
  grids = ('image_grid_thw', 'video_grid_thw')
  pixels = ('pixel_values', 'pixel_values_videos')
  out = model(
    **{n: torch.tensor(arrays[n]).long() for n in (*whole, *grids)},
    **{n: torch.tensor(arrays[n]) for n in pixels},
    output_attentions=True,
  )
  weights_LNTS = np.stack([w[0].double().numpy() for w in out.attentions])
  shape = len(regions.QUERY_SETS), len(regions.REGIONS)
  result = np.zeros((*weights_LNTS.shape[:2], *shape))
  for q, r in np.ndindex(*shape):
    rows = arrays['rows'][arrays['row_set'] == q]
    keys = arrays['region'] == r
    result[:, :, q, r] = weights_LNTS[:, :, rows][..., keys].sum(-1).mean(-1)
  return result


def test_masses_are_those_of_transformers(made):
  shared, model, ranked = made
  assert len(ranked.scores.ids) == 8 and not ranked.rejected
  for index in (0, 5):
    shown = inspect_lib.run(
      inspect_lib.Config(
        out=str(ranked.out / f'inspect-{index}'),
        example=str(index),
        attention=False,
        **shared,
      )
    )
    arrays = shown.arrays
    assert arrays['video_grid_thw'].shape == (1, 3)
    assert arrays['video_grid_thw'][0, 0] == 3
    assert set(arrays['visual_media']) == {0, 1, 3, 5}
    assert set(arrays['visual_frames']) == {1, 2}
    assert (shown.out / f'media-{N_FRAMES}.png').stat().st_size
    expected = _masses(model, arrays)
    assert expected[..., regions.EVIDENCE].max() > 0.02
    found = ranked.scores.mass_ELNQR[index]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  # The report draws every frame with the tokens that show it.
  assert 'frames' in (ranked.out / 'report.html').read_text()


def test_ablate_judges_generated_answers(made, tmp_path):
  shared, _, _ = made
  found = ablate.run(
    ablate.Config(
      out=str(tmp_path),
      heads='0-1,2-3',
      k='0,2',
      answers='generated',
      max_tokens=3,
      **shared,
    )
  )
  assert found is not None and {e.k for e in found.effects} == {0, 2}


def test_pairs_of_frames_are_seen_once(made, monkeypatch):
  """The feature cache and shared prefixes give what one forward gives."""
  shared, _, ranked = made
  resources = resources_lib.load(rank.Config(**shared))
  options = measure.Options(8, 'question', False, False, 0)
  batch = measure.prepare_batch(resources, range(8), options)
  monkeypatch.setattr(prefixes, 'LEAST_PARAMETERS', 0)
  runner = step.Runner(resources, 8)
  plan, plans = runner._sharing.plan, []

  def noted(*args):
    plans.append(plan(*args))
    return plans[-1]

  monkeypatch.setattr(runner._sharing, 'plan', noted)
  part = measure.finish_batch(
    resources, measure.start_batch(runner, batch, options), options
  )
  assert runner.features.n_looked == 1 + 2 * 3
  assert len(plans) == 1 and plans[0] is not None
  expected = ranked.scores.mass_ELNQR[:8]
  np.testing.assert_allclose(part.mass_ELNQR, expected, rtol=0, atol=1e-5)
  one = batch.prepared[0].encoded
  shapes = {one.picture(m)['pixel_values'].shape for m in range(1, 4)}
  assert len(shapes) == 1  # of a longer video there are more, not larger ones
  assert len(set(features.keys(one))) == 4


@torch.no_grad()
def test_generated_tokens_are_those_of_transformers(made):
  """The position of each new token goes on behind the video's last time."""
  shared, model, _ = made
  resources = resources_lib.load(rank.Config(**shared))
  loaded = resources.loaded
  encoded = [
    loaded.processor.encode(resources.source[index]).prompt()
    for index in (0, 5)
  ]
  length = max(len(e.tokens_T) for e in encoded)
  inputs = loaded.processor.collate(encoded, length, 8)
  with jax.default_matmul_precision('highest'):
    found = generate_lib.generate(
      loaded, inputs, max_tokens=6, eos_ids=(), attend=dispatch.attend()
    )
  for b, one in enumerate(encoded):
    ids = torch.tensor(one.tokens_T, dtype=torch.long)[None]
    kinds = (ids == model.config.image_token_id).int()
    kinds += 2 * (ids == model.config.video_token_id).int()
    vision = one.hf_vision()
    out = model.generate(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      mm_token_type_ids=kinds,
      **{n: torch.tensor(x) for n, x in vision.items() if 'pixel' in n},
      **{n: torch.tensor(x).long() for n, x in vision.items() if 'grid' in n},
      second_per_grid_ts=torch.tensor([1.4]),
      do_sample=False,
      max_new_tokens=6,
      min_new_tokens=6,
      pad_token_id=0,
      eos_token_id=model.config.text_config.vocab_size - 1,
    )
    expected = out[0, ids.shape[1] :].numpy()
    np.testing.assert_array_equal(np.asarray(found.tokens_BA[b]), expected)
