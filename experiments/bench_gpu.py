"""What head-sparse attention gains on a GPU, beside its ideal and cuDNN.

    python -m experiments.bench_gpu
    python -m experiments.bench_gpu --lengths=32768 --n_heads=32 --n_kv=8

One layer's causal prefill with --dense of --n_heads heads dense, every other
within --window and --sink keys. Three sides take turns in one process:

    dense   the Triton kernel, all heads dense
    sparse  the same executable, another array of windows
    cudnn   dense by cuDNN (Hopper and later)

A sample is the mean of as many calls as fill --fill_s, one behind the other.
Prints medians of --rounds samples, ratios with their intervals, the share of
the element ideal, and the largest error of the sparse output's last rows;
writes samples.csv and run.json into --out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import sys

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

setting = config_lib.setting
SIDES = ('dense', 'sparse', 'cudnn')
# What is aimed at on an H100 with the defaults of these.
_AIMED_WITH = ('n_heads', 'n_kv', 'head_dim', 'dense', 'window', 'sink')
_SHARE_AIMS = {16384: 0.85, 32768: 0.88, 65536: 0.92, 131072: 0.95}
_CUDNN_AIM = 0.75
_GAIN_AIMS = {16384: 3.2, 32768: 4.8, 131072: 8.0}
_CHECKED_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of a run."""

  lengths: str = setting('16384,32768,65536,131072', 'tokens, with commas')
  n_heads: int = setting(28, 'query heads')
  n_kv: int = setting(4, 'key/value heads')
  head_dim: int = setting(128, 'size of a head')
  dtype: str = setting('bfloat16', 'of q, k, v', ('bfloat16', 'float16'))
  dense: int = setting(2, 'heads that stay dense')
  window: int = setting(1024, 'keys that the others see behind a row')
  sink: int = setting(128, 'first keys that the others see')
  rounds: int = setting(20, 'samples of each side')
  fill_s: float = setting(0.1, 'seconds that a sample takes at least')
  out: str = setting('runs/bench_gpu', 'run folder; what it holds is replaced')

  def __post_init__(self):
    for name in ('n_heads', 'n_kv', 'head_dim', 'window', 'rounds'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    if self.n_heads % self.n_kv:
      raise errors.UserError(
        f'--n_heads={self.n_heads}: give a multiple of --n_kv={self.n_kv}'
      )
    if not 0 <= self.dense <= self.n_heads:
      raise errors.UserError(
        f'--dense={self.dense}: give 0 to --n_heads={self.n_heads}'
      )
    if self.sink < 0:
      raise errors.UserError(f'--sink={self.sink}: give 0 or more')
    if not self.fill_s > 0:
      raise errors.UserError(f'--fill_s={self.fill_s}: give more than 0')
    if min(self.tokens) < _CHECKED_ROWS:
      raise errors.UserError(
        f'--lengths={self.lengths}: give {_CHECKED_ROWS} tokens or more'
      )

  @property
  def tokens(self) -> tuple[int, ...]:
    """The lengths.

    Raises:
      UserError: one is no number.
    """
    try:
      return tuple(int(x) for x in self.lengths.split(','))
    except ValueError:
      raise errors.UserError(
        f'--lengths={self.lengths}: give numbers with commas between'
      ) from None


@dataclasses.dataclass(frozen=True)
class Layer:
  """One length, compiled and ready.

  Attributes:
    go: side -> a function that returns the seconds of one call; a side that
      this GPU cannot serve is not there.
    error: largest difference of the sparse output's last rows from float32.
  """

  go: Mapping[str, Callable[[], float]]
  error: float


@dataclasses.dataclass(frozen=True)
class Timed:
  """What came of one length.

  Attributes:
    length: tokens.
    seconds: side -> one a round.
    error: of its Layer.
  """

  length: int
  seconds: Mapping[str, list[float]]
  error: float


def element_ideal(
  length: int, n_heads: int, dense: int, window: int, sink: int
) -> float:
  """How many times faster than dense a kernel is that costs what it reads.

  With c = window + sink and N >= c,
  1 / (rho + (1 - rho) (c N - c (c - 1) / 2) / (N (N + 1) / 2)).
  """
  rho = dense / n_heads
  c = min(window + sink, length)
  share = (c * length - c * (c - 1) / 2) / (length * (length + 1) / 2)
  return 1 / (rho + (1 - rho) * share)


def prepare(config: Config) -> tuple[str, Callable[[int], Layer]]:
  """(the GPU's name, what makes a Layer of a length).

  Raises:
    UserError: there is no GPU that the kernel serves.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from corejax import attention
  from corejax import control as control_lib
  from corejax import masks
  from corejax.kernels import dispatch

  mask = masks.AttnMask()

  def control(n_dense):
    # Spread over the key/value heads.
    heads = np.arange(n_dense) * config.n_heads // max(n_dense, 1)
    window = np.full((1, config.n_heads), config.window, np.int32)
    window[0, heads] = masks.DENSE
    return control_lib.AttendControl(
      jnp.asarray(window),
      jnp.full((1, config.n_heads), config.sink, jnp.int32),
      jnp.ones((1, config.n_heads), jnp.float32),
    )

  def shapes(length):
    def vectors(n):
      shape = (1, length, n, config.head_dim)
      return jax.ShapeDtypeStruct(shape, config.dtype)

    return vectors(config.n_heads), vectors(config.n_kv), vectors(config.n_kv)

  def refusal(name, control):
    q, k, v = shapes(min(config.tokens))
    return dispatch.IMPLEMENTATIONS[name].unsupported(q, k, v, mask, control)

  reason = refusal('triton', control(config.dense))
  if reason is not None:
    raise errors.UserError(
      f'bench_gpu measures the Triton kernel, which {reason}'
    )
  with_cudnn = refusal('cudnn', None) is None

  @jax.jit
  def by_triton(q, k, v, control):
    return dispatch.head_sparse_attention(
      q, k, v, mask, control, implementation='triton'
    )

  @jax.jit
  def by_cudnn(q, k, v):
    return dispatch.head_sparse_attention(q, k, v, mask, implementation='cudnn')

  @jax.jit
  def exact(q, k, v, control):
    """The last rows in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q[:, -_CHECKED_ROWS:], k, v))
    offset_B = jnp.full(1, k.shape[1] - _CHECKED_ROWS, jnp.int32)
    mask = masks.AttnMask(q_offset_B=offset_B)
    return attention.reference(q, k, v, mask, control).out_BTNH

  def layer(length):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
      jax.random.normal(key, x.shape, x.dtype)
      for key, x in zip(keys, shapes(length))
    )
    all_dense, sparse = control(config.n_heads), control(config.dense)
    calls = {
      'dense': lambda: by_triton(q, k, v, all_dense),
      'sparse': lambda: by_triton(q, k, v, sparse),
    }
    if with_cudnn:
      calls['cudnn'] = lambda: by_cudnn(q, k, v)
    got = calls['sparse']()[:, -_CHECKED_ROWS:].astype(jnp.float32)
    error = jnp.abs(got - exact(q, k, v, sparse)).max()
    go = {name: timer(call, config.fill_s) for name, call in calls.items()}
    return Layer(go, float(error))

  return jax.devices()[0].device_kind, layer


def timer(call: Callable[[], object], fill_s: float) -> Callable[[], float]:
  """A function that returns the seconds of one call, compiled already.

  Calls are queued and waited for once, so that what the host does between them
  is hidden behind the device's work.
  """
  import math
  import time

  import jax

  def seconds(n):
    began = time.perf_counter()
    out = None
    for _ in range(n):
      out = call()
    jax.block_until_ready(out)
    return (time.perf_counter() - began) / n

  seconds(1)
  n_calls = math.ceil(fill_s / seconds(2))
  return lambda: seconds(n_calls)


def measure(layer: Layer, length: int, rounds: int) -> Timed:
  """All sides by turns, in an order that is reversed every time."""
  seconds: dict[str, list[float]] = {side: [] for side in layer.go}
  for index in range(rounds):
    for side in list(layer.go)[:: -1 if index % 2 else 1]:
      seconds[side].append(layer.go[side]())
  return Timed(length, seconds, layer.error)


def table(config: Config, timed: list[Timed]) -> str:
  """One row a length."""
  import statistics

  from corejax.experiments import bench_processes

  usual = Config()
  aims = all(getattr(config, x) == getattr(usual, x) for x in _AIMED_WITH)

  def aimed(value, aim):
    if aim is None or not aims:
      return f'{value:.2f}'
    return f'{value:.2f} (aim {aim:g} {"met" if value >= aim else "missed"})'

  rows = []
  for each in timed:
    dense, sparse = each.seconds['dense'], each.seconds['sparse']
    cudnn = each.seconds.get('cudnn')
    gain = bench_processes.ratio(dense, sparse)
    ideal = element_ideal(
      each.length, config.n_heads, config.dense, config.window, config.sink
    )
    # Two products of N (N + 1) / 2 x head_dim, a multiply and an add each.
    pairs = each.length * (each.length + 1) / 2
    flop = 4 * pairs * config.head_dim * config.n_heads
    row = [
      str(each.length),
      f'{1e3 * statistics.median(dense):.3f}',
      f'{flop / statistics.median(dense) / 1e12:.0f}',
      f'{1e3 * statistics.median(sparse):.3f}',
      str(gain),
      f'{ideal:.2f}',
      aimed(gain.value / ideal, _SHARE_AIMS.get(each.length)),
    ]
    if cudnn is None:
      row += ['not served'] * 3
    else:
      row += [
        f'{1e3 * statistics.median(cudnn):.3f}',
        aimed(bench_processes.ratio(cudnn, dense).value, _CUDNN_AIM),
        aimed(
          bench_processes.ratio(cudnn, sparse).value,
          _GAIN_AIMS.get(each.length),
        ),
      ]
    rows.append([*row, f'{each.error:.1e}'])
  head = (
    'tokens',
    'dense ms',
    'TFLOP/s',
    'sparse ms',
    'dense / sparse [95%]',
    'element ideal',
    'share of it',
    'cuDNN ms',
    'cuDNN / dense',
    'cuDNN / sparse',
    'error',
  )
  return bench_processes.markdown(head, rows)


def run(
  config: Config,
  prepare: Callable[[Config], tuple[str, Callable[[int], Layer]]] = prepare,
) -> list[Timed]:
  """Measures, prints and writes.

  Args:
    config: settings.
    prepare: what is measured.

  Raises:
    UserError: something outside is wrong; there is no GPU.
  """
  import datetime

  from corejax.experiments import runs

  device, layer = prepare(config)
  out: pathlib.Path = runs.folder_path(config.out)
  record = {'flags': dataclasses.asdict(config), 'device': device}
  timed: list[Timed] = []
  with cli_lib.Stop() as stop:
    with runs.open_run(out, {'bench_gpu': 1}, record, False) as folder:
      with stop.at_once():
        for length in config.tokens:
          timed.append(measure(layer(length), length, config.rounds))
      lines = ['tokens,side,round,seconds']
      lines += [
        f'{each.length},{side},{i},{x:.9f}'
        for each in timed
        for side, samples in each.seconds.items()
        for i, x in enumerate(samples)
      ]
      folder.write('samples.csv', '\n'.join(lines) + '\n')
  print(
    f'{datetime.date.today()}, {device}; jax {runs.versions()["jax"]}; '
    f'{config.dense} of {config.n_heads} heads dense, {config.n_kv} kv heads, '
    f'window {config.window}, sink {config.sink}, head dim {config.head_dim}, '
    f'{config.dtype}; medians of {config.rounds} rounds\n'
  )
  print(table(config, timed))
  print(f'\nfiles    {out}: samples.csv, run.json')
  return timed


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
