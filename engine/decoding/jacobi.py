"""Speculative Jacobi decoding: a window of guesses is run through the model again and again until it stands.

Both variants are lossless: the tokens follow the target's distribution exactly.

* Independent draws (SJD, Teng et al., arXiv 2410.01699): a guess x_j was drawn from q_j, the model's distribution in
  the iteration before. It is kept with probability min(1, p_j(x_j) / q_j(x_j)); the first one that falls is drawn anew
  from the normalised max(p_j - q_j, 0), and everything behind it is guessed anew from p.
* Coupled draws (So et al., arXiv 2510.24211): every iteration uses the same Gumbel noise at a position, so a guess
  changes only when its distribution does. What comes out is then token for token what serial decoding gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels import philox
from ...kernels.local_resample import OP as LOCAL_RESAMPLE
from ...kernels.local_resample.call import Call
from ..batch import Feed, Result
from ..cache import Lane
from ..devices import upload
from ..request import Request, Steps, logits_of, prefix
from ..sampling import Logits, Noise, Purpose, processed
from .base import OneGrid, Outcome, Plan

# Each iteration needs fresh numbers at the same positions: purposes from here on, two an iteration.
FIRST_PURPOSE = 1 << 16


@dataclass(frozen=True)
class Jacobi(OneGrid):
    """Speculative Jacobi decoding, lossless.

    Args:
        window: tokens that are guessed and verified in one forward.
        coupled: the same noise in every iteration; equals `Serial` token for token.
        grid: side in tokens; None is the largest of the family.
    """

    name: ClassVar[str] = "jacobi"
    row_ends: ClassVar[bool] = True
    first_grid: ClassVar[bool] = True
    window: int = 16
    coupled: bool = True
    grid: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(window=1)

    def plan(self, request: Request) -> Plan:
        grid = self.side(request.family)
        with request.recorder.stage("jacobi"):
            lane = request.lane(grid)
            tokens = lane.tokens
            first = yield from prefix(lane)
            kind = Coupled if self.coupled else Independent
            iteration = kind(request, lane, tokens, request.noise(Purpose.TARGET), "jacobi")
            iteration.show = True
            yield from iteration.run(0, lane.size, first, self.window)
        return Outcome(lane.image())


class Iteration(ABC):
    """Tokens that stand (those below `done`) and guesses behind them.

    Args:
        request: whose image.
        lane: holds keys and values of what stands.
        tokens: int64 [N], filled in place.
        noise: of the first token, and of all in coupled draws.
        role: what the tokens fed are counted as.
    """

    show = False  # rows that stand, as previews

    def __init__(self, request: Request, lane: Lane, tokens: Tensor, noise: Noise, role: str) -> None:
        self.request, self.lane, self.tokens, self.noise, self.role = request, lane, tokens, noise, role
        self.done = 0
        self.guessed = 0  # positions below it hold a token or a guess

    def run(self, start: int, stop: int, logits: Logits, window: int) -> Steps:
        """Fill positions start..stop-1, the first of them from `logits` [1, V], which are exact."""
        self.tokens[start : start + 1] = self.request.draw(logits, self.noise, [start])
        self.done = self.guessed = start + 1
        while self.done < stop:
            found = yield from self.forward(min(window, stop - self.done))
            self.settle(found)
            self.request.recorder.report(self.role, self.done, stop)
            if self.show:
                start = self.lane.layout.start
                self.request.show_rows(self.tokens[start:], self.lane.grid, self.done - start)

    def forward(self, count: int) -> Generator[list[Feed], list[Result], Logits]:
        """Feed the last standing token and all but the last of `count` guesses; logits [count, V] of the guesses."""
        self.guess(self.done + count)
        fed = range(self.done - 1, self.done + count - 1)
        [result] = yield [Feed(self.lane, self.tokens, fed, role=self.role, sources=fed)]
        return logits_of(result)

    @abstractmethod
    def guess(self, stop: int) -> None:
        """Fill positions up to `stop` that have no guess yet."""

    @abstractmethod
    def settle(self, logits: Logits) -> None:
        """Keep the guesses that stand under `logits`, at least one token, and renew the others."""


class Coupled(Iteration):
    """One noise for all iterations."""

    def guess(self, stop: int) -> None:
        """The token above, which resembles the one to come; the last known one in the first row."""
        layout, sources = self.lane.layout, []
        for position in range(self.guessed, stop):
            while position >= self.guessed:
                like = layout.like(position)
                position = self.done - 1 if like is None else like
            sources.append(position)
        if sources:
            self.tokens[self.guessed : stop] = self.tokens[upload(sources, self.tokens.device)]
            self.guessed = stop

    def settle(self, logits: Logits) -> None:
        count = len(logits)
        positions = range(self.done, self.done + count)
        drawn = self.request.draw(logits, self.noise, positions)
        new, old = torch.stack([drawn, self.tokens[positions.start : positions.stop]]).tolist()
        # The first is exact; each further one is when the guess before it was what has now been drawn.
        stands = 1
        while stands < count and new[stands - 1] == old[stands - 1]:
            stands += 1
        self.tokens[positions.start : positions.stop] = drawn
        self.done += stands


class Independent(Iteration):
    """New numbers in every iteration, and the ratio test of speculative sampling."""

    def __init__(self, request: Request, lane: Lane, tokens: Tensor, noise: Noise, role: str) -> None:
        super().__init__(request, lane, tokens, noise, role)
        vocab = request.family.ar.config.vocab_size
        self.turn = 0
        self.q = torch.full((lane.size, vocab), 1.0 / vocab, device=self.tokens.device)

    def guess(self, stop: int) -> None:
        """Uniform guesses: any distribution that is known will do."""
        if stop > self.guessed:
            self.draw_from(self.q[self.guessed : stop], range(self.guessed, stop), self.purpose(0))
            self.guessed = stop

    def purpose(self, kind: int) -> int:
        return FIRST_PURPOSE + 2 * self.turn + kind

    def draw_from(self, probability: Tensor, positions: range, purpose: int) -> None:
        """Put samples of `probability` [n, V] at positions."""
        numbers = [[self.request.seed] * len(positions), list(positions)]
        seeds, where = upload(numbers, probability.device).unbind()
        self.tokens[positions.start : positions.stop] = LOCAL_RESAMPLE(
            Call(probability.log(), None, None, 1.0, 1.0, 0, 1.0, seeds, where, purpose)
        )

    def settle(self, logits: Logits) -> None:
        count = len(logits)
        here = slice(self.done, self.done + count)
        p = processed(logits, self.request.sampling, range(here.start, here.stop)).softmax(dim=-1)
        guesses, q = self.tokens[here, None], self.q[here]
        ratio = (p.gather(1, guesses) / q.gather(1, guesses))[:, 0].cpu()
        if bool(ratio.isnan().any()):
            raise ValueError(
                "the model gave NaN or infinite logits: its weights are damaged, or too large for its type"
            )
        # A number each: the host has them before a GPU has begun.
        where = torch.arange(here.start, here.stop)
        uniform = philox.uniform(torch.full_like(where, self.request.seed), where, 1, self.purpose(1))[:, 0]
        kept = int((uniform < ratio).long().cumprod(dim=0).sum())
        self.turn += 1
        start = self.done + kept
        self.done = start
        if kept < count:
            residual = (p[kept] - q[kept]).clamp(min=0)
            self.draw_from((residual / residual.sum())[None], range(start, start + 1), self.purpose(0))
            self.done = start + 1
            behind = range(start + 1, start + count - kept)
            if len(behind):
                self.q[behind.start : behind.stop] = p[kept + 1 :]
                self.draw_from(p[kept + 1 :], behind, self.purpose(0))
