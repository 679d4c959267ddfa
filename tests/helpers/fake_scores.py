"""Scores that no model made, for the statistics' tests."""

import numpy as np

from corejax import regions
from corejax import scores as scores_lib

N_TOKENS = 16


def make(
  n_layers=3,
  n_heads=4,
  n_clusters=12,
  per_cluster=4,
  planted=(),
  salient=(),
  alone=False,
  profiles=True,
  baseline=False,
  sizes=None,
  seed=0,
) -> scores_lib.Scores:
  """Heads over 16 visual tokens; evidence is 1 token, as are 3 distractors.

  Args:
    n_layers, n_heads, n_clusters, per_cluster: sizes.
    planted: (layer, head)s that put 0.6 on the evidence.
    salient: (layer, head)s that put 0.6 evenly on all objects of the picture.
    alone: a cluster has one example only.
    profiles: keep them.
    baseline: masses with a content-free question.
    sizes: E tokens of evidence (1 each).
    seed: of everything.
  """
  rng = np.random.default_rng(seed)
  per_cluster = 1 if alone else per_cluster
  n_examples = n_clusters * per_cluster
  sizes = np.ones(n_examples, int) if sizes is None else np.asarray(sizes)
  evidence, shifted, kept = [], [], []
  count_ER = np.zeros((n_examples, len(regions.REGIONS)), np.int32)
  shape = (n_layers, n_heads, len(regions.QUERY_SETS), len(regions.REGIONS))
  mass_ELNQR = np.zeros((n_examples, *shape), np.float32)
  objects = {}
  for e in range(n_examples):
    cluster = e // per_cluster
    if cluster not in objects:
      objects[cluster] = rng.choice(N_TOKENS, 8, replace=False)
    chosen = rng.permutation(objects[cluster])
    own, others = chosen[: sizes[e]], chosen[sizes[e] : sizes[e] + 3]
    region_I = np.full(N_TOKENS, regions.OTHER_VISUAL)
    region_I[own] = regions.EVIDENCE
    region_I[others] = regions.DISTRACTORS[:3]
    evidence_I = region_I == regions.EVIDENCE
    evidence.append(evidence_I)
    shifted.append(np.stack([np.roll(evidence_I, j) for j in (3, 7, 11)]))
    count_ER[e] = np.bincount(region_I, minlength=len(regions.REGIONS))
    count_ER[e, regions.SINK :] = 4, 5, 3
    for q in range(len(regions.QUERY_SETS)):
      total_LN = rng.uniform(0.2, 0.35, (n_layers, n_heads))
      profile_LNI = (
        rng.dirichlet(np.ones(N_TOKENS), (n_layers, n_heads))
        * total_LN[..., None]
      )
      for head in planted:
        profile_LNI[head][own] += 0.6 / sizes[e]
      for head in salient:
        profile_LNI[head][objects[cluster]] += 0.6 / 8
      profile_LNI = profile_LNI.astype(np.float16)
      for r in regions.VISUAL:
        mass_ELNQR[e, :, :, q, r] = profile_LNI[..., region_I == r].sum(
          -1, dtype=np.float32
        )
      if q == 0:
        kept.append(profile_LNI)
  left = 1 - mass_ELNQR.sum(-1)
  for r, share in ((regions.SINK, 0.5), (regions.QUESTION, 0.3)):
    mass_ELNQR[..., r] = share * left
  mass_ELNQR[..., regions.OTHER_TEXT] = 0.2 * left
  base = None
  if baseline:
    base = rng.dirichlet(
      np.ones(len(regions.REGIONS)), mass_ELNQR.shape[:-1]
    ).astype(np.float32)
  return scores_lib.Scores(
    mass_ELNQR=mass_ELNQR,
    count_ER=count_ER,
    ids=[f'fake/test/{e}' for e in range(n_examples)],
    clusters=[f'c{e // per_cluster}' for e in range(n_examples)],
    tasks=['colour'] * n_examples,
    media=[f'picture {e // per_cluster}' for e in range(n_examples)],
    layouts=['4x4'] * n_examples,
    correct_E=rng.random(n_examples) < 0.8,
    logprob_E=-rng.random(n_examples).astype(np.float32),
    evidence=evidence,
    shifted=shifted,
    profiles=kept if profiles else None,
    profile_set='question' if profiles else None,
    baseline_ELNQR=base,
  )
