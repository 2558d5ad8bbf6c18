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
    if start is not None:
        k_cache[:, start : start + k.shape[1]] = k
        v_cache[:, start : start + k.shape[1]] = v
        return q
    row = torch.arange(k.shape[0], device=k.device)[:, None]
    k, v = k.to(k_cache.dtype), v.to(v_cache.dtype)
    if padding is not None:
        # Padding repeats the write of a token of its row, or, in a row of padding alone, what stands at slot 0.
        token = torch.where(
            padding, (~padding).int().argmax(dim=1, keepdim=True), torch.arange(k.shape[1], device=k.device)
        )
        empty = padding.all(dim=1)[:, None, None, None]
        slots = slots.gather(1, token).clamp(min=0)
        k = torch.where(empty, k_cache[:, :1], k[row, token])
        v = torch.where(empty, v_cache[:, :1], v[row, token])
    k_cache[row, slots] = k
    v_cache[row, slots] = v
    return q


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn interleaved pairs of x [B, Q, H, D] by table float32 [Q, D/2, 2] or [B, Q, D/2, 2]; keeps the dtype.

    A turn is the product with cos + i sin, which torch computes in one pass.
    """
    pair = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = pair * torch.view_as_complex(table).unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
