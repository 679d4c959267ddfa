"""Which stage a step belongs to, what it is shown and how fast it learns.

    align           few                         many
    |---------------|---------------------------|--------------|
    0          align_steps         moved (measured)       moved + many_steps
                                                   rate:  1 --\\_ 0

Everything follows from the step and from `moved`, the step at which the model
answered every task; both stand in the saved state.
"""

import dataclasses

import numpy as np

# An order without trend; 5 and 7 pages are left to be generalised to.
MANY_PAGES = (3, 8, 4, 2, 6)
FEW_PAGES = 3
_RAMP = 50  # steps over which the rate rises at first


@dataclasses.dataclass(frozen=True)
class Plan:
  """Lengths of the stages.

  Attributes:
    align_steps: steps of stage `align`.
    few_steps: most steps of stage `few`.
    many_steps: steps of stage `many`.
    skill: running accuracy that every task must reach to leave `few`.
    check: steps between two looks at it.
  """

  align_steps: int
  few_steps: int
  many_steps: int
  skill: float = 0.9
  check: int = 25

  def stage(self, step: int, moved: int) -> str:
    """'align', 'few', 'many' or 'done' at this step; moved < 0: not yet."""
    if step < self.align_steps:
      return 'align'
    if moved < 0:
      return 'few'
    return 'many' if step < moved + self.many_steps else 'done'

  def pages(self, step: int, moved: int) -> int:
    """Pages of the step's documents."""
    if moved < 0:
      return FEW_PAGES
    return MANY_PAGES[(step - moved) % len(MANY_PAGES)]

  def rate(self, step: int, moved: int) -> float:
    """Factor on all learning rates: a ramp, flat, then down to 0."""
    if step < self.align_steps:
      return min(1.0, (step + 1) / 20)
    up = min(1.0, (step - self.align_steps + 1) / _RAMP)
    if moved < 0:
      return up
    left = (moved + self.many_steps - step) / self.many_steps
    return min(up, 1.0, 2 * left)

  def moves(self, step: int, skill_A: np.ndarray) -> bool:
    """Is stage `few` over after this many steps?"""
    since = step - self.align_steps
    return since % self.check == 0 and bool((skill_A >= self.skill).all())
