"""ZipAR's window: rows start before the row above is complete, one token of each active row in a forward.

The decoder, and what MuLo-SD uses of it for drafts and for islands: many positions drawn in a stated order, several in
one forward. Positions that are yet to be drawn are hidden from attention. A position u is drawn from the logits after
token u-1, so a step feeds u-1 for every u that it draws, and every token drawn in the step before, which puts its key
and value in place of what stood there.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..batch import Feed, Result
from ..cache import Lane
from ..family import Family
from ..layout import Layout
from ..request import Request, prefix
from ..sampling import Logits, Noise, Purpose
from .base import OneGrid, Outcome, Plan


@dataclass(frozen=True)
class ZipAR(OneGrid):
    """Row-parallel decoding with a window (arXiv 2412.04062). Approximate: a token sees only what exists by then.

    Args:
        window: row i+1 begins when row i has this many tokens; at least the grid's width is serial decoding. A full
            grid takes W + (H - 1) * window forwards.
        grid: side in tokens; None is the largest of the family.
        zero_kv: as the published code does it, for windows of 2 to W - 1: row 0 is drawn alone (2 W + (H - 2) * window
            forwards), tokens that do not exist yet are seen as zeros instead of not at all, and a row r that begins
            early is fed the newest token of row r - 2, be that row complete or not. `SamplingParams.cfg_interval`
            counts raster positions here; there, tokens in the order of drawing, from 0 again behind row 0.
    """

    name: ClassVar[str] = "zipar"
    row_ends: ClassVar[bool] = True
    first_grid: ClassVar[bool] = True
    window: int = 4
    grid: int | None = None
    zero_kv: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(window=1)

    def check_layout(self, family: Family) -> None:
        grid = self.side(family)
        if self.zero_kv and family.model(grid).layout(grid).grids != (grid,):
            raise ValueError("zipar:zero_kv is the published code, which draws one grid alone: leave zero_kv out")
        if self.zero_kv and not family.model(grid).layout(grid).plain:
            raise ValueError("zipar:zero_kv is the published code, which knows no row ends: leave zero_kv out")

    def plan(self, request: Request) -> Plan:
        grid = self.side(request.family)
        layout = request.family.model(grid).layout(grid)
        steps = layout_steps(layout, self.window)
        if self.zero_kv:
            first_row = [[c] for c in range(grid)]
            steps = first_row + window_steps(grid, grid - 1, self.window, 1) if grid > 1 else first_row
        with request.recorder.stage("zipar"):
            lane = request.lane(grid)
            first = yield from prefix(lane)
            noise = request.noise(Purpose.TARGET)
            known, how = {0: first}, {"unmasked": self.zero_kv, "show": True}
            yield from draw_steps(request, lane, lane.tokens, steps, noise, "zipar", known, **how)
        return Outcome(lane.image(), depth=len(steps))


def layout_steps(layout: Layout, window: int) -> list[list[int]]:
    """Steps of all grids of a layout under a window, one grid behind the other."""
    return [[start + p for p in step] for start, side in layout.parts for step in window_steps(side, side, window)]


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


def steps_of(order: Tensor) -> list[list[int]]:
    """Positions by step, ascending within a step, of an order map int [H, W] (-1 = none)."""
    flat = order.flatten().tolist()
    steps: list[list[int]] = [[] for _ in range(max(flat, default=-1) + 1)]
    for position, step in enumerate(flat):
        if step >= 0:
            steps[step].append(position)
    return steps


def newest_above(previous: int, pending: set[int], width: int, start: int = 0) -> int:
    """Whose token stands in for the pending token at `previous` in ZipAR's published code: that of the last position
    drawn, from the left, in the row above it. Of its own row nothing is taken. Arguments as of `surrogate`."""
    return max(p for p in range(previous + 1 - 2 * width, previous + 1 - width) if p not in pending)


def surrogate(previous: int, pending: set[int], width: int, start: int = 0) -> int:
    """Whose token stands in for the pending token at `previous`, the last one of a row, when the next row begins.

    The nearest known token of the last column above it; in the first rows, where there is none, the known token
    furthest right in the nearest row above or in its own. Source: method of ZipAR (arXiv 2412.04062) for the former.
    The grid is `width` wide and begins at position `start`.
    """
    for above in range(previous - width, start - 1, -width):
        if above not in pending:
            return above
    for position in range(previous - 1, -1, -1):
        if position not in pending:
            return position
    raise RuntimeError(f"no token is known before position {previous}")


def draw_steps(
    request: Request,
    lane: Lane,
    tokens: Tensor,
    steps: Sequence[Sequence[int]],
    noise: Noise,
    role: str,
    known: Mapping[int, Logits],
    *,
    unmasked: bool = False,
    show: bool = False,
) -> Generator[list[Feed], list[Result], list[int]]:
    """Draw the positions of all steps; `tokens` [N] changes in place.

    Args:
        lane: its cache holds every token that is not to be drawn and may be seen.
        steps: raster positions by step; each must be ready when its step comes.
        role: of the forwards.
        known: logits [1, V] that are there already, by position; the others are fed for.
        unmasked: parity with ZipAR's public code: pending slots stay visible, as zeros or as what stands there, and
            `newest_above` is the surrogate.
        show: rows that are complete, with all above them, as previews.

    Returns:
        The positions of the last step, whose keys and values are not written; they are left hidden.
    """
    stand_in = newest_above if unmasked else surrogate
    pending = {p for step in steps for p in step}
    total, done = len(pending), 0
    if not unmasked:
        lane.hide(sorted(pending))
    fresh: list[int] = []
    for step in steps:
        wanted = [p for p in step if p not in known]
        early = [p - 1 for p in wanted if p - 1 in pending]
        # Where a token ends each row, it is known before the row is: nothing has to stand in for the code before it.
        ends = frozenset(early) & lane.layout.row_last
        sources = {p - 1: p - 1 for p in wanted}
        for previous in early:
            sources[previous] = (
                0 if previous in ends else stand_in(previous, pending, *lane.layout.part(previous)[::-1])
            )
        fed = sorted({*sources, *fresh})
        if fed:
            if not unmasked:
                lane.show([p for p in fed if p not in ends])
                lane.show_ends(sorted(ends))
            positions: Sequence[int] = range(fed[0], fed[0] + 1) if len(fed) == 1 else fed
            yield [
                Feed(
                    lane,
                    tokens,
                    positions,
                    [fed.index(p - 1) for p in wanted],
                    role,
                    request.drawing(noise, wanted, tokens) if wanted else None,
                    sources=[sources.get(p, p) for p in fed],
                    ends=ends,
                )
            ]
            if not unmasked:
                lane.hide([p for p in fed if p in pending and p not in ends])
        for p in step:
            if p in known:
                tokens[p : p + 1] = request.draw(known[p], noise, [p])
        pending.difference_update(step)
        fresh = sorted(step)
        done += len(step)
        request.recorder.report(role, done, total)
        if show and request.previews:
            start = lane.layout.start
            request.show_rows(tokens[start:], lane.grid, min(pending, default=lane.size) - start)
    return fresh
