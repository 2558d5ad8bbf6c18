"""Floating types by name."""

from __future__ import annotations

import torch

from .arguments import shown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype by name; ValueError lists the names."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {shown(dtype)}")
    return found


def settled_dtype(dtype: str | torch.dtype | None, device: str | torch.device) -> torch.dtype:
    """A dtype by name; None is bfloat16 on a GPU, whose matrix units float32 does not use, and float32 elsewhere."""
    if dtype is None:
        return torch.bfloat16 if str(device).startswith("cuda") else torch.float32
    return checked_dtype(dtype)
