"""Multi-scale local speculative decoding (MuLo-SD, arXiv 2601.05149): draft small, up-sample, verify, repair locally.

Lossy by design; the rule by which candidates stand is in `rejection`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..arguments import shown
from ..batch import Feed, Result
from ..cache import Lane
from ..dtypes import checked_dtype
from ..family import Family
from ..request import Request, Steps, logits_of, prefix
from ..sampling import Logits, Purpose
from ..upsampling import check_upsampler, downsample, settled_upsampler, upsample, upsample_with_latents
from .base import Decoder, Outcome, Plan
from .drafting import Drafting, draft_rows
from .leaning import Leaning, check_closeness
from .rejection import REJECTIONS, Resampling, plan_resampling, verify
from .strategy import OFF, Strategy, strategy
from .zipar import draw_steps

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class MuloSD(Decoder):
    """Multi-scale local speculative decoding.

    Args:
        scale: r = target / drafter; None is the family's choice, or else its largest.
        tau: accept a token when the pooled probability of its neighbourhood is at least tau; 0 accepts all, more than
            1 nothing. None takes the family's calibrated value.
        radius: how far a rejection spreads, in cells; None takes the calibrated one.
        pool: how many nearest codes are pooled; None takes the calibrated one.
        upsampler: "latent", "pixel", "nearest", "srgan", "sr" or a file of super-resolution weights; None is the
            family's choice, or else "latent" where it has learned up-samplers, or "pixel".
        rejection: "local" resamples rejected tokens and their neighbourhoods, "naive" the rejected tokens alone,
            "raster" everything from the first rejection on.
        rows_per_cycle: target rows drafted and verified at a time, a multiple of the scale; None is one shot.
        window: islands are resampled in lock-step, each with a ZipAR window of this many tokens; 0 resamples one token
            a forward, in raster order. None takes the family's setting, or else 0.
        draft_window: draft with ZipAR and this window; None is the family's setting, or else serial.
        draft_guesses: draft with coupled Jacobi decoding and so many guesses a forward: the serial draft, sooner; 0
            is serial, None the family's setting.
        closeness: tokens that fell are drawn from the target times `exp(cos(code, z) / closeness)`, z being the
            enlarged draft there: by how much of a cosine a code may be farther from it for a factor e in probability.
            0 draws from the target alone, as the paper does; None takes the calibrated value, or else 0.
        verify_dtype: "bfloat16" or "float16" computes the layers of the verify pass in that type, which is faster on
            CPUs with such units; None is the engine's type. Steps of one token, keys and values stay as they are.
        strategies: variants with a file of their own; in texts and mappings, the settings of `strategy.OFF`.
    """

    name: ClassVar[str] = "mulo"
    row_ends: ClassVar[bool] = True
    first_grid: ClassVar[bool] = True
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
    closeness: float | None = None
    verify_dtype: str | None = None
    strategies: tuple[Strategy, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.strategies, tuple):
            raise ValueError(f"strategies must be a tuple of strategies, got {shown(self.strategies)}")
        if self.upsampler is not None:
            check_upsampler(self.upsampler)
        if self.rejection not in REJECTIONS:
            raise ValueError(f"there is no rejection {self.rejection!r}; choose one of {', '.join(REJECTIONS)}")
        if self.tau is not None and not self.tau >= 0:
            raise ValueError(f"tau must be 0 (accept all) or more, got {self.tau}")
        self.check_least(radius=0, pool=1, rows_per_cycle=1, window=0)
        Drafting(self.draft_window, self.draft_guesses)
        if self.closeness:
            check_closeness(self.closeness, zero=True)
        if self.verify_dtype is not None:
            checked_dtype(self.verify_dtype)
        for extra in self.strategies:
            if not isinstance(extra, Strategy):
                raise ValueError(f"strategies must be strategies, such as Cascade(), got {shown(extra)}")
            extra.check(self.rows_per_cycle)

    @classmethod
    def text_settings(cls) -> dict[str, str]:
        own = {f.name: str(f.type) for f in fields(cls) if f.name != "strategies"}
        return {**own, **{key: type(value).__name__ for key, value in OFF.items()}}

    @classmethod
    def from_settings(cls, values: Mapping[str, Any]) -> Self:
        own = {key: value for key, value in values.items() if key not in OFF}
        found = [strategy(key, values[key]) for key in OFF if key in values]
        return cls(**own, strategies=tuple(extra for extra in found if extra is not None))

    def settings(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "strategies"}
        return {**own, **OFF, **{extra.setting: extra.value for extra in self.strategies}}

    def resolve(self, family: Family) -> MuloSD:
        scale = family.scale if self.scale is None else self.scale
        family.drafter_grid(scale or 0)
        upsampler = settled_upsampler(family, self.upsampler)
        found = family.calibration(scale or 0, upsampler)
        values = {k: getattr(self, k) for k in ("tau", "radius", "pool")}
        for key, value in values.items():
            if value is None and found is None:
                raise ValueError(
                    f"family {family.name!r} is not calibrated for scale {scale} with the {upsampler} "
                    f"up-sampler: give {key}, or run `mulosd calibrate`"
                )
            values[key] = getattr(found, key) if value is None else value
        vocab = family.ar.config.vocab_size
        if values["pool"] > vocab:
            raise ValueError(f"pool must be at most the codebook size {vocab}, got {values['pool']}")
        rows = self.rows_per_cycle
        if rows is not None and scale is not None and rows % scale:
            raise ValueError(f"rows_per_cycle must be a multiple of the scale {scale}, got {rows}")
        values["window"] = (found and found.window) if self.window is None else self.window
        values["closeness"] = (found and found.closeness) if self.closeness is None else self.closeness
        how = Drafting(self.draft_window, self.draft_guesses).settled(found)
        return replace(
            self, scale=scale, upsampler=upsampler, draft_window=how.window, draft_guesses=how.guesses, **values
        )

    def grids(self, family: Family) -> tuple[int, ...]:
        small = self.small(family)
        if family.ar.layout(family.grids[-1]).start:  # the draft stands before the image, in the same cache
            return (family.grids[-1],)
        between = [grid for extra in self.strategies for grid in extra.grids(family, small)]
        return (small, *between, family.grids[-1])

    def small(self, family: Family) -> int:
        """Side of the draft in tokens."""
        return family.drafter_grid((family.scale if self.scale is None else self.scale) or 0)

    def check_layout(self, family: Family) -> None:
        super().check_layout(family)
        if not family.ar.layout(family.grids[-1]).start:
            return
        if self.rows_per_cycle is not None or any(extra.setting == "cascade" for extra in self.strategies):
            raise ValueError(
                f"family {family.name!r} writes the draft before the image, whole and at one size: leave "
                f"rows_per_cycle and cascade out"
            )

    def accept(self, request: Request, logits: Logits, tokens: Tensor, table: Tensor, positions: range) -> Tensor:
        """Which candidates stand; a benchmark that plants rejections overrides it.

        Args:
            request: whose candidates.
            logits: [n, V] of the target, one row a candidate.
            tokens: int64 [n], the candidates.
            table: int32 [V, pool], nearest codes of each code.
            positions: raster positions of the candidates.

        Returns:
            bool [n].
        """
        tau = 1.0 if self.tau is None else self.tau
        return verify(logits, tokens, table, tau, request.sampling, positions.start).accept

    def repairs(self, rejected: Tensor, seen: Sequence[Tensor | None]) -> Resampling:
        """What is drawn anew where `rejected`, bool [H, W], holds; `seen`: what each strategy looked at."""
        radius = self.radius or 0
        if self.rejection == "local":
            for extra, what in zip(self.strategies, seen, strict=True):
                rejected, radius = extra.spread(rejected, what, radius)
        return plan_resampling(rejected, radius, self.window or None, self.rejection)

    def plan(self, request: Request) -> Plan:
        decoder = self.resolve(request.family)
        side, stage = request.family.grids[-1], request.recorder.stage
        target = Candidates(decoder, request, side, Purpose.TARGET)
        draft = Draft(decoder, request, target.lane if target.lane.layout.start else None)
        yield from draft.open()
        if draft.lane is not target.lane:
            yield from target.open()
        rows, ratio = decoder.rows_per_cycle or side, side // draft.grid
        for top in range(0, side, rows):
            bottom = min(top + rows, side)
            with stage("draft"):
                if top:
                    yield from draft.correct(target.rows(0, top))
                yield from draft.draw(top // ratio, bottom // ratio)
            drafted = draft.tokens[: draft.grid * draft.grid].view(draft.grid, -1)[: bottom // ratio]
            request.show("draft", drafted)
            for extra in decoder.strategies:
                drafted = yield from extra.lift(decoder, request, drafted)
            yield from target.settle(drafted, top, bottom)
            request.show("band", target.rows(top, bottom), top)
        return target.outcome()


class Draft:
    """The drafter's side: tokens int64 [N] of the small grid.

    Args:
        decoder: the settings, resolved.
        request: whose image.
        lane: the target's, where the small grid stands before the image; None takes one of the small grid.
    """

    def __init__(self, decoder: MuloSD, request: Request, lane: Lane | None = None) -> None:
        self.decoder, self.request = decoder, request
        self.grid = decoder.small(request.family)
        self.lane = request.lane(self.grid) if lane is None else lane
        self.tokens = self.lane.tokens
        # A small grid before the image is drawn as serial decoding draws it.
        self.noise = request.noise(Purpose.DRAFT if lane is None else Purpose.TARGET)
        self.how = Drafting(decoder.draft_window, decoder.draft_guesses)

    def open(self) -> Steps:
        """Feed the condition prefix."""
        with self.request.recorder.stage("draft"):
            self.ahead = yield from prefix(self.lane)

    def correct(self, verified: Tensor) -> Steps:
        """Put down-sampled verified rows [H, G] of the target grid in the place of what was drafted there."""
        corrected = downsample(
            self.request.family, verified[None], self.grid, self.decoder.upsampler or self.request.family.upsampler
        ).flatten()
        count = len(corrected)
        self.tokens[:count] = corrected
        self.lane.show(range(count))
        [result] = yield [Feed(self.lane, self.tokens, range(count), "last", "draft", sources=range(count))]
        self.ahead = logits_of(result)

    def draw(self, top: int, bottom: int) -> Steps:
        """Draw rows top..bottom-1."""
        rows = range(top, bottom)
        yield from draft_rows(self.request, self.lane, self.tokens, rows, self.ahead, self.noise, self.how, self.grid)


class Candidates:
    """The target's side on one grid: up-sampled candidates, verified in one forward, repaired where they fall.

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
        self.start = self.lane.layout.start
        self.tokens = self.lane.tokens
        self.ahead: Logits | None = None
        self.rejected = torch.zeros(grid, grid, dtype=torch.bool, device=device)
        self.resampled = torch.zeros_like(self.rejected)
        self.islands = self.depth = 0
        self.dtype = None if decoder.verify_dtype is None else checked_dtype(decoder.verify_dtype)
        self.table = request.family.neighbours(decoder.pool or 1)
        self.noise = request.noise(purpose)

    def open(self) -> Steps:
        """Feed the condition prefix."""
        with self.recorder.stage("verify"):
            self.ahead = yield from prefix(self.lane)

    def rows(self, top: int, bottom: int) -> Tensor:
        """Tokens [bottom - top, grid] of some rows."""
        return self.tokens[self.start :].view(self.grid, self.grid)[top:bottom]

    def positions(self, top: int, bottom: int) -> range:
        """Positions of some rows."""
        return range(self.start + top * self.grid, self.start + bottom * self.grid)

    def outcome(self) -> Outcome:
        """The tokens and what was done to them."""
        rejection, coverage = torch.stack([self.rejected, self.resampled]).float().mean(dim=(1, 2)).tolist()
        return Outcome(
            self.lane.image(),
            rejection,
            coverage,
            self.islands,
            self.depth,
            resampled=self.resampled,
            rejected=self.rejected,
        )

    def settle(self, draft: Tensor, top: int, bottom: int) -> Steps:
        """Up-sample a draft int64 [h, g]; verify and repair rows top..bottom-1 of it, behind rows that are final."""
        family, stage = self.request.family, self.recorder.stage
        with stage("upsample"):
            method = self.decoder.upsampler or family.upsampler
            if self.decoder.closeness:
                found, latents = upsample_with_latents(family, draft[None], self.grid, method)
                self.noise.lean = Leaning.to(family, latents[0], self.decoder.closeness, self.start)
            else:
                found = upsample(family, draft[None], self.grid, method)
            self.rows(top, bottom).copy_(found[0, top:bottom])
        with stage("verify"):
            logits = yield from self.verify(top, bottom)
        with stage("resample"):
            repairs = self.repairs(logits, top, bottom)
            unfed = yield from self.repair(repairs, logits, top)
            if bottom < self.grid:
                yield from self.commit(unfed, bottom)

    def verify(self, top: int, bottom: int) -> Generator[list[Feed], list[Result], Logits]:
        """Feed the candidates of some rows in one pass and mark those that fall; returns the target's logits [n, V] at
        their positions."""
        positions = self.positions(top, bottom)
        candidates, ahead = self.tokens[positions.start : positions.stop], self.ahead
        # Behind a small grid in the same sequence, its last token is yet to be fed.
        fed = positions[:-1] if ahead is not None else range(positions.start - 1, positions.stop - 1)
        self.lane.show(range(fed.start, positions.stop))
        found = [] if ahead is None else [ahead]
        if len(fed):
            [result] = yield [Feed(self.lane, self.tokens, fed, role="verify", dtype=self.dtype, sources=fed)]
            found.append(logits_of(result))
        logits = Logits.cat(found)
        accepted = self.decoder.accept(self.request, logits, candidates, self.table, positions)
        self.rejected[top:bottom] = ~accepted.view(-1, self.grid)
        self.recorder.report("verify", positions.stop - self.start, self.grid**2)
        return logits

    def repairs(self, logits: Logits, top: int, bottom: int) -> Resampling:
        """What is to be drawn anew in rows top..bottom-1."""
        positions = self.positions(top, bottom)
        looks = [extra.look(logits, self.request.sampling, positions) for extra in self.decoder.strategies]
        seen = [None if look is None else look.view(-1, self.grid) for look in looks]
        found = self.decoder.repairs(self.rejected[top:bottom], seen)
        self.islands += found.islands
        self.depth += len(found.steps)
        self.resampled[top:bottom] |= found.expanded
        return found

    def repair(self, repairs: Resampling, logits: Logits, top: int) -> Generator[list[Feed], list[Result], list[int]]:
        """Draw the planned positions; returns those whose keys and values are not written yet.

        Args:
            repairs: of rows from `top` on.
            logits: [n, V] of the candidates there, as they were verified.
        """
        offset = self.positions(top, top).start
        steps = [[p + offset for p in step] for step in repairs.steps]
        if not steps:
            return []
        # Everything before the first position was accepted, so the verify pass has its exact logits.
        first = steps[0][0]
        known = logits[first - offset : first - offset + 1]
        if not self.decoder.window:
            return (yield from self.repair_raster([p for step in steps for p in step], known))
        how = (self.noise, "resample", {first: known})
        return (yield from draw_steps(self.request, self.lane, self.tokens, steps, *how))

    def repair_raster(self, positions: list[int], logits: Logits) -> Generator[list[Feed], list[Result], list[int]]:
        """One position a forward in raster order, everything else visible, drafts that are still to go included.

        Position u is drawn from the logits behind u-1; when the position resampled before it is not u-1, that one is
        fed along, so that its new key and value are in place.
        """
        tokens, before = self.tokens, -1
        for done, here in enumerate(positions, start=1):
            if before < 0:
                tokens[here : here + 1] = self.request.draw(logits, self.noise, [here])
            else:
                fed: range | list[int] = range(before, here) if before + 1 >= here - 1 else [before, here - 1]
                draw = self.request.drawing(self.noise, [here], tokens)
                yield [Feed(self.lane, tokens, fed, "last", "resample", draw, sources=fed)]
            before = here
            self.recorder.report("resample", done, len(positions))
        return positions[-1:]

    def commit(self, unfed: list[int], bottom: int) -> Steps:
        """Feed the tokens from the first of `unfed` on, before rows from `bottom` on are verified."""
        stop = self.positions(bottom, bottom).start
        start = min([stop - 1, *unfed])
        self.lane.show(unfed)
        fed = range(start, stop)
        [result] = yield [Feed(self.lane, self.tokens, fed, "last", "resample", sources=fed)]
        self.ahead = logits_of(result)
