"""The README's Python, run as it stands, on four virtual devices."""

import re

from helpers import tree

# What the page claims of the arrays it makes, checked behind its last line.
_CLAIMS = """
import numpy as np
planted_heads = planted.known_heads(0).tasks['colour']
assert heads.HeadSet.from_mask(ram_LN > 0.5) == planted_heads
np.testing.assert_allclose(ram_on_mesh_LN, ram_LN, rtol=0, atol=1e-6)
for x, (l, n) in enumerate(np.ndindex(ones_LN.shape)):
  if x % 7 == 0:
    alone = answer_logit(ones_LN) - answer_logit(ones_LN.at[l, n].set(0))
    np.testing.assert_allclose(drop_X[x], alone, rtol=1e-4, atol=1e-4)
l, n = next(iter(planted_heads))
step = 0.5 ** 6
rise = answer_logit(ones_LN.at[l, n].add(step)) - answer_logit(
    ones_LN.at[l, n].add(-step))
np.testing.assert_allclose(slope_LN[l, n], rise / (2 * step), rtol=0.02)
"""


def test_readme_python(tmp_path):
  text = (tree.ROOT / 'README.md').read_text()
  blocks = re.findall(r'^```python\n(.*?)^```$', text, re.M | re.S)
  assert len(blocks) == 2
  for mark in ('jax.jit', 'jax.vmap', 'jax.grad', 'dispatch.sharded'):
    assert mark in ''.join(blocks)
  # Run where a user's script would be; the checkout comes first on the path.
  done = tree.run(
    '-W',
    'error',
    '-c',
    ''.join(blocks) + _CLAIMS,
    cwd=tmp_path,
    path=(tree.ROOT,),
  )
  assert done.stdout.split()[0] == re.search(r'# (\d+-\d+\S*)', text)[1]
