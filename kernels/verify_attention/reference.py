"""The specification of `verify_attention` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..masks import unpack
from ..narrow import multiplies


def verify_attention_reference(
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
    cache_rows: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, Q, H, D] and their log-sum-exp [B, Q, H], which is empty unless asked for.

    The arguments are those of `verify_attention`, already checked; `splits` says how kernels share the work, which is
    nothing to a specification.
    """
    batch, queries = q.shape[:2]
    mask: Tensor | None = None
    causal, ahead = False, 0
    if start is not None:
        kv_len = min(kv_len, start + queries)  # later slots are hidden from every query
    if start is None or return_lse or any(t is not None for t in (valid, block, counts)):
        if start is not None:
            slots = (start + torch.arange(queries, device=q.device)).expand(batch, queries)
        mask = visible(slots, kv_len)
        if valid is not None:
            mask = mask & valid[:, None, None, :kv_len]
    elif queries > 1:
        # A few queries more, in front, make a causal square, of which half need not be computed.
        causal = start <= queries // 4
        if causal:
            ahead = start
        else:
            key = torch.arange(kv_len, device=q.device)
            mask = key <= key[start:, None]
    of = slice(None) if cache_rows is None else cache_rows
    keys, values = k_cache[of, :kv_len], v_cache[of, :kv_len]
    real = None if counts is None else torch.arange(queries, device=q.device) < counts[:, None]
    if block is not None:
        draft = unpack(block, queries)[:, None].expand(batch, 1, queries, queries)
        if real is not None:
            draft = draft & real[:, None, None, :]
            slots = slots.masked_fill(~real, 0)  # the slots of padding may be anything
        row = (torch.arange(batch, device=q.device) if cache_rows is None else cache_rows)[:, None]
        keys = torch.cat((keys, k_cache[row, slots]), dim=1)
        values = torch.cat((values, v_cache[row, slots]), dim=1)
        mask = draft if mask is None else torch.cat((mask, draft), dim=-1)
    if real is not None and mask is not None:
        mask = mask & real[:, None, :, None]
    heads, kv_heads = q.shape[2], k_cache.shape[2]
    rows, keys, values = q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    wide = q.is_cpu and not multiplies(q.dtype)
    if wide:
        rows, keys, values = rows.float(), keys.float(), values.float()
    out = F.scaled_dot_product_attention(
        F.pad(rows, (0, 0, ahead, 0)) if ahead else rows,
        keys,
        values,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=heads != kv_heads,
    )[:, :, ahead:].to(q.dtype)
    if mask is not None and (valid is not None or block is not None or counts is not None):
        # What attention returns for a row that is masked throughout differs between its implementations.
        out = out.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
    lse = q.new_empty(0, dtype=torch.float32)
    if return_lse and mask is not None:
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        keys = keys.repeat_interleave(heads // kv_heads, dim=1)
        scores = rows.to(exact) @ keys.to(exact).transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        lse = scores.masked_fill(~mask, -torch.inf).logsumexp(dim=-1).float().transpose(1, 2)
    return out.transpose(1, 2), lse


def visible(slots: Tensor, kv_len: int) -> Tensor:
    """Mask bool [B, 1, Q, kv_len] of the slots at or before each query's own."""
    return torch.arange(kv_len, device=slots.device) <= slots[:, None, :, None]
