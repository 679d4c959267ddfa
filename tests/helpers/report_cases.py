"""Pages of reports over scores that no model made."""

import io

import numpy as np
from PIL import Image

from corejax import layout as layout_lib
from corejax import ranking as ranking_lib
from corejax import scores as scores_lib
from corejax.data import example as example_lib
from corejax.experiments import report
from corejax.experiments import report_examples
from helpers import fake_scores

EVIL = (
  'Is <b>this</b> it? </script><script>window.hacked=1</script>'
  '<img src=x onerror=window.hacked=1> \u2028 & "quoted" \U0001f600'
)
PLANTED = ((2, 1), (3, 3))
_SIDE = 4  # tokens across, as in fake_scores


def picture(rng: np.random.Generator, width: int, height: int) -> bytes:
  """A noisy PNG, which hardly compresses."""
  buffer = io.BytesIO()
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  Image.fromarray(pixels).save(buffer, 'PNG')
  return buffer.getvalue()


def grid(n_media: int, side: int, width: int, height: int):
  """The layout of n pictures of side x side tokens each."""
  row, column = np.divmod(np.tile(np.arange(side**2), n_media), side)
  cell_IW = np.stack([column, row, column + 1, row + 1], 1) / side
  return layout_lib.VisualLayout(
    media_I=np.repeat(np.arange(n_media, dtype=np.int32), side**2),
    cell_IW=cell_IW * np.array([width, height, width, height]),
    size_M2=np.array([[width, height]] * n_media, np.int32),
    base_I=np.zeros(n_media * side**2, bool),
  )


def _box(token: int) -> example_lib.Box:
  row, column = divmod(token, _SIDE)
  return example_lib.Box(
    0, column / _SIDE, row / _SIDE, (column + 1) / _SIDE, (row + 1) / _SIDE
  )


def shown(scores: scores_lib.Scores, e: int) -> report_examples.Shown:
  """Example e of fake scores, with a picture of 4 x 4 tokens."""
  token = int(np.flatnonzero(scores.evidence[e])[0])
  source = example_lib.Example(
    id=scores.ids[e],
    source='fake',
    split='test',
    task=scores.tasks[e],
    media=(picture(np.random.default_rng(e), 64, 64),),
    question=f'{EVIL} {e}',
    answers=(f'answer <i>{e}</i>',),
    cluster=scores.clusters[e],
    evidence=(_box(token),),
    distractors=(_box((token + 5) % _SIDE**2),),
  )
  return report_examples.Shown(
    example=source,
    layout=grid(1, _SIDE, 64, 64),
    evidence_I=scores.evidence[e],
    mass_LNQR=scores.mass_ELNQR[e],
    count_R=scores.count_ER[e],
    profile_LNI=scores.profiles[e] if scores.profiles is not None else None,
    correct=bool(scores.correct_E[e]),
  )


def scores(**options) -> scores_lib.Scores:
  """4 layers x 5 heads, of which two retrieve and one is merely drawn."""
  return fake_scores.make(
    **dict(n_layers=4, n_heads=5, planted=PLANTED, salient=((1, 0),)) | options
  )


def rank_page(made: scores_lib.Scores, n_shown: int = 3, **options) -> str:
  """A small report; options are ranking.rank's."""
  ranking = ranking_lib.rank(
    made, **dict(bootstrap=50, permutations=50) | options
  )
  return report.rank_page(
    ranking,
    made,
    [shown(made, e) for e in range(n_shown)],
    report.About('<model>', 'fake/test', 'stand-in & more'),
  )
