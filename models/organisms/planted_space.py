"""The residual stream of the planted model: which dimension means what.

    0       16       24     32     40         72         104     119 120
    | glyph | colour | tint | page | own word | answer   | flags | 1 | spare
      seen or looked up              (both: glyph, colour, page)

A visual token holds what its cell shows; the question's last token starts with
its own word alone, and heads bring what they look up into the same dimensions.
Values are one-hots of height 1 for each head that has written them: a head and
its double make 2, and 4 of a page's number that both copies of `page` wrote and
both of a planted head have copied. ONE is so large in every token that RMSNorm
divides all tokens by nearly the same number (1.02 to 1.1).
"""

import numpy as np

from corejax.data.scenes import vocab
from corejax.models.organisms import hf_folder

SIZE = 128
N_GLYPHS = len(vocab.GLYPHS)
N_COLOURS = len(vocab.COLOURS)
N_PAGES = len(vocab.PAGES)

GLYPH = np.arange(0, 16)
COLOUR = np.arange(16, 24)
TINT = np.arange(24, 32)
PAGE = np.arange(32, 40)

WORD_GLYPH = np.arange(40, 56)
WORD_COLOUR = np.arange(56, 64)
WORD_PAGE = np.arange(64, 72)

ANSWER_GLYPH = np.arange(72, 88)
ANSWER_COLOUR = np.arange(88, 96)
ANSWER_PAGE = np.arange(96, 104)

VISUAL = 104
OBJECT = 105
CENTRE = 106
BOS = 107
# Own words that tell what is asked, and the same as read by a helper head.
VERBS = ('is', 'has', 'follows')
NOUNS = ('colour', 'shape')
OWN_VERB = np.arange(108, 111)
OWN_NOUN = np.arange(111, 113)
BACKGROUND = 113
READ_VERB = np.arange(114, 117)
READ_NOUN = np.arange(117, 119)
ONE = 119
ONE_HEIGHT = SIZE**0.5
# Where random heads and MLPs write; no planted head reads it.
SPARE = np.arange(120, 128)
# Flags that say nothing about which glyph, colour or page it is.
BLIND = (VISUAL, OBJECT, CENTRE, BOS, ONE)


def embeddings() -> np.ndarray:
  """float32 [V, SIZE]."""
  table = np.zeros((len(hf_folder.TOKENS), SIZE), np.float32)
  table[:, ONE] = ONE_HEIGHT
  table[hf_folder.ID['<s>'], BOS] = 1
  for words, columns in (
    (vocab.GLYPHS, WORD_GLYPH),
    (vocab.COLOURS, WORD_COLOUR),
    (vocab.PAGES, WORD_PAGE),
    (VERBS, OWN_VERB),
    (NOUNS, OWN_NOUN),
    (('background',), (BACKGROUND,)),
  ):
    for word, column in zip(words, columns, strict=True):
      table[hf_folder.ID[word], column] = 1
  return table


def unembeddings() -> np.ndarray:
  """float32 [V, SIZE]: answers, and </s> where there is none."""
  table = np.zeros((len(hf_folder.TOKENS), SIZE), np.float32)
  for words, columns in (
    (vocab.GLYPHS, ANSWER_GLYPH),
    (vocab.COLOURS, ANSWER_COLOUR),
    (vocab.PAGES, ANSWER_PAGE),
  ):
    for word, column in zip(words, columns, strict=True):
      table[hf_folder.ID[word], column] = 8
  table[hf_folder.ID['</s>'], ONE] = 2 / ONE_HEIGHT
  return table
