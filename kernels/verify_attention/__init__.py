"""Attention of query tokens at arbitrary slots over a key-value cache."""

from __future__ import annotations

from torch import Tensor

from ..registry import Op
from .reference import verify_attention_reference

_OP = Op(
    "verify_attention",
    verify_attention_reference,
    schema="(Tensor q, Tensor k_cache, Tensor v_cache, Tensor slots, Tensor? valid, int kv_len, int? start, "
    "float? scale, str? backend=None) -> Tensor",
    fake=lambda q, *_, **__: q.new_empty(q.shape),
)


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
    backend: str | None = None,
) -> Tensor:
    """Attend from each query to the cached keys at or before its slot.

    The query at slot a sees slot b iff `b <= a`, and `valid[b]` where `valid` is given.

    Args:
        q: float [B, Q, H, D].
        k_cache, v_cache: float [B, S, Hkv, D], Hkv a divisor of H (head h reads key head h // (H / Hkv)). Slots below
            `kv_len` must hold finite numbers even when no query sees them: start a cache with zeros.
        slots: int64 [B, Q], the slot of each query.
        valid: bool [B, S], slots that hold a committed key, or None when all slots up to each query do.
        kv_len: largest slot of the call + 1, known on the host; later slots are not read.
        start: the host's promise that `slots[b, q] == start + q`; it saves the mask for one query and for a prefill
            from slot 0. Without `valid` the tensor `slots` is then not read.
        scale: of the scores, default `D ** -0.5`.
        backend: force "torch" (the one there is).

    Returns:
        float [B, Q, H, D]; zeros for a query that sees no slot.

    Raises:
        ValueError: shapes do not fit, or `kv_len` or `start` reach past the cache.
    """
    batch, queries, heads, dim = q.shape
    size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    if k_cache.shape != v_cache.shape or k_cache.shape != (batch, size, kv_heads, dim) or heads % kv_heads:
        raise ValueError(
            f"caches must be [B, S, Hkv, D] with B = {batch}, D = {dim} and Hkv a divisor of H = {heads}, "
            f"got {list(k_cache.shape)} and {list(v_cache.shape)}"
        )
    if not 1 <= kv_len <= size:
        raise ValueError(f"kv_len must be in [1, S] = [1, {size}], got {kv_len}")
    if start is not None and not 0 <= start <= kv_len - queries:
        raise ValueError(f"start must be in [0, kv_len - Q] = [0, {kv_len - queries}], got {start}")
    if slots.shape != (batch, queries):
        raise ValueError(f"slots must be [B, Q] = {[batch, queries]}, got {list(slots.shape)}")
    if valid is not None and valid.shape != (batch, size):
        raise ValueError(f"valid must be [B, S] = {[batch, size]}, got {list(valid.shape)}")
    return _OP(q, backend, q, k_cache, v_cache, slots, valid, kv_len, start, scale)
