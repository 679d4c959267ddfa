"""torch, for parity tests: a test module that imports this skips without it."""

import pytest

_REASON = 'parity with transformers needs torch'
torch = pytest.importorskip('torch', reason=_REASON)
safetensors_torch = pytest.importorskip('safetensors.torch', reason=_REASON)
