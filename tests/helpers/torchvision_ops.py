"""Operators that torchvision declares, for a torch without its compiled part.

transformers' video processors are checked once by hand, with torchvision in a
folder of its own (its wheel asks for another torch than this project's):

    pip install --no-deps --target TV torchvision==0.28.0
    PYTHONPATH=TV:tests python -m pytest -p helpers.torchvision_ops \\
        tests/models/test_qwen_video_processing.py -k torchvision

A plugin, as transformers imports torchvision as soon as it is there.
"""

import torch

LIBRARY = torch.library.Library('torchvision', 'DEF')
for _name in ('nms', 'qnms'):
  LIBRARY.define(f'{_name}(Tensor a, Tensor b, float c) -> Tensor')
