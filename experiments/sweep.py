"""One pass over a data set under many sets of heads: examples -> outcomes.

    for every batch:  read, encode, look at the pictures once
                      for every set of heads:  answer          one executable
                      one part of the store: score and logprob [X sets, B]

The pictures' features do not depend on the decoder's heads, so the tower runs
once a picture however many sets there are; and what the questions of a batch
begin with is read once a set (prefixes.py), where all of them have it cut
alike. Set 0 is the intact model.
"""

from collections.abc import Callable, Sequence
import dataclasses
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import ablation as ablation_lib
from corejax import errors
from corejax import evidence
from corejax import groups as groups_lib
from corejax import heads as heads_lib
from corejax import inputs as inputs_lib
from corejax import regions
from corejax import replacement as replacement_lib
from corejax import rows as rows_lib
from corejax import scoring
from corejax.data import example as example_lib
from corejax.experiments import buckets
from corejax.experiments import features as features_lib
from corejax.experiments import prefixes
from corejax.experiments import resources as resources_lib
from corejax.experiments import session
from corejax.experiments import sweep_steps

FORCED, GENERATED = 'forced', 'generated'
# Modes that do the same to the row of a prefix whatever question follows: not
# resample, whose donors are aligned from the right, nor the knockouts, whose
# regions are the question's own.
_BLIND = ('zero', 'mean', 'uniform')


@dataclasses.dataclass(frozen=True)
class Options:
  """What is done to the heads and how an answer is judged.

  Attributes:
    mode, phase, rows: of corejax.ablation.
    answers: 'forced': is every token of the forced answer the likeliest one?
      'generated': greedy decoding, judged by the example's rule scorer.
    max_tokens: of a generated answer.
    batch_size: examples per forward.
  """

  mode: str
  phase: str
  rows: str
  answers: str
  max_tokens: int
  batch_size: int

  def kind(self, heads: heads_lib.HeadSet) -> ablation_lib.Ablation:
    """The ablation of these heads."""
    return ablation_lib.Ablation(heads, self.mode, self.phase, self.rows)


@dataclasses.dataclass(frozen=True)
class Batch:
  """The records of one batch on the host.

  Attributes:
    examples, encoded, annotated: those that can be used, annotated without
      evidence if they are twins.
    indices: of their records.
    rejected: rows of rejected.jsonl.
  """

  examples: list[example_lib.Example]
  encoded: list[inputs_lib.Encoded]
  annotated: list[evidence.Annotated]
  indices: list[int]
  rejected: list[dict]

  def rows(self) -> list[dict]:
    """What examples.jsonl says of each."""
    return [
      {
        'index': index,
        'id': example.id,
        'cluster': example.cluster,
        'task': example.task,
        'twin': is_twin(example),
        'question': example.question,
        'answer': example.answers[0],
        'tokens': len(encoded.tokens_T),
      }
      for index, example, encoded in zip(
        self.indices, self.examples, self.encoded
      )
    ]


def is_twin(example: example_lib.Example) -> bool:
  """Does it ask for nothing that must be looked up?"""
  return 'twin_of' in example.meta


def read(
  resources: resources_lib.Resources,
  source: example_lib.Source,
  indices: Sequence[int],
  closing: threading.Event | None = None,
) -> Batch:
  """Reads and encodes the records of one batch; bad ones are rejected.

  Args:
    resources: for the processor; no device is touched.
    source: the data.
    indices: of the records.
    closing: once it is set, the records that are left are not read.
  """
  batch = Batch([], [], [], [], [])
  for index in indices:
    if closing is not None and closing.is_set():
      break
    try:
      example = source[index]
      encoded = resources.loaded.processor.encode(example)
      annotated = evidence.annotate(
        example, encoded, need_evidence=not is_twin(example)
      )
    except errors.Rejected as e:
      batch.rejected.append(session.rejection(source, index, e))
      continue
    batch.examples.append(example)
    batch.encoded.append(encoded)
    batch.annotated.append(annotated)
    batch.indices.append(index)
  return batch


@dataclasses.dataclass(frozen=True)
class Padded:
  """A batch as the model takes it, and what an ablation must know of it.

  With a prefix, all others are of what follows it; then region_BS is not there.
  """

  inputs: inputs_lib.Inputs
  rows: rows_lib.Rows
  region_BS: Any
  answer_BA: Any
  answer_rows_BA: Any
  prefix: prefixes.Prefix | None = None
  prefix_rows: rows_lib.Rows | None = None

  @property
  def length(self) -> int:
    """Tokens of each sequence, padding included."""
    return self.inputs.tokens_BT.shape[1]


class Runner:
  """Answers batches under every set of heads."""

  def __init__(
    self,
    resources: resources_lib.Resources,
    groups: Sequence[groups_lib.Group],
    options: Options,
    reference: example_lib.Source,
    n_reference: int,
  ):
    """Computes nothing yet.

    Args:
      resources: the model and where it runs.
      groups: the sets of heads, the first one empty.
      options: of the ablation.
      reference: examples that no answer is judged on: `mean` is over their
        first, `resample` takes donors from them.
      n_reference: how many.
    """
    self._resources, self._options = resources, options
    self._groups = list(groups)
    self._reference = reference
    self._n_reference = min(n_reference, len(reference))
    self._cache = features_lib.FeatureCache(resources)
    self._sharing = prefixes.Sharing(
      resources, options.batch_size, len(self._groups)
    )
    self._means = None

  def start(self, batch: Batch) -> Callable[[], dict[str, np.ndarray]]:
    """Hands a batch to the device under every set, and does not wait.

    Returns:
      A function that waits: score [X, B], and logprob [X, B] of the forced
      answers (nan where answers are generated), both float32.

    Raises:
      UserError: phase 'decode' and an answer of one token.
    """
    n, options = len(batch.examples), self._options
    if not n:
      empty = np.zeros((len(self._groups), 0), np.float32)
      return lambda: {'score': empty, 'logprob': empty}
    # Checked for every batch: a set may hold a short answer anywhere.
    lengths = [len(e.answer_A) for e in batch.encoded]
    if options.answers == GENERATED:
      lengths = [min(options.max_tokens, 2)] * n
    ablation_lib.refuse_vacuous(options.kind(heads_lib.HeadSet()), lengths)
    if options.answers == GENERATED:
      return self._generated(batch)
    padded = self.pad(batch, share=options.mode in _BLIND)
    sweep = self._sweep(padded, self._replacement(batch, padded))
    prefix_sweep = None
    if padded.prefix_rows is not None:
      before = dataclasses.replace(padded, rows=padded.prefix_rows)
      prefix_sweep = self._sweep(before, self._replacement(batch, before))
    loaded = self._resources.loaded
    found = []
    with jax.default_matmul_precision(self._resources.precision):
      for x in range(len(self._groups)):
        found.append(
          sweep_steps.force(
            loaded.model,
            padded.inputs,
            padded.answer_rows_BA,
            padded.answer_BA,
            sweep,
            jnp.int32(x),
            forward=loaded.forward,
            attend=self._resources.attend,
            mesh=self._resources.mesh,
            prefix=padded.prefix,
            prefix_sweep=prefix_sweep,
            new_cache=loaded.new_cache if padded.prefix is not None else None,
          )
        )

    def wait():
      found_X2B = np.stack([np.asarray(f)[:, :n] for f in found])
      return {'score': found_X2B[:, 0], 'logprob': found_X2B[:, 1]}

    return wait

  def _generated(self, batch: Batch) -> Callable[[], dict[str, np.ndarray]]:
    loaded, options = self._resources.loaded, self._options
    n = len(batch.examples)
    prompts = dataclasses.replace(
      batch, encoded=[e.prompt() for e in batch.encoded]
    )
    padded = self.pad(prompts, whole=batch)
    sweep = None
    if options.phase != 'decode':
      sweep = self._sweep(padded, self._replacement(prompts, padded))
    step = dataclasses.replace(
      padded, rows=jax.tree.map(jnp.asarray, rows_lib.Rows.decode_step())
    )
    step_sweep = self._sweep(step, self._replacement(prompts, step))
    made = []
    with jax.default_matmul_precision(self._resources.precision):
      for x in range(len(self._groups)):
        made.append(
          sweep_steps.generate(
            loaded.model,
            padded.inputs,
            sweep,
            step_sweep,
            jnp.int32(x),
            mesh=self._resources.mesh,
            forward=loaded.forward,
            new_cache=loaded.new_cache,
            attend=self._resources.attend,
            max_tokens=options.max_tokens,
            eos_ids=loaded.eos_ids,
          )
        )
    tokenizer = loaded.processor.tokenizer

    def wait():
      score_XB = np.zeros((len(made), n), np.float32)
      for x, tokens in enumerate(made):
        tokens_BA = np.asarray(tokens)
        for b, example in enumerate(batch.examples):
          text = tokenizer.decode(
            tokens_BA[b][tokens_BA[b] >= 0], skip_special_tokens=True
          )
          score_XB[x, b] = scoring.score(example, text)
      return {'score': score_XB, 'logprob': np.full_like(score_XB, np.nan)}

    return wait

  def pad(
    self, batch: Batch, whole: Batch | None = None, share: bool = False
  ) -> Padded:
    """The batch, filled up with copies of its first example.

    Args:
      batch: to be padded.
      whole: the same with answers, if `batch` is prompts.
      share: what its prompts begin with may be read apart.
    """
    resources, size = self._resources, self._options.batch_size
    fill = [0] * (size - len(batch.encoded))
    encoded = [*batch.encoded, *(batch.encoded[i] for i in fill)]
    annotated = [*batch.annotated, *(batch.annotated[i] for i in fill)]
    pictures = [features_lib.keys(e) for e in encoded]
    if whole is not None:
      annotated = [_prompt_only(a, e) for a, e in zip(annotated, encoded)]
    bucket = buckets.Bucket.of(
      [len(e.tokens_T) for e in encoded],
      [len(a.rows['answer']) for a in annotated],
    )
    encoded, features_ID = self._cache.look(
      encoded, pictures, size * bucket.length
    )
    rows = evidence.batch_rows(annotated, bucket.length)
    plan = self._sharing.plan(encoded, annotated) if share else None
    before, prefix_rows = None, None
    if plan is not None:
      prefix_rows, rows = plan.rows(rows)
      encoded, annotated = plan.suffixes, plan.annotated
      bucket = plan.suffix
      before = (
        resources.loaded.processor.collate(plan.prefixes, plan.length, 0),
        np.array(plan.index, np.int32),
      )
    region_BS = None
    if plan is None:
      region_BS = np.full((size, bucket.length), regions.OTHER_TEXT, np.int8)
      for b, a in enumerate(annotated):
        region_BS[b, : len(a.region_T)] = a.region_T
    answer_BA = np.full((size, bucket.rows), -1, np.int32)
    answer_rows_BA = np.full((size, bucket.rows), -1, np.int32)
    for b, (e, a) in enumerate(zip(encoded, annotated)):
      answer_BA[b, : len(e.answer_A)] = e.answer_A
      answer_rows_BA[b, : len(a.rows['answer'])] = a.rows['answer']
    inputs = resources.loaded.processor.collate(encoded, bucket.length, 0)
    arrays = (inputs, rows, region_BS, answer_BA, answer_rows_BA)
    arrays, before, prefix_rows = self._spread((arrays, before, prefix_rows))
    inputs = dataclasses.replace(arrays[0], features_ID=features_ID)
    prefix = None
    if before is not None:
      prefix = prefixes.Prefix(
        dataclasses.replace(before[0], features_ID=features_ID), before[1]
      )
    return Padded(inputs, *arrays[1:], prefix=prefix, prefix_rows=prefix_rows)

  def _spread(self, tree: Any) -> Any:
    if self._resources.mesh is None:
      return jax.tree.map(jnp.asarray, tree)
    return resources_lib.spread(tree, self._resources.mesh, 'data')

  def _sweep(
    self, padded: Padded, replacement: replacement_lib.Replacement | None
  ) -> ablation_lib.Sweep:
    loaded = self._resources.loaded
    return ablation_lib.sweep(
      [self._options.kind(group.heads) for group in self._groups],
      loaded.n_layers,
      loaded.n_heads,
      rows=padded.rows,
      region_BS=padded.region_BS,
      replacement=replacement,
    )

  def _replacement(
    self, batch: Batch, padded: Padded
  ) -> replacement_lib.Replacement | None:
    if self._options.mode == 'mean':
      return replacement_lib.by_class(jnp.asarray(self._mean()), padded.rows)
    if self._options.mode == 'resample':
      return self._donors(batch, padded)
    return None

  def _mean(self) -> np.ndarray:
    """float32 [L, C, N, H] over the reference set; measured once."""
    if self._means is None:
      size, n, means = self._options.batch_size, self._n_reference, None
      batches = [
        read(self._resources, self._reference, range(i, min(i + size, n)))
        for i in range(0, n, size)
      ]
      clusters = [e.cluster for b in batches for e in b.examples]
      weight_E = iter(replacement_lib.cluster_weights(clusters))
      for batch in batches:
        if not batch.examples:
          continue
        padded = self.pad(batch)
        mean_LBCNH = np.asarray(self._look(padded, outputs=False))
        weight_B = np.zeros(size)
        weight_B[: len(batch.examples)] = [
          next(weight_E) for _ in batch.examples
        ]
        n_layers, _, _, n_heads, head_dim = mean_LBCNH.shape
        if means is None:
          means = replacement_lib.MeanOutputs.empty(n_layers, n_heads, head_dim)
        means = means.add(
          mean_LBCNH, np.asarray(padded.rows.counts_BC), weight_B
        )
      if means is None:
        raise errors.UserError(
          '--mode=mean: no example of the reference set could be used; see '
          '--reference and --rank_split'
        )
      self._means = means.mean()
    return self._means

  def _donors(
    self, batch: Batch, padded: Padded
  ) -> replacement_lib.Replacement:
    """Record i of the data takes what record i of the reference set wrote."""
    n = self._n_reference
    wanted = [index % n for index in batch.indices]
    donors = read(self._resources, self._reference, sorted(set(wanted)))
    if not donors.examples:
      raise errors.UserError(
        '--mode=resample: no example of the reference set could be used; see '
        '--reference and --rank_split'
      )
    # In place of a donor that was rejected, the next one that was not.
    usable = np.array(donors.indices)
    place = np.searchsorted(usable, wanted) % len(usable)
    theirs = self.pad(donors)
    fill = [place[0]] * (self._options.batch_size - len(place))
    return replacement_lib.by_donor(
      self._look(theirs, outputs=True),
      theirs.rows,
      padded.rows,
      [int(p) for p in (*place, *fill)],
    )

  def _look(self, padded: Padded, outputs: bool) -> jax.Array:
    with jax.default_matmul_precision(self._resources.precision):
      return sweep_steps.written(
        self._resources.loaded.model,
        padded.inputs,
        padded.rows.class_BT,
        padded.region_BS,
        forward=self._resources.loaded.forward,
        attend=self._resources.attend,
        outputs=outputs,
        mesh=self._resources.mesh,
      )


def _prompt_only(
  annotated: evidence.Annotated, prompt: inputs_lib.Encoded
) -> evidence.Annotated:
  """The annotation of the prompt without its answer."""
  n = len(prompt.tokens_T)
  last = annotated.rows['last']
  return dataclasses.replace(
    annotated,
    region_T=annotated.region_T[:n],
    rows={**annotated.rows, 'answer': last},
  )
