"""CUDA backend of `kv_write`: one thread a pack of up to 16 bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..native import unusable
from .call import Call

__all__ = ["decline", "run", "unusable"]


def decline(call: Call) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    q, k, v, slots, rotary, k_cache, v_cache, start, cache_rows = call
    given = [q, k, v, k_cache, v_cache] + ([slots] if start is None else [])
    given += [t for t in (rotary, cache_rows) if t is not None]
    devices = {t.device for t in given}
    if len(devices) > 1 or not q.is_cuda:
        return f"all tensors must lie on one CUDA device, got {', '.join(sorted(map(str, devices)))}"
    if len({t.dtype for t in (q, k, v)}) > 1 or k_cache.dtype != v_cache.dtype:
        return "q, k and v must have one dtype, and so must the two caches"
    for tensor in (q, k_cache):
        if tensor.dtype not in native.TYPES:
            return f"q and caches must be float32, float16 or bfloat16, got {tensor.dtype}"
    if start is None and slots.dtype != torch.int64:
        return f"slots must be int64, got {slots.dtype}"
    if rotary is not None and rotary.dtype != torch.float32:
        return f"rotary must be float32, got {rotary.dtype}"
    if q.shape[3] % 2:
        return f"the head dimension must be even, got {q.shape[3]}"
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if not paired(cache):
            return f"{name} must hold pairs of elements next to each other and aligned, got strides {cache.stride()}"
    return None


def paired(x: Tensor) -> bool:
    """Whether each pair of neighbouring elements of x [B, S, H, D] can be moved by one access."""
    return x.stride(3) == 1 and all(s % 2 == 0 for s in x.stride()[:3]) and x.data_ptr() % (2 * x.element_size()) == 0


def run(call: Call) -> Tensor:
    """The rotated q; launched on the current stream."""
    q, k, v, slots, rotary, k_cache, v_cache, start, cache_rows = call
    q, k, v = (x if paired(x) else x.clone(memory_format=torch.contiguous_format) for x in (q, k, v))
    size = k_cache.shape[1]
    if rotary is not None:
        rotary, size = rotary.contiguous(), min(size, rotary.shape[0])
    out = None if rotary is None and start is not None else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    cache_rows = None if cache_rows is None else cache_rows.contiguous()
    tensors = (q, k, v, slots if start is None else None, rotary, out, k_cache, v_cache, cache_rows)
    strides = [step for x in (q, k, v, k_cache, v_cache) for step in x.stride()[:3]]
    with torch.cuda.device(q.device):
        native.module().kv_write(
            [0 if t is None else t.data_ptr() for t in tensors],
            [*strides, *slots.stride()],
            [*q.shape[:3], k.shape[2], q.shape[3]],
            start or 0,
            size,
            native.TYPES[q.dtype],
            native.TYPES[k_cache.dtype],
            native.stream(q),
        )
    return q if out is None else out
