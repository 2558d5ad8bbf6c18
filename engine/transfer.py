"""What the host tells the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
