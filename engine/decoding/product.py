"""The product pass: what the enlarged draft shows times what the target expects there; one draw, no repair.

Not from the paper. The target reads the enlarged draft in one pass, as for verification. Then every token is drawn
once, all of them at the same time, from the target's distribution times `exp(cos(code, z) / closeness)`, z being what
the up-sampler gave for that place before it was rounded to a code. Nothing is accepted or rejected: a small `closeness`
keeps the draft, a large one is the target alone, which then does not know what was drawn beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..batch import Feed
from ..dtypes import checked_dtype
from ..family import Family
from ..request import Request, logits_of, prefix
from ..sampling import Logits, Purpose, SamplingParams, processed
from ..upsampling import upsample_latents
from .base import Outcome, Plan
from .draft_only import DraftOnly
from .leaning import Leaning, check_closeness


@dataclass(frozen=True)
class Product(DraftOnly):
    """A draft, enlarged and drawn once more from the product of what it shows and what the target expects.

    Args:
        scale: r = target / drafter; None is the family's choice, or else its largest.
        upsampler: "latent", "pixel", "nearest", "srgan", "sr" or a file of super-resolution weights; None is the
            family's choice.
        draft_window: draft with ZipAR and this window; None is what the family was calibrated with, or else serial.
        draft_guesses: draft with coupled Jacobi decoding and so many guesses a forward; see `DraftOnly`.
        closeness: by how much of a cosine a code may be farther from the draft for a factor e in probability.
        verify_dtype: "bfloat16" or "float16" computes the target's pass in that type; None is the engine's.
    """

    name: ClassVar[str] = "product"
    row_ends: ClassVar[bool] = True
    closeness: float = 0.03
    verify_dtype: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_closeness(self.closeness, zero=False)
        if self.verify_dtype is not None:
            checked_dtype(self.verify_dtype)

    def grids(self, family: Family) -> tuple[int, ...]:
        return (*super().grids(family), family.grids[-1])

    def plan(self, request: Request) -> Plan:
        family, stage, side = request.family, request.recorder.stage, request.family.grids[-1]
        draft = yield from self.drafted(request)
        request.show("draft", draft)
        with stage("upsample"):
            z = upsample_latents(family, draft[None], side, self.upsampler or family.upsampler)[0]
            factors = Leaning.to(family, z, self.closeness)(range(side * side))
        with stage("verify"):
            lane = request.lane(side)
            logits = yield from prefix(lane)
            dtype = None if self.verify_dtype is None else checked_dtype(self.verify_dtype)
            feed = Feed(lane, factors[:-1].argmax(dim=-1), range(side * side - 1), role="verify", dtype=dtype)
            [result] = yield [feed]
            logits = Logits.cat([logits, logits_of(result)])
            noise = request.noise(Purpose.TARGET).rows(range(side * side))
            tokens = draw_product(logits, factors, noise, request.sampling)
        return Outcome(tokens.view(side, side))


def draw_product(logits: Logits, factors: Tensor, noise: Tensor, params: SamplingParams) -> Tensor:
    """Tokens int64 [n], each from its target distribution times exp(factor).

    Args:
        logits: [n, V] of the target, one row a raster position from 0 on.
        factors: float32 [n, V], logarithms of the factors.
        noise: Gumbel noise float32 [n, V].
        params: guidance, temperature, top-k and top-p act on the target; temperature 0 takes the likeliest product.
    """
    drawn = params.temperature > 0
    kept = processed(logits, params if drawn else replace(params, temperature=1.0), range(len(factors)))
    total = kept.log_softmax(dim=-1) + factors
    return torch.argmax(total + noise if drawn else total, dim=-1)
