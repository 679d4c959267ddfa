"""What a ranking's folder holds, for comparing runs byte by byte."""

import csv
import json
import pathlib
import zipfile

# The embedded model that is fastest to load, three parts, a short offline half.
SMALL = dict(
  checkpoint='planted',
  limit=12,
  batch_size=4,
  bootstrap=50,
  permutations=50,
)
PARTS = 3
# Of a record: what time it was, where it ran, and what the command was.
_OWN = ('started', 'updated', 'device', 'mesh', 'flags', 'compile_cache')


def flags(**settings) -> list[str]:
  """Settings as flags; True is --name, False is --noname."""
  return [
    f'--{"" if value else "no"}{name}'
    if isinstance(value, bool)
    else f'--{name}={value}'
    for name, value in settings.items()
  ]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """Every file of a run but its lock; of run.json what a second run repeats."""
  found = {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name not in ('.lock', 'run.json')
  }
  record = json.loads((folder / 'run.json').read_text())
  kept = {name: x for name, x in record.items() if name not in _OWN}
  found['run.json'] = json.dumps(kept, sort_keys=True).encode()
  return found


def assert_same(folder: pathlib.Path, expected: dict[str, bytes], when=''):
  """The folder holds these files with these bytes and no other."""
  found = contents(folder)
  assert sorted(found) == sorted(expected), when
  for name, data in expected.items():
    assert found[name] == data, f'{name} {when}'


def assert_whole(folder: pathlib.Path) -> None:
  """run.json and every part, if there, are whole: true at any moment."""
  if (folder / 'run.json').exists():
    json.loads((folder / 'run.json').read_text())
  for part in (folder / 'scores').glob('part-*.npz'):
    with zipfile.ZipFile(part) as f:
      assert f.testzip() is None


def largest_difference(one: pathlib.Path, two: pathlib.Path) -> float:
  """Of the heads' RAM between two runs.

  Heads that tie may change places: compared by head, the ranks by score.
  """
  rows = []
  for folder in (one, two):
    with (folder / 'heads.csv').open(newline='') as f:
      rows.append(
        {(r['layer'], r['head']): float(r['ram']) for r in csv.DictReader(f)}
      )
  assert rows[0].keys() == rows[1].keys()
  by_head = max(abs(rows[0][head] - rows[1][head]) for head in rows[0])
  by_rank = max(abs(a - b) for a, b in zip(rows[0].values(), rows[1].values()))
  return max(by_head, by_rank)


def indices(folder: pathlib.Path) -> list[int]:
  """Records that examples.jsonl and rejected.jsonl tell of, in order."""
  lines = [
    line
    for name in ('examples.jsonl', 'rejected.jsonl')
    for line in (folder / name).read_text().splitlines()
  ]
  return sorted(json.loads(line)['index'] for line in lines)
