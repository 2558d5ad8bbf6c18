"""MuLo-SD with planted rejections: the verdict is drawn, so that models without training have any wanted acceptance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.decoding.mulo import MuloSD
from ...engine.request import Request
from ...engine.sampling import Logits
from ...kernels import philox

# A purpose of the random numbers that no decoder uses.
PURPOSE = philox.MASK


@dataclass(frozen=True)
class Planted(MuloSD):
    """MuLo-SD for measurements of speed: candidates stand at random, everything else runs as it is.

    Args:
        accepted: probability that a candidate stands, each for itself; the same for a seed in every decoder.
    """

    accepted: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.accepted <= 1:
            raise ValueError(f"accepted must be a share from 0 to 1, got {self.accepted}")

    @classmethod
    def of(cls, decoder: MuloSD, accepted: float) -> Planted:
        """A decoder with planted rejections; what only trained models need may be left open."""
        open_settings: dict[str, Any] = {"tau": 0.0, "radius": 1, "pool": 10}
        settings: dict[str, Any] = {**decoder.settings(), "accepted": accepted}
        return cls.from_settings(
            {k: open_settings[k] if v is None and k in open_settings else v for k, v in settings.items()}
        )

    def accept(
        self,
        request: Request,
        logits: Logits,
        tokens: Tensor,
        table: Tensor,
        positions: range,
    ) -> Tensor:
        # The real verdict is computed as well: it belongs to what is timed.
        super().accept(request, logits, tokens, table, positions)
        where = torch.arange(positions.start, positions.stop, device=tokens.device)
        drawn = philox.uniform(torch.full_like(where, request.seed), where, 1, PURPOSE)
        return drawn[:, 0] < self.accepted
