"""Serial decoding: one token a forward in raster order, the baseline and the specification of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..batch import Feed
from ..cache import Lane
from ..request import Request, Steps, prefix
from ..sampling import Logits, Noise, Purpose
from .base import OneGrid, Outcome, Plan


def draw_raster(
    request: Request,
    lane: Lane,
    tokens: Tensor,
    start: int,
    stop: int,
    logits: Logits,
    noise: Noise,
    role: str,
    show: bool = False,
) -> Steps:
    """Draw positions start..stop-1 of `tokens` [N] in place, one forward each but for the first.

    Args:
        lane: its cache holds every position before `start`; position stop-1 is left unfed. With its own `tokens` a GPU
            draws one after the other without the host.
        logits: [1, V] of position `start`.
        show: rows as previews.
    """
    for i in range(start, stop):
        if i == start:
            tokens[i : i + 1] = request.draw(logits, noise, [i])
        else:
            before, draw = range(i - 1, i), request.drawing(noise, [i], tokens)
            yield [Feed(lane, tokens, before, role=role, draw=draw, sources=before)]
        request.recorder.report(role, i + 1, lane.size)
        if show:
            request.show_rows(tokens[lane.layout.start :], lane.grid, i + 1 - lane.layout.start)


@dataclass(frozen=True)
class Serial(OneGrid):
    """Serial AR decoding of one grid.

    Args:
        grid: side in tokens; None is the largest of the family.
    """

    name: ClassVar[str] = "serial"
    row_ends: ClassVar[bool] = True
    first_grid: ClassVar[bool] = True
    grid: int | None = None

    def plan(self, request: Request) -> Plan:
        grid = self.side(request.family)
        with request.recorder.stage("serial"):
            lane = request.lane(grid)
            first = yield from prefix(lane)
            noise = request.noise(Purpose.TARGET)
            yield from draw_raster(request, lane, lane.tokens, 0, lane.size, first, noise, "serial", show=True)
        return Outcome(lane.image())
