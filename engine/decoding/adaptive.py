"""Thresholds and radii that follow the local entropy of the target, beyond the paper's fixed ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sampling import Logits, SamplingParams, processed


def entropy(logits: Logits, params: SamplingParams, start: int = 0) -> Tensor:
    """Entropy in nats, float32 [n], of the distributions that tokens from raster position `start` on are drawn from,
    given logits [n, V]."""
    kept = processed(logits, params, range(start, start + len(logits)))
    return torch.special.entr(kept.softmax(dim=-1)).sum(dim=-1)


def thresholds(tau: float, entropies: Tensor, rate: float) -> Tensor:
    """The least pooled mass that is accepted, by position: `tau * exp(-rate * entropy)`.

    Where many tokens would do, each has little mass; `rate` 1 asks for a share of the typical mass, as typical
    acceptance does (Medusa, arXiv 2401.10774).
    """
    return tau * torch.exp(-rate * entropies)


def spread(rejected: Tensor, entropies: Tensor, radius: int, rate: float) -> Tensor:
    """Expand each rejected cell by its own radius, `round(radius + rate * entropy)`, at least 0.

    Args:
        rejected: bool [H, W].
        entropies: float [H, W], in nats.
        radius, rate: in cells, and cells a nat.

    Returns:
        bool [H, W], nothing before the first rejected cell in raster order.
    """
    height, width = rejected.shape
    radii = (radius + rate * entropies).round().clamp(0, max(height, width)).long()
    out = rejected.clone()
    for r in radii[rejected].unique().tolist():
        cells = (rejected & (radii == r)).float()[None, None]
        out |= F.max_pool2d(cells, 2 * r + 1, stride=1, padding=r)[0, 0] > 0
    return out & (rejected.flatten().long().cumsum(dim=0) > 0).view_as(rejected)
