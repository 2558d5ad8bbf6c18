"""The specification of `kv_write` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def kv_write_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    rotary: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    start: int | None,
    cache_rows: Tensor | None,
) -> Tensor:
    """The rotated q, and k and v written in place; arguments are those of `kv_write`, already checked."""
    padding = None
    # A host tensor can be asked for padding; asking one on a device would wait for it.
    if start is None and slots.numel() and (slots.device.type != "cpu" or int(slots.min()) < 0):
        padding = slots < 0
        q = q.masked_fill(padding[:, :, None, None], 0.0)
    if rotary is not None:
        table = (
            rotary[slots if padding is None else slots.clamp(min=0)] if start is None else rotary[start:][: q.shape[1]]
        )
        heads = q.shape[2]
        # One rotation for both: on small inputs the calls cost more than the copy.
        both = rotate(torch.cat((q, k), dim=2), table)
        q, k = both[:, :, :heads], both[:, :, heads:]
    k, v = k.to(k_cache.dtype), v.to(v_cache.dtype)
    if start is not None:
        where = slice(None) if cache_rows is None else cache_rows
        k_cache[where, start : start + k.shape[1]] = k
        v_cache[where, start : start + k.shape[1]] = v
        return q
    row = (torch.arange(k.shape[0], device=k.device) if cache_rows is None else cache_rows)[:, None]
    if padding is None:
        k_cache[row, slots] = k
        v_cache[row, slots] = v
        return q
    # Padding repeats the write of the first token of the call, or, where all is padding, what stands at a slot.
    row, slots, padding = row.expand_as(padding).flatten(), slots.flatten(), padding.flatten()
    first = (~padding).int().argmax()
    token = torch.where(padding, first, torch.arange(len(padding), device=k.device))
    row, slots, nothing = row[token], slots[token].clamp(min=0), padding[first]
    k_cache[row, slots] = torch.where(nothing, k_cache[row, slots], k.flatten(0, 1)[token])
    v_cache[row, slots] = torch.where(nothing, v_cache[row, slots], v.flatten(0, 1)[token])
    return q


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn interleaved pairs of x [B, Q, H, D] by table float32 [Q, D/2, 2] or [B, Q, D/2, 2]; keeps the dtype.

    A turn is the product with cos + i sin, which torch computes in one pass.
    """
    pair = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = pair * torch.view_as_complex(table).unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
