"""Drawing many positions in a stated order, several in one forward: ZipAR drafts, and the resampling of islands.

Positions that are yet to be drawn are hidden from attention. A position u is drawn from the logits after token u-1, so
a step feeds u-1 for every u that it draws, and every token drawn in the step before, which puts its key and value in
place of what stood there.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor

from ..feed import Feed, Result
from ..lane import Lane
from ..request import Request
from ..sampling import Logits, Noise


def steps_of(order: Tensor) -> list[list[int]]:
    """Positions by step, ascending within a step, of an order map int [H, W] (-1 = none)."""
    flat = order.flatten().tolist()
    steps: list[list[int]] = [[] for _ in range(max(flat, default=-1) + 1)]
    for position, step in enumerate(flat):
        if step >= 0:
            steps[step].append(position)
    return steps


def surrogate(previous: int, pending: set[int], width: int) -> int:
    """Whose token stands in for the pending token at `previous`, the last one of a row, when the next row begins.

    The nearest known token of the last column above it; in the first rows, where there is none, the known token
    furthest right in the nearest row above or in its own. Source: method of ZipAR (arXiv 2412.04062) for the former.
    """
    for above in range(previous - width, -1, -width):
        if above not in pending:
            return above
    for position in range(previous - 1, -1, -1):
        if position not in pending:
            return position
    raise RuntimeError(f"no token is known before position {previous}")


def stale(refresh: str, first: int, last: int, pending: set[int], width: int, complete: set[int]) -> list[int]:
    """Known positions from `first` to `last` that a refresh feeds again; `complete` keeps the rows that it has done."""
    if refresh == "full":
        return [p for p in range(first, last + 1) if p not in pending]
    positions: list[int] = []
    for row in range(first // width, last // width):
        cells = range(row * width, (row + 1) * width)
        if row not in complete and not any(p in pending for p in cells):
            complete.add(row)
            positions += [p for p in cells if p >= first]
    return positions


def draw_steps(
    request: Request,
    lane: Lane,
    tokens: Tensor,
    steps: Sequence[Sequence[int]],
    noise: Noise,
    role: str,
    known: Mapping[int, Logits],
    *,
    refresh: str = "none",
    unmasked: bool = False,
) -> Generator[list[Feed], list[Result], list[int]]:
    """Draw the positions of all steps; `tokens` [N] changes in place.

    Args:
        lane: its cache holds every token that is not to be drawn and may be seen.
        steps: raster positions by step; each must be ready when its step comes.
        role: of the forwards.
        known: logits [1, V] that are there already, by position; the others are fed for.
        refresh: "full" feeds every token again that lies behind the first drawn one and before the last one fed, in
            each step; "rows" those of a row once it is complete; "none" none.
        unmasked: leave pending slots visible, as zeros or as what stands there: parity with ZipAR's public code.

    Returns:
        The positions of the last step, whose keys and values are not written; they are left hidden.
    """
    pending = {p for step in steps for p in step}
    total, done = len(pending), 0
    if not unmasked:
        lane.hide(sorted(pending))
    fresh: list[int] = []
    first = min(pending, default=0)
    complete: set[int] = set()
    for step in steps:
        wanted = [p for p in step if p not in known]
        sources = {p - 1: p - 1 if p - 1 not in pending else surrogate(p - 1, pending, lane.grid) for p in wanted}
        fed = sorted({*sources, *fresh})
        if fed and refresh != "none":
            fed = sorted({*fed, *stale(refresh, first, fed[-1], pending, lane.grid, complete)})
        drawn: dict[int, Tensor] = {}
        if fed:
            if not unmasked:
                lane.show(fed)
            index = torch.tensor([sources.get(p, p) for p in fed], device=tokens.device)
            positions: Sequence[int] = range(fed[0], fed[0] + 1) if len(fed) == 1 else fed
            [result] = yield [
                Feed(
                    lane,
                    tokens[index],
                    positions,
                    [fed.index(p - 1) for p in wanted],
                    role,
                    request.drawing(noise, wanted) if wanted else None,
                )
            ]
            if result.tokens is not None:
                drawn.update(zip(wanted, result.tokens, strict=True))
            if not unmasked:
                lane.hide([p for p in fed if p in pending])
        for p in step:
            if p in known:
                drawn[p] = request.draw(known[p], noise, [p])[0]
        tokens[torch.tensor(list(drawn), device=tokens.device)] = torch.stack(list(drawn.values()))
        pending.difference_update(step)
        fresh = sorted(step)
        done += len(step)
        request.recorder.report(role, done, total)
    return fresh
