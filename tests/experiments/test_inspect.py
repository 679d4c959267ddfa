"""`inspect`: its arrays are what the model takes, under HF's names."""

import numpy as np
import pytest

from corejax import regions
from corejax.experiments import cli
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import rank
from corejax.models.organisms import embedded


@pytest.fixture(scope='module', params=['scenes_referring', 'scenes_pages'])
def result(request, tmp_path_factory):
  out = tmp_path_factory.mktemp('inspect')
  return inspect_lib.run(
    inspect_lib.Config(out=str(out), data=request.param, example='3')
  )


def test_files(result):
  with np.load(result.out / 'inputs.npz') as f:
    assert set(f) == set(result.arrays)
    assert tuple(f['regions']) == regions.REGIONS
  pictures = sorted(result.out.glob('media-*.png'))
  assert len(pictures) == len(result.arrays['pixel_values'])
  assert all(p.read_bytes()[:4] == b'\x89PNG' for p in pictures)
  assert 'evidence' in (result.out / 'tokens.txt').read_text()


def test_rows_and_regions_are_consistent(result):
  a = result.arrays
  length = a['input_ids'].shape[1]
  assert a['region'].shape == (length,)
  assert a['rows'].shape == a['row_set'].shape
  question = a['rows'][a['row_set'] == 0]
  # The first words may be among the first four that are not visual.
  assert set(a['region'][question]) <= {regions.SINK, regions.QUESTION}
  assert a['region'][question[-1]] == regions.QUESTION
  chosen = a['region'][a['visual_index']] == regions.EVIDENCE
  assert chosen.any()
  np.testing.assert_array_equal(chosen, a['cover'] >= 0.5)


def test_masses_from_transformers_on_these_arrays(result, request):
  torch = pytest.importorskip('torch', reason='parity needs torch')
  transformers = pytest.importorskip('transformers')
  model = transformers.LlavaForConditionalGeneration.from_pretrained(
    embedded.folder('scenes-8x8'),
    attn_implementation='eager',
    dtype=torch.float32,
  )
  a = result.arrays
  with torch.no_grad():
    out = model(
      **{
        name: torch.from_numpy(np.asarray(a[name])).to(
          torch.float32 if name == 'pixel_values' else torch.int64
        )
        for name in ('input_ids', 'attention_mask', 'pixel_values')
      },
      output_attentions=True,
    )
  weights = np.stack([w[0].double().numpy() for w in out.attentions])
  expected = np.zeros((*weights.shape[:2], 3, len(regions.REGIONS)))
  for q in range(3):
    rows = weights[:, :, a['rows'][a['row_set'] == q]].mean(2)
    for r in range(len(regions.REGIONS)):
      expected[:, :, q, r] = rows[..., a['region'] == r].sum(-1)
  source = request.node.callspec.params['result']
  ranked = rank.run(
    rank.Config(
      out=str(result.out / 'rank'),
      data=source,
      limit=4,
      bootstrap=0,
      permutations=0,
    )
  )
  np.testing.assert_allclose(
    ranked.scores.mass_ELNQR[3], expected, rtol=0, atol=1e-5
  )


def test_by_id(result):
  line = f'--example={result.example.id}'
  source = f'--data={result.example.source}'
  assert inspect_lib.cli(['inspect', '--dry_run', line, source]) == 0


@pytest.mark.parametrize('wanted', ['400', 'nobody'])
def test_no_such_example(wanted, capsys):
  code = inspect_lib.cli(['inspect', f'--example={wanted}'])
  assert code == cli.EX_USER
  assert '0 to 399' in capsys.readouterr().err
