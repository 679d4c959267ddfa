"""rank, inspect, ablate, compare, generate on families that cut tiles.

The folders are tiny and random; the masses are those of transformers.
"""

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest

from corejax.data import sources
from corejax.experiments import ablate
from corejax.experiments import compare
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import listing
from corejax.experiments import rank
from corejax.models import generate
from corejax.models import registry
from helpers import generated
from helpers import tiled_cases
from helpers import torch_only

torch = torch_only.torch

# OneVision cuts a picture that is alone in its prompt.
_DATA = {
  'internvl_flax': dict(data='scenes_video', frames=4),  # as a clip
  'llava_next_flax': dict(data='scenes_pages', pages=2),
  'llava_onevision_flax': dict(data='scenes_referring'),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A ranked folder; `shared` are the settings inspect gets too."""

  torch_model: Any
  shared: dict[str, Any]
  result: rank.Result


@functools.cache
def _make(key: str, root) -> Case:
  torch_model = tiled_cases.write(key, root / 'folder')
  shared = dict(
    model=key, checkpoint=str(root / 'folder'), limit=4, **_DATA[key]
  )
  config = rank.Config(
    out=str(root / 'run'),
    bootstrap=50,
    permutations=50,
    batch_size=2,
    **shared,
  )
  return Case(torch_model, shared, rank.run(config))


@pytest.fixture
def get(tmp_path_factory):
  """get(key) -> Case, made once."""
  return lambda key: _make(
    key, tmp_path_factory.getbasetemp() / f'ranked_{key}'
  )


@pytest.mark.parametrize('key', tiled_cases.MAKERS)
def test_ranked_masses_are_those_of_transformers(get, key, tmp_path):
  case = get(key)
  with np.load(case.result.out / 'arrays.npz') as f:
    mass, ids = f['mass'], list(f['example_ids'])
  assert len(ids) == 4
  for index in (0, 3):
    shown = inspect_lib.run(
      inspect_lib.Config(
        example=str(index),
        out=str(tmp_path / str(index)),
        attention=False,
        **case.shared,
      )
    )
    assert shown is not None
    theirs = tiled_cases.masses(case.torch_model, shown.arrays)
    ours = mass[ids.index(shown.example.id)]
    assert np.abs(ours - theirs).max() <= 1e-5
    n_media = len(shown.example.media)
    assert (shown.out / f'media-{n_media - 1}.png').stat().st_size
  record = json.loads((case.result.out / 'run.json').read_text())
  assert record['model'] == key
  is_clip = key == 'internvl_flax'
  assert record['video_as'] == ('clip' if is_clip else None)
  assert bool(shown.example.clips) == is_clip
  lines = [
    line for line in listing.models().splitlines() if line.startswith(key)
  ]
  assert len(lines) == 1
  video = 'no' if key == 'llava_next_flax' else 'yes'
  trained = 'scenes-internvl-4x8' if is_clip else 'none'
  assert f'trained: {trained}; image yes, video {video}' in lines[0]


@pytest.mark.parametrize('key', tiled_cases.MAKERS)
def test_heads_are_cut_while_answers_are_generated(
  get, key, tmp_path, monkeypatch
):
  case = get(key)
  said = generated.noted(monkeypatch)
  result = ablate.run(
    ablate.Config(out=str(tmp_path), **generated.CUT, **case.shared)
  )
  assert result is not None
  groups = [group.name for group in result.outcomes.groups]
  assert 'given' in groups
  assert len(set(said[: len(groups)])) > 1
  assert (result.out / 'report.html').stat().st_size


def test_families_are_compared(get, tmp_path):
  cases = [get(key) for key in tiled_cases.MAKERS]
  result = compare.run(
    compare.Config(
      runs=tuple(str(case.result.out) for case in cases),
      query='question',
      bootstrap=50,
      permutations=50,
      out=str(tmp_path),
    )
  )
  assert result.comparison is not None
  structures = result.comparison.structures
  assert len({each.ranking for each in structures}) == len(cases)
  text = (tmp_path / 'report.html').read_text()
  assert all(f'{key} on scenes_' in text for key in tiled_cases.MAKERS)


def test_greedy_tokens_are_those_of_transformers(get):
  case = get('llava_onevision_flax')
  loaded = registry.get(case.shared['model']).load(case.shared['checkpoint'])
  encoded = loaded.processor.encode(sources.load('scenes_referring')[0])
  encoded = encoded.prompt()
  n_tiles = len(encoded.vision['pixel_values'])
  assert n_tiles > 1 and (encoded.blend_TK > 0).sum(1).max() > 1
  inputs = loaded.processor.collate([encoded], len(encoded.tokens_T), n_tiles)
  made = generate.generate(loaded, inputs, max_tokens=4, eos_ids=())
  sizes = encoded.layout.size_M2[:, ::-1].copy()
  theirs = case.torch_model.generate(
    input_ids=torch.tensor(encoded.tokens_T, dtype=torch.long)[None],
    max_new_tokens=4,
    do_sample=False,
    eos_token_id=None,
    pixel_values=torch.tensor(encoded.vision['pixel_values']),
    **tiled_cases.sized(case.torch_model, torch.tensor(sizes)),
  )
  expected = theirs[0, -4:].tolist()
  assert np.asarray(made.tokens_BA)[0].tolist() == expected
