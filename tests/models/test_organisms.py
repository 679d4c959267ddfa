"""The shipped trained models: what they answer, and transformers the same."""

import io
import pathlib

import numpy as np
from PIL import Image
import pytest
import transformers

from corejax import regions
from corejax.data import sources
from corejax.models.organisms import trained
from helpers import planted_runs

ROOT = pathlib.Path(trained.__file__).parent
FOLDERS = sorted(path.parent.name for path in ROOT.glob('scenes-*/config.json'))
SETS = (('scenes_referring', {}, 32), ('scenes_pages', {'pages': 4}, 96))


def _examples(name, n, settings, twins=True):
  source = sources.load(name, limit=n, twins=twins, **settings)
  return [source[i] for i in range(len(source))]


def test_there_are_shipped_models():
  assert 'scenes-8x8' in FOLDERS


@pytest.mark.parametrize('folder', FOLDERS)
def test_shipped_models_are_small_and_of_the_size_they_say(folder):
  path = ROOT / folder
  assert sum(f.stat().st_size for f in path.iterdir()) <= 8e6
  loaded = planted_runs.load(path)
  assert folder == f'scenes-{loaded.n_layers}x{loaded.n_heads}'


@pytest.mark.parametrize('folder', FOLDERS)
def test_shipped_models_answer(folder):
  loaded = planted_runs.load(ROOT / folder)
  for name, settings, length in SETS:
    batch = planted_runs.encode(
      loaded.processor, _examples(name, 96, settings), length
    )
    for task, share in planted_runs.accuracy(loaded, batch).items():
      assert share >= 0.95, (name, task)


@pytest.mark.parametrize('folder', FOLDERS)
def test_transformers_gives_the_same_answers_and_ram(folder):
  torch = pytest.importorskip('torch', reason='parity needs torch')
  loaded = planted_runs.load(ROOT / folder)
  hf = transformers.LlavaForConditionalGeneration.from_pretrained(
    ROOT / folder, attn_implementation='eager', dtype=torch.float32
  ).eval()
  processor = transformers.AutoProcessor.from_pretrained(ROOT / folder)
  for name, settings, length in SETS:
    examples = _examples(name, 100, settings)
    batch = planted_runs.encode(loaded.processor, examples, length)
    logits_BV, _ = planted_runs.run(loaded, batch)
    inputs = [
      processor(
        text=encoded.text,
        images=[Image.open(io.BytesIO(media)) for media in example.media],
        return_tensors='pt',
      )
      for example, encoded in zip(examples, batch.encoded)
    ]
    with torch.no_grad():
      theirs_BV = np.stack([hf(**i).logits[0, -1].numpy() for i in inputs])
    np.testing.assert_array_equal(logits_BV.argmax(-1), theirs_BV.argmax(-1))
    np.testing.assert_allclose(
      logits_BV, theirs_BV, rtol=0, atol=1e-4 * theirs_BV.std()
    )
    _compare_ram(torch, hf, processor, loaded, name, settings, length)


def _compare_ram(torch, hf, processor, loaded, name, settings, length):
  """Masses on the evidence from the last prompt row, every head."""
  examples = _examples(name, 16, settings, twins=False)
  batch = planted_runs.encode(loaded.processor, examples, length)
  scores = planted_runs.measure(loaded, batch, 'last')
  ours_ELN = scores.mass_ELNQR[:, :, :, 1, regions.EVIDENCE]
  assert ours_ELN.max() > 0.5
  for example, encoded, evidence_I, ours_LN in zip(
    examples, batch.encoded, scores.evidence, ours_ELN
  ):
    inputs = processor(
      text=encoded.text,
      images=[Image.open(io.BytesIO(media)) for media in example.media],
      return_tensors='pt',
    )
    with torch.no_grad():
      layers = hf(**inputs, output_attentions=True).attentions
    keys = encoded.visual_I[evidence_I]
    theirs_LN = np.stack([a[0, :, -1, keys].sum(-1).numpy() for a in layers])
    np.testing.assert_allclose(ours_LN, theirs_LN, rtol=0, atol=2e-5)
