"""The door to the native module mulosd._C: whether it can serve, and how tensors are handed to it."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@lru_cache(maxsize=1)
def module() -> ModuleType:
    """mulosd._C.

    Raises:
        ImportError: it was not built.
    """
    return import_module("mulosd._C")


@lru_cache(maxsize=1)
def unusable() -> str | None:
    """Why no CUDA kernel of mulosd._C can run on this machine, or None."""
    remedy = "reinstall with nvcc on PATH and MULOSD_REQUIRE_NATIVE=1"
    try:
        native = module()
    except ImportError as error:
        return f"the native module mulosd._C is missing ({error}); {remedy}"
    if not native.compiled_archs():
        return f"the native module was built without nvcc; {remedy}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if native.device_count() < 1:
        return "the CUDA runtime of mulosd._C sees no device (it may need a newer driver)"
    return None


def decline_logits(cond: Tensor, uncond: Tensor | None) -> str | None:
    """Why the row kernels cannot take these logits, or None."""
    if not cond.is_cuda or (uncond is not None and uncond.device != cond.device):
        return f"logits must lie on one CUDA device, got {cond.device}"
    if cond.dtype not in TYPES:
        return f"logits must be float32, float16 or bfloat16, got {cond.dtype}"
    if cond.shape[1] > module().MAX_VOCAB:
        return f"a vocabulary of {cond.shape[1]} exceeds {module().MAX_VOCAB}"
    return None


def rows_in_order(logits: Tensor) -> Tensor:
    """The same logits with neighbouring columns next to each other in memory."""
    return logits if logits.stride(1) == 1 else logits.contiguous()


LogitArgs = tuple[int, int, int, int, int, int, int, float, float, int, float]


def logit_args(
    cond: Tensor, uncond: Tensor | None, cfg_scale: float, temperature: float, top_k: int, top_p: float
) -> LogitArgs:
    """The tuple that the native functions take for a pair of logits; both must come from `rows_in_order`."""
    rows, vocab = cond.shape
    return (
        cond.data_ptr(),
        0 if uncond is None else uncond.data_ptr(),
        cond.stride(0),
        0 if uncond is None else uncond.stride(0),
        TYPES[cond.dtype],
        rows,
        vocab,
        cfg_scale,
        temperature,
        min(top_k, vocab),
        top_p,
    )


def stream(tensor: Tensor) -> int:
    """The current stream of the tensor's device as the integer that the native functions take."""
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)
