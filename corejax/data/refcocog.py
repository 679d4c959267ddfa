"""RefCOCOg: which of the things in a photograph do these words mean?

An example is one expression and its photograph; the answer is the box of what
is meant, in words (boxes.py), the evidence is that box, distractors are
COCO's other boxes on the photograph. `--split_by` chooses the division: `umd`
(train, val, test, no picture in two of them) or `google` (train, val). What the
annotations look like: `corejax.data.refcocog_records`.

Where files are looked for, in this order:

    annotations   refs(umd).p or refs(google).p with instances.json beside it in
                  DIR/refcocog, DIR; then refcoco.json (TensorFlow Datasets) in
                  DIR/refcocog, DIR
    photographs   DIR/images/mscoco/images/train2014, DIR/train2014,
                  DIR/coco_train2014, DIR/images/train2014, DIR/images, DIR

A photograph whose size is not the annotated one is rejected, and so is one that
its EXIF turns and that was annotated as turned; where sizes agree, boxes are
those of the stored frame. Crowds, and boxes that mostly are the evidence
annotated again, are no distractors. Question and answer are worded by us, as
this data set asks none:

    Please give the bounding box of what these words describe: the tall pot
    [0.51, 0.50, 0.75, 0.94]

Scored by IoU >= 0.5 of plain areas, prec@1 in papers. Not comparable with
numbers that take a detector's proposals, or that add a pixel to every side.
"""

from collections.abc import Sequence
import os
import pathlib

from corejax import errors
from corejax import grounding
from corejax.data import boxes
from corejax.data import example as example_lib
from corejax.data import fields
from corejax.data import files
from corejax.data import pictures
from corejax.data import recorded
from corejax.data import refcocog_records as records_lib

NAME = records_lib.NAME
INSTANCES = 'instances.json'
TFDS_FILE = 'refcoco.json'
SPLIT_BY = tuple(records_lib.SPLITS)
QUESTION = 'Please give the bounding box of what these words describe: {}'

_GET_REFS = (
  'refcocog.zip of github.com/lichengunc/refer, or refcoco.json as '
  "tensorflow_datasets' ref_coco has it made"
)
_GET_PICTURES = 'COCO train2014 of cocodataset.org, train2014.zip'
_PICTURES = (
  'images/mscoco/images/train2014',
  'train2014',
  'coco_train2014',
  'images/train2014',
  'images',
  '',
)
# An annotation that agrees more than this with the evidence (IoU) is the same
# thing under another category, not something else.
_SAME = 0.5


class RefCOCOg(recorded.Recorded[records_lib.Record]):
  """An example.Source; one record is one expression, in the file's order.

  Attributes:
    name, split, fingerprint: as example.Source says. The fingerprint covers the
      annotations, the settings and which photographs are there.
  """

  name = NAME

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    *,
    split: str = 'test',
    split_by: str = 'umd',
    tasks: Sequence[str] | None = None,
  ):
    """Reads the annotations; photographs are opened when an example is.

    Args:
      data_dir: holds the files, see the head of this module.
      split: 'train', 'val', or, by umd, 'test'.
      split_by: one of SPLIT_BY.
      tasks: 'box' is the only one.

    Raises:
      UserError: a setting out of range, or no annotations, or no photograph at
        all. A photograph that is missing while others are there rejects its own
        expressions only.
    """
    if split_by not in SPLIT_BY:
      raise errors.UserError(
        f'--split_by={split_by[:60]}: not one of {", ".join(SPLIT_BY)}'
      )
    recorded.check_split(
      f'{NAME} split by {split_by}', split, records_lib.SPLITS[split_by]
    )
    self.split = split
    self._split_by = split_by
    wanted = files.Wanted(NAME, data_dir)
    contents = self._read(wanted)
    records = self._parse(contents)
    self._records = recorded.chosen(NAME, records, tasks)
    names = [r.picture.file_name for r in self._records if r.picture]
    places = wanted.at(*_PICTURES)
    self._paths = files.holding(names, places)
    if names and not self._paths:
      several = sorted(set(names))
      wanted.missing(
        f'all {len(several)} photographs, {files.listed(several)}',
        places,
        _GET_PICTURES,
      )
    wanted.check()
    self.fingerprint = recorded.digest(
      *contents.values(), split, split_by, sorted(self._paths)
    )

  def _read(self, wanted: files.Wanted) -> dict[pathlib.Path, bytes]:
    """REFER's two files, or the one of TensorFlow Datasets."""
    folders = wanted.at('refcocog', '')
    name = f'refs({self._split_by}).p'
    for folder in folders:
      pair = [folder / name, folder / INSTANCES]
      if all(path.is_file() for path in pair):
        return {path: files.read(path) for path in pair}
    for folder in folders:
      path = folder / TFDS_FILE
      if path.is_file():
        return {path: files.read(path)}
    wanted.missing(
      f'{name} with {INSTANCES} beside it, or {TFDS_FILE}', folders, _GET_REFS
    )
    wanted.missing(
      'the photographs (once the annotations say which)',
      wanted.at(*_PICTURES),
      _GET_PICTURES,
    )
    wanted.check()
    raise AssertionError('check() raises')

  def _parse(self, contents):
    paths = list(contents)
    try:
      if len(paths) == 2:
        refs, instances = contents.values()
        records = records_lib.parse_refer(refs, instances, self.split)
      else:
        records = records_lib.parse_tfds(
          contents[paths[0]], self.split, self._split_by
        )
    except records_lib.Malformed as e:
      raise errors.UserError(
        f'{" and ".join(map(str, paths))}: {e}; {_GET_REFS}'
      ) from e
    if all(r.fault for r in records):
      why = f' ({records[0].fault})' if records else ''
      raise errors.UserError(
        f'{paths[0]}: holds no reference of --split={self.split}, '
        f'--split_by={self._split_by} that can be used{why}; {_GET_REFS}'
      )
    return records

  def _example(self, record: records_lib.Record) -> example_lib.Example:
    picture = record.picture
    assert picture is not None
    where = f'{record.ref_id}/{record.number}'
    if picture.file_name not in self._paths:
      raise errors.Rejected(
        errors.Reason.MISSING_MEDIA,
        f'{where}: {picture.file_name}; {_GET_PICTURES}',
      )
    data = recorded.with_place(
      pictures.read, where, self._paths[picture.file_name]
    )
    pictures.check_size(data, picture.size, f'{where}: {picture.file_name}')
    return example_lib.Example(
      id=f'{NAME}/{self.split}/{self._split_by}-{where}',
      source=NAME,
      split=self.split,
      task=records_lib.TASK,
      media=(data,),
      question=QUESTION.format(record.expression),
      answers=(
        grounding.write_box(record.corners, boxes.STORED, picture.size),
      ),
      cluster=picture.file_name,
      scorer='iou50',
      evidence=(example_lib.Box(0, *record.corners),),
      distractors=_others(record, picture),
      meta={
        'ref_id': record.ref_id,
        'sent_id': record.sent_id,
        'ann_id': record.ann_id,
        'expression': record.expression,
        'file_name': picture.file_name,
        'media_hw': [[picture.size[1], picture.size[0]]],
        'box_answers': boxes.STORED,
        'evidence_level': 'region',
      },
    )


def _others(record, picture) -> tuple[example_lib.Box, ...]:
  """Boxes of the other things; an annotation that is none is not one."""
  found = []
  for annotation in picture.annotations:
    if not isinstance(annotation, dict) or annotation.get('iscrowd'):
      continue
    corners, fault = fields.fault_of(
      records_lib.corners, annotation, picture.size
    )
    if not fault and grounding.box_iou(corners, record.corners) <= _SAME:
      found.append(example_lib.Box(0, *corners))
  return tuple(dict.fromkeys(found))
