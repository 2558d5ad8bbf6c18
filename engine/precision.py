"""Float32 that is float32: no TF32 in products and convolutions while the engine computes on a GPU.

The settings of torch hold for the whole process. They are changed while any engine computes, and put back when the last
one is done: a caller finds them as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_LOCK = threading.Lock()
_inside = 0
_kept: list[str] = []


def _settings() -> list[Any]:
    """What holds a setting `fp32_precision`, in the order in which they are put back."""
    cudnn: Any = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]


def exact_float32(device: torch.device) -> AbstractContextManager[None]:
    """Products and convolutions of float32 in full precision on a GPU; elsewhere nothing changes."""
    return _exact() if device.type == "cuda" else nullcontext()


@contextmanager
def _exact() -> Iterator[None]:
    global _inside
    with _LOCK:
        if not _inside:
            _kept[:] = [setting.fp32_precision for setting in _settings()]
            for setting in _settings():
                setting.fp32_precision = "ieee"
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                for setting, before in zip(_settings(), _kept, strict=True):
                    setting.fp32_precision = before
