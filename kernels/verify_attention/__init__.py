"""Attention of query tokens at arbitrary slots over a key-value cache."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, overload

import torch
from torch import Tensor

from ..registry import BACKENDS, Op
from . import flash
from .call import Call
from .plan import preferred
from .reference import verify_attention_reference


def _fake(q: Tensor, *args: object, **_: object) -> tuple[Tensor, Tensor]:
    with_lse = args[9]
    return q.new_empty(q.shape), q.new_empty(q.shape[:3] if with_lse else 0, dtype=torch.float32)


@lru_cache(maxsize=16)
def _capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def _order(call: Call) -> tuple[str, ...]:
    if flash.unusable() is None and flash.decline(call) is None:
        return BACKENDS  # flash-attn, which is part of the cuda backend
    device, half = call.q.device, call.q.dtype in (torch.float16, torch.bfloat16)
    capability = _capability(device.index) if device.type == "cuda" and torch.cuda.is_available() else 0
    return preferred(call.rows, half, capability)


# Called with a `Call`, it skips the checks of the function below.
OP = Op(
    "verify_attention",
    Call,
    verify_attention_reference,
    schema="(Tensor q, Tensor k_cache, Tensor v_cache, Tensor slots, Tensor? valid, int kv_len, int? start, "
    "float? scale, Tensor? block, Tensor? counts, bool return_lse, int? splits, Tensor? cache_rows=None, "
    "str? backend=None) -> (Tensor, Tensor)",
    fake=_fake,
    modules={"cuda": f"{__name__}.cuda", "triton": f"{__name__}.triton"},
    order=_order,
)


@overload
def verify_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    valid: Tensor | None = None,
    *,
    kv_len: int,
    start: int | None = None,
    scale: float | None = None,
    block: Tensor | None = None,
    counts: Tensor | None = None,
    return_lse: Literal[False] = False,
    splits: int | None = None,
    cache_rows: Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...


@overload
def verify_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    valid: Tensor | None = None,
    *,
    kv_len: int,
    start: int | None = None,
    scale: float | None = None,
    block: Tensor | None = None,
    counts: Tensor | None = None,
    return_lse: Literal[True],
    splits: int | None = None,
    cache_rows: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def verify_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    valid: Tensor | None = None,
    *,
    kv_len: int,
    start: int | None = None,
    scale: float | None = None,
    block: Tensor | None = None,
    counts: Tensor | None = None,
    return_lse: bool = False,
    splits: int | None = None,
    cache_rows: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend from each query to the committed keys at or before its slot, and to the draft keys that a mask names.

    The query at slot a sees the committed slot `b < kv_len` iff `b <= a`, and `valid[b]` where `valid` is given. With
    `block`, query i also sees the key of query j, which lies at `slots[:, j]`, iff bit j of its words is set; no order
    is assumed of that mask. A slot that is committed and in the block would count twice: end `kv_len` before the slots
    of the draft, or mark them in `valid` as not committed.

    Args:
        q: float [B, Q, H, D].
        k_cache, v_cache: float [B, S, Hkv, D], or with `cache_rows` [R, S, Hkv, D], Hkv a divisor of H (head h reads
            key head h // (H / Hkv)). The torch backend needs finite numbers in slots below `kv_len` and at `slots` even
            when no query sees them: start a cache with zeros.
        slots: int64 [B, Q], the slot of each query.
        valid: bool [B, S], slots that hold a committed key, or None when all slots up to each query do.
        kv_len: known on the host; later slots hold no committed key and are not read as such. Without `block` it is
            the largest slot of the call + 1; with `block` it may be less, also 0.
        start: the host's promise that `slots[b, q] == start + q`; it saves the mask for one query and for a prefill
            from slot 0. The tensor `slots` is then not read.
        scale: of the scores, default `D ** -0.5`.
        block: int32 [B or 1, Q, ceil(Q / 32)], visibility inside the draft, see `masks.pack`.
        counts: int [B], queries in use: those from `counts[b]` on are padding, whose output is zero, whose keys nobody
            sees and whose slots are not read.
        return_lse: return the log-sum-exp too.
        splits: how many programs share the keys of one query (their number is part of the order of summation), default
            by the shapes of the call, see `plan.choose_splits`.
        cache_rows: int64 [B] in [0, R), the row of the caches that each sequence has; None is its own number.
        backend: force "cuda", "triton" or "torch".

    Returns:
        float [B, Q, H, D], zeros for a query that sees nothing; with `return_lse` also float32 [B, Q, H], the natural
        logarithm of the sum of the exponentials of the scaled scores, -inf for a query that sees nothing.

    Raises:
        ValueError: shapes or types do not fit, or `kv_len` or `start` reach past the cache.
        BackendUnavailable: the forced backend cannot serve the call.
    """
    batch, queries, heads, dim = q.shape
    size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    rows = batch if cache_rows is None else k_cache.shape[0]
    if k_cache.shape != v_cache.shape or k_cache.shape != (rows, size, kv_heads, dim) or heads % kv_heads:
        raise ValueError(
            f"caches must be [B, S, Hkv, D] with B = {batch} (any number of rows with cache_rows), D = {dim} and Hkv a "
            f"divisor of H = {heads}, got {list(k_cache.shape)} and {list(v_cache.shape)}"
        )
    if cache_rows is not None and (cache_rows.shape != (batch,) or cache_rows.dtype != torch.int64):
        raise ValueError(f"cache_rows must be int64 [B] = {[batch]}, got {cache_rows.dtype} {list(cache_rows.shape)}")
    least = 1 if block is None else 0
    if not least <= kv_len <= size:
        raise ValueError(f"kv_len must be in [{least}, S] = [{least}, {size}], got {kv_len}")
    end = kv_len if block is None else size
    if start is not None and not 0 <= start <= end - queries:
        name = "kv_len" if block is None else "S"
        raise ValueError(f"start must be in [0, {name} - Q] = [0, {end - queries}], got {start}")
    if slots.shape != (batch, queries):
        raise ValueError(f"slots must be [B, Q] = {[batch, queries]}, got {list(slots.shape)}")
    if valid is not None and valid.shape != (batch, size):
        raise ValueError(f"valid must be [B, S] = {[batch, size]}, got {list(valid.shape)}")
    if block is not None:
        words = (queries + 31) // 32
        if block.dtype != torch.int32 or block.shape not in ((batch, queries, words), (1, queries, words)):
            raise ValueError(
                f"block must be int32 [B or 1, Q, ceil(Q / 32)] = [{batch} or 1, {queries}, {words}], "
                f"got {block.dtype} {list(block.shape)}"
            )
    if counts is not None and (counts.shape != (batch,) or counts.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"counts must be int32 or int64 [B] = {[batch]}, got {counts.dtype} {list(counts.shape)}")
    if splits is not None and splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    call = Call(q, k_cache, v_cache, slots, valid, kv_len, start, scale, block, counts, return_lse, splits, cache_rows)
    out, lse = OP(call, backend)
    return (out, lse) if return_lse else out
