"""CUDA backend of `verify_attention`: flash-attn for the plain causal case, two kernels of our own for all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .. import native
from . import flash
from .plan import cdiv, choose_splits, split_length

__all__ = ["decline", "run", "unusable"]

# Rows of a key head up to which the kernel without tensor cores serves.
FEW_ROWS = 16
MAX_DIM = 128
# The largest head size that is no multiple of 8 for which there is a kernel on tensor cores.
MAX_ODD_DIM = 112
LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Tile:
    """What one block of a kernel takes: rows of a key head, keys of one step; and how many fit on a multiprocessor."""

    rows: int
    keys: int
    resident: int
    tensor_cores: bool


def tile_of(rows: int, dim: int) -> Tile:
    """The kernel that serves `rows` = Q * H / Hkv rows a key head, of head size `dim`."""
    if rows <= FEW_ROWS:
        return Tile(4, 64, 3, tensor_cores=False)
    return Tile(64, 64, 3 if dim <= 64 and dim % 8 == 0 else 2, tensor_cores=True)


def unusable() -> str | None:
    """Why neither flash-attn nor a kernel of mulosd._C can run on this machine, or None."""
    reason = native.unusable()
    return None if reason is None or flash.unusable() is None else reason


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
    """Why neither kernel can serve these arguments, or None."""
    given = [t for t in (q, k_cache, v_cache, slots, valid, block, counts) if t is not None]
    devices = sorted({str(t.device) for t in given})
    if not q.is_cuda or len(devices) > 1:
        return f"all tensors must lie on one CUDA device, got {', '.join(devices)}"
    by_flash = flash.unusable() or flash.decline(
        q, k_cache, v_cache, slots, valid, kv_len, start, scale, block, counts, return_lse, splits
    )
    if by_flash is None:
        return None
    own = native.unusable() or decline_shapes(q, k_cache, v_cache, scale)
    return None if own is None else f"{own}; {by_flash}"


def decline_shapes(q: Tensor, k_cache: Tensor, v_cache: Tensor, scale: float | None) -> str | None:
    """Why the kernel of mulosd._C cannot take these tensors, whatever their device, or None."""
    dim, rows = q.shape[-1], q.shape[1] * q.shape[2] // k_cache.shape[2]
    if q.dtype not in native.TYPES or k_cache.dtype != q.dtype or v_cache.dtype != q.dtype:
        return (
            f"q and the caches must share one of float32, float16 and bfloat16, got {q.dtype}, {k_cache.dtype} and "
            f"{v_cache.dtype}"
        )
    if dim > MAX_DIM or dim % 4:
        return f"the head size must be a multiple of 4 up to {MAX_DIM}, got {dim}"
    if tile_of(rows, dim).tensor_cores:
        beyond = f"with Q * H / Hkv = {rows} rows, more than {FEW_ROWS},"
        if q.dtype == torch.float32:
            return f"{beyond} the kernel runs on tensor cores, which need float16 or bfloat16, got {q.dtype}"
        if dim > MAX_ODD_DIM and dim % 8:
            return f"{beyond} a head size above {MAX_ODD_DIM} must be a multiple of 8, got {dim}"
        if scale is not None and not scale > 0.0:
            return f"{beyond} scale must be positive, got {scale}"
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if not _vectors(cache, dim):
            return (
                f"{name} must have a contiguous last axis, other strides that are multiples of {_width(cache, dim)} "
                f"and an aligned start, got strides {cache.stride()}"
            )
    return None


def _width(tensor: Tensor, dim: int) -> int:
    """Elements of one vector load."""
    return 4 if tensor.dtype == torch.float32 or dim % 8 else 8


def _vectors(tensor: Tensor, dim: int) -> bool:
    """Whether vector loads of the kernel are aligned in this tensor."""
    width = _width(tensor, dim)
    aligned = tensor.data_ptr() % (width * tensor.element_size()) == 0
    # The stride of an axis of length 1 is never used.
    steps = [s for s, n in zip(tensor.stride()[:-1], tensor.shape[:-1], strict=True) if n > 1]
    return aligned and tensor.stride(-1) == 1 and all(s % width == 0 for s in steps)


@lru_cache(maxsize=16)
def _processors(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


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
    """Outputs and log-sum-exp (empty unless asked for), launched on the current stream."""
    args = (q, k_cache, v_cache, slots, valid, kv_len, start, scale, block, counts, return_lse, splits)
    if flash.unusable() is None and flash.decline(*args) is None:
        with torch.cuda.device_of(q):
            return flash.run(*args)
    with torch.cuda.device_of(q):
        return launch(*args, _processors(q.device.index), native.module().verify_attention, native.stream(q))


def launch(
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
    processors: int,
    function: Callable[..., None],
    stream: int,
) -> tuple[Tensor, Tensor]:
    """Plan the call, hand it to `function` (see `verify_attention` in bindings.cpp), return its results."""
    batch, queries, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    rows = queries * heads // kv_heads
    tile = tile_of(rows, dim)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((batch, queries, heads) if return_lse else 0, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    if not _vectors(q, dim):
        q = q.clone(memory_format=torch.contiguous_format)
    if block is not None and block.stride(-1) != 1:
        block = block.contiguous()
    if counts is not None:
        counts = counts.contiguous()
    if start is not None:
        kv_len = min(kv_len, start + queries)
    keys = kv_len + (0 if block is None else queries)
    if tile.tensor_cores and block is not None:
        keys = (cdiv(kv_len, tile.keys) + cdiv(queries, tile.keys)) * tile.keys  # the draft starts on a tile of its own
    if splits is None:
        splits = choose_splits(
            heads=batch * kv_heads,
            rows=rows,
            keys=keys,
            tile_rows=tile.rows,
            tile_keys=tile.keys,
            processors=processors,
            resident=tile.resident,
        )
    split_keys = split_length(keys, splits, tile.keys)
    splits = cdiv(keys, split_keys)  # without those that rounding left empty
    partial = q.new_empty((splits, *out.shape) if splits > 1 else 0, dtype=torch.float32)
    partial_lse = q.new_empty((splits, batch, queries, heads) if splits > 1 else 0, dtype=torch.float32)
    if start is None:
        slots = slots.long()
    function(
        [
            q.data_ptr(),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            slots.data_ptr() if start is None else 0,
            0 if valid is None else valid.data_ptr(),
            0 if block is None else block.data_ptr(),
            0 if counts is None else counts.data_ptr(),
            out.data_ptr(),
            lse.data_ptr() if return_lse else 0,
            partial.data_ptr(),
            partial_lse.data_ptr(),
        ],
        [
            native.TYPES[q.dtype],
            int(counts is not None and counts.dtype == torch.int64),
            int(tile.tensor_cores),
            *(batch, queries, heads, kv_heads, dim),
            kv_len,
            0 if start is None else start,
            splits,
            split_keys,
        ],
        [
            *q.stride()[:3],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            *slots.stride(),
            *((0, 0) if valid is None else valid.stride()),
            *((0, 0) if block is None else (block.stride(0) if block.shape[0] > 1 else 0, block.stride(1))),
        ],
        (dim**-0.5 if scale is None else scale) * LOG2E,
        stream,
    )
    return out, lse
