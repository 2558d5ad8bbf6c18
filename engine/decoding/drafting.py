"""The draft of MuLo-SD: rows of the small grid, serially or with a ZipAR window."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..lane import Lane
from ..request import Request, Steps
from ..sampling import Logits, Noise
from .lockstep import draw_steps
from .serial import draw_raster


def window_steps(width: int, rows: int, window: int, first: int = 0) -> list[list[int]]:
    """Steps of a full grid under a window: cell (r, c) of `rows` rows is drawn in step r * window + c.

    Positions count from row `first`. `width + (rows - 1) * window` steps (ZipAR, arXiv 2412.04062).
    """
    window = min(window, width)
    steps: list[list[int]] = [[] for _ in range(width + (rows - 1) * window)]
    for r in range(rows):
        for c in range(width):
            steps[r * window + c].append((first + r) * width + c)
    return steps


def draft_rows(
    request: Request,
    lane: Lane,
    tokens: Tensor,
    rows: Sequence[int],
    logits: Logits,
    noise: Noise,
    window: int | None,
) -> Steps:
    """Draw rows of `tokens` [N] in place; the cache holds everything before them.

    Args:
        rows: consecutive row numbers.
        logits: [1, V] of the first position.
        window: of ZipAR; None, or at least the width, is serial.
    """
    width = lane.grid
    start, stop = rows[0] * width, (rows[-1] + 1) * width
    if window is None or window >= width:
        yield from draw_raster(request, lane, tokens, start, stop, logits, noise, "draft")
        return
    steps = window_steps(width, len(rows), window, rows[0])
    yield from draw_steps(request, lane, tokens, steps, noise, "draft", {start: logits})
