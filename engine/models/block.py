"""One transformer layer: pre-norm, RMSNorm, SwiGLU, no biases (Touvron et al., Llama, arXiv 2302.13971)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """One transformer layer: fused q/k/v projection, attention, SwiGLU with fused gate and up projections.

    Parts are run by their `forward`: at one token a step, what a module's call does around it costs as much as it.
    """

    def __init__(self, dim: int, n_heads: int, head_dim: int, ffn_dim: int, eps: float) -> None:
        super().__init__()
        self.n_heads, self.head_dim = n_heads, head_dim
        self.attention_norm = RMSNorm(dim, eps)
        self.wqkv = Linear(dim, 3 * n_heads * head_dim)
        self.wo = Linear(n_heads * head_dim, dim)
        self.ffn_norm = RMSNorm(dim, eps)
        self.w13 = Linear(dim, 2 * ffn_dim)
        self.w2 = Linear(ffn_dim, dim)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project the normalised input [B, Q, dim] to q, k, v, each [B, Q, H, D], before rotation."""
        qkv = self.wqkv.forward(self.attention_norm.forward(x))
        q, k, v = qkv.view(*x.shape[:2], 3, self.n_heads, self.head_dim).unbind(2)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention output [B, Q, H, D] and the feed-forward output to the residual stream [B, Q, dim]."""
        x = x + self.wo.forward(attended.flatten(-2))
        gate, up = self.w13.forward(self.ffn_norm.forward(x)).chunk(2, dim=-1)
        return x + self.w2.forward(F.silu(gate) * up)
