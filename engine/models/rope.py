"""2-D rotary embedding: half of the pairs turn with the row, half with the column (LlamaGen, arXiv 2406.06525)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(grid: int, cond_len: int, head_dim: int, base: float, *, zero_prefix: bool = False) -> Tensor:
    """Cosines and sines by slot.

    Prefix slots are not rotated (cos 1, sin 0), or with `zero_prefix` made zero (cos 0, sin 0): LlamaGen was trained
    with zeros there, which let every image token weigh all prefix slots alike. Image slot `cond_len + r*grid + c` turns
    pair j of the first half by `r * f_j` and of the second half by `c * f_j`, with `f_j = base**(-2j / (head_dim/2))`.

    Returns:
        float32 [cond_len + grid*grid, head_dim/2, 2], last axis (cos, sin).
    """
    quarter = head_dim // 4
    freq = base ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    side = torch.arange(grid, dtype=torch.float64)[:, None] * freq
    angle = torch.cat(
        [
            side[:, None].expand(grid, grid, quarter),
            side[None].expand(grid, grid, quarter),
        ],
        dim=-1,
    ).reshape(grid * grid, 2 * quarter)
    angle = torch.cat([torch.zeros(cond_len, 2 * quarter, dtype=torch.float64), angle])
    table = torch.stack([angle.cos(), angle.sin()], dim=-1).float()
    if zero_prefix:
        table[:cond_len] = 0
    return table


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate interleaved pairs of x [B, Q, H, D] by table [Q, D/2, 2] or [B, Q, D/2, 2], in float32; keeps dtype."""
    pair = x.float().unflatten(-1, (-1, 2))
    cos, sin = table[..., None, :, 0], table[..., None, :, 1]
    a, b = pair[..., 0], pair[..., 1]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
