"""Hugging Face's sides of the benchmarks of a forward, in their own process.

    hf_sdpa   a forward, torch's scaled_dot_product_attention; its logits
    hf_eager  output_attentions=True, then the rows' weights on the evidence
    hf_rows   sdpa, and hooks that compute the scores of the probe's rows alone
              from q and k

bench_rank and bench_families start this file; it lies under tests/ because
torch does.
"""

import json
import math
import os
import sys

import numpy as np
import torch
import transformers
from transformers.models.llama import modeling_llama

from corejax import regions
from corejax.experiments import bench_family
from corejax.experiments import bench_model
from corejax.experiments import bench_processes


def model(
  spec: bench_model.Spec, attention: str
) -> transformers.PreTrainedModel:
  """The benchmark's model in float32."""
  config = transformers.AutoConfig.for_model(**bench_family.documents(spec))
  config._attn_implementation = attention
  hf = transformers.AutoModelForImageTextToText.from_config(config).eval()
  with torch.no_grad():
    for name, param in hf.named_parameters():
      param.copy_(torch.from_numpy(bench_model.draw(spec, name, param.shape)))
  return hf


class Rows:
  """Hooks that compute the probe's rows' evidence masses during a forward.

  Attributes:
    masses: one [Q, N] a layer.
  """

  def __init__(self, hf, rows: list[np.ndarray], evidence: torch.Tensor):
    self._hf_rows = [torch.from_numpy(r).long() for r in rows]
    self._all = torch.cat(self._hf_rows)
    self._evidence = evidence
    self._projected: dict[str, torch.Tensor] = {}
    self.masses: list[torch.Tensor] = []
    for layer in hf.model.language_model.layers:
      attention = layer.self_attn
      attention.q_proj.register_forward_hook(self._keep('q'))
      attention.k_proj.register_forward_hook(self._keep('k'))
      attention.register_forward_hook(self._measure, with_kwargs=True)

  def _keep(self, name):
    def hook(module, args, output):
      self._projected[name] = output

    return hook

  def _measure(self, module, args, kwargs, output):
    cos, sin = kwargs['position_embeddings']
    shape = (1, -1, module.config.num_attention_heads, module.head_dim)
    q = self._projected.pop('q')[:, self._all].view(shape).transpose(1, 2)
    k = self._projected.pop('k').view(shape).transpose(1, 2)
    rows = cos[:, self._all], sin[:, self._all]
    q, _ = modeling_llama.apply_rotary_pos_emb(q, q, *rows)
    _, k = modeling_llama.apply_rotary_pos_emb(k[:, :, :1], k, cos, sin)
    scores = q @ k.transpose(2, 3) / math.sqrt(module.head_dim)
    later = torch.arange(k.shape[2]) > self._all[:, None]
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    mass = weights[0][:, :, self._evidence].sum(-1)
    sizes = [len(r) for r in self._hf_rows]
    self.masses.append(
      torch.stack([part.mean(1) for part in mass.split(sizes, 1)])
    )


def prepare(side: str, spec: bench_model.Spec, length: int):
  """() -> evidence mass [L][Q][N]; of `hf_sdpa` the answer's logits."""
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)
  hf = model(spec, 'eager' if side == 'hf_eager' else 'sdpa')
  prompt = bench_model.prompt(spec, length)
  rows = [prompt.rows[name] for name in regions.QUERY_SETS]
  evidence = torch.from_numpy(prompt.visual_I[prompt.evidence_I]).long()
  hooks = Rows(hf, rows, evidence) if side == 'hf_rows' else None
  pixels = torch.from_numpy(prompt.pixels)
  inputs = {
    'input_ids': torch.from_numpy(prompt.tokens_T).long()[None],
    'pixel_values': pixels.flatten(0, 1) if pixels.ndim == 3 else pixels,
    'logits_to_keep': torch.from_numpy(prompt.rows['answer']).long(),
    'use_cache': False,
    **{name: torch.from_numpy(v) for name, v in prompt.theirs.items()},
  }
  if prompt.positions_T.ndim > 1:
    inputs['position_ids'] = torch.from_numpy(prompt.positions_T[:, None])
    inputs['mm_token_type_ids'] = torch.from_numpy(prompt.feature_T >= 0)[None]

  @torch.inference_mode()
  def work():
    out = hf(**inputs, output_attentions=side == 'hf_eager')
    assert torch.isfinite(out.logits).all()
    if side == 'hf_eager':
      masses = [
        torch.stack([w[0][:, r][..., evidence].sum(-1).mean(1) for r in rows])
        for w in out.attentions
      ]
    elif hooks is not None:
      masses, hooks.masses = hooks.masses, []
    else:
      return out.logits[0, :, : bench_model.SHOWN].tolist()
    return torch.stack(masses).tolist()

  return work, {'torch': torch.__version__, 'threads': torch.get_num_threads()}


def main(argv: list[str]) -> None:
  asked = json.loads(argv[1])
  spec = bench_model.Spec(**asked['spec'])
  bench_processes.serve(lambda: prepare(asked['side'], spec, asked['length']))


if __name__ == '__main__':
  main(sys.argv)
