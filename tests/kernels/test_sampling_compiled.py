"""The Triton row kernels compiled for GPUs that are not here: registers within budget, no stack, precise arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
from compiled import compile_for

pytest.importorskip("triton")

from mulosd.kernels import sampling_triton
from mulosd.kernels.local_resample import triton as resample
from mulosd.kernels.upsample_pool import nearest_code_triton as nearest
from mulosd.kernels.upsample_pool import pooled_mass_triton as pool

LOGITS = {
    "cond_stride": "i32",
    "uncond_stride": "i32",
    "vocab": "i32",
    "cfg_scale": "fp32",
    "temperature": "fp32",
    "top_k": "i32",
    "top_p": "fp32",
}
RESAMPLE = LOGITS | {"seed": "*i64", "position": "*i64", "token": "*i64", "purpose": "i32"}
POOL = LOGITS | {"token": "*i64", "neighbours": "*i32", "mass": "*fp32", "accept": "*i8", "k": "i32", "tau": "fp32"}
SCRATCH = {"keys": "*i32", "indices": "*i32"}
FULL = {"GUIDED": True, "TEMPERED": True, "TOP_K": True, "TOP_P": True}
DRAWN: dict[str, Any] = {"NOISY": True, "DRAWN": True, "noise": None}
STREAMED = {"SURVIVORS": sampling_triton.SURVIVORS}


@pytest.mark.parametrize(
    ("capability", "dtype", "top_p"),
    [(80, "bf16", True), (90, "bf16", True), (90, "fp16", False), (90, "fp32", True), (100, "bf16", True)],
)
def test_resample_keeps_a_row_of_16384_in_registers(capability: int, dtype: str, top_p: bool) -> None:
    block, warps = sampling_triton.resident_shape(16_384)
    switches: dict[str, Any] = FULL | {"TOP_P": top_p, "RESIDENT": True, "BLOCK": block} | DRAWN | STREAMED
    switches |= {"keys": None, "indices": None}
    types = RESAMPLE | {"cond": f"*{dtype}", "uncond": f"*{dtype}"}
    built = compile_for(resample.local_resample_kernel, capability, types, switches, num_warps=warps)
    assert warps == 16
    assert built.registers <= 128
    # Two words in the loop over the few logits that are read again; ptxas spills more on sm_100.
    assert built.stack <= (240 if capability == 100 else 8)


@pytest.mark.parametrize(("capability", "dtype"), [(80, "bf16"), (90, "bf16"), (90, "fp16"), (100, "bf16")])
def test_pool_keeps_a_row_of_16384_in_registers(capability: int, dtype: str) -> None:
    block, warps = sampling_triton.resident_shape(16_384)
    switches: dict[str, Any] = FULL | {"GREEDY": False, "RESIDENT": True, "BLOCK": block, "BLOCK_K": pool.BLOCK_K}
    switches |= {"keys": None, "indices": None} | STREAMED
    types = POOL | {"cond": f"*{dtype}", "uncond": f"*{dtype}"}
    built = compile_for(pool.pooled_mass_kernel, capability, types, switches, num_warps=warps)
    assert built.stack <= (8 if capability == 100 else 0)
    assert built.registers <= 128


def test_long_rows() -> None:
    types = {"cond": "*bf16", "uncond": "*bf16"}
    warps = sampling_triton.STREAMED_WARPS
    switches: dict[str, Any] = FULL | STREAMED | DRAWN | {"RESIDENT": False}
    built = compile_for(
        resample.local_resample_kernel,
        90,
        RESAMPLE | SCRATCH | types,
        switches | {"BLOCK": sampling_triton.TILE},
        num_warps=warps,
    )
    assert built.stack == 0
    assert built.registers <= 128
    switches = FULL | STREAMED | {"GREEDY": False, "RESIDENT": False, "BLOCK_K": pool.BLOCK_K}
    built = compile_for(
        pool.pooled_mass_kernel,
        90,
        POOL | SCRATCH | types,
        switches | {"BLOCK": sampling_triton.TILE},
        num_warps=warps,
    )
    assert built.stack == 0
    assert built.registers <= 128


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_nearest_code_is_float32_throughout(capability: int) -> None:
    """For d = 8, features in the layout of a pixel shuffle by 2: no tensor core, and as many FFMA as the tile needs."""
    pointers = {"features": "*fp32", "codebook": "*fp32", "table": "*i32", "code": "*i64", "sets": "*i32"}
    strides = dict.fromkeys(("batch_stride", "channel_stride", "row_stride", "code_stride", "code_step"), "i32")
    sizes = dict.fromkeys(("cells", "height", "width", "vocab", "k"), "i32")
    blocks = {"BLOCK_D": nearest.least_depth(), "BLOCK_CELLS": nearest.BLOCK_CELLS, "BLOCK_CODES": nearest.BLOCK_CODES}
    constants = {"column_stride": 1, "R": 2, "D": 8, "GATHER": True} | blocks
    types = pointers | strides | sizes
    built = compile_for(nearest.nearest_code_kernel, capability, types, constants, num_warps=nearest.WARPS)
    assert built.stack == 0
    assert built.registers <= 255  # 228 on sm_80: a tile of similarities in registers, two blocks a multiprocessor
    assert not {"HMMA", "HGMMA", "UTCHMMA", "QGMMA"} & set(built.sass)
    needed = nearest.BLOCK_CELLS * nearest.BLOCK_CODES * nearest.least_depth() // (32 * nearest.WARPS)
    assert built.sass["FFMA"] + 2 * built.sass["FFMA2"] >= needed
