"""flash-attn, where it is installed, for plain causal attention of the last Q slots; never required."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .call import Call

MAX_DIM = 256


@lru_cache(maxsize=1)
def unusable() -> str | None:
    """Why flash-attn can serve no call on this machine, or None."""
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed; pip install 'mulosd[flash]' --no-build-isolation"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return "flash-attn needs a CUDA device of compute capability 8.0 or later"
    try:
        _function()
    except (ImportError, AttributeError) as error:  # built for another torch, or too old
        return f"flash-attn does not import: {error}"
    return None


def _function() -> Any:
    return import_module("flash_attn").flash_attn_func


def decline(call: Call) -> str | None:
    """Why flash-attn cannot serve this call, or None."""
    used = [name for name in ("valid", "block", "counts", "splits", "cache_rows") if getattr(call, name) is not None]
    if used:
        return f"flash-attn knows no {' and no '.join(used)}"
    if call.start is None:
        return "flash-attn needs start= (slots that follow each other)"
    tensors = (call.q, call.k_cache, call.v_cache)
    types = {t.dtype for t in tensors}
    if len(types) > 1 or not types <= {torch.float16, torch.bfloat16}:
        q, k, v = (t.dtype for t in tensors)
        return f"flash-attn needs float16 or bfloat16 throughout, got {q}, {k} and {v}"
    dim = call.q.shape[-1]
    if dim > MAX_DIM or dim % 8:
        return f"flash-attn needs a head size that is a multiple of 8 up to {MAX_DIM}, got {dim}"
    if any(t.stride(-1) != 1 for t in tensors):
        return "flash-attn needs the last axis of q and of the caches contiguous"
    if call.q.numel() == 0:
        return "flash-attn takes no empty batch"
    return None


def run(call: Call) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exp (empty unless asked for)."""
    if call.start is None:
        raise ValueError("flash-attn needs start=")
    # Slots behind the last query are hidden from every query, and flash-attn aligns its mask to the last key.
    end = call.start + call.q.shape[1]
    keys, values = call.k_cache[:, :end], call.v_cache[:, :end]
    options = {"softmax_scale": call.scale, "causal": True, "return_attn_probs": call.return_lse}
    result = _function()(call.q, keys, values, **options)
    if call.return_lse:
        return result[0], result[1].transpose(1, 2).contiguous()
    return result, call.q.new_empty(0, dtype=torch.float32)
