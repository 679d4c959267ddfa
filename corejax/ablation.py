"""Ablation of heads as a static argument: which heads, how, when, on what rows.

    ablation = Ablation(HeadSet.parse('14-22,13-16'))       # zero, all rows

    @functools.partial(jax.jit, static_argnames='ablation')
    def run(model, inputs, ablation):
      control = ablation.expand(n_layers, n_heads)
      return forward(model, inputs, control=control)

Modes (h is an ablated head, on the chosen rows; the other rows of h and the
other heads are left alone):

    zero               h writes 0 (before the output projection)
    mean               h writes its mean over a reference set, by class of row
    resample           h writes what it wrote on another example
    uniform            h reads all keys it may read with the same weight
    knockout_evidence  h may not read the evidence; its softmax is over the rest
    knockout_visual    h may not read any visual token

Phases, where the model's answer is generated or forced upon it:

    prefill+decode     every row
    decode             rows after the prompt alone: the prompt is read intact,
                       so that the first answer token cannot change

Rows: `all`, or `query`, those that RAM measures: the question's own tokens, the
last prompt token and the rows that predict the answer (the union of the query
sets of corejax.regions; every row of generation is one).

No mode reads a future key: zero reads none; the means are constants; for
donors see corejax.replacement; uniform and knockout read a part of what the
intact head may read, padding and a model's own window excepted as ever. A row
that may read nothing but what is knocked out writes 0.

Ablating no head is bit-equal to the intact model in every mode: it expands to
the intact control. An empty set inside a sweep runs the sweep's program, in
which XLA may order a sum otherwise: equal to rounding, and the exact baseline
of the other sets of that sweep.
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from corejax import control as control_lib
from corejax import describe
from corejax import errors
from corejax import heads as heads_lib
from corejax import regions
from corejax import replacement as replacement_lib
from corejax import rows as rows_lib

MODES = (
  'zero',
  'mean',
  'resample',
  'uniform',
  'knockout_evidence',
  'knockout_visual',
)
PHASES = ('prefill+decode', 'decode')
ROWS = ('all', 'query')

# Modes whose heads write a Replacement, and modes that may not read regions.
REPLACING = ('mean', 'resample')
KNOCKOUTS = {
  'knockout_evidence': (regions.EVIDENCE,),
  'knockout_visual': regions.VISUAL,
}


@dataclasses.dataclass(frozen=True)
class Ablation:
  """A frozen, hashable ablation; equal sets of heads are equal ablations.

  Attributes:
    heads: the heads.
    mode: one of MODES.
    phase: one of PHASES.
    rows: one of ROWS.

  Raises:
    UserError: an unknown mode, phase or rows.
  """

  heads: heads_lib.HeadSet
  mode: str = 'zero'
  phase: str = 'prefill+decode'
  rows: str = 'all'

  def __post_init__(self):
    for name, known in (('mode', MODES), ('phase', PHASES), ('rows', ROWS)):
      value = getattr(self, name)
      if value not in known:
        raise errors.UserError(
          f'Ablation: {name} {value!r} is unknown; choose one of '
          f'{", ".join(known)}'
        )

  def expand(
    self,
    n_layers: int,
    n_heads: int,
    *,
    rows: rows_lib.Rows | None = None,
    region_BS: jax.Array | None = None,
    replacement: replacement_lib.Replacement | None = None,
  ) -> control_lib.HeadControl:
    """The same as arrays, for a forward pass over a prompt or a forced answer.

    For a step of generation give `Rows.decode_step()`; before it, in phase
    'decode', the prompt's pass needs no control. No head at all is the intact
    control.

    Args:
      n_layers, n_heads: of the model.
      rows: of the batch; needed by phase 'decode' and rows 'query'.
      region_BS: region of every key, needed by the knockouts.
      replacement: needed by 'mean' and 'resample'.

    Raises:
      UserError: a head is outside the model.
      ValueError: an argument that the mode, phase or rows need is missing.
    """
    heads_LN = self.heads.mask(n_layers, n_heads)
    edited = self._control(heads_LN, rows, region_BS, replacement)
    if not self.heads:
      # Equal in value, but its program is the intact one to the bit.
      return control_lib.HeadControl.intact(n_layers, n_heads)
    return edited

  def _control(self, heads_LN, rows, region_BS, replacement):
    """`expand` for heads that may be traced, bool [L, N]."""
    chosen_BT = self._chosen(rows)
    off_LBN = jnp.asarray(heads_LN)[:, None]
    intact = control_lib.HeadControl.intact(*heads_LN.shape)
    attend, output = intact.attend, intact.output
    if self.mode in KNOCKOUTS:
      if region_BS is None:
        raise ValueError(f'Ablation: mode {self.mode!r} needs region_BS')
      barred_R = np.isin(range(len(regions.REGIONS)), KNOCKOUTS[self.mode])
      attend = dataclasses.replace(
        attend,
        blocked_BNR=off_LBN[..., None] & barred_R,
        region_BS=region_BS,
        rows_BT=chosen_BT,
      )
    elif self.mode == 'uniform':
      attend = dataclasses.replace(
        attend,
        score_scale_BN=jnp.where(off_LBN, 0.0, attend.score_scale_BN),
        rows_BT=chosen_BT,
      )
    else:
      output = dataclasses.replace(
        output,
        gate_BN=jnp.where(off_LBN, 0.0, output.gate_BN),
        rows_BT=chosen_BT,
      )
    if self.mode in REPLACING:
      if replacement is None:
        raise ValueError(f'Ablation: mode {self.mode!r} needs a replacement')
      output = dataclasses.replace(
        output,
        replacement_BTNH=replacement.out_LBTNH,
        source_BT=replacement.source_BT,
      )
    return control_lib.HeadControl(attend, output)

  def _chosen(self, rows: rows_lib.Rows | None) -> jax.Array | None:
    """bool [1|B, T], None for all rows."""
    if self.phase == 'prefill+decode' and self.rows == 'all':
      return None
    if rows is None:
      raise ValueError(
        f'Ablation: phase {self.phase!r} with rows {self.rows!r} needs rows'
      )
    if self.phase == 'prefill+decode':
      return rows.query_BT
    return rows.decoded_BT & (rows.query_BT | (self.rows == 'all'))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sweep:
  """Ablations that differ in their heads alone, as one stack of arrays.

      sweep = ablation.sweep(ablations, n_layers, n_heads, ...)
      run = lambda x: forward(model, inputs, control=sweep.at(x)).logits_BPV
      logits_XBPV = jax.lax.map(run, jnp.arange(len(sweep)))     # or jax.vmap

  One compilation whatever the heads are. Only the sets are stacked (X * L * N
  bytes): means, donors' outputs, regions and rows are held once.

  Attributes:
    heads_XLN: bool, the heads of each set.
    rows, region_BS, replacement: as `Ablation.expand` takes them.
    kind: static; the ablation without its heads.
  """

  heads_XLN: jax.Array
  rows: rows_lib.Rows | None
  region_BS: jax.Array | None
  replacement: replacement_lib.Replacement | None
  kind: Ablation = dataclasses.field(metadata=dict(static=True))

  __repr__ = describe.fields

  def __len__(self) -> int:
    return self.heads_XLN.shape[0]

  def at(self, x: int | jax.Array) -> control_lib.HeadControl:
    """The control of the x-th ablation, x may be traced."""
    heads_LN = jax.lax.dynamic_index_in_dim(self.heads_XLN, x, keepdims=False)
    return self.kind._control(
      heads_LN, self.rows, self.region_BS, self.replacement
    )


def sweep(
  ablations: Sequence[Ablation],
  n_layers: int,
  n_heads: int,
  *,
  rows: rows_lib.Rows | None = None,
  region_BS: jax.Array | None = None,
  replacement: replacement_lib.Replacement | None = None,
) -> Sweep:
  """Any number of sets of heads under one mode.

  Args:
    ablations: at least one; they differ in their heads alone.
    n_layers, n_heads: of the model.
    rows, region_BS, replacement: as `Ablation.expand` takes them.

  Raises:
    UserError: a head is outside the model.
    ValueError: no ablation, or another mode, phase or rows among them.
  """
  kinds = {
    dataclasses.replace(each, heads=heads_lib.HeadSet()) for each in ablations
  }
  if len(kinds) != 1:
    raise ValueError(
      f'sweep: {len(kinds)} kinds of ablation; give one mode, phase and rows'
    )
  heads_XLN = np.stack([a.heads.mask(n_layers, n_heads) for a in ablations])
  return Sweep(
    jnp.asarray(heads_XLN), rows, region_BS, replacement, kinds.pop()
  )


def refuse_vacuous(ablation: Ablation, answer_lengths: Sequence[int]) -> None:
  """Refuses an ablation that cannot change some of the answers.

  In phase 'decode' the first answer token comes from the intact prompt. For
  whoever scores answers to call first.

  Args:
    ablation: the ablation.
    answer_lengths: tokens of the answers that will be scored.

  Raises:
    UserError: phase 'decode' and an answer of one token.
  """
  short = sum(length < 2 for length in answer_lengths)
  if ablation.phase == 'decode' and short:
    raise errors.UserError(
      f"phase 'decode' cannot change answers of one token, as {short} of "
      f"{len(answer_lengths)} here are; take phase 'prefill+decode' or longer "
      'answers'
    )
