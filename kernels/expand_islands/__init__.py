"""From a rejection map to the cells to resample, their islands and their order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import Op
from .call import Call
from .reference import Expansion, expand_islands_reference

__all__ = ["Expansion", "expand_islands"]

_OP = Op(
    "expand_islands",
    Call,
    expand_islands_reference,
    schema="(Tensor rejected, int radius, int? window, str? backend=None) -> (Tensor, Tensor, Tensor)",
    fake=lambda rejected, *_, **__: (
        torch.empty_like(rejected),
        torch.empty_like(rejected, dtype=torch.int32),
        torch.empty_like(rejected, dtype=torch.int32),
    ),
    modules={"cuda": f"{__name__}.cuda", "triton": f"{__name__}.triton"},
)


def expand_islands(
    rejected: Tensor, radius: int, window: int | None = None, *, backend: str | None = None
) -> Expansion:
    """Expand rejected cells to their neighbourhoods, label the islands, and plan the order of resampling.

    * expanded: cells with abs(row - row_t) <= radius and abs(col - col_t) <= radius of a rejected cell t, none before
      the first rejected cell of the image in raster order.
    * labels: 8-connected components of expanded, numbered 1.. by the raster order of their first cells; 0 elsewhere.
    * order: the step (0, 1, ..) at which a cell is resampled, -1 elsewhere. `window` None: one cell a step in raster
      order. Otherwise all islands advance together; in a step go all cells whose left neighbour is not pending and
      whose island has no pending cell of an earlier row left of column `col + window`. `window` >= W
      finishes each row of an island before its next one (raster order, but for runs of one row that a gap separates:
      these go at the same time), `window` 1 is a wavefront.

    Args:
        rejected: bool [B, H, W].
        radius: in cells, at least 0; it may exceed the grid.
        window: in cells, at least 1, or None.
        backend: force "cuda", "triton" or "torch". The first two serve grids up to 128 x 128 and do not wait for the
            device.

    Returns:
        `Expansion(expanded bool, labels int32, order int32)`, each [B, H, W].

    Raises:
        ValueError: an argument has the wrong type, shape or range.
        BackendUnavailable: the forced backend cannot serve the call.

    Source: MuLo-SD, arXiv 2601.05149 (local expansion); ZipAR, arXiv 2412.04062 (window order).
    """
    if rejected.dtype != torch.bool or rejected.dim() != 3 or 0 in rejected.shape[1:]:
        raise ValueError(f"rejected must be bool [B, H, W], got {rejected.dtype} {list(rejected.shape)}")
    if radius < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, or None for one cell a step, got {window}")
    return Expansion(*_OP(Call(rejected, radius, window), backend))
