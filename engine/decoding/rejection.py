"""The rule of MuLo-SD (arXiv 2601.05149): which candidates stand, what is drawn anew around the others, in which order.

1. A candidate stands when the target gives it and its nearest codes, pooled, at least the probability tau.
2. Each one that falls takes its neighbourhood with it: cells within the radius, never before the first one that fell.
3. What is drawn anew falls into islands. They are independent: they go in lock-step, each with ZipAR's window.
4. When drawing everything from the first one that fell takes no more steps, that is done: it is also better.

Acceptance behind the first rejection is a heuristic that leans on the locality of visual attention: it is lossy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.expand_islands import expand_islands
from ...kernels.upsample_pool import PooledMass, pooled_mass
from ..sampling import Logits, SamplingParams
from .zipar import steps_of

# What falls with a rejected candidate: its neighbourhood, nothing, or everything behind it.
REJECTIONS = ("local", "naive", "raster")


def verify(
    logits: Logits, tokens: Tensor, neighbours: Tensor, tau: float, params: SamplingParams, start: int = 0
) -> PooledMass:
    """Pooled mass and acceptance, both [n], of tokens [n] from raster position `start` on, under logits [n, V].

    Args:
        logits: of the target, before guidance and temperature.
        tokens: int64 [n], the candidates.
        neighbours: int32 [V, k], nearest codes of each code, itself first.
        tau: least mass that is accepted; 0 accepts all, more than 1 nothing.
        params: of decoding.
    """
    logits, params = params.prepare(logits, range(start, start + len(logits)))
    return pooled_mass(
        logits.cond,
        logits.uncond,
        tokens,
        neighbours,
        tau=tau,
        cfg_scale=params.cfg_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
    )


class Resampling(NamedTuple):
    """Positions by step, counted from the first of the map; bool [H, W] of all of them; and the number of islands."""

    steps: list[list[int]]
    expanded: Tensor
    islands: int


def plan_resampling(rejected: Tensor, radius: int, window: int | None, rejection: str = "local") -> Resampling:
    """What is drawn anew where candidates fell.

    Args:
        rejected: bool [H, W].
        radius: cells that a rejection spreads; "local" alone does.
        window: ZipAR's; None is one position a step in raster order.
        rejection: one of `REJECTIONS`.
    """
    if rejection != "local":
        radius = 0
    if rejection == "raster":
        rejected = behind_first(rejected)
    found = expand_islands(rejected[None], radius, window)
    # The one read of the device; what follows is planned on the host.
    order, labels = torch.stack((found.order[0], found.labels[0])).cpu()
    steps, expanded = steps_of(order), found.expanded[0]
    if window is not None and steps:
        first = min(steps[0])
        height, width = order.shape
        whole = steps_behind(first, height, width, window)
        if len(whole) <= len(steps):
            where = torch.arange(order.numel(), device=expanded.device).view_as(expanded)
            steps, expanded = whole, where >= first
    return Resampling(steps, expanded, int(labels.max()))


def steps_behind(first: int, height: int, width: int, window: int) -> list[list[int]]:
    """Positions by step when every cell from `first` on is drawn: what `expand_islands` plans for that one island.

    The row of `first` goes cell by cell, the next one begins when that has `window` cells, counted from its own left
    edge, and each further row `window` steps after the one above.
    """
    window = min(window, width)
    top, left = divmod(first, width)
    begins = [-left, *(max(0, window - left) + below * window for below in range(height - top - 1))]
    steps: list[list[int]] = [[] for _ in range(max(begins[-1] + width, width - left))]
    for row, begin in enumerate(begins, start=top):
        for column in range(left if row == top else 0, width):
            steps[begin + column].append(row * width + column)
    return steps


def behind_first(cells: Tensor) -> Tensor:
    """Every cell from the first marked one on, in raster order: bool [H, W] of bool [H, W]."""
    return (cells.flatten().long().cumsum(dim=0) > 0).view_as(cells)
