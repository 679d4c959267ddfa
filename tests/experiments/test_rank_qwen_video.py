"""Videos behind pictures through `rank`, `inspect` and `ablate`, in Qwen2.5-VL.

A tiny random model and two films, of which each question shows one behind a
picture; the masses are those of transformers.
"""

import dataclasses

import numpy as np
import pytest

from corejax import regions
from corejax.data import example as example_lib
from corejax.experiments import ablate
from corejax.experiments import features
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import prefixes
from corejax.experiments import rank
from corejax.experiments import resources as resources_lib
from helpers import pictures
from helpers import tiny_qwen

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


@dataclasses.dataclass(frozen=True)
class Ranked:
  """A ranking, and what was run for it.

  Attributes:
    result: of rank.run.
    plans: how batches were cut.
    n_looked: pictures that went through the tower.
  """

  result: rank.Result
  plans: list[prefixes.Plan | None]
  n_looked: int


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(settings that name model and data, torch model, a Ranked)."""
  folder = tmp_path_factory.mktemp('films')
  model = tiny_qwen.folder(folder, 'qwen2_5_vl', most=6)
  shared = dict(model='qwen2_5_vl_flax', checkpoint=str(folder), limit=8)
  looked, plans = [], []
  see, plan = features.FeatureCache._see_alike, prefixes.Sharing.plan

  def noted_see(self, new):
    looked.extend([1] * len(new))
    return see(self, new)

  def noted_plan(self, *args):
    plans.append(plan(self, *args))
    return plans[-1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(resources_lib, 'load_source', lambda *_, **__: _films())
    patch.setattr(prefixes, 'LEAST_PARAMETERS', 0)
    patch.setattr(features.FeatureCache, '_see_alike', noted_see)
    patch.setattr(prefixes.Sharing, 'plan', noted_plan)
    ranked = rank.run(
      rank.Config(
        out=str(folder / 'run'),
        bootstrap=50,
        permutations=50,
        batch_size=8,
        **shared,
      )
    )
    # As far as ranked: what comes later looks again.
    yield shared, model, Ranked(ranked, list(plans), len(looked))


def test_masses_are_those_of_transformers(made):
  shared, model, ranked = made
  ranked = ranked.result
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
    expected = tiny_qwen.masses(model, arrays)
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


def test_pairs_of_frames_are_seen_once(made):
  """By the feature cache; and what questions begin with, by shared prefixes."""
  shared, _, ranked = made
  assert ranked.n_looked == 1 + 2 * 3
  assert len(ranked.plans) == 1 and ranked.plans[0] is not None
  processor = resources_lib.load_processor(rank.Config(**shared))
  encoded = processor.encode(_films()[0])
  shapes = [encoded.picture(m)['pixel_values'].shape for m in range(4)]
  # A longer video has more of them, not larger ones.
  assert shapes[1] == shapes[2] == shapes[3]
  assert len(set(features.keys(encoded))) == 4
