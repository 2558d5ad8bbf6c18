"""CUDA backend of `expand_islands`: one block an image."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..native import unusable
from .call import Call
from .reference import Expansion

__all__ = ["decline", "run", "unusable"]


def decline(call: Call) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    rejected = call.rejected
    if not rejected.is_cuda:
        return f"rejected must lie on a CUDA device, got {rejected.device}"
    side = native.module().MAX_SIDE
    if max(rejected.shape[1:]) > side:
        return (
            f"a grid of {rejected.shape[1]} x {rejected.shape[2]} exceeds the {side} x {side} that fit in shared memory"
        )
    return None


def run(call: Call) -> Expansion:
    """Expansion, labels and order; launched on the current stream."""
    rejected, radius, window = call
    rejected = rejected.contiguous()
    batch, height, width = rejected.shape
    expanded = torch.empty_like(rejected)
    labels, order = (torch.empty(rejected.shape, dtype=torch.int32, device=rejected.device) for _ in range(2))
    latest = None if window is None else empty_latest(rejected)
    with torch.cuda.device(rejected.device):
        native.module().expand_islands(
            [t.data_ptr() for t in (rejected, expanded, labels, order)] + [0 if latest is None else latest.data_ptr()],
            [batch, height, width],
            min(radius, max(height, width)),
            0 if window is None else min(window, width),
            native.stream(rejected),
        )
    return Expansion(expanded, labels, order)


def empty_latest(rejected: Tensor) -> Tensor:
    """Scratch int32 [B, islands, W]; islands touch nowhere, so they are at most as many as blocks of 2 x 2 cells."""
    batch, height, width = rejected.shape
    islands = ((height + 1) // 2) * ((width + 1) // 2)
    return torch.empty(batch, islands, width, dtype=torch.int32, device=rejected.device)
