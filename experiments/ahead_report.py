"""What `--compile_only` prints: memory on each device, FLOPs, does it fit?"""

import dataclasses

from corejax.experiments import features as features_lib
from corejax.kernels import targets

_GIB = 2**30
# What jax takes of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_GPU_SHARE = 0.75
_GPU_MOST = 0.95


@dataclasses.dataclass(frozen=True)
class Program:
  """What one device holds while it runs one program, in bytes.

  Attributes:
    name: 'tower' or 'step'.
    served: the attention kernels that are in it.
    arguments, outputs, temporaries, code: as the compiler says; outputs
      without what shares its place with an argument.
    flops: of all devices together.
    seconds: of all cores together, that tracing and compiling took.
    beyond: None; or what the compiler says the program would take, where that
      is more than the chip has (the other sizes are then 0).
  """

  name: str
  served: tuple[str, ...]
  arguments: int
  outputs: int
  temporaries: int
  code: int
  flops: float
  seconds: float
  beyond: int | None = None

  @property
  def total(self) -> int:
    if self.beyond is not None:
      return self.beyond
    return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Report:
  """Both programs, and what a device holds of the model.

  Attributes:
    title: model, sizes, devices; one line each.
    tower, step: the programs.
    parameters: bytes of the model on each device.
    chip: the kind of device.
    remarks: what a reader should know; one line each.
  """

  title: tuple[str, ...]
  tower: Program
  step: Program
  parameters: int
  chip: targets.Chip
  remarks: tuple[str, ...] = ()

  @property
  def at_once(self) -> int:
    """Most that a device holds: a program, the other's weights, features."""
    kept = features_lib.MAX_BYTES
    return kept + max(
      self.step.total + self.tower.arguments,
      self.tower.total + self.step.arguments,
    )

  @property
  def fits(self) -> bool:
    """Does a run fit on the chip?"""
    if {self.tower.beyond, self.step.beyond} != {None}:
      return False
    most = _GPU_MOST if self.chip.platform == 'cuda' else 1.0
    return self.at_once <= most * self.chip.memory

  def verdict(self) -> str:
    """The last line."""
    has = f'{gib(self.at_once)} of {gib(self.chip.memory)} GiB a device'
    if not self.fits:
      return (
        f'fits     no: {has}; give a longer model axis, a smaller --batch_size '
        'or --length, or --dtype=bfloat16'
      )
    if (
      self.chip.platform == 'cuda'
      and self.at_once > _GPU_SHARE * self.chip.memory
    ):
      return (
        f'fits     yes: {has}, with XLA_PYTHON_CLIENT_MEM_FRACTION={_GPU_MOST}'
        f' (jax takes {_GPU_SHARE} of it by itself)'
      )
    return f'fits     yes: {has}'

  def text(self) -> str:
    """The whole report."""
    head = ('GiB a device', 'arguments', 'outputs', 'temporaries', 'code')
    lines = [*self.title]
    columns = (*head, 'total', 'attention by', 'TFLOPs', 'CPU s')
    lines.append('  '.join(f'{c:>11}' for c in columns))
    for p in (self.tower, self.step):
      sizes = (p.arguments, p.outputs, p.temporaries, p.code)
      cells = [gib(n) if p.beyond is None else '-' for n in sizes]
      row = (p.name, *cells, gib(p.total), '+'.join(p.served) or '-')
      told = (*row, f'{p.flops / 1e12:.4g}', f'{p.seconds:.0f}')
      lines.append('  '.join(f'{c:>11}' for c in told))
    lines += [f'note     {remark}' for remark in self.remarks]
    lines += [
      f'at once  a program, the weights of the other, and features of pictures '
      f'seen before ({gib(features_lib.MAX_BYTES)} GiB at most)',
      self.verdict(),
    ]
    return '\n'.join(lines)


def gib(n: int) -> str:
  return f'{n / _GIB:.2f}'
