"""Devices: which there are, what the host sends to them without waiting, and float32 that is float32 on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .arguments import shown

# The settings of torch hold for the whole process. They are changed while any engine computes, and put back when the
# last one is done: a caller finds them as they were.
_LOCK = threading.Lock()
_inside = 0
_kept: list[str] = []


def checked_device(device: str | torch.device) -> torch.device:
    """A device that an engine runs on; ValueError where it is none, or is not there."""
    try:
        found = torch.device(device) if isinstance(device, (str, torch.device)) else None
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"an engine runs on device 'cpu', 'cuda' or 'cuda:0', got {shown(device)}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, but torch sees no CUDA device; use device='cpu'")
    if found.type == "cuda" and found.index is not None and found.index >= torch.cuda.device_count():
        raise ValueError(f"there is no device {str(device)!r}: torch sees {torch.cuda.device_count()} CUDA device(s)")
    return found


def upload(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """An int64 tensor of numbers that the host knows, on a device.

    A GPU copies it from pinned memory while the host goes on; torch keeps that memory until the copy is done.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.int64, device=device)
    return torch.tensor(values, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)


def send(values: Tensor, target: Tensor) -> None:
    """Copy a tensor of the host into one of a device, as `upload` does."""
    if target.device.type != "cuda":
        target.copy_(values)
    else:
        target.copy_(values.pin_memory(), non_blocking=True)


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
