"""What a port is held against: transformers' attentions, logits, masses.

Tolerances are the project's. A submodule, given what transformers gives it:
1e-5 of the spread of what it writes. The whole model: 1e-4 of their spread for
logits, 2e-5 for every head's attention, 1e-5 for RAM against a float64 sum over
transformers' attention, 1e-5 of the logits' spread for ablations; in bfloat16
no further from float32 than twice as far as transformers' bfloat16.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any, Protocol

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from corejax import ablation
from corejax import attention
from corejax import heads as heads_lib
from corejax import inputs as inputs_lib
from corejax import probe as probe_lib
from corejax import regions
from corejax.models import decoder as decoder_lib
from corejax.models import registry
from helpers import torch_only

torch = torch_only.torch


class Batch(Protocol):
  """hf_llava.Batch, hf_qwen.Batch."""

  @property
  def inputs(self) -> inputs_lib.Inputs: ...
  @property
  def torch(self) -> dict: ...
  @property
  def real_BT(self) -> np.ndarray: ...


# Without optimisation these small programs compile in half the time.
QUICK = {'xla_backend_optimization_level': 0}


def close(ours, theirs, tol: float):
  """max |difference| <= tol * standard deviation of theirs."""
  theirs = np.asarray(theirs, np.float64)
  worst = np.abs(np.asarray(ours, np.float64) - theirs).max()
  assert worst <= tol * theirs.std(), (worst, theirs.std())


def probe(batch: Batch, seed: int = 3) -> probe_lib.Probe:
  """Random rows in random sets and random regions; unused slots too."""
  rng = np.random.default_rng(seed)
  n_batch, length = batch.real_BT.shape
  rows_BP = np.full((n_batch, 7), -1, np.int32)
  for b in range(n_batch):
    real = np.flatnonzero(batch.real_BT[b])
    rows_BP[b, : 5 + b] = rng.choice(real, 5 + b, replace=False)
  set_PQ = np.zeros((7, 3), np.float32)
  set_PQ[np.arange(7), np.arange(7) % 3] = 1
  region_BS = rng.integers(0, len(regions.REGIONS), (n_batch, length))
  return probe_lib.Probe(
    jnp.asarray(rows_BP),
    jnp.asarray(set_PQ),
    jnp.asarray(region_BS, jnp.int8),
    weights=True,
  )


def mass64(hf_attention: np.ndarray, probe: probe_lib.Probe) -> np.ndarray:
  """RAM's definition, spelt out in float64: [L, B, Q, N, R]."""
  a = hf_attention.astype(np.float64)
  n_layers, n_batch, n_heads = a.shape[:3]
  n_sets, n_regions = probe.set_PQ.shape[1], len(regions.REGIONS)
  mass = np.zeros((n_layers, n_batch, n_sets, n_heads, n_regions))
  for b, q, r in np.ndindex(n_batch, n_sets, n_regions):
    rows = [
      int(row)
      for row, member in zip(probe.rows_BP[b], probe.set_PQ[:, q])
      if member and row >= 0
    ]
    keys = np.asarray(probe.region_BS[b]) == r
    seen = a[:, b][:, :, rows][..., keys].sum(-1)
    mass[:, b, q, :, r] = seen.mean(-1)
  return mass


def _one_layer(decoder: decoder_lib.Decoder, index: int) -> decoder_lib.Decoder:
  """A decoder of this layer alone."""
  config = dataclasses.replace(
    decoder.config, n_layers=1, windows=(decoder.config.windows[index],)
  )
  alone = nnx.eval_shape(lambda: decoder_lib.Decoder(config, jnp.float32))
  graph, _ = nnx.split(alone)
  state = nnx.state(decoder)
  cut = jax.tree.map(lambda x: x[index : index + 1], state['layers'])
  return nnx.merge(graph, nnx.State({**state, 'layers': cut}))


@functools.partial(jax.jit, compiler_options=QUICK)
def _run_layer(decoder, x_BTD, inputs, deep_XBTD):
  return decoder_lib.run(
    decoder,
    x_BTD,
    inputs.positions_BT,
    inputs.mask,
    attend=attention.reference,
    deep_XBTD=deep_XBTD,
  ).x_BTD


def check_layers(
  decoder: decoder_lib.Decoder,
  batch: Batch,
  hf: dict[str, np.ndarray],
  deep_XBTD: jax.Array | None = None,
):
  """Every decoder layer alone, on what transformers gives it.

  Args:
    decoder: the parameters, float32.
    batch: for both sides.
    hf: 'hidden', as hf_llava.reference.
    deep_XBTD: DeepStack features of the first X layers.
  """
  hidden, real = hf['hidden'], batch.real_BT
  assert len(hidden) == decoder.config.n_layers + 1
  for index in range(decoder.config.n_layers):
    deep = None if deep_XBTD is None else deep_XBTD[index : index + 1]
    ours = _run_layer(
      _one_layer(decoder, index),
      hidden[index],
      batch.inputs,
      deep if deep is not None and len(deep) else None,
    )
    close(ours[real], hidden[index + 1][real], 1e-5)


def check_whole(
  forward: Callable[..., Any],
  model: Any,
  batch: Batch,
  hf: dict[str, np.ndarray],
  attend: attention.Attend,
  least_peak: float = 0.2,
):
  """`forward`: every head's attention, RAM and logits.

  Args:
    forward: the family's.
    model: its parameters.
    batch: for both sides.
    hf: 'logits' and 'attention', as hf_llava.reference.
    attend: the attention.
    least_peak: a row's largest weight, at least, on average.
  """
  real, asked = batch.real_BT, probe(batch)
  run = jax.jit(
    functools.partial(forward, attend=attend), compiler_options=QUICK
  )
  out = run(model, batch.inputs, probe=asked)
  # The fixture is worth something: peaked attention, spread logits.
  peak = hf['attention'].max(-1).transpose(1, 3, 0, 2)[real]
  assert least_peak < peak.mean() < 0.95
  assert 1 < hf['logits'].std() < 10
  close(out.logits_BPV[real], hf['logits'][real], 1e-4)
  off = np.abs(np.asarray(out.measured.weights_BNTS) - hf['attention'])
  off *= real[None, :, None, :, None]
  for layer in range(off.shape[0]):
    for head in range(off.shape[2]):
      assert off[layer, :, head].max() <= registry.PARITY, (layer, head)
  mass = mass64(hf['attention'], asked)
  assert np.abs(out.measured.mass_BQNR - mass).max() <= 1e-5


def check_zeroed(
  forward: Callable[..., Any],
  model: Any,
  torch_model: Any,
  batch: Batch,
  hf: dict[str, np.ndarray],
):
  """Cutting heads equals zeroing their slice before the output projection.

  Heads of the first three layers, first and last of the second.
  """
  decoder = torch_model.model.language_model
  n_layers, n_heads = hf['attention'].shape[0], hf['attention'].shape[2]
  text = f'0-1,1-0,1-{n_heads - 1},2-{n_heads // 2}'
  heads = heads_lib.HeadSet.parse(text)
  handles = []
  for index, layer in enumerate(decoder.layers):

    def hook(module, args, index=index):
      out = args[0].clone()
      size = out.shape[-1] // n_heads
      for cut, head in heads:
        if cut == index:
          out[..., head * size : (head + 1) * size] = 0
      return (out,)

    handles.append(layer.self_attn.o_proj.register_forward_pre_hook(hook))
  try:
    with torch.no_grad():
      theirs = torch_model(**batch.torch).logits.float().numpy()
  finally:
    for handle in handles:
      handle.remove()
  control = ablation.Ablation(heads).expand(n_layers, n_heads)
  run = jax.jit(forward, compiler_options=QUICK)
  ours = run(model, batch.inputs, control=control).logits_BPV
  real = batch.real_BT
  close(np.asarray(ours)[real], theirs[real], 1e-5)
  changed = np.abs(hf['logits'] - theirs)[real].max()
  assert changed > 0.1 * max(1, theirs[real].std())


def check_bfloat16(
  forward: Callable[..., Any],
  model: Any,
  torch_kind: Any,
  folder: pathlib.Path,
  batch: Batch,
  factor: float = 2.0,
  most: float = 0.4,
) -> np.ndarray:
  """Same dtype policy: the error against float32 is that of transformers.

  Args:
    forward: the family's.
    model: its parameters of `folder`, in bfloat16.
    torch_kind: the class of transformers.
    folder: a checkpoint whose file is bfloat16.
    batch: for both sides.
    factor: how many times transformers' error ours may be.
    most: of the logits' spread, what factor times their error may be.

  Returns:
    [rows, V], transformers' logits in float32, without rows of padding.
  """

  @torch.no_grad()
  def logits(dtype):
    # Of experts: torch's grouped product takes no rows of 20 bfloat16 values.
    theirs = torch_kind.from_pretrained(
      folder,
      attn_implementation='eager',
      experts_implementation='eager',
      dtype=dtype,
    )
    return theirs(**batch.torch).logits.float().numpy()[batch.real_BT]

  exact = logits(torch.float32)
  out = jax.jit(forward)(model, batch.inputs)  # optimised: it may fuse casts
  ours = np.asarray(out.logits_BPV)[batch.real_BT]
  assert ours.dtype == np.float32

  def error(found):
    return np.sqrt(np.square(found - exact).mean()) / exact.std()

  theirs = error(logits(torch.bfloat16))
  assert 1e-4 < error(ours) < factor * theirs < most, (error(ours), theirs)
  return exact
