"""The decoder of the planted model, head by head.

    layer 0      page, verb, noun, ground  helpers that say what is asked and
                                           where; two each
    layers 1-3   by_glyph, by_colour       the planted heads, two each
                 centre, saliency, sink, recency  decoys
                 resting                   six that look at nothing
                 fillers                   the other ten
    layer 3      its MLP picks the answer

Scores below are in nats, of the attention's logits. All heads but
`recency` rest on the first token when they have nothing to look for; how firmly
decides who is last by RAM: sink 10 nats, helpers 22, resting heads 40.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from corejax.models.organisms import planted_space as space

LAYERS = 4
HEADS = 8
HEAD_DIM = space.SIZE // HEADS
MLP = 96
ROPE_THETA = 1e7

PLANTED = ('by_glyph', 'by_colour')
DECOYS = ('centre', 'saliency', 'sink', 'recency')
HELPERS = ('page', 'verb', 'noun', 'ground')
# Of each planted head and each helper; one alone is enough.
COPIES = 2
RESTING = 'resting'
N_RESTING = 6
# Which planted heads serve which task.
SERVES = {'colour': 'by_glyph', 'page': 'by_glyph', 'shape': 'by_colour'}

# Rotation per token: 1, .13, .018, .0024, then 3e-4 and slower. The slow pairs
# carry contents, the fast ones distance; pair 3 carries the resting place.
_HALF = HEAD_DIM // 2
_TURN = ROPE_THETA ** (-np.arange(_HALF) / _HALF)
_REST = 3
_CONTENT = np.concatenate([np.arange(4, 8), np.arange(12, 16)])

_MATCH = 18.0
_GLYPH_MATCH = 24.0
_REST_NATS = 9.0
# Helpers look up nothing, so they leave the evidence less than decoys do.
_READ = 30.0
_HELPER_REST_NATS = 22.0


@dataclasses.dataclass
class Head:
  """One head's slices of the four projections, [HEAD_DIM, SIZE] each."""

  q: np.ndarray
  k: np.ndarray
  v: np.ndarray
  o: np.ndarray

  @classmethod
  def empty(cls) -> 'Head':
    return cls(*(np.zeros((HEAD_DIM, space.SIZE)) for _ in range(4)))

  def score(self, dim: int, query: Mapping, key: Mapping) -> None:
    """Adds query * key nats through one of the head's dimensions.

    Args:
      dim: dimension of q and k.
      query, key: residual dimension -> factor; tokens that hold 1 there meet
        at the product of the factors.
    """
    for side, reads in ((self.q, query), (self.k, key)):
      for column, factor in reads.items():
        side[dim, column] += 2 * factor  # 2 * 2 / sqrt(HEAD_DIM) is 1

  def rest(
    self,
    nats: float = _REST_NATS,
    more: Mapping | None = None,
    dim: int = _REST,
  ) -> None:
    """The first token draws this much, and `more` from rows with a flag."""
    root = np.sqrt(nats)
    query = {space.ONE: root / space.ONE_HEIGHT}
    for column, extra in (more or {}).items():
      query[column] = extra / root
    self.score(dim, query, {space.BOS: root})

  def match(
    self, query: np.ndarray, key: np.ndarray, nats: float = _MATCH
  ) -> None:
    """Lets query[i] find key[i]; up to 16 pairs of residual dimensions.

    The codes are the 16 signed unit vectors of the 8 content dimensions: two
    different ones meet at 0 or at -1.
    """
    root = np.sqrt(nats)
    for index, (q, k) in enumerate(zip(query, key, strict=True)):
      dim, sign = _CONTENT[index % 8], 1 - 2 * (index // 8)
      self.score(dim, {int(q): sign * root}, {int(k): sign * root})

  def copy(self, reads: np.ndarray, writes: np.ndarray, first: int = 0) -> None:
    """Adds what the key holds in `reads` to the query's `writes`."""
    for index, (source, target) in enumerate(zip(reads, writes, strict=True)):
      self.v[first + index, source] = 1
      self.o[first + index, target] = 1

  def near(
    self,
    query: Mapping,
    key: Mapping,
    cosine: np.ndarray,
    sine: np.ndarray | None = None,
  ) -> None:
    """Makes the score a function of the distance d = i - j:

        sum over the fast turns w of  cosine cos(w d) + sine sin(w d)

    Args:
      query, key: residual dimension -> factor, as in `score`.
      cosine, sine: nats per fast turn, [_REST + 1].
    """
    sine = np.zeros(_REST + 1) if sine is None else sine
    for pair in range(_REST + 1):
      root = np.sqrt(np.hypot(cosine[pair], sine[pair]))
      if root == 0:
        continue
      # q and k turn by their positions: q . k = |q||k| cos(w d + phase of q).
      for dim, wave in ((pair, cosine[pair]), (pair + _HALF, -sine[pair])):
        for column, factor in query.items():
          self.q[dim, column] += 2 * factor * wave / root
      for column, factor in key.items():
        self.k[pair, column] += 2 * factor * root


def _waves(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(cosine, sine) for `Head.near` whose sum is nearest to a target.

  Args:
    target: nats at distances 0, 1, ..; met up to a constant, which a softmax
      does not see.
  """
  angle = np.arange(len(target))[:, None] * _TURN[: _REST + 1]
  waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
  waves -= waves.mean(0)
  damped = waves.T @ waves + 1e-4 * np.eye(waves.shape[1])
  best = np.linalg.solve(damped, waves.T @ (target - target.mean()))
  cosine, sine = np.split(best, 2)
  return cosine, sine


def _by_glyph() -> Head:
  head = Head.empty()
  # Firmer than by_colour, so that where both are asked as often these two are
  # the top 2: half of each pair would break nothing.
  head.match(space.WORD_GLYPH, space.GLYPH, _GLYPH_MATCH)
  follows = space.READ_VERB[space.VERBS.index('follows')]
  head.rest(more={space.VISUAL: 8.0, int(follows): _GLYPH_MATCH})
  head.copy(space.COLOUR, space.COLOUR)
  head.copy(space.PAGE, space.PAGE, first=space.N_COLOURS)
  return head


def _by_colour() -> Head:
  head = Head.empty()
  head.match(space.WORD_COLOUR, space.COLOUR)
  head.rest(more={space.VISUAL: 8.0})
  head.copy(space.GLYPH, space.GLYPH)
  return head


def _reader(reads: np.ndarray, writes: np.ndarray) -> Head:
  """Any row reads the one word of a kind that stands before it."""
  head = Head.empty()
  root = np.sqrt(_READ)
  head.score(
    _CONTENT[0],
    {space.ONE: root / space.ONE_HEIGHT},
    {int(column): root for column in reads},
  )
  head.rest(_HELPER_REST_NATS)
  head.copy(reads, writes)
  return head


def _page() -> Head:
  """A visual token reads the number word that stands nearest before it."""
  head = Head.empty()
  root = np.sqrt(_MATCH)
  head.score(
    _CONTENT[0],
    {space.VISUAL: root},
    {int(column): root for column in space.WORD_PAGE},
  )
  # Pages are 18 tokens apart: 10 nats a page.
  head.near(
    {space.VISUAL: 1},
    dict.fromkeys(space.WORD_PAGE.tolist(), 1),
    *_waves(-10 / 18 * np.arange(160)),
  )
  head.rest(
    _HELPER_REST_NATS,
    {space.VISUAL: 4.0 - _HELPER_REST_NATS},
    dim=_CONTENT[1],  # `near` has taken _REST: rows would meet its keys there
  )
  head.copy(space.WORD_PAGE, space.PAGE)
  return head


def _ground() -> Head:
  """The word `background` reads the mean tint of all visual tokens."""
  head = Head.empty()
  root = np.sqrt(_MATCH)
  head.score(_CONTENT[0], {space.BACKGROUND: root}, {space.VISUAL: root})
  head.rest(
    _HELPER_REST_NATS, {space.BACKGROUND: _REST_NATS - _HELPER_REST_NATS}
  )
  head.copy(space.TINT, space.TINT)
  return head


def _moods(rng: np.random.Generator) -> dict[int, float]:
  """How strongly a head follows its taste, by the row's own word.

  Scenes hold no noise: were a head's attention the same for every question, a
  trace of 1e-8 that the planted heads leave behind would be significant.
  """
  words = (*space.WORD_GLYPH, *space.WORD_COLOUR, *space.WORD_PAGE)
  return {
    space.ONE: 1 / space.ONE_HEIGHT,
    **{int(word): mood for word, mood in zip(words, rng.normal(0, 0.05, 32))},
  }


def _filler(rng: np.random.Generator) -> Head:
  """A small random head, blind to which glyph, colour or page a key shows.

  Keys read BLIND flags alone: the head may like objects or places, and more or
  less so by question, but never the evidence; the null holds for it by
  construction. It writes SPARE dimensions alone, which no planted head reads.
  """
  head = Head.empty()
  reads = np.array([*space.BLIND, *space.WORD_GLYPH, *space.WORD_COLOUR])
  for side, columns in ((head.q, reads), (head.k, list(space.BLIND))):
    side[:, columns] = rng.normal(0, 0.5, (HEAD_DIM, len(columns)))
    side[:, space.ONE] /= space.ONE_HEIGHT
  head.v[:] = rng.normal(0, 0.3, head.v.shape)
  head.v[:, space.ONE] = 0
  head.o[:, space.SPARE] = rng.normal(0, 0.004, (HEAD_DIM, len(space.SPARE)))
  return head


def _decoy(name: str, rng: np.random.Generator) -> Head:
  """A head with a taste of its own; what it writes is a filler's."""
  filler = _filler(rng)
  head = dataclasses.replace(Head.empty(), v=filler.v, o=filler.o)
  moods = _moods(rng)
  if name == 'centre':
    # A page's four cells hold about two thirds, the first token the rest.
    head.score(_CONTENT[0], moods, {space.CENTRE: 8})
    head.rest(nats=8.7)
  elif name == 'saliency':
    # Nine objects hold about two thirds, the first token the rest.
    head.score(_CONTENT[0], moods, {space.OBJECT: 7})
    head.rest(nats=8.5)
  elif name == 'sink':
    head.score(_REST, moods, {space.BOS: 10})
  elif name == RESTING:
    head.score(_REST, moods, {space.BOS: 40})
  elif name == 'recency':
    # The first turn tells neighbours apart, the slower ones its later periods.
    head.near(
      moods, {space.ONE: 1 / space.ONE_HEIGHT}, np.array([6, 30, 60, 0])
    )
  else:
    raise ValueError(name)
  return head


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where each known head lies: name -> (layer, head) pairs."""

  places: Mapping[str, tuple[tuple[int, int], ...]]

  @classmethod
  def draw(cls, rng: np.random.Generator) -> 'Plan':
    """Random places under the order that the layers need."""
    free = [(l, n) for l in range(LAYERS) for n in range(HEADS)]
    free = [free[i] for i in rng.permutation(len(free))]
    places: dict[str, tuple[tuple[int, int], ...]] = {}

    def take(name, count, layers):
      chosen = [place for place in free if place[0] in layers][:count]
      for place in chosen:
        free.remove(place)
      places[name] = tuple(sorted(chosen))

    # The helpers fill layer 0: the layers of the planted heads hold none, so
    # that heads drawn to match those layers are a control that breaks nothing.
    for name in HELPERS:
      take(name, COPIES, (0,))
    for name in PLANTED:
      take(name, COPIES, (1, 2, 3))
    for name in DECOYS:
      take(name, 1, (1, 2, 3))
    take(RESTING, N_RESTING, (1, 2, 3))
    return cls(places)


def _build(name: str, rng: np.random.Generator) -> Head:
  if name in DECOYS or name == RESTING:
    return _decoy(name, rng)
  if name == 'verb':
    return _reader(space.OWN_VERB, space.READ_VERB)
  if name == 'noun':
    return _reader(space.OWN_NOUN, space.READ_NOUN)
  return {
    'by_glyph': _by_glyph,
    'by_colour': _by_colour,
    'page': _page,
    'ground': _ground,
  }[name]()


def _answers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """gate [MLP, SIZE], up [MLP, SIZE], down [SIZE, MLP] of the last layer.

  Each unit is open for one task: silu(16 asked + 32 argument - 40) is 8 or 24
  where one or two helpers have read the asking word and the row's own word is
  such an argument, else nearly 0 (silu(-8) or less); times what `up` reads.
  """
  gate = np.zeros((MLP, space.SIZE))
  up = np.zeros((MLP, space.SIZE))
  down = np.zeros((space.SIZE, MLP))
  is_colour, is_shape = space.READ_NOUN
  _, has, follows = space.READ_VERB
  background = np.array([space.BACKGROUND])
  turn = np.roll  # the answer to `follows` is one further on
  unit = 0
  for asked, argument, reads, writes in (
    (is_colour, space.WORD_GLYPH, space.COLOUR, space.ANSWER_COLOUR),
    (is_colour, background, space.TINT, space.ANSWER_COLOUR),
    (is_shape, space.WORD_COLOUR, space.GLYPH, space.ANSWER_GLYPH),
    (follows, space.WORD_GLYPH, space.WORD_GLYPH, turn(space.ANSWER_GLYPH, -1)),
    (has, space.WORD_GLYPH, space.PAGE, space.ANSWER_PAGE),
    (follows, space.WORD_PAGE, space.WORD_PAGE, turn(space.ANSWER_PAGE, -1)),
  ):
    # One more unit than words: without a find, any of the right kind.
    rows = np.arange(unit, unit + len(reads) + 1)
    gate[np.ix_(rows, argument)] = 32
    gate[rows, asked] = 16
    gate[rows, space.ONE] = -40 / space.ONE_HEIGHT
    up[rows[:-1], reads] = 1
    down[writes, rows[:-1]] = 2 / 8
    up[rows[-1], space.ONE] = 1 / space.ONE_HEIGHT
    down[writes, rows[-1]] = 0.5 / 8
    unit = rows[-1] + 1
  return gate, up, down


def decoder(rng: np.random.Generator, plan: Plan) -> dict[str, np.ndarray]:
  """The Llama decoder's tensors, named from `model.` and `lm_head.` on."""
  known = {
    place: name for name, places in plan.places.items() for place in places
  }
  tensors = {
    'model.embed_tokens.weight': space.embeddings(),
    'model.norm.weight': np.ones(space.SIZE),
    'lm_head.weight': space.unembeddings(),
  }
  for layer in range(LAYERS):
    heads = [
      _build(known[layer, n], rng) if (layer, n) in known else _filler(rng)
      for n in range(HEADS)
    ]
    if layer < LAYERS - 1:
      gate, up = rng.normal(0, 0.1, (2, MLP, space.SIZE))
      gate[:, space.ONE] = up[:, space.ONE] = 0
      down = np.zeros((space.SIZE, MLP))
      down[space.SPARE] = rng.normal(0, 0.003, (len(space.SPARE), MLP))
    else:
      gate, up, down = _answers()
    prefix = f'model.layers.{layer}.'
    for which in ('q', 'k', 'v'):
      tensors[f'{prefix}self_attn.{which}_proj.weight'] = np.concatenate(
        [getattr(head, which) for head in heads]
      )
    tensors[f'{prefix}self_attn.o_proj.weight'] = np.concatenate(
      [head.o.T for head in heads], axis=1
    )
    tensors[f'{prefix}mlp.gate_proj.weight'] = gate
    tensors[f'{prefix}mlp.up_proj.weight'] = up
    tensors[f'{prefix}mlp.down_proj.weight'] = down
    for norm in ('input_layernorm', 'post_attention_layernorm'):
      tensors[f'{prefix}{norm}.weight'] = np.ones(space.SIZE)
  return tensors
