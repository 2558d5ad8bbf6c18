"""The Triton kernels of attention compiled for GPUs that are not here: registers, stack, instructions."""

from __future__ import annotations

import pytest
import torch
from compiled import Compiled, compile_for

pytest.importorskip("triton")

from mulosd.kernels.verify_attention import triton as backend


def build(
    capability: int, rows: int, dim: int, dtype: str = "fp16", *, block: bool = True, plain: bool = True
) -> Compiled:
    """The verify kernel as `run` would launch it for a draft block, MHA, one split, unless said otherwise."""
    torch_type = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    config = backend.configure(rows, dim, torch_type, capability)
    pointers = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}") | {"slots": "*i64", "block": "*i32", "factor": "fp32"}
    constants = {
        "valid": None,
        "counts": None,
        "cache_rows": None,
        "lse": None,
        "slots_q": 1,
        "valid_b": 0,
        "valid_s": 0,
        "GROUP": 1,
        "DIM": dim,
        "BLOCK_D": 64 if dim <= 64 else 128,
        "BLOCK_M": config.rows,
        "BLOCK_N": config.keys,
        "SPLIT": False,
    }
    if not plain:
        for name in ("valid", "counts", "cache_rows", "lse", "valid_b"):
            del constants[name]
        pointers |= {"valid": "*u8", "counts": "*i32", "cache_rows": "*i64", "lse": "*fp32", "out": "*fp32"}
        constants |= {"GROUP": 4, "SPLIT": True, "valid_s": 1}
    names = backend.verify_attention_kernel.arg_names
    signature = {n: pointers.get(n, "i32") for n in names if n not in constants}
    return compile_for(
        backend.verify_attention_kernel,
        capability,
        signature,
        constants,
        num_warps=config.warps,
        num_stages=config.stages,
    )


# Registers that the residents of `Config` allow, rounded up to what was found plus a few: a jump is a regression.
BUDGETS = [
    (80, 64, 64, 215),
    (80, 64, 128, 245),
    (90, 16, 64, 96),
    (90, 64, 64, 150),
    (90, 64, 128, 248),
    (90, 128, 64, 165),
    (100, 64, 64, 160),
    (100, 64, 128, 200),
]


@pytest.mark.parametrize(("capability", "rows", "dim", "registers"), BUDGETS)
def test_resources(capability: int, rows: int, dim: int, registers: int) -> None:
    built = build(capability, rows, dim)
    assert built.stack == 0
    assert built.registers <= registers
    config = backend.configure(rows, dim, torch.float16, capability)
    assert built.registers * 32 * config.warps * config.resident <= 65536
    assert built.shared * config.resident <= (164 if capability < 90 else 228) * 1024
    assert built.sass["LDGSTS"] > 0  # asynchronous copies
    if capability == 90 and config.rows >= 64:
        assert built.sass["HGMMA"] > 0
        assert built.sass["HMMA"] == 0
    elif capability < 100:
        assert built.sass["HMMA"] > 0


def test_every_option_at_once_spills_nothing() -> None:
    built = build(90, 64, 64, "bf16", plain=False)
    assert built.stack == 0
    assert built.sass["HGMMA"] > 0


def test_full_float32_spills_nothing() -> None:
    assert build(90, 16, 128, "fp32").stack == 0


def test_the_merge_spills_nothing() -> None:
    names = backend.combine_kernel.arg_names
    types = {"partial": "*fp32", "partial_lse": "*fp32", "out": "*bf16", "rows": "i32", "splits": "i32"}
    constants = {"lse": None, "DIM": 128, "BLOCK_D": 128, "BLOCK_R": 4}
    built = compile_for(backend.combine_kernel, 90, {n: types[n] for n in names if n in types}, constants)
    assert built.stack == 0
    assert built.registers <= 64
