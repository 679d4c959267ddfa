"""Qwen-VL folders through `rank`, `inspect`, `ablate` and `compare`.

Every command as a user types it, on tiny random models; the masses are those
of transformers.
"""

import csv
import dataclasses
import io

import jax
import numpy as np
from PIL import Image
import pytest

from corejax import evidence
from corejax import regions
from corejax.data import example as example_lib
from corejax.experiments import ablate
from corejax.experiments import compare
from corejax.experiments import features
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import listing
from corejax.experiments import measure
from corejax.experiments import prefixes
from corejax.experiments import rank
from corejax.experiments import resources as resources_lib
from corejax.experiments import step
from corejax.kernels import dispatch
from corejax.models import generate as generate_lib
from helpers import generated

torch = pytest.importorskip('torch', reason='tiny checkpoints need torch')

QUICK = dict(data='scenes_pages', pages=2, limit=12)
KINDS = {
  'qwen2_vl': 'qwen2; qwen2_vl',
  'qwen2_5_vl': 'qwen2; qwen2_5_vl',
  'qwen3_vl': 'qwen3; qwen3_vl',
  'qwen3_vl_moe': 'qwen3_moe; qwen3_vl',
}


@pytest.fixture(scope='module', params=KINDS)
def made(request, tmp_path_factory):
  """(settings that name the model, torch model, a ranking of it).

  All are ranked; what follows runs on one or some of them.
  """
  from helpers import tiny_qwen

  folder = tmp_path_factory.mktemp(request.param)
  model = tiny_qwen.folder(folder, request.param, most=12)
  shared = dict(model=f'{request.param}_flax', checkpoint=str(folder), **QUICK)
  ranked = rank.run(
    rank.Config(
      out=str(folder / 'run'), bootstrap=50, permutations=50, **shared
    )
  )
  return shared, model, ranked


def test_masses_are_those_of_transformers(made):
  from helpers import tiny_qwen

  shared, model, ranked = made
  assert len(ranked.scores.ids) == QUICK['limit'] and not ranked.rejected
  for index in (0, 5):
    shown = inspect_lib.run(
      inspect_lib.Config(
        out=str(ranked.out / f'inspect-{index}'), example=str(index), **shared
      )
    )
    expected = tiny_qwen.masses(model, shown.arrays)
    assert expected[..., regions.EVIDENCE].max() > 0.02
    found = ranked.scores.mass_ELNQR[index]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  with open(ranked.out / 'heads.csv') as f:
    assert len(list(csv.DictReader(f))) == 3 * 4


@pytest.mark.parametrize('made', ['qwen2_5_vl'], indirect=True)
def test_ablate_and_compare(made, tmp_path):
  shared, _, ranked = made
  found = ablate.run(
    ablate.Config(
      out=str(tmp_path / 'ablate'), heads=f'@{ranked.out}', k='0,1,3', **shared
    )
  )
  assert found is not None and {e.k for e in found.effects} == {0, 1, 3}
  again = rank.run(
    dataclasses.replace(
      rank.Config(bootstrap=50, permutations=50, **shared),
      out=str(tmp_path / 'again'),
      seed=1,
    )
  )
  assert again is not None
  compare.run(
    compare.Config(
      runs=(str(ranked.out), str(again.out)), out=str(tmp_path / 'compare')
    )
  )
  assert (tmp_path / 'compare' / 'report.html').exists()


# Qwen2.5-VL's, with videos: test_rank_qwen_video.
@pytest.mark.parametrize(
  'made', ['qwen2_vl', 'qwen3_vl', 'qwen3_vl_moe'], indirect=True
)
def test_ablate_judges_generated_answers(made, tmp_path, monkeypatch):
  shared, _, _ = made
  said = generated.noted(monkeypatch)
  found = ablate.run(
    ablate.Config(
      out=str(tmp_path), **generated.CUT, **(shared | dict(limit=4))
    )
  )
  assert found is not None
  groups = [group.name for group in found.outcomes.groups]
  assert 'given' in groups
  assert len(set(said[: len(groups)])) > 1


def _picture(rng, width: int, height: int) -> bytes:
  file = io.BytesIO()
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def _ragged() -> list[example_lib.Example]:
  """Examples with pictures of many sizes, one of them shown twice."""
  rng = np.random.default_rng(0)
  again = _picture(rng, 70, 50)
  return [
    example_lib.Example(
      id=f'ragged/{i}',
      source='ragged',
      split='test',
      task='colour',
      media=(_picture(rng, *rng.integers(30, 150, 2)), again)[: 1 + i % 2],
      question='What colour is the star?',
      answers=('red',),
      cluster=str(i),
      kind=('image', 'pages')[i % 2],
      evidence=(example_lib.Box(i % 2, 0.3, 0.2, 0.6, 0.8),),
    )
    for i in range(6)
  ]


@dataclasses.dataclass(frozen=True)
class Ragged:
  """A Source."""

  examples: list[example_lib.Example]
  name: str = 'ragged'
  split: str = 'test'
  fingerprint: str = '0'

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    return self.examples[index]


@pytest.mark.parametrize('made', ['qwen2_5_vl'], indirect=True)
def test_pictures_of_many_sizes_each_once(made):
  """Through the feature cache as through one forward with all pictures."""
  shared, _, _ = made
  config = rank.Config(**shared)
  resources = resources_lib.load(config, Ragged(_ragged()))
  options = measure.Options(6, 'question', False, False, 0)
  batch = measure.prepare_batch(resources, range(6), options)
  assert not batch.rejected
  runner = step.Runner(resources, 6)
  part = measure.finish_batch(
    resources, measure.start_batch(runner, batch, options), options
  )
  assert runner.features.n_looked == 7
  loaded = resources.loaded
  encoded = [p.encoded for p in batch.prepared]
  length = max(len(e.tokens_T) for e in encoded)
  inputs = loaded.processor.collate(encoded, length, 10)
  probe = evidence.batch_probe(
    [p.annotated for p in batch.prepared], length, (32, 16, 80)
  )
  with jax.default_matmul_precision('highest'):
    out = jax.jit(loaded.forward, static_argnames='attend')(
      loaded.model, inputs, probe=probe, attend=dispatch.attend()
    )
  mass = np.asarray(out.measured.mass_BQNR).transpose(1, 0, 3, 2, 4)
  np.testing.assert_allclose(part.mass_ELNQR, mass, rtol=0, atol=1e-6)
  # Features do not depend on the pictures beside them.
  cache = features.FeatureCache(resources)
  names = [features.keys(e) for e in encoded]
  moved, all_ID = cache.look(encoded, names, 6 * length)
  alone, one_ID = features.FeatureCache(resources).look(
    encoded[3:4], names[3:4], 6 * length
  )
  assert all_ID.shape == one_ID.shape == (6 * length, all_ID.shape[1])
  for t, row in enumerate(alone[0].feature_T):
    if row >= 0:
      np.testing.assert_array_equal(one_ID[row], all_ID[moved[3].feature_T[t]])


@pytest.mark.parametrize('made', ['qwen3_vl'], indirect=True)
def test_shared_prefixes(made, monkeypatch):
  """What questions begin with is read once: M-RoPE, DeepStack and a cache."""
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
  assert len(plans) == 1 and plans[0] is not None
  expected = ranked.scores.mass_ELNQR[:8]
  np.testing.assert_allclose(part.mass_ELNQR, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('made', ['qwen3_vl'], indirect=True)
@torch.no_grad()
def test_generated_tokens_are_those_of_transformers(made):
  """The position of each new token goes on behind the picture's."""
  shared, model, _ = made
  resources = resources_lib.load(rank.Config(**shared), Ragged(_ragged()))
  loaded = resources.loaded
  encoded = [
    loaded.processor.encode(example).prompt() for example in _ragged()[:2]
  ]
  length = max(len(e.tokens_T) for e in encoded)
  inputs = loaded.processor.collate(encoded, length, 3)
  made_tokens = generate_lib.generate(
    loaded, inputs, max_tokens=6, eos_ids=(), attend=dispatch.attend()
  )
  for b, one in enumerate(encoded):
    ids = torch.tensor(one.tokens_T, dtype=torch.long)[None]
    out = model.generate(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      mm_token_type_ids=torch.tensor(one.feature_T >= 0).int()[None],
      pixel_values=torch.tensor(one.vision['pixel_values']),
      image_grid_thw=torch.tensor(one.vision['image_grid_thw']).long(),
      do_sample=False,
      max_new_tokens=6,
      min_new_tokens=6,
      pad_token_id=0,
      eos_token_id=model.config.text_config.vocab_size - 1,
    )
    expected = out[0, ids.shape[1] :].numpy()
    np.testing.assert_array_equal(
      np.asarray(made_tokens.tokens_BA[b]), expected
    )


def test_listed():
  text = listing.models()
  for kind, parts in KINDS.items():
    (line,) = [
      row for row in text.splitlines() if row.startswith(f'{kind}_flax ')
    ]
    assert f'{parts}; ' in line
    trained = 'scenes-qwen3-vl-4x8' if kind == 'qwen3_vl' else 'none'
    assert line.endswith(
      f'; parity 2e-05; trained: {trained}; image yes, video yes'
    )
