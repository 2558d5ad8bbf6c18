"""Floating types by name."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype by name; ValueError lists the names."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype] if isinstance(dtype, str) else dtype
