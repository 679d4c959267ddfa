"""RefCOCOg's annotations, in either layout, as one list of expressions.

REFER's layout is a pickle of references beside COCO's instances, where a
reference names its rectangle by `ann_id`:

    refs(umd).p     [{ref_id, ann_id, image_id, split, file_name, sentences:
                      [{sent_id, sent, raw, tokens}], ...}]
    instances.json  {images: [{id, file_name, width, height}],
                     annotations: [{id, image_id, bbox, iscrowd, ...}]}

TensorFlow Datasets' layout is one file, `refcoco.json`, with three data sets
and both ways of splitting in it:

    {ref: [as above, and dataset, dataset_partition],
     coco_anns: {"<image_id>": {info: <image>, anns: [<annotation>]}}}

A reference's `file_name` is no file: the annotation's id is glued to it. The
picture's name is that of `images`. Boxes are x, y, width, height in pixels.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

from corejax import errors
from corejax.data import fields
from corejax.data import plain_pickle

NAME = 'refcocog'
SPLITS = {'umd': ('train', 'val', 'test'), 'google': ('train', 'val')}
TASK = 'box'
TOLERANCE_PIXELS = 1.0


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture of `images`; its annotations are unread.

  Attributes:
    file_name: below the folder of pictures.
    size: (width, height) in pixels.
    annotations: raw, in the file's order.
  """

  file_name: str
  size: tuple[int, int]
  annotations: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Record:
  """One expression; with a fault, nothing after `fault` is meant.

  Attributes:
    ref_id, number: of the reference, and of the sentence within it.
    fault: why it cannot be used, None if it can.
    sent_id: of the sentence.
    expression: the words.
    ann_id: of the rectangle.
    corners: of the rectangle, shares of the picture.
    picture: where it lies.
  """

  ref_id: str
  number: int
  fault: errors.Rejected | None = None
  sent_id: str = ''
  expression: str = ''
  ann_id: str = ''
  corners: tuple[float, float, float, float] = (0, 0, 1, 1)
  picture: Picture | None = None

  @property
  def task(self) -> str | None:
    return None if self.fault else TASK

  @property
  def cluster(self) -> str:
    return self.picture.file_name if self.picture else f'ref {self.ref_id}'


class Malformed(ValueError):
  """A file that is not of the layout at all."""


class _Pictures:
  """Pictures by id, each checked when first asked for."""

  def __init__(self, raw: Mapping[str, Any], annotations: Mapping[str, list]):
    self._raw, self._annotations = raw, annotations
    self._made: dict[str, Picture] = {}

  def get(self, image_id: str) -> Picture:
    """Raises Rejected: there is none, or none that can be."""
    if image_id not in self._made:
      if image_id not in self._raw:
        raise fields.bad(f'no picture of id {image_id}')
      raw = self._raw[image_id]
      self._made[image_id] = Picture(
        fields.file_name(raw, 'file_name'),
        (fields.count(raw, 'width', 1), fields.count(raw, 'height', 1)),
        tuple(self._annotations.get(image_id, ())),
      )
    return self._made[image_id]


def corners(annotation: Any, size: tuple[int, int]):
  """An annotation's `bbox` as shares of its picture.

  Raises:
    Rejected: it is no box on the picture.
  """
  x, y, width, height = fields.numbers(annotation, 'bbox', 4)
  return fields.shares(
    (x, y, x + width, y + height), size, 'on a picture', TOLERANCE_PIXELS
  )


def _by_id(rows: Any) -> dict[str, Any]:
  """Rows with an id, by it; others are left out, as nothing can name them."""
  found = {}
  for row in rows if isinstance(rows, list) else ():
    name, fault = fields.fault_of(fields.identifier, row, 'id')
    if not fault:
      found[name] = row
  return found


def _grouped(annotations: Iterable[Any]) -> dict[str, list[Any]]:
  """Annotations by the picture they name."""
  found: dict[str, list[Any]] = {}
  for row in annotations:
    name, fault = fields.fault_of(fields.identifier, row, 'image_id')
    if not fault:
      found.setdefault(name, []).append(row)
  return found


def _references(refs: list[Any], split: str, pictures: _Pictures):
  """The records of a split, and references of which no split can be told."""
  records: list[Record] = []
  seen: set[str] = set()
  for number, ref in enumerate(refs):
    place = f'reference {number}'
    try:
      if fields.text(ref, 'split') != split:
        continue
      place = fields.identifier(ref, 'ref_id')
      if place in seen:
        raise fields.bad('ref_id is there twice')
      seen.add(place)
      sentences = fields.get(ref, 'sentences', list)
      if not sentences:
        raise fields.bad('no sentences')
    except errors.Rejected as e:
      fault = errors.Rejected(e.reason, f'{place}: {e.detail}')
      records.append(Record(place, 0, fault))
      continue
    said, fault = fields.fault_of(_target, ref, pictures)
    for n, sentence in enumerate(sentences):
      records.append(_record(place, n, sentence, said, fault))
  return records


def _target(ref: Any, pictures: _Pictures):
  """What all sentences of a reference share."""
  picture = pictures.get(fields.identifier(ref, 'image_id'))
  ann_id = fields.identifier(ref, 'ann_id')
  for annotation in picture.annotations:
    if fields.fault_of(fields.identifier, annotation, 'id')[0] == ann_id:
      return dict(
        ann_id=ann_id,
        corners=corners(annotation, picture.size),
        picture=picture,
      )
  raise errors.Rejected(
    errors.Reason.NO_EVIDENCE,
    f'no annotation {ann_id} on {picture.file_name}',
  )


def _record(place, number, sentence, said, fault) -> Record:
  try:
    if fault:
      raise fault
    return Record(
      place,
      number,
      None,
      fields.identifier(sentence, 'sent_id'),
      fields.text(sentence, 'sent'),
      **said,
    )
  except errors.Rejected as e:
    where = errors.Rejected(e.reason, f'{place}/{number}: {e.detail}')
    return Record(place, number, where)


def parse_refer(refs: bytes, instances: bytes, split: str) -> list[Record]:
  """Every expression of a split of REFER's two files, unusable ones included.

  Args:
    refs: of refs(umd).p or refs(google).p.
    instances: of instances.json.
    split: its name.

  Raises:
    Malformed: one of the two is something else.
  """
  try:
    listed = plain_pickle.loads(refs)
  except plain_pickle.NotPlain as e:
    raise Malformed(f'the references are no pickle of plain data: {e}') from e
  if not isinstance(listed, list):
    raise Malformed('the references are no list')
  try:
    coco = fields.load_json(instances)
  except ValueError as e:
    raise Malformed(f'the instances are no JSON: {e}') from e
  if not isinstance(coco, dict) or not isinstance(coco.get('images'), list):
    raise Malformed('the instances have no list images')
  if not isinstance(coco.get('annotations'), list):
    raise Malformed('the instances have no list annotations')
  pictures = _Pictures(_by_id(coco['images']), _grouped(coco['annotations']))
  return _references(listed, split, pictures)


def parse_tfds(content: bytes, split: str, split_by: str) -> list[Record]:
  """As `parse_refer`, of refcoco.json.

  Args:
    content: of the file.
    split: its name.
    split_by: 'umd' or 'google'.

  Raises:
    Malformed: it is something else.
  """
  try:
    raw = fields.load_json(content)
  except ValueError as e:
    raise Malformed(f'no JSON: {e}') from e
  if not isinstance(raw, dict) or not isinstance(raw.get('ref'), list):
    raise Malformed('no list ref')
  coco = raw.get('coco_anns')
  if not isinstance(coco, dict):
    raise Malformed('no object coco_anns')
  images, annotations = {}, {}
  for image_id, entry in coco.items():
    if isinstance(entry, dict):
      images[image_id] = entry.get('info')
      rows = entry.get('anns')
      annotations[image_id] = rows if isinstance(rows, list) else []
  ours = [
    ref
    for ref in raw['ref']
    if not isinstance(ref, dict)
    or (
      ref.get('dataset', NAME) == NAME
      and ref.get('dataset_partition', split_by) == split_by
    )
  ]
  return _references(ours, split, _Pictures(images, annotations))
