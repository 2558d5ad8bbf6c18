"""Draft and up-sample without verification: the floor that shows what verification buys (tau = 0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..family import Family
from ..sampling import Purpose
from ..upsampling import check_upsampler, upsample
from .base import Batch, Decoder, Outcome
from .serial import draw_raster


@dataclass(frozen=True)
class DraftOnly(Decoder):
    """Serial draft on the small grid, up-sampled to the target grid.

    Args:
        scale: r = target / drafter; None is the largest of the family.
        upsampler: "latent", "pixel" or "sr".
    """

    name: ClassVar[str] = "draft-only"
    scale: int | None = None
    upsampler: str = "latent"

    def __post_init__(self) -> None:
        check_upsampler(self.upsampler)

    def resolve(self, family: Family) -> DraftOnly:
        scale = family.scales[-1] if self.scale is None and family.scales else self.scale
        family.drafter_grid(scale or 0)
        return DraftOnly(scale, self.upsampler)

    def decode(self, batch: Batch) -> Outcome:
        target = batch.family.grids[-1]
        grid = batch.family.drafter_grid(self.scale or 0)
        with batch.recorder.stage("draft"):
            session = batch.session(grid, "draft")
            draft = torch.zeros(batch.size, grid * grid, dtype=torch.int64, device=batch.cond.device)
            noise = batch.noise(Purpose.DRAFT)
            draw_raster(session, draft, 0, grid * grid, session.first, noise, batch.sampling)
        with batch.recorder.stage("upsample"):
            tokens = upsample(batch.family, draft.view(-1, grid, grid), target, self.upsampler)
        return Outcome(tokens)
