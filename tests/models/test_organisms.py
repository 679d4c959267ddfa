"""The shipped trained models: what they answer, and transformers the same."""

import pathlib

import numpy as np
import pytest

from corejax import regions
from corejax.data import sources
from corejax.models import registry
from corejax.models.organisms import trained
from helpers import planted_runs

ROOT = pathlib.Path(trained.__file__).parent
FOLDERS = sorted(path.parent.name for path in ROOT.glob('scenes-*/config.json'))
KEY = registry.shipped()  # of a folder's family
SETS = (('scenes_referring', {}, 32), ('scenes_pages', {'pages': 4}, 96))


def _examples(name, n, settings, twins=True):
  source = sources.load(name, limit=n, twins=twins, **settings)
  return [source[i] for i in range(len(source))]


def test_there_are_shipped_models():
  assert 'scenes-8x8' in FOLDERS
  assert sorted(KEY) == FOLDERS
  sizes = [
    p.stat().st_size for name in FOLDERS for p in (ROOT / name).iterdir()
  ]
  assert sum(sizes) <= 24e6


@pytest.mark.parametrize('folder', FOLDERS)
def test_shipped_models_are_small_and_of_the_size_they_say(folder):
  path = ROOT / folder
  assert sum(f.stat().st_size for f in path.iterdir()) <= 8e6
  loaded = registry.get(KEY[folder]).load(path)
  assert folder.endswith(f'-{loaded.n_layers}x{loaded.n_heads}')


@pytest.mark.parametrize('folder', FOLDERS)
def test_shipped_models_answer(folder):
  loaded = registry.get(KEY[folder]).load(ROOT / folder)
  for name, settings, length in SETS:
    batch = planted_runs.encode(
      loaded.processor, _examples(name, 96, settings), length
    )
    for task, share in planted_runs.accuracy(loaded, batch).items():
      assert share >= 0.95, (name, task)


@pytest.mark.parametrize('folder', FOLDERS)
def test_transformers_gives_the_same_answers_and_ram(folder):
  torch = pytest.importorskip('torch', reason='parity needs torch')
  from helpers import hf_organisms

  loaded = registry.get(KEY[folder]).load(ROOT / folder)
  hf = hf_organisms.load(ROOT / folder, KEY[folder])
  for name, settings, length in SETS:
    examples = _examples(name, 100 if folder == 'scenes-8x8' else 24, settings)
    batch = planted_runs.encode(loaded.processor, examples, length)
    logits_BV, _ = planted_runs.run(loaded, batch)
    inputs = [
      hf_organisms.inputs(ROOT / folder, KEY[folder], example, encoded)
      for example, encoded in zip(examples, batch.encoded)
    ]
    with torch.no_grad():
      theirs_BV = np.stack([hf(**i).logits[0, -1].numpy() for i in inputs])
    np.testing.assert_array_equal(logits_BV.argmax(-1), theirs_BV.argmax(-1))
    np.testing.assert_allclose(
      logits_BV, theirs_BV, rtol=0, atol=1e-4 * theirs_BV.std()
    )
    examples = _examples(name, 16, settings, twins=False)
    batch = planted_runs.encode(loaded.processor, examples, length)
    _compare_ram(hf, loaded, batch, folder)


def _compare_ram(hf, loaded, batch, folder):
  """Masses on the evidence from the last prompt row, every head."""
  from helpers import hf_organisms

  scores = planted_runs.measure(loaded, batch, 'last')
  ours_ELN = scores.mass_ELNQR[:, :, :, 1, regions.EVIDENCE]
  assert ours_ELN.max() > 0.5
  for example, encoded, evidence_I, ours_LN in zip(
    batch.examples, batch.encoded, scores.evidence, ours_ELN
  ):
    inputs = hf_organisms.inputs(ROOT / folder, KEY[folder], example, encoded)
    with hf_organisms.torch.no_grad():
      layers = hf(**inputs, output_attentions=True).attentions
    keys = encoded.visual_I[evidence_I]
    theirs_LN = np.stack([a[0, :, -1, keys].sum(-1).numpy() for a in layers])
    np.testing.assert_allclose(ours_LN, theirs_LN, rtol=0, atol=2e-5)
