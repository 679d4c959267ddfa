"""Where parameters live on a mesh: one table of rules, applied at load.

Axes of the mesh are 'data' and 'model'. Parameters are cut over 'model' alone
and are whole on every 'data' row: query and key/value heads, MLP columns and
rows, the vocabulary. Where that axis does not divide evenly, an MLP, a table of
words and a tower's projections are cut along the model's width instead; what
else does not divide stays whole (with 2 key/value heads on 4 devices every
device holds both).
"""

from collections.abc import Sequence
import dataclasses
import re

import jax

from corejax import errors

AXES = ('data', 'model')


@dataclasses.dataclass(frozen=True)
class Rules:
  """Which axis of which parameter is cut over 'model'.

  Attributes:
    rules: (regex on the dotted path, axes of the parameter counted with the
      leading L); the first that matches counts, and of its axes the first that
      divides; none: whole everywhere.
  """

  rules: tuple[tuple[str, tuple[int, ...]], ...]

  def spec(
    self, path: str, shape: Sequence[int], n_model: int
  ) -> jax.sharding.PartitionSpec:
    """The partition of one parameter over `n_model` devices."""
    for pattern, axes in self.rules:
      if re.fullmatch(pattern, path):
        for axis in axes:
          if shape[axis] % n_model == 0:
            return jax.sharding.PartitionSpec(*[None] * axis, 'model')
        break
    return jax.sharding.PartitionSpec()


# Paths end alike in every family: '<decoder or tower>.layers.attn.q.weight'.
RULES = Rules(
  (
    # [L, N, H, D]; [L, D, N, H]
    (r'vision\.layers\.attn\.[qkv]\.weight', (1, 3)),
    (r'vision\.layers\.attn\.o\.weight', (2, 1)),
    (
      r'.*\.layers\.attn\.[qkv]\.(weight|bias)',
      (1,),
    ),  # [L, N, H, D], [L, N, H]
    (r'.*\.layers\.attn\.qkv\.(weight|bias)', (2,)),  # [L, 3, N, H, D]
    (r'.*\.layers\.attn\.o\.weight', (2,)),  # [L, D, N, H]
    (r'.*\.layers\.mlp\.(gate|up)\.weight', (1, 2)),  # [L, F, D]
    (r'.*\.layers\.mlp\.(gate|up)\.bias', (1,)),  # [L, F]
    (r'.*\.layers\.mlp\.down\.weight', (2, 1)),  # [L, D, F]
    (r'.*\.(merger|deep\.\d+)\.fc1\.(weight|bias)', (0,)),  # [F, C], [F]
    (r'.*\.(merger|deep\.\d+)\.fc2\.weight', (1,)),  # [D, F]
    (r'.*\.layers\.mlp\.(gate_up|down)', (1,)),  # [L, X, D, 2 F], [L, X, F, D]
    (r'.*\.layers\.fc1\.(weight|bias)', (1,)),  # [L, F, D], [L, F]
    (r'.*\.layers\.fc2\.weight', (2,)),  # [L, D, F]
    (r'.*\.(embed|head)\.weight', (0, 1)),  # [V, D]
    (r'projector\.linear_1\.(weight|bias)', (0,)),  # [D, C], [D]
    (r'projector\.linear_2\.weight', (1,)),  # [D, D]
  )
)


def placer(mesh: jax.sharding.Mesh | None, rules: Rules = RULES):
  """A function (path, shape) -> Sharding for `weights.fill`.

  Args:
    mesh: with the axes 'data' and 'model'; None puts everything on the first
      local device.
    rules: the table.

  Raises:
    UserError: a mesh with other axes.
  """
  if mesh is None:
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return lambda path, shape: alone
  if tuple(mesh.axis_names) != AXES:
    raise errors.UserError(
      f'mesh axes are {tuple(mesh.axis_names)}; expected {AXES}'
    )
  n_model = mesh.shape['model']
  return lambda path, shape: jax.sharding.NamedSharding(
    mesh, rules.spec(path, shape, n_model)
  )
