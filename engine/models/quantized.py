"""Linear layers whose weights are held in 8 bits, with a scale for each output channel.

Weight-only quantisation: inputs and sums keep their types, a weight is its 8 bits times the scale of its row. Nothing
is calibrated, so that any model can be loaded so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.fused_linear import OP as FUSED_LINEAR
from ...kernels.fused_linear.call import Call as Fused
from ...kernels.fused_linear.reference import dequantised
from ...kernels.narrow import multiplies
from ..arguments import shown
from .linear import Ways, way_of

# By name: the type that is stored, and the largest magnitude that is used of it.
KINDS: dict[str, tuple[torch.dtype, float]] = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
# Rows up to which a CPU multiplies int8 weights as they are (benchmarks/few_rows.py --quantization).
FEW = 16


def checked_kind(kind: str | None) -> str | None:
    """A kind of quantisation by name; "none" is None. ValueError lists the names."""
    if kind is None or kind == "none":
        return None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"quantization must be one of {', '.join(KINDS)} or none, got {shown(kind)}")
    return kind


def check_device(kind: str | None, device: torch.device) -> None:
    """ValueError where a device cannot multiply by weights of a kind."""
    if kind != "fp8":
        return
    if device.type != "cuda":
        raise ValueError("quantization 'fp8' needs a GPU from sm_89 on (Ada, Hopper); on a CPU use 'int8'")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 9):
        raise ValueError(
            f"quantization 'fp8' needs a GPU from sm_89 on (Ada, Hopper), {device} is sm_{major}{minor}: use 'int8'"
        )


def quantised(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Weights [N, K] in 8 bits, and the float32 scale [N] that makes each row's largest magnitude the type's largest.

    A weight w of a row becomes `scale * q`, off by at most `scale / 2` (int8), or by the larger of `|w| / 16` and
    `scale / 1024` (fp8, e4m3: three bits behind the leading one, subnormal below 2^-6).
    """
    dtype, largest = KINDS[kind]
    exact = weight.detach().float()
    # A row of zeros has any scale.
    scale = (exact.abs().amax(dim=1) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    units = exact / scale[:, None]
    if dtype == torch.int8:
        units = units.round()
    return units.clamp(-largest, largest).to(dtype), scale


class QuantizedLinear(nn.Module):
    """A linear layer of quantised weights.

    Args:
        linear: whose weights are quantised; it is not changed.
        kind: one of `KINDS`.

    Attributes:
        ways: how inputs are multiplied on a CPU: "torch", or "native" for a few rows.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantised(linear.weight, kind)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.ways: Ways = {}
        # What torch multiplies int8 by reads whole vectors of the weights, past the end of rows of other lengths.
        self._whole = self.in_features % 32 == 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move to a device; weights and scales keep their types, which is what a view as integers is for."""
        kept = [self.weight, self.scale]

        def moved(t: Tensor) -> Tensor:
            if any(t is own for own in kept):
                return fn(t.view(torch.int8)).view(t.dtype)
            return fn(t)

        found: Any = super()._apply(moved, recurse)
        return found

    def way(self, x: Tensor) -> str:
        """How an input is multiplied."""
        return way_of(self.ways, x)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N], of the type of x.

        The host kernels multiply x by int8 as they are. Otherwise, where a CPU has instructions for it, x is rounded to
        bfloat16, and the sums are rounded to bfloat16 before they are scaled; elsewhere, and in float16, weights are
        dequantised first.
        """
        if self.way(x) == "native":
            native: Tensor = FUSED_LINEAR(Fused(x, self.weight, self.scale, self.bias), "cpu")
            return native
        rows = x.numel() // x.shape[-1]
        unscaled = None
        if x.is_cpu and x.dtype != torch.float16 and self.weight.dtype == torch.int8:
            flat = x.reshape(rows, -1).to(torch.bfloat16)
            if rows <= FEW and self._whole and multiplies_int8():
                unscaled = torch._weight_int8pack_mm(flat, self.weight, self._ones(flat.dtype))
            elif multiplies_bfloat16():
                unscaled = F.linear(flat, self.weight.to(flat.dtype))
        if unscaled is None and x.is_cpu and not multiplies(x.dtype):
            return self.forward(x.float()).to(x.dtype)
        if unscaled is None:
            weight = dequantised(self.weight, self.scale, x.dtype)
            return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))
        out = (unscaled.float() * self.scale).view(*x.shape[:-1], -1)
        return (out if self.bias is None else out + self.bias).to(x.dtype)

    def _ones(self, dtype: torch.dtype) -> Tensor:
        """Scales for a product whose own ones would be rounded to its type."""
        return torch.ones(1, dtype=dtype).expand(self.out_features).contiguous()


@lru_cache(maxsize=1)
def multiplies_int8() -> bool:
    """Whether torch multiplies bfloat16 by int8 with the vector instructions of this CPU; its plain loop is slow."""
    return hasattr(torch, "_weight_int8pack_mm") and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, which are then faster than those of float32."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
