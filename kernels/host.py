"""The door to the native module mulosd._cpu: whether it can serve, and how layers and threads are handed to it."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

# Forces a set of instructions that `isas` names; empty is the best.
ENVIRONMENT = "MULOSD_ISA"
TYPES = {torch.float32: 0, torch.bfloat16: 2, torch.int8: 3}
# Tokens up to which reading the weights takes longer than multiplying by them; the kernels keep no tiles for more.
MOST_ROWS = 16


@lru_cache(maxsize=1)
def module() -> ModuleType:
    """mulosd._cpu.

    Raises:
        ImportError: it was not built.
    """
    return import_module("mulosd._cpu")


@lru_cache(maxsize=1)
def unusable() -> str | None:
    """Why no kernel of mulosd._cpu can run on this machine, or None."""
    try:
        able = module().isas()
    except ImportError as error:
        return f"the native module mulosd._cpu is missing ({error}); reinstall with a C++17 compiler on PATH"
    asked = os.environ.get(ENVIRONMENT, "")
    if asked and asked not in able:
        return f"${ENVIRONMENT} asks for {asked!r}, which this CPU or this build lacks; possible are {', '.join(able)}"
    return None


@lru_cache(maxsize=1)
def isa() -> str:
    """The set of instructions that the kernels use here."""
    return os.environ.get(ENVIRONMENT, "") or str(module().isas()[0])


def threads() -> int:
    """How many threads share a call: torch's, whose pool they are."""
    return torch.get_num_threads()


def decline_columns(*columns: int) -> str | None:
    """Why inputs or heads of these widths do not fit, or None."""
    step = module().COLUMNS
    odd = [c for c in columns if c % step]
    return f"widths must be multiples of {step}, got {odd[0]}" if odd else None


def decline_weight(weight: Tensor, scale: Tensor | None) -> str | None:
    """Why a weight [N, K] cannot be read, or None."""
    if weight.dtype not in TYPES:
        return f"weights must be float32, bfloat16 or int8, got {weight.dtype}"
    if not weight.is_cpu or not weight.is_contiguous() or (scale is not None and not scale.is_contiguous()):
        return "weights must be contiguous and on the CPU"
    return decline_columns(weight.shape[1])


LinearArgs = tuple[int, int, int, int, int, int]


def linear_args(weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> LinearArgs:
    """The tuple that the native functions take for a layer; scale and bias are float32."""
    return (
        weight.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        TYPES[weight.dtype],
        weight.shape[0],
        weight.shape[1],
    )
