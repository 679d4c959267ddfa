"""Each picture through the tower once, with the same bits whenever that is."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from corejax.experiments import features
from corejax.experiments import measure
from corejax.experiments import rank
from corejax.experiments import resources as resources_lib
from corejax.experiments import step
from helpers import tree

OPTIONS = measure.Options(3, 'question', False, False, 0)
TOKENS = 3 * 256


@pytest.fixture(scope='module')
def resources():
  # Four questions on three pages each: batches of three share pictures.
  return resources_lib.load(
    rank.Config(checkpoint='planted', data='scenes_pages', pages=3, limit=24)
  )


@pytest.fixture(scope='module')
def batches(resources):
  return [
    measure.prepare_batch(resources, range(start, start + 3), OPTIONS)
    for start in range(0, 24, 3)
  ]


def shown(batch):
  return [p.encoded for p in batch.prepared]


def by_picture(cache, batch):
  """key -> features [I, D], as a batch is given them."""
  encoded, features_ID = cache.look(shown(batch), batch.pictures, TOKENS)
  found = {}
  for example, names in zip(encoded, batch.pictures):
    rows = example.feature_T[example.feature_T >= 0].reshape(len(names), -1)
    for name, row in zip(names, rows):
      found[name] = np.asarray(features_ID)[row]
  return found


def everything(cache, batches):
  found = {}
  for batch in batches:
    for name, values in by_picture(cache, batch).items():
      np.testing.assert_array_equal(values, found.setdefault(name, values))
  return found


@pytest.fixture(scope='module')
def expected(resources, batches):
  """The tower's own, all pictures at once."""
  found = {}
  with jax.default_matmul_precision('highest'):
    for batch in batches:
      for p, names in zip(batch.prepared, batch.pictures):
        values = resources.loaded.see(resources.loaded.model, p.encoded.vision)
        found.update(zip(names, np.asarray(values)))
  return found


def test_features_are_the_towers(resources, batches, expected):
  cache = features.FeatureCache(resources)
  found = everything(cache, batches)
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)
  # Different pictures, or the comparison says nothing.
  assert len({values.tobytes() for values in found.values()}) == len(found)


def test_each_picture_is_looked_at_once(resources, batches, expected):
  cache = features.FeatureCache(resources)
  for _ in range(2):
    everything(cache, batches)
  assert cache.n_looked == len(expected)
  asked = sum(len(names) for b in batches for names in b.pictures)
  assert asked > 3 * cache.n_looked


@pytest.mark.parametrize('max_bytes', [0, 20_000, 10**9])
def test_the_bits_do_not_depend_on_what_is_kept(resources, batches, max_bytes):
  first = everything(features.FeatureCache(resources), batches)
  cache = features.FeatureCache(resources, max_bytes)
  again = everything(cache, batches[::-1])
  for name, values in first.items():
    np.testing.assert_array_equal(again[name], values)
  kept = list(cache._kept.values())
  assert sum(values.nbytes for values in kept) <= max_bytes
  assert bool(kept) == (max_bytes > 0)


def test_a_batch_alone_has_the_bytes_that_it_has_among_others(
  resources, batches
):
  def part(runner, batch):
    started = measure.start_batch(runner, batch, OPTIONS)
    return measure.finish_batch(resources, started, OPTIONS)

  runner = step.Runner(resources, 3)
  among = [part(runner, batch) for batch in batches[:4]]
  alone = part(step.Runner(resources, 3), batches[3])
  assert alone.rows == among[3].rows
  for name in ('mass_ELNQR', 'written_ELNQ'):
    np.testing.assert_array_equal(getattr(alone, name), getattr(among[3], name))


def test_the_shape_depends_on_the_tokens_alone(resources, batches):
  cache = features.FeatureCache(resources)
  shapes = {cache.look(shown(b), b.pictures, TOKENS)[1].shape for b in batches}
  one = dataclasses.replace(batches[0], prepared=batches[0].prepared[:1])
  shapes.add(cache.look(shown(one), one.pictures[:1], TOKENS)[1].shape)
  assert len(shapes) == 1


def test_pictures_that_the_tokens_cannot_show_are_refused(resources, batches):
  cache = features.FeatureCache(resources)
  few = 3 * resources.loaded.config.n_features - 1
  with pytest.raises(ValueError, match=f'3 pictures of .* in {few} tokens'):
    cache.look(shown(batches[0])[:1], batches[0].pictures[:1], few)


def test_keys_tell_pixels_apart(resources):
  encoded = shown(measure.prepare_batch(resources, range(1), OPTIONS))[0]
  one, two, three = features.keys(encoded)
  assert len({one, two, three}) == 3
  pixels = encoded.vision['pixel_values'].copy()
  pixels[1, 2, 3, 4] = np.nextafter(pixels[1, 2, 3, 4], np.float32(9))
  changed = dataclasses.replace(encoded, vision={'pixel_values': pixels})
  assert features.keys(changed)[::2] == (one, three)
  assert features.keys(changed)[1] != two


# On four devices: features by their place in the group, and whole batches,
# plain and with shared prefixes.
_ON_A_MESH = """
import json, sys
import jax
import numpy as np
from corejax.experiments import features, measure, prefixes, rank, step
from corejax.experiments import resources as resources_lib

config = rank.Config(checkpoint='planted', mesh='data:2,model:2', limit=16)
resources = resources_lib.load(config)
options = measure.Options(8, 'question', False, False, 0)
first, second = (
  measure.prepare_batch(resources, range(i, i + 8), options) for i in (0, 8)
)
looks = []
for order in ((first, second), (second, first)):
  cache = features.FeatureCache(resources)
  encoded = [batch.prepared[0].encoded for batch in order]
  looks.append(
    np.asarray(cache.look(encoded, [features.keys(e) for e in encoded], 256)[1])
  )
n = resources.loaded.config.n_features
same = bool(
  (looks[0][:n] == looks[1][n:2 * n]).all()
  and (looks[1][:n] == looks[0][n:2 * n]).all()
)
found = {}
for name, least in (('plain', 10**12), ('shared', 0)):
  prefixes.LEAST_PARAMETERS = least
  runner = step.Runner(resources, 8)
  started = measure.start_batch(runner, first, options)
  found[name] = measure.finish_batch(resources, started, options).mass_ELNQR
np.savez(sys.argv[1], **found)
print(json.dumps([jax.device_count(), same, runner._sharing._n_slots]))
"""


def test_on_a_mesh(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _ON_A_MESH, str(tmp_path / 'mass.npz')],
    env=os.environ
    | {
      'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
      'JAX_PLATFORMS': 'cpu',
    },
    cwd=tree.ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  # Bits do not depend on which row of the mesh looks at a picture.
  assert json.loads(done.stdout) == [4, True, 2]
  config = rank.Config(checkpoint='planted', limit=16)
  resources = resources_lib.load(config)
  options = measure.Options(8, 'question', False, False, 0)
  batch = measure.prepare_batch(resources, range(8), options)
  started = measure.start_batch(step.Runner(resources, 8), batch, options)
  expected = measure.finish_batch(resources, started, options).mass_ELNQR
  with np.load(tmp_path / 'mass.npz') as found:
    for name in ('plain', 'shared'):
      np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6)
