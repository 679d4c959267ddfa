"""report.html: a run as one page that needs nothing else.

Everything is inline: no file, font or script from elsewhere, and the page's
own Content-Security-Policy allows no other script than the one it was made
with. Data reach it as JSON in a block that is not run, and JavaScript puts
texts into text nodes alone, so a question may hold any markup it likes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import math
import pathlib
from typing import Any

import jinja2
import numpy as np

from corejax import findings as findings_lib
from corejax import ram as ram_lib
from corejax import ranking as ranking_lib
from corejax import regions
from corejax import scores as scores_lib
from corejax.experiments import report_examples
from corejax.experiments import resources as resources_lib

FILE = 'report.html'
PAGE_BYTES = 980_000  # the page has to stay under 1 MB at 1000 heads
_ASSETS = pathlib.Path(__file__).parent / 'page'
_SCRIPTS = (
  'base.js',
  'map.js',
  'charts.js',
  'card.js',
  'viewer.js',
  'main.js',
)
_N_TOP = 8  # heads whose attention can be looked at, beside two others
_INSPECT_BYTES = 500_000

# heads.csv -> the page; what a reader of the map may ask of one head.
_COLUMNS = (
  'layer',
  'head',
  'ram',
  'ci_low',
  'ci_high',
  'score',
  'score_ci_low',
  'score_ci_high',
  'null_mean',
  'q_value',
  'q_shift',
  'inclusion',
  'share',
  'lift',
  'excess',
  'mass_evidence',
  'mass_distractor',
  'mass_visual',
  'mass_question',
  'mass_text',
  'mass_sink',
  'selected',
)


@dataclasses.dataclass(frozen=True)
class About:
  """What the page's head says.

  Attributes:
    model: registry key or name.
    data: data set and split.
    note: what stands in for a checkpoint that was not given, or ''.
  """

  model: str
  data: str
  note: str = ''

  @classmethod
  def of(cls, resources: resources_lib.Resources) -> About:
    """Reads it off a run's resources."""
    source = resources.source
    return cls(
      resources.loaded.key, f'{source.name}/{source.split}', resources.embedded
    )


def rank_page(
  ranking: ranking_lib.HeadRanking,
  scores: scores_lib.Scores,
  browsable: Sequence[report_examples.Shown],
  about: About,
) -> str:
  """The report of a ranking.

  Args:
    ranking: with findings, as `ranking.rank` returns it.
    scores: what it was computed from.
    browsable: examples to look at; as many as fit are taken, in this order.
    about: the run.

  Raises:
    ValueError: the ranking was read from a file and has no findings.
  """
  findings = ranking.findings
  if findings is None:
    raise ValueError('rank_page: the ranking has no findings; rank the scores')
  pairs = ranking.heads
  shown = _shown_heads(ranking.columns)
  by_query = ram_lib.by_query(scores, findings.options)
  layer_X, head_X = ranking.columns['layer'], ranking.columns['head']
  data = {
    'kind': 'rank',
    **_head_of(about, ranking.n_layers, ranking.n_heads, shown),
    'heads': {
      name: numbers(ranking.columns[name])
      for name in _COLUMNS
      if name in ranking.columns
    },
    'flags': {
      x: text for x, text in enumerate(ranking.columns['flags']) if text
    },
    'by_set': {
      query: numbers(ram.ram_LN[layer_X, head_X])
      for query, ram in by_query.items()
    },
    'findings': findings.to_dict(),
    'score_name': _score_name(findings.options),
    'null_is_comparable': _null_is_comparable(findings.options),
    'profile_set': scores.profile_set or findings.options.query,
    'n_examples': len(scores),
  }
  values = {
    'about': about,
    'tiles': _tiles(ranking, findings),
    'lead': _lead(ranking, findings),
    'summary': ranking.summary(),
    'findings': findings,
    'n_heads': len(ranking),
    'profiles': scores.profiles is not None,
  }
  return _page(
    'rank.html', data, values, browsable, [pairs[x] for x in shown], PAGE_BYTES
  )


def inspect_page(
  shown: report_examples.Shown,
  about: About,
  listing: str,
  profile_set: str = 'question',
) -> str:
  """The page of one example: its tokens, and where each head looks.

  Args:
    shown: the example with what one forward measured.
    about: the model and data.
    listing: the prompt's tokens with their regions, as text.
    profile_set: query set of its profile.
  """
  mass_LNQ = np.asarray(shown.mass_LNQR, np.float64)[..., regions.EVIDENCE]
  n_layers, n_heads = mass_LNQ.shape[:2]
  own_X = mass_LNQ[..., regions.QUERY_SETS.index(profile_set)].ravel()
  order_X = np.argsort(-own_X, kind='stable')
  layer_X, head_X = np.divmod(order_X, n_heads)
  keep = max(1, _INSPECT_BYTES * 3 // 4 // max(1, len(shown.layout)))
  kept = list(range(min(keep, len(order_X))))
  data = {
    'kind': 'inspect',
    **_head_of(about, n_layers, n_heads, kept),
    'heads': {
      'layer': layer_X.tolist(),
      'head': head_X.tolist(),
      'ram': numbers(own_X[order_X]),
    },
    'flags': {},
    'by_set': {
      name: numbers(mass_LNQ[..., q].ravel()[order_X])
      for q, name in enumerate(regions.QUERY_SETS)
    },
    'profile_set': profile_set,
    'n_examples': 1,
  }
  pairs = list(zip(layer_X.tolist(), head_X.tolist()))
  return _page(
    'inspect.html',
    data,
    {
      'about': about,
      'shown': shown,
      'listing': listing,
      'chance': shown.evidence_I.mean(),
      'regions': regions.REGIONS,
    },
    [shown],
    [pairs[x] for x in kept],
    # One example was asked for: it is shown whatever it takes.
    None,
  )


def _head_of(about, n_layers, n_heads, shown) -> dict[str, Any]:
  return {
    'model': about.model,
    'data': about.data,
    'n_layers': n_layers,
    'n_heads': n_heads,
    'shown': shown,
    **report_examples.legend(),
  }


def _page(
  template: str,
  data: dict[str, Any],
  values: Mapping[str, Any],
  browsable: Sequence[report_examples.Shown],
  heads: Sequence[tuple[int, int]],
  limit: int | None,
) -> str:
  """Fills the template, with as many examples as stay under the limit."""
  data['examples'], data['layouts'] = [], []
  size = len(render(template, data, values))
  places: dict[str, int] = {}
  for shown in browsable:
    packed = report_examples.layout(shown.layout)
    key = json.dumps(packed)
    is_new = key not in places
    example = report_examples.example(
      shown, heads, places.get(key, len(places))
    )
    more = len(_json(example)) + is_new * len(key) + 2
    if limit is not None and size + more > limit:
      break
    size += more
    if is_new:
      places[key] = len(places)
      data['layouts'].append(packed)
    data['examples'].append(example)
  return render(template, data, values)


def render(
  template: str,
  data: Mapping,
  values: Mapping,
  scripts: Sequence[str] = _SCRIPTS,
) -> str:
  """One page with all that it needs.

  Args:
    template: file of page/.
    data: what the scripts read, JSON-able.
    values: what the template reads.
    scripts: files of page/, run in this order as one.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_ASSETS),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['percent'] = percent
  environment.filters['png'] = _png
  parts = ''.join((_ASSETS / name).read_text('utf-8') for name in scripts)
  script = f"(() => {{\n'use strict';\n{parts}}})();\n"
  style = (_ASSETS / 'style.css').read_text('utf-8')
  return environment.get_template(template).render(
    **values,
    script=script,
    style=style,
    script_hash=_hash(script),
    style_hash=_hash(style),
    data=_json(data),
  )


def plain(template: str, values: Mapping[str, Any]) -> str:
  """A page without a script, as `render` makes it."""
  return render(template, {}, values, scripts=())


def _png(content: bytes) -> str:
  """A picture as the page's own URL."""
  return f'data:image/png;base64,{base64.b64encode(content).decode()}'


def _hash(text: str) -> str:
  """As a Content-Security-Policy wants it."""
  digest = hashlib.sha256(text.encode()).digest()
  return f'sha256-{base64.b64encode(digest).decode()}'


def _json(data: Any) -> str:
  """JSON that can stand inside of a script element."""
  text = json.dumps(data, separators=(',', ':'), allow_nan=False)
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def numbers(column: np.ndarray) -> list:
  """For JSON: four digits each; None where there is no number."""
  if column.dtype.kind in 'iub':
    return column.tolist()
  return [float(f'{v:.4g}') if math.isfinite(v) else None for v in column]


def _shown_heads(columns: Mapping[str, np.ndarray]) -> list[int]:
  """Ranks of the heads whose attention can be looked at.

  The best ones; then, for comparison, the one in the middle of the ranking
  and, of the rest, the one that reads most from the pictures.
  """
  n = len(columns['rank'])
  shown = list(range(min(_N_TOP, n)))
  if n <= _N_TOP + 2:
    return list(range(n))
  middle = max(n // 2, _N_TOP)
  visual_X = np.nan_to_num(columns['mass_visual'], nan=-1.0).copy()
  # Best and selected heads look at pictures because the evidence is there.
  visual_X[[*shown, middle]] = -1
  visual_X[columns['selected'] == 1] = -1
  return [*shown, *sorted({middle, int(visual_X.argmax())})]


def _null_is_comparable(options: ram_lib.Options) -> bool:
  """Is the null's expectation on the scale of the score? See nulls.py."""
  return options.norm in ('mass', 'excess') and not (
    options.calibrate or options.contrast
  )


def _score_name(options: ram_lib.Options) -> str:
  """What the heads are ranked by, in words."""
  name = 'RAM' if options.norm == 'mass' else options.norm
  if options.contrast:
    name += ' on the evidence minus that on the largest distractor, per token'
  if options.calibrate:
    name += ', minus that of a content-free question'
  return name


def percent(share: float, digits: int = 1) -> str:
  """As a reader wants it."""
  if not math.isfinite(share):
    return 'not measured'
  return f'{100 * share:.{digits}f}%'


def _lead(ranking, findings) -> list[str]:
  """What was found, in plain words."""
  top = {name: column[0] for name, column in ranking.columns.items()}
  name = f'{top["layer"]}-{top["head"]}'
  lines = [
    f'Head {name} leads'
    + ('' if findings.options.plain else f' by {_score_name(findings.options)}')
    + f': {percent(top["ram"])} of all it reads from the '
    f'{findings.options.query} rows falls on the tokens in which the answer '
    'lies'
    + (
      f', and of what it reads from the picture {top["lift"]:.1f} times the '
      'share that even looking would put there.'
      if math.isfinite(top['lift'])
      else '.'
    )
  ]
  tests = findings.tests
  if tests.untested:
    lines.append(f'No null was tested: {tests.untested}.')
  else:
    over = int((ranking.columns['q_value'] < findings_lib.Q).sum())
    lines.append(
      f'{over} of {len(ranking)} heads read the evidence of their own question '
      'more than that of another question on the same picture '
      f'(q < {findings_lib.Q:g}).'
      if over
      else 'No head is shown to read the evidence of its own question more '
      'than that of another question: what leads may merely be salient, '
      'central or recent.'
    )
  others = {
    query: found
    for query, found in findings.query_sets.items()
    if query != findings.options.query
  }
  if others:
    lines.append(
      'The rows that are watched matter: '
      + '; '.join(
        f'by {query} rows {found.best} leads with a RAM of '
        f'{percent(found.ram)}, and {percent(found.overlap, 0)} of this '
        'selection is in the top set'
        for query, found in others.items()
      )
      + '.'
    )
  return lines


def _tiles(ranking, findings) -> list[tuple[str, str, str]]:
  """(number, what it is, what to compare it with)."""
  sparse, halves, tests = findings.sparsity, findings.split_half, findings.tests
  low, high = ranking.columns['ci_low'][0], ranking.columns['ci_high'][0]
  layer, head = ranking.heads[0]
  over = int((ranking.columns['q_value'] < findings_lib.Q).sum())
  interval = (
    f'95% interval {percent(low)} to {percent(high)}'
    if math.isfinite(low)
    else 'no interval'
  )
  return [
    (
      percent(ranking.columns['ram'][0]),
      f'RAM of head {layer}-{head}',
      f'{interval}; evidence is {percent(findings.chance)} of the visual '
      'tokens',
    ),
    (
      'not tested' if tests.untested else f'{over} of {len(ranking)}',
      'heads over the null',
      tests.untested
      or f'q < {findings_lib.Q:g}, {tests.n_permutations} permutations',
    ),
    (
      f'{sparse.half} of {len(ranking)}',
      'heads hold half of the mass',
      f'Gini {sparse.gini:.2f}, effective number {sparse.effective:.1f}',
    ),
    (
      percent(halves.overlap, 0),
      f'of the top {halves.top} agree in two halves of the data',
      f'chance {percent(halves.overlap_chance, 0)}',
    ),
  ]
