"""The arguments of one call of `nearest_code` and of `pooled_mass`, as their references and every backend take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class NearestCall(NamedTuple):
    """The arguments of the reference, in its order; for their meaning see `shuffle_nearest`."""

    features: Tensor
    codebook: Tensor
    r: int
    neighbours: Tensor | None


class PooledCall(NamedTuple):
    """The arguments of the reference, in its order; for their meaning see `pooled_mass`."""

    cond: Tensor
    uncond: Tensor | None
    tokens: Tensor
    neighbours: Tensor
    tau: float
    cfg_scale: float
    temperature: float
    top_k: int
    top_p: float
