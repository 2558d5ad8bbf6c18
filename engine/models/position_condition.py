"""What each position of a grid is told of the caption: cross-attention from coordinates to condition features.

A caption says what stands where ("a cat left of a car": the cat in the left half). A transformer that reads it from a
prefix has to find a circuit for that; looked up by position it is a table. The features depend on the condition and the
position alone, so they are computed once an image and cost nothing a step. Coordinates are continuous: what is learnt
on a small grid holds on a larger one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import RMSNorm

# Waves of 1, 2, 4, … half periods across the image, of rows and of columns, as sine and cosine.
OCTAVES = 6
HEAD_DIM = 32


def coordinates(grid: int, device: torch.device) -> Tensor:
    """Fourier features float32 [grid*grid, 4 * OCTAVES] of the cell centres of a grid, in raster order."""
    centre = (torch.arange(grid, device=device) + 0.5) / grid
    angles = centre[:, None] * math.pi * 2.0 ** torch.arange(OCTAVES, device=device)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(-1, grid, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=-1).flatten(0, 1)


class CrossBlock(nn.Module):
    """Pre-norm cross-attention with normalised queries and keys, then SwiGLU."""

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim, 1e-5)
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wkv = nn.Linear(cond_dim, 2 * dim, bias=False)
        self.q_norm, self.k_norm = RMSNorm(HEAD_DIM, 1e-5), RMSNorm(HEAD_DIM, 1e-5)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.ffn_norm = RMSNorm(dim, 1e-5)
        self.w13 = nn.Linear(dim, 4 * dim, bias=False)
        self.w2 = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        q = self.wq(self.attention_norm(x)).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
        k, v = (t.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for t in self.wkv(cond).chunk(2, dim=-1))
        o = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        x = x + self.wo(o.transpose(1, 2).flatten(-2))
        gate, up = self.w13(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.w2(F.silu(gate) * up)


class PositionCondition(nn.Module):
    """Condition features [B, T, cond_dim] -> features [B, grid*grid, dim] of every position.

    Two rounds of cross-attention: the first can read how the image is arranged, the second which object that puts here.

    Args:
        dim: width, a multiple of 32.
        cond_dim: width of the condition features.
        cond_len: number of condition features, each of which has a learned place.
    """

    def __init__(self, dim: int, cond_dim: int, cond_len: int) -> None:
        super().__init__()
        if dim % HEAD_DIM:
            raise ValueError(f"position_cond must be a multiple of {HEAD_DIM}, got {dim}")
        self.start = nn.Linear(4 * OCTAVES, dim)
        self.place = nn.Parameter(torch.randn(cond_len, cond_dim) * 0.02)
        self.blocks = nn.ModuleList(CrossBlock(dim, cond_dim) for _ in range(2))
        self.norm = RMSNorm(dim, 1e-5)

    def forward(self, cond: Tensor, grid: int) -> Tensor:
        where = coordinates(grid, cond.device).to(self.start.weight.dtype)
        x = self.start(where).expand(len(cond), -1, -1)
        cond = cond.to(self.place.dtype) + self.place
        for block in self.blocks:
            x = block(x, cond)
        return self.norm(x)
