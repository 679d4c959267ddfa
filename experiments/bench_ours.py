"""Our sides of the benchmarks of a forward, in a process of their own.

python -m corejax.experiments.bench_ours '{"side": "ours", "length": 1024,
  "spec": {...}}'
"""

import dataclasses
import importlib
import json
import sys
from typing import Any

from corejax.experiments import bench_family
from corejax.experiments import bench_model
from corejax.experiments import bench_processes

PROFILE = 'profile'


_CONFIGS = {
  'llava': 'LlavaConfig',
  'llava_next': 'LlavaNextConfig',
  'llava_onevision': 'LlavaOnevisionConfig',
  'internvl': 'InternVLConfig',
  'qwen_vl': 'QwenVlConfig',
}


def _module(family: bench_family.Family, name: str) -> Any:
  """A family's module; LLaVA-OneVision has the model of LLaVA-NeXT."""
  package = family.package
  if name != 'config' and family.model_type == 'llava_onevision':
    package = 'llava_next'
  return importlib.import_module(f'corejax.models.{package}.{name}')


def model(spec: bench_model.Spec) -> Any:
  """Our model with the benchmark's weights."""
  from flax import nnx
  import jax.numpy as jnp
  import numpy as np
  import transformers

  from corejax.models import weight_map

  family = bench_family.FAMILIES[spec.family]
  hf = transformers.AutoConfig.for_model(**bench_family.documents(spec))
  kind = getattr(_module(family, 'config'), _CONFIGS[family.package])
  config = kind.from_hf(hf)
  modeling = _module(family, 'modeling')
  rules = _module(family, 'weights').make_map(config)
  entries = {e.path: e for e in rules.entries}
  graph, state = nnx.split(modeling.abstract(config, jnp.dtype('float32')))
  filled = []
  for keys, param in nnx.to_flat_state(state):
    entry = entries['.'.join(map(str, keys))]
    values = np.empty(param.shape, np.float32)
    parts = values if entry.stacked else values[None]
    for layer in range(len(parts)):
      name = entry.name.replace(weight_map.LAYER, str(layer))
      shape = parts[layer].shape
      if entry.swap:  # in transformers' memory the other way round
        drawn = bench_model.draw(spec, name, (*shape[:-2], *shape[:-3:-1]))
        parts[layer] = drawn.swapaxes(-1, -2)
        continue
      drawn = bench_model.draw(spec, name, entry.file_shape(shape))
      parts[layer] = drawn.reshape(shape)
    filled.append((keys, param.replace(jnp.asarray(values))))
  return nnx.merge(graph, nnx.from_flat_state(filled))


def program(spec: bench_model.Spec, length: int, ram: bool):
  """The forward and what it is called with.

  Args:
    spec: the model.
    length: T.
    ram: with the probe that a ranking uses.

  Returns:
    (traced, arguments).
  """
  import jax
  import jax.numpy as jnp

  from corejax import evidence
  from corejax import inputs as inputs_lib
  from corejax import masks
  from corejax.experiments import buckets
  from corejax.kernels import dispatch

  modeling = _module(bench_family.FAMILIES[spec.family], 'modeling')
  prompt = bench_model.prompt(spec, length)
  annotated = evidence.Annotated(
    evidence_I=prompt.evidence_I,
    distractors_XI=prompt.evidence_I[:0, None],
    region_T=prompt.region_T,
    rows=dict(prompt.rows),
    visual_I=prompt.visual_I,
  )
  slots = buckets.rows(max(map(len, prompt.rows.values())))
  sizes = (slots, slots, buckets.tokens(length))
  probe = evidence.batch_probe([annotated], length, sizes, 'last')
  blend_BTK = None
  if prompt.feature_T.ndim > 1:
    blend_BTK = jnp.zeros((1, *prompt.feature_T.shape)).at[..., 0].set(1)
  inputs = inputs_lib.Inputs(
    tokens_BT=jnp.asarray(prompt.tokens_T)[None],
    positions_BT=jnp.asarray(prompt.positions_T)[None],
    mask=masks.AttnMask(kv_len_B=jnp.array([length], jnp.int32)),
    vision=jax.tree.map(
      jnp.asarray, {'pixel_values': prompt.pixels, **prompt.vision}
    ),
    feature_BT=jnp.asarray(prompt.feature_T)[None],
    blend_BTK=blend_BTK,
  )

  def forward(model, inputs, probe, rows_BP):
    return modeling.forward(
      model,
      inputs,
      attend=dispatch.attend(),
      probe=probe if ram else None,
      logit_rows_BP=rows_BP,
    )

  arguments = (
    model(spec),
    inputs,
    probe,
    jnp.asarray(prompt.rows['answer'])[None],
  )
  with jax.default_matmul_precision('highest'):
    return jax.jit(forward).trace(*arguments), arguments


def flops(traced: Any) -> float:
  """What XLA counts in a program, each loop's body once.

  Counted as lowered for an accelerator: there the probe takes all heads at
  once, while on CPU it has a loop over them, of which one round would count.
  """
  counted = traced.lower(lowering_platforms=('cuda',)).cost_analysis()
  return counted['flops']


_PROJECTIONS = 'q, k, v, o with rotation'
# Scope of the forward -> where its time is told; the first that an operation's
# name holds, so that what the tower does is not told as attention.
_PARTS = {
  'tower': 'tower',
  'projector': 'tower',
  'probe': 'probe',
  'written': 'probe',
  'attend': 'attention',
  'qkv': _PROJECTIONS,
  'o': _PROJECTIONS,
  'mlp': 'MLP',
  'head': 'head',
}
_REST = 'norms, sums, embedding'


def _part(op_name: str) -> str:
  scopes = op_name.split('/')
  return next((part for s, part in _PARTS.items() if s in scopes), _REST)


def parts(compiled: Any, arguments: Any) -> dict[str, float]:
  """Part -> seconds that threads of XLA spend on it in one forward.

  Args:
    compiled, arguments: the program, which was run before.
  """
  import pathlib
  import re
  import tempfile

  import jax

  names = re.findall(
    r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"',
    compiled.as_text(),
    re.M,
  )
  part_of = {name: _part(op_name) for name, op_name in names}
  found: dict[str, float] = {}
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(compiled(*arguments))
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for line in plane.lines:
        for event in line.events:
          # Loops, calls and branches hold the others.
          if event.name.partition('.')[0] in ('while', 'call', 'conditional'):
            continue
          if event.name in part_of:
            part = part_of[event.name]
            found[part] = found.get(part, 0.0) + event.duration_ns / 1e9
  return found


def prepare(side: str, spec: bench_model.Spec, length: int):
  """() -> evidence mass [L][Q][N], and the FLOPs.

  Of `ours` it is the answer's logits [A][SHOWN], the first of each row.

  Of 'profile' it is the `parts` of `ours_ram`.
  """
  import jax
  import numpy as np

  from corejax import regions

  traced, arguments = program(spec, length, ram=side != 'ours')
  compiled = traced.lower().compile()
  if side == PROFILE:
    return lambda: parts(compiled, arguments), {}

  def work():
    out = jax.block_until_ready(compiled(*arguments))
    if out.measured is None:
      return out.logits_BPV[0, :, : bench_model.SHOWN].tolist()
    mass_LBQNR = np.asarray(out.measured.mass_BQNR)
    return mass_LBQNR[:, 0, :, :, regions.EVIDENCE].tolist()

  return work, {'flops': flops(traced)}


def main(argv: list[str]) -> None:
  asked = json.loads(argv[1])
  spec = bench_model.Spec(**asked['spec'])
  bench_processes.serve(lambda: prepare(asked['side'], spec, asked['length']))


def request(side: str, spec: bench_model.Spec, length: int) -> str:
  """The argument of `main`; sides in other frameworks take the same."""
  return json.dumps(
    {'side': side, 'length': length, 'spec': dataclasses.asdict(spec)}
  )


if __name__ == '__main__':
  main(sys.argv)
