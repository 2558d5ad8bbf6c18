"""The arguments of one call of `fused_linear`, as its reference and every backend take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """The arguments of the reference, in its order; for their meaning see `fused_linear`."""

    x: Tensor
    weight: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None
    norm: Tensor | None = None
    eps: float = 1e-5
    gated: bool = False
    residual: Tensor | None = None
