"""Triton backend of `verify_attention`: a loop over committed keys, a loop over the draft block, a merge of splits.

The H / Hkv query heads of one key head are rows of one tile, so that each key is read once for all of them. The keys
of a call are seen as one sequence: committed slots, padded to whole tiles, then the draft in tiles of 32. A split is a
range of that sequence. Scores are kept in base 2: exp(x) = exp2(x * log2(e)).
"""

# mypy: disable-error-code="no-untyped-def"
# Parameters of Triton kernels have no Python types.

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import jit
from ..jit import unusable
from .call import Call
from .plan import cdiv, choose_splits, split_length, tile_rows

__all__ = ["combine_kernel", "configure", "decline", "run", "unusable", "verify_attention_kernel"]

MAX_DIM = 128
# One word of visibility, one register: the tile of the draft loop.
TAIL: tl.constexpr = tl.constexpr(32)
# Words looked at together in the search for the tiles that a tile of queries sees.
SCAN: tl.constexpr = tl.constexpr(8)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _accumulate(q, k, v, keep, best, total, acc, factor):
    """One step of the online softmax; k is [D, N], v [N, D]. A row that has seen nothing keeps best = -inf."""
    scores = tl.where(keep, tl.dot(q, k, input_precision="ieee"), float("-inf"))
    new = tl.maximum(best, tl.max(scores, 1))
    # -inf - -inf would be NaN.
    pivot = tl.where(new == float("-inf"), 0.0, new) * factor
    weight = tl.exp2(scores * factor - pivot[:, None])
    shrink = tl.exp2(best * factor - pivot)
    total = total * shrink + tl.sum(weight, 1)
    acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new, total, acc


@triton.jit(do_not_specialize=["queries", "row_tiles", "kv_len", "split_keys", "start"])
def verify_attention_kernel(
    q,  # [B, Q, H, D]
    k,  # [B, S, Hkv, D]
    v,
    slots,  # int64 [B, Q], or None: start + i
    valid,  # uint8 [B, S] or None
    block,  # int32 [B or 1, Q, W] or None
    counts,  # int [B] or None
    cache_rows,  # int64 [B], rows of k and v; None: one after the other
    out,  # [B, Q, H, D]; with SPLIT float32 [splits, B, Q, H, D]
    lse,  # float32 [B, Q, H] or None; with SPLIT in base 2, [splits, B, Q, H]
    factor,  # scale * log2(e)
    batch,
    queries,
    kv_heads,
    row_tiles,
    kv_len,
    split_keys,
    start,
    q_b,
    q_q,
    q_h,
    k_b,
    k_s,
    k_h,
    v_b,
    v_s,
    v_h,
    slots_b,
    slots_q,
    valid_b,
    valid_s,
    block_b,
    block_q,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    factor = tl.cast(factor, tl.float32)
    tile = tl.program_id(0) % row_tiles
    pair = tl.program_id(0) // row_tiles
    split = tl.program_id(1)
    b = (pair // kv_heads).to(tl.int64)
    head = (pair % kv_heads).to(tl.int64)

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query = rows // GROUP
    query64 = query.to(tl.int64)
    q_head = head * GROUP + rows % GROUP
    inside = query < queries
    if counts is not None:
        used = tl.minimum(tl.load(counts + b).to(tl.int32), queries)
    else:
        used = queries
    active = query < used
    if slots is not None:
        slot = tl.load(slots + b * slots_b + query64 * slots_q, mask=active, other=0).to(tl.int32)
    else:
        slot = start + query
    last = tl.max(tl.where(active, slot, -1), 0)
    end = tl.minimum(kv_len, last + 1)  # no row of the tile sees a committed key from there on
    padded = (kv_len + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    low = split * split_keys
    high = low + split_keys

    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_dim = d < DIM
    tile_q = tl.load(
        q + b * q_b + query64[:, None] * q_q + q_head[:, None] * q_h + d[None, :],
        mask=active[:, None] & in_dim[None, :],
        other=0.0,
    )
    of = b
    if cache_rows is not None:
        of = tl.load(cache_rows + b)
    k += of * k_b + head * k_h
    v += of * v_b + head * v_h

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # A third loop, without predicates for keys that all rows see, was tried: it costs 25 registers a thread.
    for begin in range(low, tl.minimum(end, high), BLOCK_N):
        key32 = begin + n
        key = key32.to(tl.int64)
        there = key32 < end
        if valid is not None:
            there = there & (tl.load(valid + b * valid_b + key * valid_s, mask=there, other=0) != 0)
        keep = there[None, :] & (key32[None, :] <= slot[:, None])
        tile_k = tl.load(k + key[None, :] * k_s + d[:, None], mask=there[None, :] & in_dim[:, None], other=0.0)
        tile_v = tl.load(v + key[:, None] * v_s + d[None, :], mask=there[:, None] & in_dim[None, :], other=0.0)
        best, total, acc = _accumulate(tile_q, tile_k, tile_v, keep, best, total, acc, factor)

    if block is not None:
        words = (used + 31) // 32
        tail_low = tl.minimum(tl.maximum(low - padded, 0) // TAIL, words)
        tail_high = tl.minimum(tl.maximum(high - padded, 0) // TAIL, words)
        row_words = block + b * block_b + query64 * block_q
        # The mask alone bounds the loop: it need not be triangular.
        from_word = tail_high
        to_word = tail_low
        for begin in range(tail_low, tail_high, SCAN):
            w = begin + tl.arange(0, SCAN)
            some = tl.load(row_words[:, None] + w[None, :], mask=active[:, None] & (w < tail_high)[None, :], other=0)
            seen = tl.max((some != 0).to(tl.int32), 0) != 0
            from_word = tl.minimum(from_word, tl.min(tl.where(seen, w, tail_high), 0))
            to_word = tl.maximum(to_word, tl.max(tl.where(seen, w + 1, tail_low), 0))
        t = tl.arange(0, TAIL)
        for w in range(from_word, to_word):
            j = w * TAIL + t
            word = tl.load(row_words + w, mask=active, other=0)
            there = (((tl.reduce(word, 0, _either) >> t) & 1) != 0) & (j < used)
            if slots is not None:
                key = tl.load(slots + b * slots_b + j.to(tl.int64) * slots_q, mask=there, other=0).to(tl.int64)
            else:
                key = (start + j).to(tl.int64)
            keep = (((word[:, None] >> t[None, :]) & 1) != 0) & there[None, :]
            tile_k = tl.load(k + key[None, :] * k_s + d[:, None], mask=there[None, :] & in_dim[:, None], other=0.0)
            tile_v = tl.load(v + key[:, None] * v_s + d[None, :], mask=there[:, None] & in_dim[None, :], other=0.0)
            best, total, acc = _accumulate(tile_q, tile_k, tile_v, keep, best, total, acc, factor)

    # Rows of padding were computed on whatever slot; they are cleared here.
    something = active & (total != 0.0)  # true of NaN, which is passed on
    acc = tl.where(something[:, None], acc / tl.where(something, total, 1.0)[:, None], 0.0)
    mass = tl.where(something, best * factor + tl.log2(tl.where(something, total, 1.0)), float("-inf"))
    row = (b * queries + query64) * (kv_heads * GROUP) + q_head
    if SPLIT:
        row += split.to(tl.int64) * batch * queries * (kv_heads * GROUP)
    tl.store(
        out + row[:, None] * DIM + d[None, :],
        acc.to(out.dtype.element_ty),
        mask=inside[:, None] & in_dim[None, :],
    )
    if SPLIT:
        tl.store(lse + row, mass, mask=inside)
    elif lse is not None:
        tl.store(lse + row, mass * 0.6931471805599453, mask=inside)


@triton.jit(do_not_specialize=["rows", "splits"])
def combine_kernel(
    partial,  # float32 [splits, rows, D]
    partial_lse,  # float32 [splits, rows], base 2
    out,  # [rows, D]
    lse,  # float32 [rows] or None
    rows,
    splits,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Weighted mean of partial results, in the order of the splits."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    d = tl.arange(0, BLOCK_D)
    stride = tl.cast(rows, tl.int64)
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    for s in range(splits):
        best = tl.maximum(best, tl.load(partial_lse + s * stride + row, mask=inside, other=float("-inf")))
    pivot = tl.where(best == float("-inf"), 0.0, best)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for s in range(splits):
        weight = tl.exp2(tl.load(partial_lse + s * stride + row, mask=inside, other=float("-inf")) - pivot)
        value = tl.load(
            partial + (s * stride + row)[:, None] * DIM + d[None, :],
            mask=inside[:, None] & (d < DIM)[None, :],
            other=0.0,
        )
        total += weight
        acc += weight[:, None] * value
    something = total != 0.0
    acc = acc / tl.where(something, total, 1.0)[:, None]
    tl.store(out + row[:, None] * DIM + d[None, :], acc.to(out.dtype.element_ty), mask=inside[:, None] & (d < DIM))
    if lse is not None:
        mass = tl.where(something, best + tl.log2(tl.where(something, total, 1.0)), float("-inf"))
        tl.store(lse + row, mass * 0.6931471805599453, mask=inside)


@dataclass(frozen=True)
class Config:
    """Tile and launch options of one program; `resident` is how many fit on a multiprocessor, by the registers."""

    rows: int
    keys: int
    warps: int
    stages: int
    resident: int


# (rows of the tile, padded head size) -> configuration; compute capability 8.x, then 9.0 and later.
_AMPERE = {
    (16, 64): Config(16, 64, 4, 3, 4),
    (32, 64): Config(32, 64, 4, 3, 4),
    (64, 64): Config(64, 64, 4, 3, 2),
    (128, 64): Config(128, 64, 8, 2, 1),
    (16, 128): Config(16, 64, 4, 2, 2),
    (32, 128): Config(32, 64, 4, 2, 2),
    (64, 128): Config(64, 32, 4, 2, 2),
    (128, 128): Config(128, 32, 8, 2, 1),
}
_HOPPER = {
    (16, 64): Config(16, 64, 4, 3, 4),
    (32, 64): Config(32, 64, 4, 3, 4),
    (64, 64): Config(64, 64, 4, 3, 3),
    (128, 64): Config(128, 64, 8, 3, 1),
    (16, 128): Config(16, 64, 4, 3, 2),
    (32, 128): Config(32, 64, 4, 3, 2),
    (64, 128): Config(64, 64, 4, 2, 2),
    (128, 128): Config(128, 64, 8, 2, 1),
}


def configure(rows: int, dim: int, dtype: torch.dtype, capability: int) -> Config:
    """The configuration for `rows` = Q * H / Hkv rows of head size `dim` on compute capability 80, 90, ..."""
    if dtype == torch.float32:
        # Products in full float32 run without tensor cores and hold whole tiles in registers.
        return Config(16, 32, 4 if dim <= 64 else 8, 1, 1)
    table = _HOPPER if capability >= 90 else _AMPERE
    return table[tile_rows(rows), 64 if dim <= 64 else 128]


@lru_cache(maxsize=16)
def _device(index: int | None) -> tuple[int, int]:
    """Compute capability and multiprocessors; under the interpreter those of a middling device."""
    if not torch.cuda.is_available():
        return 80, 64
    found = torch.cuda.get_device_properties(index)
    return 10 * found.major + found.minor, found.multi_processor_count


def decline(call: Call) -> str | None:
    """Why the kernel cannot serve these arguments (those of the reference), or None."""
    q, k_cache, v_cache = call.q, call.k_cache, call.v_cache
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"q must be float32, float16 or bfloat16, got {q.dtype}"
    if k_cache.dtype != q.dtype or v_cache.dtype != q.dtype:
        return f"q and the caches must have one type, got {q.dtype}, {k_cache.dtype} and {v_cache.dtype}"
    if q.shape[-1] > MAX_DIM:
        return f"head sizes up to {MAX_DIM} are supported, got {q.shape[-1]}"
    if k_cache.stride(-1) != 1 or v_cache.stride(-1) != 1:
        return f"the last axis of the caches must be contiguous, got strides {k_cache.stride()} and {v_cache.stride()}"
    if call.scale is not None and not call.scale > 0.0:
        return f"scale must be positive, got {call.scale}"
    return jit.decline_tensors(q, k_cache, v_cache, call.slots, call.valid, call.block, call.counts, call.cache_rows)


def run(call: Call) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exp (empty unless asked for), launched on the current stream."""
    call = call.for_kernel()
    batch, queries, heads, dim = call.q.shape
    kv_heads = call.k_cache.shape[2]
    out, lse = call.results()
    if out.numel() == 0:
        return out, lse
    if call.q.stride(-1) != 1:
        call = call._replace(q=call.q.contiguous())
    capability, processors = _device(call.q.device.index)
    config = configure(call.rows, dim, call.q.dtype, capability)
    row_tiles = cdiv(call.rows, config.rows)
    # Committed keys fill whole tiles; the draft comes behind them.
    keys = cdiv(call.kv_len, config.keys) * config.keys + (0 if call.block is None else cdiv(queries, 32) * 32)
    splits = call.splits or choose_splits(
        heads=batch * kv_heads,
        rows=call.rows,
        keys=keys,
        tile_rows=config.rows,
        tile_keys=config.keys,
        processors=processors,
        resident=config.resident,
    )
    split_keys = split_length(keys, splits, config.keys)
    splits = cdiv(keys, split_keys)  # without those that rounding left empty
    final_lse = lse if call.return_lse else None
    target, target_lse = call.partial_results(splits) if splits > 1 else (out, final_lse)
    block_d = max(16, triton.next_power_of_2(dim))
    with torch.cuda.device_of(call.q):
        verify_attention_kernel[(row_tiles * batch * kv_heads, splits)](
            call.q,
            call.k_cache,
            call.v_cache,
            call.slots if call.start is None else None,
            None if call.valid is None else call.valid.view(torch.uint8),
            call.block,
            call.counts,
            call.cache_rows,
            target,
            target_lse,
            call.factor,
            batch,
            queries,
            kv_heads,
            row_tiles,
            call.kv_len,
            split_keys,
            call.start or 0,
            *call.strides(),
            GROUP=heads // kv_heads,
            DIM=dim,
            BLOCK_D=block_d,
            BLOCK_M=config.rows,
            BLOCK_N=config.keys,
            SPLIT=splits > 1,
            num_warps=config.warps,
            num_stages=config.stages,
        )
        if splits > 1:
            rows = batch * queries * heads
            combine_kernel[(cdiv(rows, 4),)](
                target,
                target_lse,
                out,
                final_lse,
                rows,
                splits,
                DIM=dim,
                BLOCK_D=block_d,
                BLOCK_R=4,
                num_warps=4,
            )
    return out, lse
