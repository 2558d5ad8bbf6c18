"""The specification of `fused_linear` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_linear_reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    norm: Tensor | None,
    eps: float,
    gated: bool,
    residual: Tensor | None,
) -> Tensor:
    """A layer's product with what stands around it; arguments are those of `fused_linear`, already checked."""
    if norm is not None:
        x = F.rms_norm(x, (x.shape[-1],), norm.to(x.dtype), eps)
    out = F.linear(x, dequantised(weight, scale, x.dtype), None if bias is None else bias.to(x.dtype))
    if gated:
        gate, up = out.chunk(2, dim=-1)
        out = F.silu(gate) * up
    return out if residual is None else residual + out


def dequantised(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Weights [N, K] in the type of the product: quantised ones by the scale [N] of their row, in float32."""
    return weight if scale is None else (weight.float() * scale[:, None]).to(dtype)
