"""Draft and up-sample without verification: the floor that shows what verification buys (tau = 0)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..batch import Feed, Result
from ..family import Family
from ..request import Request, prefix
from ..sampling import Purpose
from ..upsampling import check_upsampler, settled_upsampler, upsample
from .base import Decoder, Outcome, Plan
from .drafting import Drafting, draft_rows

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class DraftOnly(Decoder):
    """A draft on the small grid, up-sampled to the target grid.

    Args:
        scale: r = target / drafter; None is the family's choice, or else its largest.
        upsampler: "latent", "pixel", "nearest", "srgan", "sr" or a file of super-resolution weights; None is the
            family's choice, or else "latent" where it has learned up-samplers, or "pixel".
        draft_window: draft with ZipAR and this window; None is what the family was calibrated with, or else serial.
        draft_guesses: draft with coupled Jacobi decoding and so many guesses a forward: the serial draft, sooner; 0
            is serial, None what the family was calibrated with.
    """

    name: ClassVar[str] = "draft-only"
    row_ends: ClassVar[bool] = True
    scale: int | None = None
    upsampler: str | None = None
    draft_window: int | None = None
    draft_guesses: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.upsampler is not None:
            check_upsampler(self.upsampler)
        Drafting(self.draft_window, self.draft_guesses)

    def resolve(self, family: Family) -> Self:
        scale = family.scale if self.scale is None else self.scale
        family.drafter_grid(scale or 0)
        upsampler = settled_upsampler(family, self.upsampler)
        how = Drafting(self.draft_window, self.draft_guesses).settled(family.calibration(scale or 0, upsampler))
        return replace(self, scale=scale, upsampler=upsampler, draft_window=how.window, draft_guesses=how.guesses)

    def grids(self, family: Family) -> tuple[int, ...]:
        return (family.drafter_grid(self.resolve(family).scale or 0),)

    def drafted(self, request: Request) -> Generator[list[Feed], list[Result], Tensor]:
        """Draw a draft; returns its tokens int64 [g, g]."""
        grid = request.family.drafter_grid(self.scale or 0)
        with request.recorder.stage("draft"):
            lane = request.lane(grid)
            draft = lane.tokens
            first = yield from prefix(lane)
            noise = request.noise(Purpose.DRAFT)
            how = Drafting(self.draft_window, self.draft_guesses)
            yield from draft_rows(request, lane, draft, range(grid), first, noise, how)
        return draft.view(grid, grid)

    def plan(self, request: Request) -> Plan:
        family = request.family
        draft = yield from self.drafted(request)
        with request.recorder.stage("upsample"):
            tokens = upsample(family, draft[None], family.grids[-1], self.upsampler or family.upsampler)
        return Outcome(tokens[0])
