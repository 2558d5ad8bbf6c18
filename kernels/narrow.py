"""Which types a CPU multiplies by instructions of its own."""

from __future__ import annotations

from functools import cache

import torch


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of a type by instructions made for it, as far as oneDNN knows.

    bfloat16 wants AVX-512 or AVX-NE-CONVERT, float16 AVX-512-FP16 or AVX-NE-CONVERT. Without them torch has a plain
    loop, which takes up to ten times as long as widening to float32 and rounding the result.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    try:
        with torch.inference_mode(False), torch.no_grad():
            torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), None)
    except RuntimeError:  # what torch says where the CPU lacks them
        return False
    return True
