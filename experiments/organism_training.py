"""One training step of a small model, and when which scenes are shown.

Stage `align`: the tower and the projector learn to say, by the decoder's word
embeddings, which glyph in which colour a cell shows. Stage `few`: questions on
one picture and on documents of few pages, until every task is answered. Stage
`many`: documents of 2 to 8 pages, at a falling rate. All losses are plain
cross-entropies of words; none looks at attention.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from corejax import attention
from corejax import inputs as inputs_lib
from corejax import masks
from corejax.experiments import organism_data as data
from corejax.models import layers
from corejax.models.organisms import trained

N_TASKS = len(data.TASKS)
_FORGET = 0.9  # per step, of the running accuracy


@dataclasses.dataclass(frozen=True)
class Rates:
  """Learning rates of the optimiser.

  Attributes:
    muon: on the decoder's matrices.
    adam: on everything else.
    decay: weight decay of the matrices.
    clip: global norm of the gradient.
  """

  muon: float = 0.01
  adam: float = 3e-3
  decay: float = 0.1
  clip: float = 1.0


# Axes that a matrix multiplies over and axes that it makes; L leads.
_MATRICES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
  'q': ((3,), (1, 2)),
  'k': ((3,), (1, 2)),
  'v': ((3,), (1, 2)),
  'o': ((2, 3), (1,)),
  'gate': ((2,), (1,)),
  'up': ((2,), (1,)),
  'down': ((2,), (1,)),
}


def _dimensions(params: Any) -> Any:
  """For every parameter how Muon sees it; None is left to Adam."""

  def one(path, leaf):
    del leaf
    names = [str(getattr(part, 'key', part)) for part in path]
    if 'language' not in names or 'layers' not in names:
      return None
    if names[-1] == 'bias':
      return None
    for name, (reduction, output) in _MATRICES.items():
      if name in names:
        return contrib.MuonDimensionNumbers(reduction, output)
    return None

  return jax.tree_util.tree_map_with_path(one, params)


def optimiser(rates: Rates) -> optax.GradientTransformation:
  """Muon on the decoder's matrices, Adam on the rest."""
  return optax.chain(
    optax.clip_by_global_norm(rates.clip),
    contrib.muon(
      rates.muon,
      weight_decay=rates.decay,
      adam_learning_rate=rates.adam,
      muon_weight_dimension_numbers=_dimensions,
    ),
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """All that a step changes.

  Attributes:
    params: pure dict of the model's parameters.
    opt: the optimiser's state.
    skill_A: float32 [tasks], running accuracy of the training questions.
  """

  params: Any
  opt: Any
  skill_A: jax.Array


def start(model: Any, rates: Rates) -> State:
  """The state before the first step."""
  params = nnx.to_pure_dict(nnx.state(model))
  return State(params, optimiser(rates).init(params), jnp.zeros(N_TASKS))


def model_of(graph: Any, params: Any) -> Any:
  """The model with these parameters; `graph` is a model of the same shape."""
  definition, state = nnx.split(graph)
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(definition, state)


def packed_logits(
  model: Any,
  table: jax.Array,
  packed: data.Packed,
  plan: data.Layout,
) -> jax.Array:
  """float32 [B, Q, V]: what is answered to each of the packed questions.

  Args:
    model: of a family of trained.KINDS.
    table: every cell, as the family's `Kind.table` makes it.
    packed: the scenes.
    plan: their layout, for this family.
  """
  kind = trained.kind_of(model)
  batch, length = packed.tokens_BT.shape
  per_scene = packed.cell_MI.shape[0] // batch * packed.cell_MI.shape[1]
  first_B1 = per_scene * jnp.arange(batch, dtype=jnp.int32)[:, None]
  segment_BT = jnp.broadcast_to(plan.segment_T, (batch, length))
  out = kind.modeling.forward(
    model,
    inputs_lib.Inputs(
      tokens_BT=jnp.asarray(packed.tokens_BT),
      positions_BT=jnp.broadcast_to(
        plan.position_T, (batch, *plan.position_T.shape)
      ),
      mask=masks.AttnMask(q_segment_BT=segment_BT, kv_segment_BS=segment_BT),
      vision=kind.show(table, jnp.asarray(packed.cell_MI)),
      feature_BT=jnp.where(plan.feature_T >= 0, first_B1 + plan.feature_T, -1),
    ),
    attend=attention.reference,
    logit_rows_BP=jnp.asarray(plan.slot_Q)
    + jnp.asarray(data.LAST)[packed.task_BQ],
  )
  return out.logits_BPV


def _answers(model, table, batches) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(mean cross-entropy, right answers [tasks], questions [tasks])."""
  total, count = jnp.zeros(()), 0
  right_A = jnp.zeros(N_TASKS)
  asked_A = jnp.zeros(N_TASKS)
  for packed, plan in batches:
    logits_BQV = packed_logits(model, table, packed, plan)
    loss_BQ = optax.softmax_cross_entropy_with_integer_labels(
      logits_BQV, packed.target_BQ
    )
    right_BQ = logits_BQV.argmax(-1) == packed.target_BQ
    right_A = right_A.at[packed.task_BQ].add(right_BQ.astype(jnp.float32))
    asked_A = asked_A.at[packed.task_BQ].add(1.0)
    total, count = total + loss_BQ.sum(), count + loss_BQ.size
  return total / count, right_A, asked_A


def _named(logits, target, words) -> jax.Array:
  """Mean cross-entropy over these words alone, where there is a target."""
  known = target >= 0
  place = jnp.maximum(target - words[0], 0)
  loss = optax.softmax_cross_entropy_with_integer_labels(
    logits[..., jnp.asarray(words)], place
  )
  return jnp.where(known, loss, 0).sum() / known.sum()


def _alignment(model, table, cell_MI, glyph_MI, colour_MI) -> jax.Array:
  """How badly the word embeddings tell what the visual tokens show."""
  kind = trained.kind_of(model)
  features_MID = kind.modeling.see(
    model, kind.show(table, cell_MI), attend=attention.reference
  )
  words_VD = jax.lax.stop_gradient(model.language.embed.weight[...])
  if features_MID.shape[-1] > words_VD.shape[1]:  # DeepStack's come behind
    features_MID = features_MID[..., : words_VD.shape[1]]
  plain = layers.Norm(words_VD.shape[1], dtype=jnp.dtype('float32'))
  normed = layers.rms_norm(plain, features_MID, 1e-6)
  logits = jnp.einsum('MID,VD->MIV', normed, words_VD) * 0.2
  glyphs, colours = data.WORDS
  return _named(logits, glyph_MI, glyphs) + _named(logits, colour_MI, colours)


def _update(state, grads, skill_A, scale, rates) -> State:
  updates, opt = optimiser(rates).update(grads, state.opt, state.params)
  updates = jax.tree.map(lambda u: scale * u, updates)
  return State(optax.apply_updates(state.params, updates), opt, skill_A)


@functools.partial(jax.jit, static_argnames='rates', donate_argnums=0)
def align_step(
  state: State, graph, table, cell_MI, glyph_MI, colour_MI, scale, *, rates
) -> tuple[State, jax.Array]:
  """One step of stage `align`; the decoder stays as it is."""

  def loss_of(params):
    model = model_of(graph, params)
    return _alignment(model, table, cell_MI, glyph_MI, colour_MI)

  loss, grads = jax.value_and_grad(loss_of)(state.params)
  moved = _update(state, grads, state.skill_A, scale, rates)
  params = {**moved.params, 'language': state.params['language']}
  return dataclasses.replace(moved, params=params), loss


@functools.partial(jax.jit, static_argnames='rates', donate_argnums=0)
def answer_step(
  state: State, graph, table, batches: Sequence, scale, *, rates
) -> tuple[State, jax.Array]:
  """One step on packed questions."""

  def loss_of(params):
    model = model_of(graph, params)
    loss, right_A, asked_A = _answers(model, table, batches)
    return loss, (right_A, asked_A)

  (loss, (right_A, asked_A)), grads = jax.value_and_grad(loss_of, has_aux=True)(
    state.params
  )
  share_A = right_A / jnp.maximum(asked_A, 1)
  mixed_A = _FORGET * state.skill_A + (1 - _FORGET) * share_A
  skill_A = jnp.where(asked_A > 0, mixed_A, state.skill_A)
  return _update(state, grads, skill_A, scale, rates), loss
