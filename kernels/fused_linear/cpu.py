"""Host backend of `fused_linear`: the norm, the product and what stands behind it in one call, for few tokens."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from .. import host
from ..host import unusable
from .call import Call

__all__ = ["decline", "run", "unusable"]


def decline(call: Call) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    x, weight = call.x, call.weight
    if not x.is_cpu:
        return f"x must lie on the CPU, got {x.device}"
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"x must be float32 or bfloat16, got {x.dtype}"
    rows = x.numel() // max(1, x.shape[-1])
    if not 1 <= rows <= host.MOST_ROWS:
        return f"1 to {host.MOST_ROWS} tokens are served, got {rows}"
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, call.bias, call.norm, call.residual)
    ):
        return "there is no backward pass"
    return host.decline_weight(weight, call.scale)


def run(call: Call) -> Tensor:
    """Sums and everything else are float32; rounded once, to the type of x."""
    x, weight, scale, bias, norm, eps, gated, residual = call
    k, dtype = x.shape[-1], x.dtype
    width = weight.shape[0] // 2 if gated else weight.shape[0]
    # Conversions are no more than a check where there is nothing to convert; they must live as long as the call.
    x, bias, norm, residual = plain(x), plain(bias), plain(norm), plain(residual)
    out = torch.empty(*x.shape[:-1], width)
    host.module().linear(
        host.linear_args(weight, scale, bias),
        (x.data_ptr(), *(0 if t is None else t.data_ptr() for t in (norm, residual)), out.data_ptr()),
        (k, width, x.numel() // k),
        eps,
        gated,
        host.threads(),
        host.isa(),
    )
    return out if dtype == torch.float32 else out.to(dtype)


@overload
def plain(t: Tensor) -> Tensor: ...
@overload
def plain(t: None) -> None: ...
@overload
def plain(t: Tensor | None) -> Tensor | None: ...


def plain(t: Tensor | None) -> Tensor | None:
    """The same numbers as contiguous float32."""
    if t is None or (t.dtype == torch.float32 and t.is_contiguous()):
        return t
    return t.float().contiguous()
