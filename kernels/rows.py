"""Limits that hold on some query rows only, for kernels that know heads alone.

A kernel chooses tiles per head; `by_rows` gives it such a control as two calls,
limited and intact, and takes each row from the one that it belongs to: twice
the time, and only where a control has rows_BT.
"""

import dataclasses
import functools

import jax.numpy as jnp


def by_rows(kernel):
  """A kernel of the signature of corejax.kernels.dispatch that serves rows_BT.

  Args:
    kernel: the same but for rows_BT.
  """

  @functools.wraps(kernel)
  def run(q_BTNH, k_BSKH, v_BSKH, mask, control=None, **options):
    if control is None or control.rows_BT is None:
      return kernel(q_BTNH, k_BSKH, v_BSKH, mask, control, **options)
    limited, intact = (
      kernel(q_BTNH, k_BSKH, v_BSKH, mask, each, **options)
      for each in (dataclasses.replace(control, rows_BT=None), None)
    )
    rows_BT = control.rows_BT
    if not options.get('return_lse'):
      return jnp.where(rows_BT[..., None, None], limited, intact)
    return (
      jnp.where(rows_BT[..., None, None], limited[0], intact[0]),
      jnp.where(rows_BT[:, None], limited[1], intact[1]),
    )

  return run
