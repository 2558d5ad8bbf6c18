"""Serial decoding: one token a forward in raster order, the baseline and the specification of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..family import Family
from ..sampling import Logits, Noise, Purpose, SamplingParams, sample
from ..session import Session
from .base import Batch, Decoder, Outcome


def draw_raster(
    session: Session, tokens: Tensor, start: int, stop: int, logits: Logits, noise: Noise, params: SamplingParams
) -> None:
    """Draw positions start..stop-1 of `tokens` [B, N] in place, one forward each but for the first.

    Args:
        session: its cache holds every position before `start`; position stop-1 is left unfed.
        logits: [B, 1, V] of position `start`.
    """
    recorder = session.recorder
    for i in range(start, stop):
        if i > start:
            fed = session.feed(tokens[:, i - 1 : i], i - 1)
            if fed is not None:
                logits = fed
        tokens[:, i] = sample(logits, noise.at(i), params)[:, 0]
        recorder.report(session.role, i + 1, session.size)


@dataclass(frozen=True)
class Serial(Decoder):
    """Serial AR decoding of one grid.

    Args:
        grid: side in tokens; None is the largest of the family.
    """

    name: ClassVar[str] = "serial"
    grid: int | None = None

    def resolve(self, family: Family) -> Serial:
        grid = family.grids[-1] if self.grid is None else self.grid
        if grid not in family.grids:
            raise ValueError(f"family {family.name!r} has no {grid}x{grid} grid; it has {list(family.grids)}")
        return Serial(grid)

    def decode(self, batch: Batch) -> Outcome:
        grid = batch.family.grids[-1] if self.grid is None else self.grid
        with batch.recorder.stage("serial"):
            session = batch.session(grid, "serial")
            tokens = torch.zeros(batch.size, grid * grid, dtype=torch.int64, device=batch.cond.device)
            noise = batch.noise(Purpose.TARGET)
            draw_raster(session, tokens, 0, grid * grid, session.first, noise, batch.sampling)
        return Outcome(tokens.view(batch.size, grid, grid))
