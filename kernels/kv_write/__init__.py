"""Rotary embedding of queries and keys, and the write of keys and values to their slots."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import Op
from .call import Call
from .reference import kv_write_reference

# Called with a `Call`, it skips the checks of the function below.
OP = Op(
    "kv_write",
    Call,
    kv_write_reference,
    schema="(Tensor q, Tensor k, Tensor v, Tensor slots, Tensor? rotary, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "int? start, Tensor? cache_rows=None, str? backend=None) -> Tensor",
    fake=lambda q, *_, **__: q.new_empty(q.shape),
    modules={"cuda": f"{__name__}.cuda", "triton": f"{__name__}.triton"},
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
    cache_rows: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Rotate q and k by their slots, store k and v in place, return the rotated q.

    Interleaved pairs turn: `(a, b) -> (a cos - b sin, b cos + a sin)`, computed in float32. Nothing asks that cos and
    sin lie on the unit circle: rows of zeros, which some models were trained with for their prefix, make q and k zero.

    A token with a slot below 0 is padding: nothing is written for it, and its q comes out zero.

    Args:
        q: float [B, Q, H, D].
        k, v: float [B, Q, Hkv, D].
        slots: int64 [B, Q], the slot of each token, different within a row of the batch but for padding (below 0). A
            slot past the cache or the table is an error on the CPU; the CUDA and Triton backends, which never wait for
            the device, treat it as padding.
        rotary: float32 [S', D/2, 2], (cos, sin) by slot, with S' past every slot; None for no rotation.
        k_cache, v_cache: float [B, S, Hkv, D], or with `cache_rows` [R, S, Hkv, D], written at `slots`; of any float
            type and strides.
        start: the host's promise that `slots[b, q] == start + q`; the tensor `slots` is then not read.
        cache_rows: int64 [B] in [0, R), the row of the caches that each sequence has; None is its own number. No two
            have the same row, but for those that are padding throughout.
        backend: force "cuda", "triton" or "torch".

    Returns:
        float [B, Q, H, D], the rotated q (q itself where nothing turns and nothing can be padding).

    Raises:
        ValueError: shapes do not fit, or `start` reaches past the cache or the table.
        BackendUnavailable: the forced backend cannot serve the call.
    """
    batch, queries, _, dim = q.shape
    if k.shape != v.shape or k.shape[:2] != (batch, queries) or k.shape[3] != dim:
        raise ValueError(
            f"k and v must be [B, Q, Hkv, D] with B, Q, D = {[batch, queries, dim]}, "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    size = k_cache.shape[1]
    rows = batch if cache_rows is None else k_cache.shape[0]
    if k_cache.shape != v_cache.shape or k_cache.shape != (rows, size, k.shape[2], dim):
        raise ValueError(
            f"caches must be [B, S, Hkv, D] with B, Hkv, D = {[batch, k.shape[2], dim]}, or [R, ...] with cache_rows, "
            f"got {list(k_cache.shape)} and {list(v_cache.shape)}"
        )
    if cache_rows is not None and (cache_rows.shape != (batch,) or cache_rows.dtype != torch.int64):
        raise ValueError(f"cache_rows must be int64 [B] = {[batch]}, got {cache_rows.dtype} {list(cache_rows.shape)}")
    if rotary is not None and rotary.shape[1:] != (dim // 2, 2):
        raise ValueError(f"rotary must be [S, D/2, 2] with D/2 = {dim // 2}, got {list(rotary.shape)}")
    if slots.shape != (batch, queries):
        raise ValueError(f"slots must be [B, Q] = {[batch, queries]}, got {list(slots.shape)}")
    if start is not None:
        last = size if rotary is None else min(size, rotary.shape[0])
        if not 0 <= start <= last - queries:
            raise ValueError(f"start must be in [0, {last - queries}] for {queries} tokens, got {start}")
    return OP(Call(q, k, v, slots, rotary, k_cache, v_cache, start, cache_rows), backend)
