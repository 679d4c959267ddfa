"""The mass of every head on every region, from transformers' weights."""

import numpy as np

from corejax import regions


def of(attentions, arrays) -> np.ndarray:
  """Means over rows, float64 [L, N, query sets, regions].

  Args:
    attentions: a torch tensor [1, N, T, S] for each layer.
    arrays: of `inspect`: rows, their query sets, and every key's region.
  """
  weights_LNTS = np.stack([w[0].double().numpy() for w in attentions])
  shape = len(regions.QUERY_SETS), len(regions.REGIONS)
  result = np.zeros((*weights_LNTS.shape[:2], *shape))
  for q, r in np.ndindex(*shape):
    rows = arrays['rows'][arrays['row_set'] == q]
    keys = arrays['region'] == r
    result[:, :, q, r] = weights_LNTS[:, :, rows][..., keys].sum(-1).mean(-1)
  return result
