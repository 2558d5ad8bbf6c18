"""Rotary embedding of queries and keys, and the write of keys and values to their slots."""

from __future__ import annotations

from torch import Tensor

from ..registry import Op
from .reference import kv_write_reference

_OP = Op(
    "kv_write",
    kv_write_reference,
    schema="(Tensor q, Tensor k, Tensor v, Tensor slots, Tensor? rotary, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "int? start, str? backend=None) -> Tensor",
    fake=lambda q, *_, **__: q.new_empty(q.shape),
)


def kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    rotary: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    start: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Rotate q and k by their slots, store k and v in place, return the rotated q.

    Interleaved pairs turn: `(a, b) -> (a cos - b sin, b cos + a sin)`, computed in float32.

    Args:
        q: float [B, Q, H, D].
        k, v: float [B, Q, Hkv, D].
        slots: int64 [B, Q], the slot of each token, different within a row of the batch.
        rotary: float32 [S', D/2, 2], (cos, sin) by slot, with S' past every slot; None for no rotation.
        k_cache, v_cache: float [B, S, Hkv, D], written at `slots`.
        start: the host's promise that `slots[b, q] == start + q`; the tensor `slots` is then not read.
        backend: force "torch" (the one there is).

    Returns:
        float [B, Q, H, D], the rotated q (q itself when `rotary` is None).

    Raises:
        ValueError: shapes do not fit, or `start` reaches past the cache or the table.
    """
    batch, queries, _, dim = q.shape
    if k.shape != v.shape or k.shape[:2] != (batch, queries) or k.shape[3] != dim:
        raise ValueError(
            f"k and v must be [B, Q, Hkv, D] with B, Q, D = {[batch, queries, dim]}, "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    size = k_cache.shape[1]
    if k_cache.shape != v_cache.shape or k_cache.shape != (batch, size, k.shape[2], dim):
        raise ValueError(
            f"caches must be [B, S, Hkv, D] with B, Hkv, D = {[batch, k.shape[2], dim]}, "
            f"got {list(k_cache.shape)} and {list(v_cache.shape)}"
        )
    if rotary is not None and rotary.shape[1:] != (dim // 2, 2):
        raise ValueError(f"rotary must be [S, D/2, 2] with D/2 = {dim // 2}, got {list(rotary.shape)}")
    if slots.shape != (batch, queries):
        raise ValueError(f"slots must be [B, Q] = {[batch, queries]}, got {list(slots.shape)}")
    if start is not None:
        last = size if rotary is None else min(size, rotary.shape[0])
        if not 0 <= start <= last - queries:
            raise ValueError(f"start must be in [0, {last - queries}] for {queries} tokens, got {start}")
    return _OP(q, backend, q, k, v, slots, rotary, k_cache, v_cache, start)
