"""CUDA backend of `verify_attention`: flash-attn for the plain causal case, two kernels of our own for all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .. import native
from . import flash
from .call import Call
from .plan import cdiv, choose_splits, split_length

__all__ = ["decline", "run", "unusable"]

# Rows of a key head from which on the kernel on tensor cores serves what it can: the scalar one needs more instructions
# there than can be issued while memory delivers the keys (docs/kernels-log.md).
TENSOR_CORE_ROWS = 2
# Rows up to which the kernel without them serves the rest.
FEW_ROWS = 16
MAX_DIM = 128
# The largest head size that is no multiple of 8 for which there is a kernel on tensor cores.
MAX_ODD_DIM = 112


@dataclass(frozen=True)
class Tile:
    """What one block of a kernel takes: rows of a key head, keys of one step; and how many fit on a multiprocessor."""

    rows: int
    keys: int
    resident: int
    tensor_cores: bool


def tile_of(call: Call) -> Tile:
    """The kernel that serves a call."""
    dim = call.q.shape[-1]
    if call.rows < TENSOR_CORE_ROWS or (call.rows <= FEW_ROWS and no_tensor_cores(call)):
        return Tile(4, 64, 3, tensor_cores=False)
    return Tile(64, 64, 3 if dim <= 64 and dim % 8 == 0 else 2, tensor_cores=True)


def no_tensor_cores(call: Call) -> str | None:
    """Why the kernel on tensor cores cannot serve a call, or None."""
    dim, scale = call.q.shape[-1], call.scale
    if call.q.dtype == torch.float32:
        return "the kernel runs on tensor cores, which need float16 or bfloat16, got torch.float32"
    if dim > MAX_ODD_DIM and dim % 8:
        return f"a head size above {MAX_ODD_DIM} must be a multiple of 8, got {dim}"
    if scale is not None and not scale > 0.0:
        return f"scale must be positive, got {scale}"
    return None


def unusable() -> str | None:
    """Why neither flash-attn nor a kernel of mulosd._C can run on this machine, or None."""
    reason = native.unusable()
    return None if reason is None or flash.unusable() is None else reason


def decline(call: Call) -> str | None:
    """Why none of the kernels can serve this call, or None."""
    devices = sorted({str(t.device) for t in call if isinstance(t, Tensor)})
    if not call.q.is_cuda or len(devices) > 1:
        return f"all tensors must lie on one CUDA device, got {', '.join(devices)}"
    by_flash = flash.unusable() or flash.decline(call)
    if by_flash is None:
        return None
    own = native.unusable() or decline_shapes(call)
    return None if own is None else f"{own}; {by_flash}"


def decline_shapes(call: Call) -> str | None:
    """Why the kernels of mulosd._C cannot take these tensors, whatever their device, or None."""
    q, k_cache, v_cache, dim = call.q, call.k_cache, call.v_cache, call.q.shape[-1]
    if q.dtype not in native.TYPES or k_cache.dtype != q.dtype or v_cache.dtype != q.dtype:
        return (
            f"q and the caches must share one of float32, float16 and bfloat16, got {q.dtype}, {k_cache.dtype} and "
            f"{v_cache.dtype}"
        )
    if dim > MAX_DIM or dim % 4:
        return f"the head size must be a multiple of 4 up to {MAX_DIM}, got {dim}"
    if call.rows > FEW_ROWS and (reason := no_tensor_cores(call)):
        return f"with Q * H / Hkv = {call.rows} rows, more than {FEW_ROWS}, {reason}"
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


def run(call: Call) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exp (empty unless asked for), launched on the current stream."""
    with torch.cuda.device_of(call.q):
        if flash.unusable() is None and flash.decline(call) is None:
            return flash.run(call)
        return launch(call, _processors(call.q.device.index), native.module().verify_attention, native.stream(call.q))


def launch(call: Call, processors: int, function: Callable[..., None], stream: int) -> tuple[Tensor, Tensor]:
    """Plan the call, hand it to `function` (see `verify_attention` in bindings.cpp), return its results."""
    call = call.for_kernel()
    batch, queries, heads, dim = call.q.shape
    kv_heads = call.k_cache.shape[2]
    tile = tile_of(call)
    out, lse = call.results()
    if out.numel() == 0:
        return out, lse
    if not _vectors(call.q, dim):
        call = call._replace(q=call.q.clone(memory_format=torch.contiguous_format))
    keys = call.kv_len + (0 if call.block is None else queries)
    if tile.tensor_cores and call.block is not None:
        # The draft starts on a tile of its own.
        keys = (cdiv(call.kv_len, tile.keys) + cdiv(queries, tile.keys)) * tile.keys
    splits = call.splits or choose_splits(
        heads=batch * kv_heads,
        rows=call.rows,
        keys=keys,
        tile_rows=tile.rows,
        tile_keys=tile.keys,
        processors=processors,
        resident=tile.resident,
    )
    split_keys = split_length(keys, splits, tile.keys)
    splits = cdiv(keys, split_keys)  # without those that rounding left empty
    partial, partial_lse = call.partial_results(splits if splits > 1 else 0)
    slots = call.slots.long() if call.start is None else None
    if slots is not None:
        call = call._replace(slots=slots)
    rows = 0 if call.cache_rows is None else call.cache_rows.data_ptr()
    wide_counts = call.counts is not None and call.counts.dtype == torch.int64
    function(
        [
            0 if t is None else t.data_ptr()
            for t in (call.q, call.k_cache, call.v_cache, slots, call.valid, call.block, call.counts)
        ]
        + [out.data_ptr(), lse.data_ptr() if call.return_lse else 0, partial.data_ptr(), partial_lse.data_ptr(), rows],
        [
            *(native.TYPES[call.q.dtype], int(wide_counts), int(tile.tensor_cores)),
            *(batch, queries, heads, kv_heads, dim),
            *(call.kv_len, call.start or 0, splits, split_keys),
        ],
        call.strides(),
        call.factor,
        stream,
    )
    return out, lse
