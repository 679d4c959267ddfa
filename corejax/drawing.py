"""The layer x head map, on anybody's matplotlib axes."""

from __future__ import annotations

from typing import Any

from matplotlib import patches as mpl_patches
import numpy as np


def own_axes(n_layers: int, n_heads: int) -> Any:
  """Axes of a new pyplot figure that suits a map of this size."""
  from matplotlib import pyplot  # chooses a backend: not for who has axes

  _, axes = pyplot.subplots(
    figsize=map_size(n_layers, n_heads), layout='constrained'
  )
  return axes


def map_size(n_layers: int, n_heads: int) -> tuple[float, float]:
  """Width and height of a map with its labels and bar, in inches."""
  return max(5.5, 2.2 + 0.28 * n_heads), 1.8 + 0.28 * n_layers


def head_map(
  axes: Any, score_LN: np.ndarray, selected_LN: np.ndarray, label: str
) -> None:
  """Draws the map with a colour bar; selected heads are outlined.

  Args:
    axes: matplotlib axes.
    score_LN: float [L, N]; NaN is drawn grey.
    selected_LN: bool [L, N].
    label: of the colour bar.
  """
  n_layers, n_heads = score_LN.shape
  axes.set_facecolor('#dddddd')
  finite = score_LN[np.isfinite(score_LN)]
  image = axes.imshow(
    score_LN,
    cmap='viridis',
    vmin=min(0.0, finite.min(initial=0.0)),
    vmax=finite.max(initial=1e-6),
    interpolation='nearest',
    aspect='auto',
  )
  for layer, head in np.argwhere(selected_LN):
    axes.add_patch(
      mpl_patches.Rectangle(
        (head - 0.5, layer - 0.5), 1, 1, fill=False, color='#ff2a54', lw=2.2
      )
    )
  axes.set_xlabel('head')
  axes.set_ylabel('layer')
  axes.set_xticks(range(0, n_heads, max(1, n_heads // 16)))
  axes.set_yticks(range(0, n_layers, max(1, n_layers // 16)))
  axes.figure.colorbar(image, ax=axes, label=label)
