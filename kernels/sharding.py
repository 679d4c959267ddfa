"""Attention over a mesh: sequences over one axis, heads over the other.

Under an automatic mesh alone a loop over heads all-gathers q, k and v; inside
`shard_map` each device loops over its own heads and nothing is moved.

    N = 6, K = 3, model axis 3        N = 4, K = 2, model axis 4
    device   0     1     2            device   0   1   2   3
    q heads  0 1   2 3   4 5          q heads  0   1   2   3
    kv heads 0     1     2            kv heads 0   0   1   1   (K/V replicated)
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from corejax import attention
from corejax import control as control_lib
from corejax import errors
from corejax import masks
from corejax import probe as probe_lib


def sharded(
  attend: attention.Attend,
  mesh: jax.sharding.Mesh,
  *,
  data_axis: str = 'data',
  model_axis: str = 'model',
  uneven: bool = False,
) -> attention.Attend:
  """Any attend, with its batch and its heads spread over a mesh.

  K/V are split too where the axis divides K; else they are expected whole on
  each device, which then takes the kv heads that its query heads read. Inputs
  that already lie so are not moved.

  Args:
    attend: a function of the contract in corejax.attention.
    mesh: must have both axes; further ones see replicas.
    data_axis: the axis that B is split over.
    model_axis: the axis that N is split over.
    uneven: where it does not divide N, every device computes all heads of its
      sequences, in place of an error: for a tower, of which there is little.

  Returns:
    A function of the same contract on global arrays: out_BTNH and what is
    measured come back split over batch and heads.

  Raises:
    UserError: an axis that the mesh lacks; when called, B or N that its axis
      does not divide.
  """
  for axis in (data_axis, model_axis):
    if axis not in mesh.shape:
      raise errors.UserError(
        f'sharded: the mesh has axes {tuple(mesh.shape)}, not {axis!r}; make'
        f' it with ({data_axis!r}, {model_axis!r})'
      )
  n_data, n_model = mesh.shape[data_axis], mesh.shape[model_axis]

  def spread(q_BTNH, k_BSKH, v_BSKH, mask, control=None, probe=None):
    batch, _, n_heads, _ = q_BTNH.shape
    n_kv = k_BSKH.shape[2]
    _divides('batch', batch, n_data, data_axis)
    whole = uneven and n_heads % n_model != 0
    if not whole:
      _divides('query heads', n_heads, n_model, model_axis)
    heads_axis = None if whole else model_axis
    split_kv = n_kv % n_model == 0 and not whole
    # Any, since specs stand where a dataclass declares arrays.
    at_BXN: Any = PartitionSpec(data_axis, None, heads_axis)
    at_BN: Any = PartitionSpec(data_axis, heads_axis)
    args = (q_BTNH, k_BSKH, v_BSKH, mask, control, probe)
    specs = (
      at_BXN,
      at_BXN if split_kv else PartitionSpec(data_axis),
      at_BXN if split_kv else PartitionSpec(data_axis),
      _mask_specs(mask, data_axis),
      None
      if control is None
      else _control_specs(control, data_axis, heads_axis),
      None if probe is None else _probe_specs(probe, data_axis),
    )
    # Leaves, since an absent array is None and so would be its spec.
    leaves, tree = jax.tree.flatten(args)
    leaf_specs = jax.tree.leaves(
      specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )

    def local(*leaves):
      q_BTNH, k_BSKH, v_BSKH, *rest = jax.tree.unflatten(tree, leaves)
      if not split_kv and not whole:
        take = _own_kv_heads(n_heads, n_kv, n_model, model_axis)
        k_BSKH, v_BSKH = (
          jnp.take(x, take, axis=2, mode='clip') for x in (k_BSKH, v_BSKH)
        )
      return attend(q_BTNH, k_BSKH, v_BSKH, *rest)

    measured = None
    if probe is not None:
      measured = probe_lib.Measured(
        at_BXN,
        None if probe.profile_set is None else at_BN,
        at_BN if probe.weights else None,
      )
    return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=tuple(leaf_specs),
      out_specs=attention.AttendOut(at_BXN, measured),
      # Loops begin at constants, which the check takes for replicated.
      check_vma=False,
    )(*leaves)

  return spread


def _divides(what: str, size: int, parts: int, axis: str) -> None:
  if size % parts:
    fit = [n for n in range(1, size + 1) if size % n == 0]
    raise errors.UserError(
      f'sharded: {size} {what} cannot be split over the {parts} devices of mesh'
      f' axis {axis!r}; an axis of {", ".join(map(str, fit))} can'
    )


def _own_kv_heads(n_heads, n_kv, n_model, model_axis):
  """The kv heads of this device's query heads, so that equal groups read them.

  Groups of gcd(N / devices, N / K) consecutive query heads never straddle a
  boundary of a device or of a kv head. int32 [local kv heads].
  """
  n_local = n_heads // n_model
  group = n_heads // n_kv
  together = math.gcd(n_local, group)
  first = jax.lax.axis_index(model_axis) * n_local
  return (first + jnp.arange(0, n_local, together)) // group


def _mask_specs(mask: masks.AttnMask, data_axis: str) -> masks.AttnMask:
  specs = jax.tree.map(lambda _: PartitionSpec(data_axis), mask)
  if mask.window is None:
    return specs
  return dataclasses.replace(specs, window=PartitionSpec())


def _control_specs(
  control: control_lib.AttendControl, data_axis: str, model_axis: str | None
) -> control_lib.AttendControl:
  def spread(x, axis):
    return PartitionSpec(data_axis if x.shape[0] > 1 else None, axis)

  def per_head(x):
    return spread(x, model_axis)

  per_heads = dataclasses.replace(control, region_BS=None, rows_BT=None)
  per_key = jax.tree.map(lambda _: PartitionSpec(data_axis), control.region_BS)
  per_row = jax.tree.map(lambda x: spread(x, None), control.rows_BT)
  return dataclasses.replace(
    jax.tree.map(per_head, per_heads), region_BS=per_key, rows_BT=per_row
  )


def _probe_specs(probe: probe_lib.Probe, data_axis: str) -> probe_lib.Probe:
  specs = jax.tree.map(lambda _: PartitionSpec(data_axis), probe)
  return dataclasses.replace(specs, set_PQ=PartitionSpec())
