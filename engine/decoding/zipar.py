"""ZipAR: rows start before the row above is complete, one token of each active row in a forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..family import Family
from ..request import Request, prefix
from ..sampling import Purpose
from .base import Decoder, Outcome, Plan
from .drafting import window_steps
from .lockstep import draw_steps


@dataclass(frozen=True)
class ZipAR(Decoder):
    """Row-parallel decoding with a window (arXiv 2412.04062). Approximate: a token sees only what exists by then.

    Args:
        window: row i+1 begins when row i has this many tokens; at least the grid's width is serial decoding. A full
            grid takes W + (H - 1) * window forwards.
        grid: side in tokens; None is the largest of the family.
        zero_kv: as the published code does it: row 0 is drawn alone (2 W + (H - 2) * window forwards), and tokens that
            do not exist yet are seen as zeros instead of not at all.
    """

    name: ClassVar[str] = "zipar"
    window: int = 4
    grid: int | None = None
    zero_kv: bool = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1 token, got {self.window}")

    def resolve(self, family: Family) -> ZipAR:
        grid = family.grids[-1] if self.grid is None else self.grid
        if grid not in family.grids:
            raise ValueError(f"family {family.name!r} has no {grid}x{grid} grid; it has {list(family.grids)}")
        return ZipAR(self.window, grid, self.zero_kv)

    def grids(self, family: Family) -> tuple[int, ...]:
        return (self.resolve(family).grid or 0,)

    def plan(self, request: Request) -> Plan:
        grid = request.family.grids[-1] if self.grid is None else self.grid
        steps = window_steps(grid, grid, self.window)
        if self.zero_kv:
            first_row = [[c] for c in range(grid)]
            steps = first_row + window_steps(grid, grid - 1, self.window, 1) if grid > 1 else first_row
        with request.recorder.stage("zipar"):
            lane = request.lane(grid)
            tokens = torch.zeros(grid * grid, dtype=torch.int64, device=request.features.device)
            first = yield from prefix(lane)
            noise = request.noise(Purpose.TARGET)
            yield from draw_steps(request, lane, tokens, steps, noise, "zipar", {0: first}, unmasked=self.zero_kv)
        return Outcome(tokens.view(grid, grid), depth=len(steps))
