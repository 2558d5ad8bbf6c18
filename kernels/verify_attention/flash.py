"""flash-attn, where it is installed, for plain causal attention of the last Q slots; never required."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

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


def decline(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    valid: Tensor | None,
    kv_len: int,
    start: int | None,
    scale: float | None,
    block: Tensor | None,
    counts: Tensor | None,
    return_lse: bool,
    splits: int | None,
) -> str | None:
    """Why flash-attn cannot serve these arguments, or None."""
    given = {"valid": valid, "block": block, "counts": counts, "splits": splits}
    used = [name for name, value in given.items() if value is not None]
    if used:
        return f"flash-attn knows no {' and no '.join(used)}"
    if start is None:
        return "flash-attn needs start= (slots that follow each other)"
    if q.dtype not in (torch.float16, torch.bfloat16) or k_cache.dtype != q.dtype or v_cache.dtype != q.dtype:
        return f"flash-attn needs float16 or bfloat16 throughout, got {q.dtype}, {k_cache.dtype} and {v_cache.dtype}"
    if q.shape[-1] > MAX_DIM or q.shape[-1] % 8:
        return f"flash-attn needs a head size that is a multiple of 8 up to {MAX_DIM}, got {q.shape[-1]}"
    if any(t.stride(-1) != 1 for t in (q, k_cache, v_cache)):
        return "flash-attn needs the last axis of q and of the caches contiguous"
    if q.numel() == 0:
        return "flash-attn takes no empty batch"
    return None


def run(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    valid: Tensor | None,
    kv_len: int,
    start: int | None,
    scale: float | None,
    block: Tensor | None,
    counts: Tensor | None,
    return_lse: bool,
    splits: int | None,
) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exp (empty unless asked for)."""
    if start is None:
        raise ValueError("flash-attn needs start=")
    # Slots behind the last query are hidden from every query, and flash-attn aligns its mask to the last key.
    end = start + q.shape[1]
    result = _function()(
        q, k_cache[:, :end], v_cache[:, :end], softmax_scale=scale, causal=True, return_attn_probs=return_lse
    )
    if return_lse:
        return result[0], result[1].transpose(1, 2).contiguous()
    return result, q.new_empty(0, dtype=torch.float32)
