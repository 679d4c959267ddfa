"""Examples as a TensorFlow Datasets data set, without TensorFlow.

One builder, `core_evidence`, a config a data set and its settings. The schema
is flat: nested sequences need TensorFlow to be written. Pictures are encoded
bytes in a sequence of texts, so that they are decoded by whoever looks at them;
boxes are x0, y0, x1, y1 in shares of the picture. The frames of a video are
pictures of which `clip_first` names the first, `clip_frames` how many they are,
and `clip_seconds` when each is shown, one clip after the other. `exact` has
boxes, span and clips once more as JSON: numbers are stored in float32, and an
example must come back as it was.

    tfds.builder_from_directory(PATH).as_data_source('test')[0]['question']
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import importlib
import os
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from corejax import errors
from corejax.data import fields
from corejax.data import prepared


def _tfds():
  try:
    return importlib.import_module('tensorflow_datasets')
  except ImportError as e:
    raise errors.UserError(
      'prepared data needs tensorflow_datasets, which is not installed '
      f"({e.name}): pip install 'corejax[data]'"
    ) from e


_CLIPS = {
  'clip_first': np.int32,
  'clip_frames': np.int32,
  'clip_seconds': np.float32,
}


def _features(tfds) -> Any:
  def boxes(name):
    return {
      f'{name}_media': tfds.features.Tensor(shape=(None,), dtype=np.int32),
      f'{name}_box': tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
    }

  return tfds.features.FeaturesDict(
    {name: tfds.features.Text() for name in (*prepared.TEXTS, 'meta', 'exact')}
    | {
      'media': tfds.features.Sequence(tfds.features.Text()),
      'answers': tfds.features.Sequence(tfds.features.Text()),
      'span': tfds.features.Tensor(shape=(2,), dtype=np.float32),
    }
    | {
      name: tfds.features.Tensor(shape=(None,), dtype=dtype)
      for name, dtype in _CLIPS.items()
    }
    | boxes('evidence')
    | boxes('distractors')
  )


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
  """A row with its lists of numbers as arrays, empty ones too."""
  arrays: dict[str, Any] = {'span': np.array(row['span'], np.float32)}
  for name in ('evidence', 'distractors'):
    media, box = row[f'{name}_media'], row[f'{name}_box']
    arrays[f'{name}_media'] = np.array(media, np.int32).reshape(-1)
    arrays[f'{name}_box'] = np.array(box, np.float32).reshape(-1, 4)
  for name, dtype in _CLIPS.items():
    arrays[name] = np.array(row[name], dtype).reshape(-1)
  return {**row, **arrays}


def write(
  folder: str | os.PathLike[str],
  config: str,
  split: str,
  rows: Callable[[], Iterable[Mapping[str, Any]]],
) -> pathlib.Path:
  """Writes a data set; one that is there already, and whole, is kept.

  Args:
    folder: core_evidence/<config>/<version> is made in it.
    config: prepared.config_name.
    split: its only split.
    rows: gives what prepared.to_row made, in order, at least one.

  Returns:
    The data set's own folder.

  Raises:
    UserError: tensorflow_datasets is not installed.
  """
  tfds: Any = _tfds()
  with tfds.core.registered.skip_registration():

    class CoreEvidence(tfds.core.GeneratorBasedBuilder):
      """Questions about pictures, with the boxes in which the answers lie."""

      VERSION = tfds.core.Version('2.0.0')
      name = 'core_evidence'
      pkg_dir_path = None

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self, features=_features(tfds), disable_shuffling=True
        )

      def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples()}

      def _generate_examples(self):
        for number, row in enumerate(rows()):
          yield number, _row(row)

  @dataclasses.dataclass(eq=False)
  class Config(tfds.core.BuilderConfig):
    """Its name says all."""

  builder = CoreEvidence(
    config=Config(name=config),
    data_dir=os.fspath(folder),
    file_format='array_record',
  )
  # It talks to stdout, which is for results.
  with (
    contextlib.redirect_stdout(sys.stderr),
    tempfile.TemporaryDirectory() as nothing,
  ):
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_dir=nothing)
  return pathlib.Path(builder.data_path)


def _unreadable() -> tuple[type[Exception], ...]:
  """What the libraries raise at files that are damaged."""
  formats = importlib.import_module('google.protobuf.json_format')
  messages = importlib.import_module('google.protobuf.message')
  return (
    *(OSError, ValueError, LookupError, AssertionError, TypeError),
    *(AttributeError, RuntimeError, formats.Error, messages.Error),
  )


def open_rows(
  path: str | os.PathLike[str], split: str
) -> Sequence[Mapping[str, Any]]:
  """The examples of a data set, by number.

  Raises:
    UserError: there is none, it is damaged, or tensorflow_datasets is not
      installed.
  """
  tfds, path = _tfds(), pathlib.Path(path)
  try:
    # It names classes, which are imported: by `write` alone, or not at all.
    content = fields.load_json((path / 'features.json').read_bytes())
    formats = importlib.import_module('google.protobuf.json_format')
    if content != formats.MessageToDict(_features(tfds).to_proto()):
      raise ValueError('features.json is not what this version writes')
    builder = tfds.builder_from_directory(os.fspath(path))
    return _Rows(builder.as_data_source(split), _unreadable())
  except _unreadable() as e:
    raise errors.UserError(
      f'{path}: no data set to be read ({" ".join(str(e).split())[:200]}); '
      'make it again (python -m experiments.prepare)'
    ) from e


class _Rows(Sequence):
  """A data source whose damage rejects the example that it concerns."""

  def __init__(self, source: Any, unreadable: tuple[type[Exception], ...]):
    self._source, self._unreadable = source, unreadable

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index):
    try:
      return self._source[index]
    except self._unreadable as e:
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'example {index} is damaged ({" ".join(str(e).split())[:200]}); make '
        'the folder again (python -m experiments.prepare)',
      ) from e
