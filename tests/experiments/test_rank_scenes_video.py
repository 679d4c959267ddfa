"""`rank` and `inspect` on scenes_video, as clips.

Here: Qwen2-VL, Qwen3-VL (a time before each pair of frames), LLaVA-OneVision.
InternVL: test_rank_tiled.py; Qwen2.5-VL, and pictures beside a video:
test_rank_qwen_video.py. Models are tiny and random, masses transformers'.
"""

import json

import numpy as np
import pytest

from corejax import regions
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import rank
from helpers import tiled_cases
from helpers import tiny_qwen

FRAMES = 4


def _write(key, folder):
  """(torch model of a family's new folder, its masses of one example)."""
  if key in tiled_cases.MAKERS:
    return tiled_cases.write(key, folder), tiled_cases.masses
  kind = key.removesuffix('_flax')
  return tiny_qwen.folder(folder, kind, most=12), tiny_qwen.masses


@pytest.mark.parametrize(
  'key', ['qwen2_vl_flax', 'qwen3_vl_flax', 'llava_onevision_flax']
)
def test_masses_are_those_of_transformers(key, tmp_path):
  torch_model, masses = _write(key, tmp_path / 'folder')
  shared = dict(
    model=key,
    checkpoint=str(tmp_path / 'folder'),
    data='scenes_video',
    frames=FRAMES,
    limit=4,
  )
  ranked = rank.run(
    rank.Config(
      out=str(tmp_path / 'run'),
      bootstrap=50,
      permutations=50,
      batch_size=2,
      **shared,
    )
  )
  assert ranked is not None and not ranked.rejected
  record = json.loads((ranked.out / 'run.json').read_text())
  assert record['video_as'] == 'clip'
  shown = inspect_lib.run(
    inspect_lib.Config(
      example='3', out=str(tmp_path / 'shown'), attention=False, **shared
    )
  )
  assert shown is not None and len(shown.example.clips) == 1
  assert len(shown.example.media) == FRAMES
  films = shown.arrays['pixel_values_videos']
  assert len(films) and not len(shown.arrays['pixel_values'])
  expected = masses(torch_model, shown.arrays)
  assert expected[..., regions.EVIDENCE].max() > 0.02
  found = ranked.scores.mass_ELNQR[ranked.scores.ids.index(shown.example.id)]
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
