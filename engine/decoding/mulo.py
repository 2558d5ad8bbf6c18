"""Multi-scale local speculative decoding (MuLo-SD, arXiv 2601.05149): draft small, up-sample, verify, repair locally.

Lossy by design: acceptance to the right of the first rejection is a heuristic that leans on the locality of visual
attention; there is no residual distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.expand_islands import expand_islands
from ...kernels.upsample_pool import neighbours
from ..family import Family
from ..sampling import Logits, Purpose, verify
from ..session import Session
from ..upsampling import check_upsampler, downsample, upsample
from .base import Batch, Decoder, Outcome
from .resample import resample_raster
from .serial import draw_raster

REJECTIONS = ("local", "naive", "raster")


@dataclass(frozen=True)
class MuloSD(Decoder):
    """Multi-scale local speculative decoding.

    Args:
        scale: r = target / drafter; None is the largest of the family.
        tau: accept a token when the pooled probability of its neighbourhood is at least tau; 0 accepts all, more than
            1 nothing. None takes the family's calibrated value.
        radius: how far a rejection spreads, in cells; None takes the calibrated one.
        pool: how many nearest codes are pooled; None takes the calibrated one.
        upsampler: "latent", "pixel" or "sr".
        rejection: "local" resamples rejected tokens and their neighbourhoods, "naive" the rejected tokens alone,
            "raster" everything from the first rejection on.
        rows_per_cycle: target rows drafted and verified at a time, a multiple of the scale; None is one shot.
    """

    name: ClassVar[str] = "mulo"
    scale: int | None = None
    tau: float | None = None
    radius: int | None = None
    pool: int | None = None
    upsampler: str = "latent"
    rejection: str = "local"
    rows_per_cycle: int | None = None

    def __post_init__(self) -> None:
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

    def resolve(self, family: Family) -> MuloSD:
        scale = family.scales[-1] if self.scale is None and family.scales else self.scale
        family.drafter_grid(scale or 0)
        found = dict(family.metadata.get("calibration", {}).get(f"{scale}-{self.upsampler}", {}))
        values = {k: getattr(self, k) for k in ("tau", "radius", "pool")}
        for key, value in values.items():
            if value is None and key not in found:
                raise ValueError(
                    f"family {family.name!r} is not calibrated for scale {scale} with the {self.upsampler} "
                    f"up-sampler: give {key}, or run `mulosd calibrate`"
                )
            values[key] = found[key] if value is None else value
        vocab = family.ar.config.vocab_size
        if values["pool"] > vocab:
            raise ValueError(f"pool must be at most the codebook size {vocab}, got {values['pool']}")
        rows = self.rows_per_cycle
        if rows is not None and scale is not None and rows % scale:
            raise ValueError(f"rows_per_cycle must be a multiple of the scale {scale}, got {rows}")
        return replace(self, scale=scale, **values)

    def decode(self, batch: Batch) -> Outcome:
        decoder = self.resolve(batch.family)
        return Generation(decoder, batch).run()


class Generation:
    """One batch under way: drafter and target sessions, tokens so far."""

    def __init__(self, decoder: MuloSD, batch: Batch) -> None:
        family = batch.family
        self.decoder, self.batch, self.recorder = decoder, batch, batch.recorder
        self.target = family.grids[-1]
        self.small = family.drafter_grid(decoder.scale or 0)
        self.ratio = self.target // self.small
        device = batch.cond.device
        self.x = torch.zeros(batch.size, self.target**2, dtype=torch.int64, device=device)
        self.y = torch.zeros(batch.size, self.small**2, dtype=torch.int64, device=device)
        self.rejected = torch.zeros(batch.size, self.target, self.target, dtype=torch.bool, device=device)
        self.resampled = torch.zeros_like(self.rejected)
        self.islands = torch.zeros(batch.size, dtype=torch.int64, device=device)
        self.table = neighbours(family.tokenizer.codebook, decoder.pool or 1)
        self.draft_noise = batch.noise(Purpose.DRAFT)
        self.target_noise = batch.noise(Purpose.TARGET)

    def run(self) -> Outcome:
        rows = self.decoder.rows_per_cycle or self.target
        with self.recorder.stage("draft"):
            drafter = self.batch.session(self.small, "draft")
        with self.recorder.stage("verify"):
            target = self.batch.session(self.target, "verify")
        ahead: Logits = target.first
        for top in range(0, self.target, rows):
            bottom = min(top + rows, self.target)
            with self.recorder.stage("draft"):
                self._draft(drafter, top // self.ratio, bottom // self.ratio)
            with self.recorder.stage("upsample"):
                self._upsample(top, bottom)
            with self.recorder.stage("verify"):
                logits = self._verify(target, ahead, top, bottom)
            with self.recorder.stage("resample"):
                plan = self._plan(top, bottom)
                resample_raster(target, self.x, plan, logits, top * self.target, self.target_noise, self.batch.sampling)
                if bottom < self.target:
                    ahead = self._advance(target, plan, bottom)
        grid = (self.batch.size, self.target, self.target)
        return Outcome(
            self.x.view(grid),
            self.rejected.float().mean(dim=(1, 2)),
            self.resampled.float().mean(dim=(1, 2)),
            self.islands,
        )

    def _draft(self, drafter: Session, top: int, bottom: int) -> None:
        """Draft rows top..bottom-1 of the small grid behind the down-sampled verified rows."""
        logits = drafter.first
        if top:
            verified = self.x.view(-1, self.target, self.target)[:, : top * self.ratio]
            corrected = downsample(self.batch.family, verified, self.small, self.decoder.upsampler).flatten(1)
            self.y[:, : corrected.shape[1]] = corrected
            fed = drafter.feed(corrected, 0, logits="last")
            if fed is not None:
                logits = fed
        start, stop = top * self.small, bottom * self.small
        draw_raster(drafter, self.y, start, stop, logits, self.draft_noise, self.batch.sampling)

    def _upsample(self, top: int, bottom: int) -> None:
        draft = self.y.view(-1, self.small, self.small)[:, : bottom // self.ratio]
        candidates = upsample(self.batch.family, draft, self.target, self.decoder.upsampler)
        self.x.view(-1, self.target, self.target)[:, top:bottom] = candidates[:, top:bottom]

    def _verify(self, target: Session, ahead: Logits, top: int, bottom: int) -> Logits:
        """Feed the candidates of this cycle in one pass and mark rejections; returns their logits."""
        start, stop = top * self.target, bottom * self.target
        candidates = self.x[:, start:stop]
        fed = target.feed(candidates[:, :-1], start) if stop - start > 1 else None
        logits = Logits.cat([ahead, fed] if fed is not None else [ahead])
        tau = 1.0 if self.decoder.tau is None else self.decoder.tau
        verdict = verify(logits, candidates, self.table, tau, self.batch.sampling)
        self.rejected[:, top:bottom] = ~verdict.accept.view(-1, bottom - top, self.target)
        self.recorder.report("verify", stop, self.target**2)
        return logits

    def _plan(self, top: int, bottom: int) -> list[Tensor]:
        """Raster positions to resample in this cycle, ascending, one tensor a request."""
        rejected = self.rejected[:, top:bottom]
        if self.decoder.rejection == "raster":
            expanded = (rejected.flatten(1).long().cumsum(dim=1) > 0).view_as(rejected)
            self.islands += rejected.flatten(1).any(dim=1)
        else:
            radius = 0 if self.decoder.rejection == "naive" else self.decoder.radius or 0
            islands = expand_islands(rejected, radius)
            expanded = islands.expanded
            self.islands += islands.labels.flatten(1).amax(dim=1)
        self.resampled[:, top:bottom] = expanded
        offset = top * self.target
        return [row.nonzero()[:, 0] + offset for row in expanded.flatten(1)]

    def _advance(self, target: Session, plan: list[Tensor], bottom: int) -> Logits:
        """Bring the cache up to date behind this cycle's rows; returns the logits of the next row's first token."""
        last = bottom * self.target - 1
        # The last resampled token of each request has no key yet; feed from the earliest of them to the row's end.
        start = min([last, *(int(p[-1]) for p in plan if len(p))])
        fed = target.feed(self.x[:, start : last + 1], start, role="resample", logits="last")
        if fed is None:
            raise RuntimeError("no logits after the last verified row")
        return fed
