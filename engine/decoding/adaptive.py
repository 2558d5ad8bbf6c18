"""The setting `entropy_radius` of `mulo`: a radius that follows the local entropy of the target.

Not from the paper. The radius of a rejected token is `radius + entropy_radius * entropy`, in cells and nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sampling import Logits, SamplingParams, processed
from .rejection import behind_first
from .strategy import Strategy


@dataclass(frozen=True)
class EntropyRadius(Strategy):
    """Grows the radius by so many cells for each nat of the target's entropy at the rejected token; may be negative.

    Args:
        rate: cells a nat.
    """

    setting: ClassVar[str] = "entropy_radius"
    rate: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.rate):
            raise ValueError(f"entropy_radius must be a finite number of cells a nat, got {self.rate}")

    @property
    def value(self) -> float:
        return self.rate

    def look(self, logits: Logits, params: SamplingParams, positions: range) -> Tensor:
        return entropy(logits, params, positions.start)

    def spread(self, rejected: Tensor, seen: Tensor | None, radius: int) -> tuple[Tensor, int]:
        if seen is None:
            raise ValueError("a radius that follows the entropy needs the entropies")
        return spread(rejected, seen, radius, self.rate), 0


def entropy(logits: Logits, params: SamplingParams, start: int = 0) -> Tensor:
    """Entropy in nats, float32 [n], of the distributions that tokens from raster position `start` on are drawn from,
    given logits [n, V]."""
    kept = processed(logits, params, range(start, start + len(logits)))
    return torch.special.entr(kept.softmax(dim=-1)).sum(dim=-1)


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
    # NaN on a GPU, where logits are not finite: that is told when tokens are drawn from them.
    radii = (radius + rate * entropies).nan_to_num(radius).round().clamp(0, max(height, width)).long()
    out = rejected.clone()
    for r in radii[rejected].unique().tolist():
        cells = (rejected & (radii == r)).float()[None, None]
        out |= F.max_pool2d(cells, 2 * r + 1, stride=1, padding=r)[0, 0] > 0
    return out & behind_first(rejected)
