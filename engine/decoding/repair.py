"""Verify a grid of candidate tokens in one forward, reject locally, and resample what was rejected."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dtypes import checked_dtype
from ..feed import Feed, Result
from ..lane import Lane
from ..request import Request, Steps, logits_of, prefix
from ..sampling import Logits, Purpose
from .adaptive import entropy
from .base import Outcome
from .lockstep import draw_steps
from .refine import LatentDraft
from .resampling import plan_resampling

if TYPE_CHECKING:
    from .mulo import MuloSD

REFRESHES = ("none", "rows", "full")


class Repair:
    """The target's side of MuLo-SD on one grid.

    Args:
        decoder: the settings, resolved.
        request: whose image.
        grid: side in tokens.
        purpose: of the random numbers of resampling.
    """

    def __init__(self, decoder: MuloSD, request: Request, grid: int, purpose: Purpose) -> None:
        self.decoder, self.request, self.recorder, self.grid = decoder, request, request.recorder, grid
        device = request.features.device
        self.lane = request.lane(grid)
        self.tokens = torch.zeros(grid * grid, dtype=torch.int64, device=device)
        self.rejected = torch.zeros(grid, grid, dtype=torch.bool, device=device)
        self.resampled = torch.zeros_like(self.rejected)
        self.dtype = None if decoder.verify_dtype is None else checked_dtype(decoder.verify_dtype)
        self.window = decoder.window or None
        self.adaptive = decoder.entropy_tau != 0 or decoder.entropy_radius != 0
        self.entropies = torch.zeros(self.rejected.shape, device=device)
        self.islands = 0
        self.depth = 0
        self.table = request.family.neighbours(decoder.pool or 1)
        self.noise = request.noise(purpose)

    def open(self) -> Steps:
        """Feed the condition prefix."""
        self.ahead = yield from prefix(self.lane)

    def rows(self, top: int, bottom: int) -> Tensor:
        """Tokens [bottom - top, grid] of some rows."""
        return self.tokens.view(self.grid, self.grid)[top:bottom]

    def place(self, candidates: Tensor, top: int, bottom: int) -> None:
        """Put candidate rows top..bottom-1 of [.., grid] in place."""
        self.rows(top, bottom).copy_(candidates[top:bottom])

    def outcome(self) -> Outcome:
        """The tokens and what was done to them."""
        return Outcome(
            self.tokens.view(self.grid, self.grid),
            float(self.rejected.float().mean()),
            float(self.resampled.float().mean()),
            self.islands,
            self.depth,
            resampled=self.resampled,
        )

    def run(self, top: int, bottom: int, draft: LatentDraft | None = None) -> Steps:
        """Verify and repair rows top..bottom-1, behind rows that are final; with a `draft`, draw them anew first."""
        if draft is not None:
            with self.recorder.stage("refine"):
                yield from self._refine(draft, range(top * self.grid, bottom * self.grid))
        for turn in range(self.decoder.rounds):
            with self.recorder.stage("verify"):
                logits = yield from self._verify(top, bottom)
            with self.recorder.stage("resample"):
                steps = self._plan(top, bottom, turn)
                unfed = yield from self._resample(steps, logits, top * self.grid)
        if bottom < self.grid:
            with self.recorder.stage("resample"):
                start = min([bottom * self.grid - 1, *unfed])
                self.lane.show(unfed)
                stop = bottom * self.grid
                self.ahead = yield from self._feed_rows(start, stop, "resample")

    def _feed_rows(self, start: int, stop: int, role: str) -> Generator[list[Feed], list[Result], Logits]:
        """Feed positions start..stop-1; returns the logits [1, V] behind them."""
        [result] = yield [Feed(self.lane, self.tokens[start:stop], range(start, stop), "last", role)]
        return logits_of(result)

    def catch_up(self, lane: Lane, tokens: Tensor, role: str) -> Generator[list[Feed], list[Result], Logits]:
        """Feed the first tokens of another lane anew; returns the logits [1, V] behind them."""
        lane.show(range(len(tokens)))
        [result] = yield [Feed(lane, tokens, range(len(tokens)), "last", role)]
        return logits_of(result)

    def _judge(self, positions: range, role: str) -> Generator[list[Feed], list[Result], Logits]:
        """Feed the candidates of `positions` in one pass; returns the target's logits [n, V] at those positions."""
        self.lane.show(positions)
        logits, fed = self.ahead, positions[:-1]
        if fed:
            [result] = yield [Feed(self.lane, self.tokens[fed.start : fed.stop], fed, role=role, dtype=self.dtype)]
            logits = Logits.cat([logits, logits_of(result)])
        return logits

    def _refine(self, draft: LatentDraft, positions: range) -> Steps:
        """Draw the candidates of `positions` anew, all of them in each pass."""
        for done in range(1, self.decoder.refine + 1):
            logits = yield from self._judge(positions, "refine")
            self.tokens[positions.start : positions.stop] = draft.redraw(logits, positions)
            self.recorder.report("refine", done, self.decoder.refine)

    def _verify(self, top: int, bottom: int) -> Generator[list[Feed], list[Result], Logits]:
        """Feed the candidates in one pass and mark rejections; returns the logits [n, V] of the candidates."""
        positions = range(top * self.grid, bottom * self.grid)
        logits = yield from self._judge(positions, "verify")
        entropies: Tensor | None = None
        if self.adaptive:
            entropies = entropy(logits, self.request.sampling, positions.start)
            self.entropies[top:bottom] = entropies.view(-1, self.grid)
        candidates = self.tokens[positions.start : positions.stop]
        accepted = self.decoder.accept(self.request, logits, candidates, self.table, positions, entropies)
        self.rejected[top:bottom] = ~accepted.view(-1, self.grid)
        self.recorder.report("verify", positions.stop, self.grid**2)
        return logits

    def _plan(self, top: int, bottom: int, turn: int) -> list[list[int]]:
        """Raster positions to resample, by step."""
        found = plan_resampling(self.decoder, self.rejected[top:bottom], self.entropies[top:bottom])
        self.islands += found.islands if turn == 0 else 0
        self.depth += len(found.steps)
        self.resampled[top:bottom] |= found.expanded
        offset = top * self.grid
        return [[p + offset for p in step] for step in found.steps]

    def _resample(
        self, steps: list[list[int]], logits: Logits, start: int
    ) -> Generator[list[Feed], list[Result], list[int]]:
        """Draw the planned positions; returns those whose keys and values are not written yet."""
        if not steps:
            return []
        # Everything before the first position was accepted, so the verify pass has its exact logits.
        first = steps[0][0]
        known = {first: logits[first - start : first - start + 1]}
        if self.window is None:
            return (yield from self._resample_raster([p for step in steps for p in step], known[first]))
        return (
            yield from draw_steps(
                self.request, self.lane, self.tokens, steps, self.noise, "resample", known, refresh=self.decoder.refresh
            )
        )

    def _resample_raster(self, positions: list[int], logits: Logits) -> Generator[list[Feed], list[Result], list[int]]:
        """One position a forward in raster order, everything else visible, drafts that are still to go included.

        Position u is drawn from the logits behind u-1; when the position resampled before it is not u-1, that one is
        fed along, so that its new key and value are in place; with a refresh, all tokens between them are.
        """
        tokens, before = self.tokens, -1
        for done, here in enumerate(positions, start=1):
            if before < 0:
                tokens[here : here + 1] = self.request.draw(logits, self.noise, [here])
            else:
                between = self.decoder.refresh == "full" or (
                    self.decoder.refresh == "rows" and before // self.grid < here // self.grid
                )
                if between or before + 1 >= here - 1:
                    fed: range | list[int] = range(before, here)
                else:
                    fed = [before, here - 1]
                chosen = tokens[torch.tensor(fed, device=tokens.device)]
                draw = self.request.drawing(self.noise, [here])
                [result] = yield [Feed(self.lane, chosen, fed, "last", "resample", draw)]
                if result.tokens is not None:
                    tokens[here : here + 1] = result.tokens
            before = here
            self.recorder.report("resample", done, len(positions))
        return positions[-1:]
