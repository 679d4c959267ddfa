"""The closed list of words: all that a question, a prompt or an answer says."""

GLYPHS = (
  'circle',
  'square',
  'triangle',
  'star',
  'heart',
  'cross',
  'ring',
  'diamond',
  'arrow',
  'moon',
  'frame',
  'hourglass',
  'bolt',
  'flag',
  'tree',
  'ladder',
)

# Eight hues, 45 degrees apart, in the order of the colour circle.
COLOURS = ('red', 'gold', 'lime', 'green', 'cyan', 'blue', 'purple', 'pink')

PAGES = ('1', '2', '3', '4', '5', '6', '7', '8')

# The argument is the last word: a small decoder predicts the answer on the row
# of the word that it has to look up.
QUESTIONS = {
  'colour': 'What colour is the {}',
  'shape': 'What shape is {}',
  'page': 'Which page has the {}',
  'colour_twin': 'What colour is the background',
  'shape_twin': 'What shape follows the {}',
  'page_twin': 'Which page follows page {}',
}
# No part of `words()`: the vocabularies of small checkpoints are made of those.
VIDEO_QUESTIONS = {
  'when': 'Which quarter has the {}',
  'when_twin': 'Which quarter follows quarter {}',
}
TWIN = '_twin'


def next_glyph(glyph: str) -> str:
  """The glyph after this one in the fixed cyclic order of GLYPHS."""
  return GLYPHS[(GLYPHS.index(glyph) + 1) % len(GLYPHS)]


def words() -> tuple[str, ...]:
  """Every word, lower case, without repetition, in an order that stays.

  But for one: 'quarter', of VIDEO_QUESTIONS.
  """
  spoken = ['page']
  for question in QUESTIONS.values():
    spoken += question.replace('{}', '').lower().split()
  return tuple(dict.fromkeys([*spoken, *GLYPHS, *COLOURS, *PAGES]))
