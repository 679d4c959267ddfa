"""What a pass over a data set leaves behind: per-example masses and covers.

Everything after this is offline: another normalisation, query set, selection
or null is computed from `Scores` without touching the model.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from corejax import describe


@dataclasses.dataclass(frozen=True)
class Scores:
  """Per-example measurements, in the order of the data set.

  Attributes:
    mass_ELNQR: float32 [E, L, N, Q, R], axes as in corejax.regions.
    count_ER: int32 [E, R], tokens in each region.
    ids: E example ids.
    clusters: E cluster names (the picture or document examples share).
    tasks: E task names.
    media: E strings; examples with the same one show the same pictures.
    layouts: E strings; examples with the same one have their visual tokens
      in the same places.
    correct_E: bool [E], is the teacher-forced argmax answer right?
    logprob_E: float32 [E], log-likelihood of the teacher-forced answer, nats.
    evidence: E bool [I_e], visual tokens that are evidence.
    shifted: E bool [J, I_e], the same boxes moved to J other places of the
      same size (secondary null); J may be 0.
    profiles: E float16 [L, N, I_e], attention over the visual tokens averaged
      over the rows of `profile_set`; None if not kept.
    profile_set: query set of the profiles, None without.
    baseline_ELNQR: the masses with a content-free question (calibration), None
      if not measured.
    baseline_profiles: the profiles with that question; None if not kept.
    written_ELNQ: float32 [E, L, N, Q], L2 norm of what the head writes into
      the residual stream, averaged over the query set's rows; None if not
      measured. Times the mass on evidence it is the value-weighted
      contribution, a competing ranking.
    gradient_ELN: float32 [E, L, N], d log p(forced answer) / d gate at gate 1,
      another; None if not measured.
  """

  mass_ELNQR: np.ndarray
  count_ER: np.ndarray
  ids: Sequence[str]
  clusters: Sequence[str]
  tasks: Sequence[str]
  media: Sequence[str]
  layouts: Sequence[str]
  correct_E: np.ndarray
  logprob_E: np.ndarray
  evidence: Sequence[np.ndarray]
  shifted: Sequence[np.ndarray]
  profiles: Sequence[np.ndarray] | None = None
  profile_set: str | None = None
  baseline_ELNQR: np.ndarray | None = None
  baseline_profiles: Sequence[np.ndarray] | None = None
  written_ELNQ: np.ndarray | None = None
  gradient_ELN: np.ndarray | None = None

  @property
  def n_layers(self) -> int:
    return self.mass_ELNQR.shape[1]

  @property
  def n_heads(self) -> int:
    return self.mass_ELNQR.shape[2]

  def __len__(self) -> int:
    return len(self.ids)

  def __repr__(self) -> str:
    tasks = describe.shorten(', '.join(sorted(set(self.tasks))))
    kept = [
      name
      for name, value in (
        (f'profiles of {self.profile_set}', self.profiles),
        ('baseline', self.baseline_ELNQR),
        ('written', self.written_ELNQ),
        ('gradient', self.gradient_ELN),
      )
      if value is not None
    ]
    return (
      f'Scores({describe.count(len(self), "example")} in '
      f'{describe.count(len(set(self.clusters)), "cluster")}, '
      f'{describe.count(self.n_layers, "layer")} x '
      f'{describe.count(self.n_heads, "head")}; tasks {tasks}; kept: '
      f'{", ".join(kept) or "masses alone"})'
    )
