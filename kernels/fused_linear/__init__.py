"""A linear layer with what stands around it: the norm before, the weights' type, SwiGLU or the residual behind."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import Op
from .call import Call
from .reference import fused_linear_reference

# Tokens up to which a linear layer takes as long as reading its weights does: there one kernel in place of several
# counts, behind it the products are for the library of the device.
FEW_ROWS = 64
QUANTISED = tuple(kind for kind in (torch.int8, getattr(torch, "float8_e4m3fn", None)) if isinstance(kind, torch.dtype))

# Called with a `Call`, it skips the checks of the function below.
OP = Op(
    "fused_linear",
    Call,
    fused_linear_reference,
    schema="(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, Tensor? norm, float eps, bool gated, "
    "Tensor? residual, str? backend=None) -> Tensor",
    fake=lambda x, weight, scale, bias, norm, eps, gated, *_, **__: x.new_empty(
        *x.shape[:-1], weight.shape[0] // (2 if gated else 1)
    ),
    modules={"triton": f"{__name__}.triton", "cpu": f"{__name__}.cpu"},
)


def fused_linear(
    x: Tensor,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 1e-5,
    gated: bool = False,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """`residual + act(rms_norm(x) @ (weight * scale)^T + bias)`, each part but the product where it is asked for.

    Sums are float32; without tensor cores of lower precision where `x` is float32.

    Args:
        x: float [..., K].
        weight: [N, K], of the type of `x`, or int8 or float8_e4m3fn with `scale`.
        scale: float32 [N], what a unit of the weights in each row is worth.
        bias: float [N].
        norm: float [K], the weights of an RMSNorm of `x` before the product; None is no norm.
        eps: of the norm.
        gated: the rows of `weight` are N/2 gates and N/2 values: `silu(gate) * value` is returned.
        residual: float [..., N], or [..., N/2] if gated, added last.
        backend: force "triton", "cpu" or "torch".

    Returns:
        [..., N], or [..., N/2] if gated, of the type of `x`.

    Raises:
        ValueError: shapes or types do not fit.
        BackendUnavailable: the forced backend cannot serve the call.
    """
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x [..., K] and weight [N, K] must share K, got {list(x.shape)} and {list(weight.shape)}")
    rows = weight.shape[0]
    if gated and rows % 2:
        raise ValueError(f"gated weights have as many gates as values, got {rows} rows")
    if (weight.dtype in QUANTISED) != (scale is not None):
        raise ValueError(f"weights of {weight.dtype} {'need a' if scale is None else 'take no'} scale")
    if scale is None and weight.dtype != x.dtype:
        raise ValueError(f"weight must be {x.dtype} as x, int8 or float8_e4m3fn, got {weight.dtype}")
    for name, given, size in (("scale", scale, rows), ("bias", bias, rows), ("norm", norm, x.shape[-1])):
        if given is not None and given.shape != (size,):
            raise ValueError(f"{name} must be [{size}], got {list(given.shape)}")
    if scale is not None and scale.dtype != torch.float32:
        raise ValueError(f"scale must be float32, got {scale.dtype}")
    wanted = (*x.shape[:-1], rows // 2 if gated else rows)
    if residual is not None and (residual.shape != wanted or residual.dtype != x.dtype):
        raise ValueError(f"residual must be {x.dtype} {list(wanted)}, got {residual.dtype} {list(residual.shape)}")
    return OP(Call(x, weight, scale, bias, norm, eps, gated, residual), backend)
