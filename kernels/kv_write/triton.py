"""Triton backend of `kv_write`: one program a token and block of heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import jit
from ..jit import unusable
from .call import Call

__all__ = ["decline", "run", "unusable"]

TILE = 1024  # elements a program moves of each tensor


@triton.jit
def _turned(x, rotary, slot, width, DIM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):
    """x [BLOCK_H, BLOCK_D] in float32 with its interleaved pairs turned by the table's row."""
    # Both of a pair in one access: apart, each would fetch the sectors of both.
    dim = tl.arange(0, BLOCK_D)
    table = tl.load(rotary + slot * DIM + dim, mask=dim < width, other=0.0)
    cos, sin = tl.split(tl.reshape(table[None, :], (1, BLOCK_D // 2, 2)))
    a, b = tl.split(tl.reshape(x, (BLOCK_H, BLOCK_D // 2, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (BLOCK_H, BLOCK_D))


@triton.jit(do_not_specialize=["queries", "start", "size"])
def kv_write_kernel(
    q,
    k,
    v,
    slots,  # None: start + token
    rotary,  # None: nothing turns
    out,  # None: q is not asked for
    k_cache,
    v_cache,
    cache_rows,  # int64, rows of the caches; None: one after the other
    queries,
    start,
    size,  # slots from here on are padding
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    slot_batch,
    slot_token,
    k_cache_batch,
    k_cache_slot,
    k_cache_head,
    v_cache_batch,
    v_cache_slot,
    v_cache_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // queries, row % queries
    if slots is None:
        slot = token + start
    else:
        slot = tl.load(slots + batch * slot_batch + token * slot_token).to(tl.int64)
    width = tl.where((slot >= 0) & (slot < size), DIM, 0)  # of what is read: padding is not

    part = tl.program_id(1)
    dim = tl.arange(0, BLOCK_D)[None, :]
    q_parts: tl.constexpr = 0 if out is None else (HEADS + BLOCK_H - 1) // BLOCK_H
    if part < q_parts:
        if out is not None:
            head = (part * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)[:, None]
            source = q + batch * q_batch + token * q_token + head * q_head + dim
            x = tl.load(source, mask=(head < HEADS) & (dim < width), other=0.0).to(tl.float32)
            if rotary is not None:
                x = _turned(x, rotary, slot, width, DIM, BLOCK_H, BLOCK_D)
            tl.store(
                out + (row * HEADS + head) * DIM + dim, x.to(out.dtype.element_ty), mask=(head < HEADS) & (dim < DIM)
            )
    else:
        head = ((part - q_parts) * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)[:, None]
        inside = (head < KV_HEADS) & (dim < width)
        x = tl.load(k + batch * k_batch + token * k_token + head * k_head + dim, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(v + batch * v_batch + token * v_token + head * v_head + dim, mask=inside, other=0.0).to(tl.float32)
        if rotary is not None:
            x = _turned(x, rotary, slot, width, DIM, BLOCK_H, BLOCK_D)
        target = batch
        if cache_rows is not None:
            target = tl.load(cache_rows + batch)
        key = k_cache + target * k_cache_batch + slot * k_cache_slot + head * k_cache_head + dim
        value = v_cache + target * v_cache_batch + slot * v_cache_slot + head * v_cache_head + dim
        tl.store(key, x.to(k_cache.dtype.element_ty), mask=inside)
        tl.store(value, y.to(v_cache.dtype.element_ty), mask=inside)


def decline(call: Call) -> str | None:
    """Why the kernel cannot serve these arguments, or None."""
    q, k, v, slots, rotary, k_cache, v_cache, start, cache_rows = call
    tensors = (q, k, v, k_cache, v_cache) if start is not None else (q, k, v, k_cache, v_cache, slots)
    return jit.decline_tensors(*tensors, rotary, cache_rows) or decline_layout(q, rotary, k_cache, v_cache)


def decline_layout(q: Tensor, rotary: Tensor | None, k_cache: Tensor, v_cache: Tensor) -> str | None:
    """What no kernel of this op takes."""
    if q.shape[3] % 2:
        return f"the head dimension must be even, got {q.shape[3]}"
    if k_cache.stride(3) != 1 or v_cache.stride(3) != 1:
        return "neighbouring elements of a head must lie next to each other in the caches"
    if rotary is not None and rotary.dtype != torch.float32:
        return f"rotary must be float32, got {rotary.dtype}"
    return None


def run(call: Call) -> Tensor:
    """The rotated q; one launch."""
    q, k, v, slots, rotary, k_cache, v_cache, start, cache_rows = call
    batch, queries, heads, dim = q.shape
    kv_heads, size = k_cache.shape[2], k_cache.shape[1]
    if rotary is not None:
        rotary, size = rotary.contiguous(), min(size, rotary.shape[0])
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    out = None if rotary is None and start is not None else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if batch * queries == 0:
        return q if out is None else out
    block_d = max(2, triton.next_power_of_2(dim))
    block_h = max(1, min(TILE // block_d, triton.next_power_of_2(max(heads, kv_heads))))
    parts = (0 if out is None else triton.cdiv(heads, block_h)) + triton.cdiv(kv_heads, block_h)
    with jit.on_device(q):
        kv_write_kernel[(batch * queries, parts)](
            q,
            k,
            v,
            slots if start is None else None,
            rotary,
            out,
            k_cache,
            v_cache,
            None if cache_rows is None else cache_rows.contiguous(),
            queries,
            start or 0,
            size,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *slots.stride(),
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=dim,
            BLOCK_H=block_h,
            BLOCK_D=block_d,
            num_warps=4,
        )
    return q if out is None else out
