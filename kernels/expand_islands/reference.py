"""The specification of `expand_islands` in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Expansion(NamedTuple):
    """Cells to resample: `expanded` bool, `labels` int32 (0 = none), `order` int32 (-1 = none), each [B, H, W]."""

    expanded: Tensor
    labels: Tensor
    order: Tensor


def expand_islands_reference(rejected: Tensor, radius: int, window: int | None) -> Expansion:
    """Expansion, labels and order; arguments are those of `expand_islands`, already checked."""
    expanded = expand(rejected, radius)
    labels = label(expanded)
    return Expansion(expanded, labels, serial_order(expanded) if window is None else window_order(labels, window))


def expand(rejected: Tensor, radius: int) -> Tensor:
    """Maximum filter of size (2 * radius + 1)**2, cleared before the first rejected cell of each image."""
    _, height, width = rejected.shape
    rows, cols = min(radius, height - 1), min(radius, width - 1)
    grown = F.max_pool2d(rejected[:, None].float(), (2 * rows + 1, 1), stride=1, padding=(rows, 0))
    grown = F.max_pool2d(grown, (1, 2 * cols + 1), stride=1, padding=(0, cols))
    reached = (rejected.flatten(1).cumsum(dim=1) > 0).view_as(rejected)
    return grown[:, 0].bool() & reached


def label(mask: Tensor) -> Tensor:
    """8-connected components, int32 [B, H, W], numbered from 1 by the raster order of their first cells.

    Every cell holds the index of some cell of its component, at first its own. It takes the least index among its
    neighbours, then follows that index one hop, until nothing changes: each then holds the component's first cell.
    """
    batch, height, width = mask.shape
    cells = height * width
    inside = mask.flatten(1)
    own = torch.arange(cells, device=mask.device).expand(batch, cells)
    root = torch.where(inside, own, cells)
    while True:
        # float32 holds indices exactly up to 2**24 cells; max-pooling of negatives is the minimum filter.
        least = -F.max_pool2d(-root.view(batch, 1, height, width).float(), 3, stride=1, padding=1)
        hop = torch.where(inside, least.long().flatten(1), own)
        following = torch.where(inside, hop.gather(1, hop), cells)
        if torch.equal(following, root):
            break
        root = following
    number = (inside & (root == own)).cumsum(dim=1)
    labels = number.gather(1, root.clamp(max=cells - 1)).where(inside, 0)
    return labels.view(batch, height, width).int()


def serial_order(mask: Tensor) -> Tensor:
    """Raster rank of each cell of the mask within its image, int32 [B, H, W], -1 outside."""
    flat = mask.flatten(1)
    return (flat.cumsum(dim=1) - 1).where(flat, -1).view_as(mask).int()


def window_order(labels: Tensor, window: int) -> Tensor:
    """Step of each cell under the readiness rule, int32 [B, H, W], -1 outside.

    Every ready cell goes at once, so the step of a cell is the longest chain of cells that it must wait for. `latest`
    keeps, for each island, the largest step of the rows above at columns 0..c.
    """
    batch, height, width = labels.shape
    order = torch.full((batch, height, width), -1, dtype=torch.int32)
    for image, grid in enumerate(labels.tolist()):
        latest: dict[int, list[int]] = {}
        for row, line in enumerate(grid):
            if not any(line):
                continue
            steps = [-1] * width
            left = -1
            for col, island in enumerate(line):
                if island:
                    above = latest.get(island)
                    wait = above[min(col + window, width) - 1] if above else -1
                    left = 1 + (left if left > wait else wait)
                    steps[col] = left
                else:
                    left = -1
            for island in set(line) - {0}:
                before = latest.get(island, [-1] * width)
                largest, merged = -1, []
                for col in range(width):
                    if line[col] == island and steps[col] > largest:
                        largest = steps[col]
                    merged.append(max(largest, before[col]))
                latest[island] = merged
            order[image, row] = torch.tensor(steps, dtype=torch.int32)
    return order.to(labels.device)
