"""One transformer layer: pre-norm, RMSNorm, SwiGLU, no biases (Touvron et al., Llama, arXiv 2302.13971)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """One transformer layer: fused q/k/v projection, attention, SwiGLU with fused gate and up projections."""

    def __init__(self, dim: int, n_heads: int, head_dim: int, ffn_dim: int, eps: float) -> None:
        super().__init__()
        self.n_heads, self.head_dim = n_heads, head_dim
        self.attention_norm = RMSNorm(dim, eps)
        self.wqkv = nn.Linear(dim, 3 * n_heads * head_dim, bias=False)
        self.wo = nn.Linear(n_heads * head_dim, dim, bias=False)
        self.ffn_norm = RMSNorm(dim, eps)
        self.w13 = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.w2 = nn.Linear(ffn_dim, dim, bias=False)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project the normalised input [B, Q, dim] to q, k, v, each [B, Q, H, D], before rotation."""
        qkv = F.linear(self.attention_norm.forward(x), self.wqkv.weight)
        q, k, v = qkv.view(*x.shape[:2], 3, self.n_heads, self.head_dim).unbind(2)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention output [B, Q, H, D] and the feed-forward output to the residual stream [B, Q, dim]."""
        x = x + F.linear(attended.flatten(-2), self.wo.weight)
        gate, up = F.linear(self.ffn_norm.forward(x), self.w13.weight).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.w2.weight)
