"""Run folders as rank and ablate leave them, of scores that no model made."""

import csv
import io
import json
import pathlib

import numpy as np

from corejax import regions
from corejax import scores as scores_lib

FLAGS = dict(
  model='llava_flax',
  checkpoint='planted',
  data='scenes_referring',
  split='test',
  tasks='',
  limit=24,
  seed=0,
  out='elsewhere',
  resume=True,
  dry_run=False,
  query='question',
  norm='mass',
)
COLUMNS = (
  'group k fraction seed mode phase rows task n accuracy ci_low ci_high delta '
  'delta_ci_low delta_ci_high logprob_delta heads'
).split()


def record(path, **changes) -> pathlib.Path:
  """Writes run.json; `flags` and `identity` of the changes are added."""
  path.mkdir(parents=True, exist_ok=True)
  flags = FLAGS | changes.pop('flags', {})
  identity = {
    'model': flags['model'],
    'data': flags['data'],
    'split': flags['split'],
    'checkpoint_fingerprint': 'c0ffee',
    'data_fingerprint': 'da7a',
  } | changes.pop('identity', {})
  content = dict(state='done', flags=flags, identity=identity) | changes
  (path / 'run.json').write_text(json.dumps(content))
  return path


def rank(path, scores: scores_lib.Scores, **changes) -> pathlib.Path:
  """A rank run of these scores."""
  record(path, **changes)
  buffer = io.BytesIO()
  np.savez(
    buffer,
    mass=scores.mass_ELNQR,
    example_ids=np.array(scores.ids),
    query_sets=np.array(regions.QUERY_SETS),
    regions=np.array(regions.REGIONS),
  )
  (path / 'arrays.npz').write_bytes(buffer.getvalue())
  rows = [
    {
      'index': e,
      'id': scores.ids[e],
      'cluster': scores.clusters[e],
      'task': scores.tasks[e],
      'media': scores.media[e],
      'layout': scores.layouts[e],
      'visual_tokens': int(scores.count_ER[e, list(regions.VISUAL)].sum()),
      'evidence_tokens': int(scores.count_ER[e, regions.EVIDENCE]),
      'correct': bool(scores.correct_E[e]),
      'logprob': float(scores.logprob_E[e]),
    }
    for e in range(len(scores))
  ]
  (path / 'examples.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  return path


def curve_row(group, k, fraction, seed='', task='colour', accuracy=1.0):
  """A row of curve.csv as a dict of texts."""
  return dict(
    zip(
      COLUMNS,
      map(
        str,
        (
          *(group, k, fraction, seed, 'zero', 'prefill+decode', 'all', task),
          *(24, accuracy, max(0, accuracy - 0.1), min(1, accuracy + 0.1)),
          *(accuracy - 1, accuracy - 1.1, accuracy - 0.9, 0, ''),
        ),
      ),
    )
  )


def curve(top=0.2, given=False) -> list[dict[str, str]]:
  """Rows: intact, then the top (or given) and a control with two draws."""
  rows = []
  for task, cut in (('colour', top), ('colour_twin', 0.9)):
    rows.append(curve_row('intact', 0, 0.0, task=task))
    for k in (2,) if given else (1, 2):
      rows += [
        curve_row('given' if given else 'top', k, k / 32, '', task, cut),
        curve_row('layer_matched', k, k / 32, '0', task, 0.8),
        curve_row('layer_matched', k, k / 32, '1', task, 1.0),
        curve_row('layer_matched', k, k / 32, 'all', task, 0.9),
      ]
  return rows


def ablate(path, rows=None, **changes) -> pathlib.Path:
  """An ablate run of these rows."""
  record(path, **{'experiment': 'ablate'} | changes)
  rows = curve() if rows is None else rows
  with open(path / 'curve.csv', 'w', newline='') as f:
    writer = csv.DictWriter(f, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return path
