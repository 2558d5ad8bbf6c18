"""The door to Triton: whether its kernels can serve here, and the interpreter that runs them on a CPU for tests."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter; Triton reads the variable when a kernel's module is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@lru_cache(maxsize=1)
def unusable() -> str | None:
    """Why no Triton kernel can run on this machine, or None."""
    if find_spec("triton") is None:
        return "triton is not installed; pip install 'mulosd[triton]'"
    if interpreting() or torch.cuda.is_available():
        return None
    return "torch sees no CUDA device (TRITON_INTERPRET=1 runs Triton kernels on the CPU, slowly, for tests)"


def decline_tensors(*tensors: Tensor | None) -> str | None:
    """Why Triton kernels cannot take these tensors together, or None."""
    given = [t for t in tensors if t is not None]
    devices = {t.device for t in given}
    if len(devices) > 1:
        return f"all tensors must lie on one device, got {', '.join(sorted(map(str, devices)))}"
    if interpreting():
        # Measured on Triton 3.6 to 3.9: sums of bfloat16 give NaN there, and products are off by ten orders.
        if any(t.dtype == torch.bfloat16 for t in given):
            return "the Triton interpreter computes bfloat16 wrongly"
        return None
    if not all(t.is_cuda for t in given):
        return f"tensors must lie on a CUDA device, got {given[0].device}"
    return None


def on_device(tensor: Tensor) -> AbstractContextManager[None]:
    """Makes the tensor's device current, which is where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
