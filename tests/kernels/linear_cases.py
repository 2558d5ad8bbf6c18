"""Calls of `fused_linear` of every kind, and their result in float64 by the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# rows, K, N, weights, parts
CASES: list[tuple[int, int, int, str, str]] = [
    (1, 48, 40, "same", ""),
    (2, 300, 34, "same", "norm"),
    (5, 64, 96, "same", "norm gated"),
    (16, 130, 17, "same", "residual"),
    (17, 40, 48, "same", "norm bias gated residual"),
    (64, 33, 20, "same", "bias"),
    (2, 160, 36, "int8", "norm gated"),
    (33, 70, 18, "int8", "bias residual"),
]


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def call_of(case: tuple[int, int, int, str, str], dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """x, weight and the options of a case."""
    rows, k, n, kind, parts = case
    x, weight = rand(1, rows, k, seed=1, dtype=dtype), rand(n, k, seed=2) / k**0.5
    options: dict[str, Any] = {}
    if kind == "same":
        weight = weight.to(dtype)
    else:
        options["scale"] = weight.abs().amax(1) / 127
        weight = (weight / options["scale"][:, None]).round().to(torch.int8)
    if "norm" in parts:
        options |= {"norm": 1 + 0.1 * rand(k, seed=3, dtype=dtype), "eps": 1e-5}
    if "bias" in parts:
        options["bias"] = rand(n, seed=4, dtype=dtype)
    if "gated" in parts:
        options["gated"] = True
    if "residual" in parts:
        options["residual"] = rand(1, rows, n // 2 if "gated" in parts else n, seed=5, dtype=dtype)
    return x, weight, options


def exact(x: Tensor, weight: Tensor, options: dict[str, Any]) -> Tensor:
    """The definition in float64."""
    h = x.double()
    if "norm" in options:
        h = h * (h.square().mean(-1, keepdim=True) + options["eps"]).rsqrt() * options["norm"].double()
    out = h @ weight.double().T
    if "scale" in options:
        out = out * options["scale"].double()
    if "bias" in options:
        out = out + options["bias"].double()
    if options.get("gated"):
        gate, value = out.chunk(2, -1)
        out = gate * gate.sigmoid() * value
    return out + options["residual"].double() if "residual" in options else out
