"""Floating types by name, and devices."""

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


def checked_device(device: str | torch.device) -> torch.device:
    """A device that an engine runs on; ValueError where it is none, or is not there."""
    try:
        found = torch.device(device) if isinstance(device, (str, torch.device)) else None
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"an engine runs on device 'cpu', 'cuda' or 'cuda:0', got {shown(device)}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, but torch sees no CUDA device; use device='cpu'")
    if found.type == "cuda" and found.index is not None and found.index >= torch.cuda.device_count():
        raise ValueError(f"there is no device {str(device)!r}: torch sees {torch.cuda.device_count()} CUDA device(s)")
    return found


def settled_dtype(dtype: str | torch.dtype | None, device: str | torch.device) -> torch.dtype:
    """A dtype by name; None is bfloat16 on a GPU, whose matrix units float32 does not use, and float32 elsewhere."""
    if dtype is None:
        return torch.bfloat16 if str(device).startswith("cuda") else torch.float32
    return checked_dtype(dtype)
