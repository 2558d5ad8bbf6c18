"""The specification of `verify_attention` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def verify_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    valid: Tensor | None,
    kv_len: int,
    start: int | None,
    scale: float | None,
) -> Tensor:
    """Outputs [B, Q, H, D]; arguments are those of `verify_attention`, already checked."""
    queries = q.shape[1]
    mask, causal = None, False
    if start is not None:
        kv_len = start + queries  # later slots are hidden from every query
    if valid is not None:
        mask = visible(slots, kv_len) & valid[:, None, None, :kv_len]
    elif start is None:
        mask = visible(slots, kv_len)
    elif queries > 1:
        causal = start == 0
        if not causal:
            key = torch.arange(kv_len, device=q.device)
            mask = key <= key[start:, None]
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k_cache[:, :kv_len].transpose(1, 2),
        v_cache[:, :kv_len].transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k_cache.shape[2],
    )
    if valid is not None and mask is not None:
        # What attention returns for a row that is masked throughout differs between its implementations.
        out = out.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
    return out.transpose(1, 2)


def visible(slots: Tensor, kv_len: int) -> Tensor:
    """Mask bool [B, 1, Q, kv_len] of the slots at or before each query's own."""
    return torch.arange(kv_len, device=slots.device) <= slots[:, None, :, None]
