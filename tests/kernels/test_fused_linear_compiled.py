"""Triton's `fused_linear` compiled for GPUs that are not here: no spills, and tensor cores but for float32."""

from __future__ import annotations

from typing import Any

import pytest
from compiled import compile_for

pytest.importorskip("triton")

from mulosd.kernels.fused_linear import triton as fused

SIZES = dict.fromkeys(("rows", "n", "k", "x_stride", "residual_stride"), "i32") | {"eps": "fp32"}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@pytest.mark.parametrize(
    ("capability", "dtype", "weights", "rows", "parts"),
    [
        (80, "bf16", "bf16", 2, "norm gated"),
        (90, "bf16", "bf16", 64, "norm gated"),
        (80, "bf16", "i8", 2, "scale norm gated"),
        (90, "bf16", "i8", 16, "scale residual"),
        (90, "bf16", "fp8e4nv", 2, "scale norm gated"),
        (90, "fp32", "fp32", 2, "norm gated"),
    ],
)
def test_registers_and_products(capability: int, dtype: str, weights: str, rows: int, parts: str) -> None:
    types = SIZES | {"x": f"*{dtype}", "weight": f"*{weights}", "out": f"*{dtype}"}
    constants: dict[str, Any] = {"GATED": "gated" in parts}
    for name, kind in (("scale", "fp32"), ("bias", dtype), ("norm", dtype), ("residual", dtype)):
        if name in parts:
            types[name] = f"*{kind}"
        else:
            constants[name] = None
    constants |= fused.shape(rows, BYTES[dtype], "gated" in parts)
    built = compile_for(fused.fused_linear_kernel, capability, types, constants, num_stages=fused.STAGES)
    print(
        capability, dtype, weights, rows, parts, built.registers, built.stack, built.shared, built.sass.most_common(8)
    )
    assert built.stack == 0
    assert built.registers <= 168
    assert built.shared <= 96 << 10  # two programs a multiprocessor
    cores = {"HMMA", "HGMMA"} & set(built.sass)
    assert bool(cores) == (dtype != "fp32")
