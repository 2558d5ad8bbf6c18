"""Multi-scale local speculative decoding (MuLo-SD, arXiv 2601.05149): draft small, up-sample, verify, repair locally.

Lossy by design: acceptance to the right of the first rejection is a heuristic that leans on the locality of visual
attention; there is no residual distribution.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..dtypes import checked_dtype
from ..events import Preview
from ..family import Family
from ..feed import Feed, Result
from ..request import Request, Steps, prefix
from ..sampling import Logits, Purpose, verify
from ..upsampling import check_upsampler, downsample, settled_upsampler, upsample
from .adaptive import thresholds
from .base import Decoder, Plan
from .drafting import Drafting, draft_rows
from .refine import LatentDraft
from .repair import REFRESHES, Repair
from .resampling import REJECTIONS


@dataclass(frozen=True)
class MuloSD(Decoder):
    """Multi-scale local speculative decoding.

    Args:
        scale: r = target / drafter; None is the family's choice, or else its largest.
        tau: accept a token when the pooled probability of its neighbourhood is at least tau; 0 accepts all, more than
            1 nothing. None takes the family's calibrated value.
        radius: how far a rejection spreads, in cells; None takes the calibrated one.
        pool: how many nearest codes are pooled; None takes the calibrated one.
        upsampler: "latent", "pixel", "srgan", "sr" or a file of super-resolution weights; None is the family's
            choice, or else "latent" where it has learned up-samplers, or "pixel".
        rejection: "local" resamples rejected tokens and their neighbourhoods, "naive" the rejected tokens alone,
            "raster" everything from the first rejection on.
        rows_per_cycle: target rows drafted and verified at a time, a multiple of the scale; None is one shot.
        window: islands are resampled in lock-step, each with a ZipAR window of this many tokens; 0 resamples one token
            a forward, in raster order. None takes the family's setting, or else 0.
        draft_window: draft with ZipAR and this window; None is the family's setting, or else serial.
        draft_guesses: draft with coupled Jacobi decoding and so many guesses a forward: the serial draft, sooner; 0
            is serial, None the family's setting.
        refresh: which accepted tokens get their keys and values anew behind resampled ones: "none", "rows" (those of
            complete rows) or "full".
        rounds: how often the grid is verified and repaired.
        cascade: go through the grids between the drafter's and the target's, each verified and repaired.
        entropy_tau: lowers tau where the target is unsure, to `tau * exp(-entropy_tau * entropy in nats)`.
        entropy_radius: cells that the radius grows by for each nat of entropy at the rejected token; may be negative.
        verify_dtype: "bfloat16" or "float16" computes the layers of the verify pass in that type, which is faster on
            CPUs with such units; None is the engine's type. Steps of one token, keys and values stay as they are.
        refine: how often the up-sampled draft is drawn anew before it is verified, a pass over the grid each time, from
            the product of the target's distribution and the latent up-sampler's: texture that an arg-max draft lacks.
            Not from the paper; source and weights in `decoding.refine`. 0 is off; tau 0 takes the redrawn draft as is.
    """

    name: ClassVar[str] = "mulo"
    scale: int | None = None
    tau: float | None = None
    radius: int | None = None
    pool: int | None = None
    upsampler: str | None = None
    rejection: str = "local"
    rows_per_cycle: int | None = None
    window: int | None = None
    draft_window: int | None = None
    draft_guesses: int | None = None
    refresh: str = "none"
    rounds: int = 1
    cascade: bool = False
    entropy_tau: float = 0.0
    entropy_radius: float = 0.0
    verify_dtype: str | None = None
    refine: int = 0

    def __post_init__(self) -> None:
        if self.upsampler is not None:
            check_upsampler(self.upsampler)
        if self.rejection not in REJECTIONS:
            raise ValueError(f"there is no rejection {self.rejection!r}; choose one of {', '.join(REJECTIONS)}")
        if self.tau is not None and not self.tau >= 0:
            raise ValueError(f"tau must be 0 (accept all) or more, got {self.tau}")
        if self.radius is not None and self.radius < 0:
            raise ValueError(f"radius must be 0 or more cells, got {self.radius}")
        if self.pool is not None and self.pool < 1:
            raise ValueError(f"pool must be at least 1 code (the token itself), got {self.pool}")
        if self.rows_per_cycle is not None and self.rows_per_cycle < 1:
            raise ValueError(f"rows_per_cycle must be at least 1, got {self.rows_per_cycle}")
        if self.window is not None and self.window < 0:
            raise ValueError(f"window must be at least 1 token, or 0 for serial, got {self.window}")
        Drafting(self.draft_window, self.draft_guesses)
        if self.refresh not in REFRESHES:
            raise ValueError(f"there is no refresh {self.refresh!r}; choose one of {', '.join(REFRESHES)}")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.refine < 0:
            raise ValueError(f"refine must be 0 (off) or more passes, got {self.refine}")
        if not 0 <= self.entropy_tau < math.inf:
            raise ValueError(f"entropy_tau must be 0 (a fixed tau) or more, got {self.entropy_tau}")
        if not math.isfinite(self.entropy_radius):
            raise ValueError(f"entropy_radius must be a finite number of cells a nat, got {self.entropy_radius}")
        if self.verify_dtype is not None:
            checked_dtype(self.verify_dtype)
        if self.cascade and self.rows_per_cycle is not None:
            raise ValueError("a cascade works in one shot: leave rows_per_cycle out")

    def resolve(self, family: Family) -> MuloSD:
        scale = family.scale if self.scale is None else self.scale
        family.drafter_grid(scale or 0)
        upsampler = settled_upsampler(family, self.upsampler)
        if self.refine and upsampler != "latent":
            raise ValueError(
                f"refine draws from the distribution of the latent up-sampler, and {upsampler!r} has none: leave "
                f"refine out, or use the latent one (`mulosd train upsampler --family` gives it to a family)"
            )
        found = family.calibration(scale or 0, upsampler)
        values = {k: getattr(self, k) for k in ("tau", "radius", "pool")}
        for key, value in values.items():
            if value is None and key not in found:
                raise ValueError(
                    f"family {family.name!r} is not calibrated for scale {scale} with the {upsampler} "
                    f"up-sampler: give {key}, or run `mulosd calibrate`"
                )
            values[key] = found[key] if value is None else value
        vocab = family.ar.config.vocab_size
        if values["pool"] > vocab:
            raise ValueError(f"pool must be at most the codebook size {vocab}, got {values['pool']}")
        rows = self.rows_per_cycle
        if rows is not None and scale is not None and rows % scale:
            raise ValueError(f"rows_per_cycle must be a multiple of the scale {scale}, got {rows}")
        values["window"] = found.get("window") if self.window is None else self.window
        how = Drafting(self.draft_window, self.draft_guesses).settled(found)
        return replace(
            self, scale=scale, upsampler=upsampler, draft_window=how.window, draft_guesses=how.guesses, **values
        )

    def grids(self, family: Family) -> tuple[int, ...]:
        small = family.drafter_grid(self.resolve(family).scale or 0)
        between = tuple(g for g in family.grids if small < g < family.grids[-1]) if self.cascade else ()
        return (small, *between, family.grids[-1])

    def accept(
        self,
        request: Request,
        logits: Logits,
        tokens: Tensor,
        table: Tensor,
        positions: range,
        entropies: Tensor | None = None,
    ) -> Tensor:
        """Which candidates stand; a benchmark that plants rejections overrides it.

        Args:
            request: whose candidates.
            logits: [n, V] of the target, one row a candidate.
            tokens: int64 [n], the candidates.
            table: int32 [V, pool], nearest codes of each code.
            positions: raster positions of the candidates.
            entropies: float32 [n] in nats, where settings follow them.

        Returns:
            bool [n].
        """
        tau = 1.0 if self.tau is None else self.tau
        verdict = verify(logits, tokens, table, tau, request.sampling, positions.start)
        if entropies is None:
            return verdict.accept
        return verdict.mass >= thresholds(tau, entropies, self.entropy_tau)

    def plan(self, request: Request) -> Plan:
        return (yield from Generation(self.resolve(request.family), request).run())


class Generation:
    """One image under way: the draft, and the repair of each grid above it."""

    def __init__(self, decoder: MuloSD, request: Request) -> None:
        family = request.family
        self.decoder, self.request, self.recorder = decoder, request, request.recorder
        self.upsampler = decoder.upsampler or family.upsampler
        self.small, *self.levels = decoder.grids(family)
        self.ratio = self.levels[-1] // self.small
        self.y = torch.zeros(self.small**2, dtype=torch.int64, device=request.features.device)
        self.noise = request.noise(Purpose.DRAFT)

    def run(self) -> Plan:
        request, decoder = self.request, self.decoder
        with self.recorder.stage("draft"):
            self.drafter = request.lane(self.small)
            self.first = yield from prefix(self.drafter)
        *between, top_grid = self.levels
        target = Repair(decoder, request, top_grid, Purpose.TARGET)
        with self.recorder.stage("verify"):
            yield from target.open()
        rows = decoder.rows_per_cycle or top_grid
        for top in range(0, top_grid, rows):
            bottom = min(top + rows, top_grid)
            with self.recorder.stage("draft"):
                yield from self._draft(target, top // self.ratio, bottom // self.ratio)
            draft = self.y.view(self.small, self.small)[: bottom // self.ratio]
            request.emit(Preview("draft", draft, 0))
            for grid in between:
                draft = yield from self._level(draft, grid)
            yield from self._repair(target, draft, top, bottom, Purpose.REDRAW)
            request.emit(Preview("band", target.rows(top, bottom), top))
        return target.outcome()

    def _draft(self, target: Repair, top: int, bottom: int) -> Steps:
        """Draft rows top..bottom-1 of the small grid behind the down-sampled verified rows."""
        request, logits = self.request, self.first
        if top:
            verified = target.rows(0, top * self.ratio)
            corrected = downsample(request.family, verified[None], self.small, self.upsampler).flatten()
            self.y[: len(corrected)] = corrected
            logits = yield from target.catch_up(self.drafter, corrected, "draft")
        how = Drafting(self.decoder.draft_window, self.decoder.draft_guesses)
        yield from draft_rows(request, self.drafter, self.y, range(top, bottom), logits, self.noise, how)

    def _repair(self, level: Repair, draft: Tensor, top: int, bottom: int, redraw: Purpose) -> Steps:
        """Up-sample a draft to the grid of `level`, then verify and repair rows top..bottom-1 of it."""
        latent: LatentDraft | None = None
        with self.recorder.stage("upsample"):
            if self.decoder.refine:
                latent = LatentDraft(self.request, draft, level.grid, redraw)
                tokens = latent.tokens()
            else:
                tokens = upsample(self.request.family, draft[None], level.grid, self.upsampler)[0]
            level.place(tokens, top, bottom)
        yield from level.run(top, bottom, latent)

    def _level(self, draft: Tensor, grid: int) -> Generator[list[Feed], list[Result], Tensor]:
        """A grid between the drafter's and the target's: up-sampled, verified and repaired; returns its tokens."""
        level = Repair(self.decoder, self.request, grid, Purpose.LEVEL)
        with self.recorder.stage("verify"):
            yield from level.open()
        yield from self._repair(level, draft, 0, grid, Purpose.LEVEL_REDRAW)
        self.request.emit(Preview("level", level.rows(0, grid), 0))
        return level.rows(0, grid)
