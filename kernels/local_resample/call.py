"""The arguments of one call of `local_resample`, as its reference and every backend take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """The arguments of the reference, in its order; for their meaning see `local_resample`."""

    cond: Tensor
    uncond: Tensor | None
    gumbel: Tensor | None
    cfg_scale: float
    temperature: float
    top_k: int
    top_p: float
    seed: Tensor | None
    position: Tensor | None
    purpose: int
