"""What transformers are composed of: RMSNorm, rotary tables, attention projections, SwiGLU, and the loop over layers.

A block is pre-norm (Touvron et al., Llama, arXiv 2302.13971), with grouped queries, biases and normalised queries and
keys where a model has them. How tokens attend to one another is not its business: whoever runs the layers passes
`attend`, be it over a KV cache, a prefix or a whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.fused_linear import FEW_ROWS
from ...kernels.fused_linear import OP as FUSED_LINEAR
from ...kernels.fused_linear.call import Call as Fused
from .linear import FEW_CLASSES, Linear
from .quantized import QuantizedLinear

# (layer, q [B, Q, H, D], k, v [B, Q, Hkv, D], before rotation) -> attended [B, Q, H, D].
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def project(
    x: Tensor,
    linear: Linear | QuantizedLinear,
    *,
    norm: RMSNorm | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """`residual + act(linear(norm(x)))`, all but the layer where asked for: one kernel for few tokens on a GPU, and on
    a CPU where that was measured to be faster.

    Args:
        x: [..., K].
        linear: K to N.
        norm: of x, before the layer.
        gated: whether the first half of N gates the second: SwiGLU.
        residual: added last.
    """
    if not torch.is_grad_enabled():
        scale = linear.scale if isinstance(linear, QuantizedLinear) else None
        few = x.numel() <= FEW_ROWS * x.shape[-1] if x.is_cuda else linear.way(x) == "native"
        if few and (scale is not None or linear.weight.dtype == x.dtype):
            factor, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            fused = Fused(x, linear.weight, scale, linear.bias, factor, eps, gated, residual)
            out: Tensor = FUSED_LINEAR(fused, None if x.is_cuda else "cpu")
            return out
    out = linear.forward(x if norm is None else norm.forward(x))
    if gated:
        gate, up = out.chunk(2, dim=-1)
        out = F.silu(gate) * up
    return out if residual is None else residual + out


class Layer(Protocol):
    """What the loop over layers asks of one."""

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def finish(self, x: Tensor, attended: Tensor) -> Tensor: ...


class Block(nn.Module):
    """One transformer layer: fused q/k/v projection, attention, SwiGLU with fused gate and up projections.

    Parts are run by their `forward`: at one token a step, what a module's call does around it costs as much as it.

    Args:
        dim: width of the residual stream.
        n_heads, head_dim: of the queries.
        ffn_dim: width of the feed-forward network.
        eps: of the norms.
        n_kv_heads: heads of keys and values, a divisor of `n_heads`; 0 is as many as queries have.
        bias: whether q, k and v have biases (Qwen2).
        qk_norm: normalise each head of q and k before they are rotated (Qwen3).
        sandwich: normalise what attention and the feed-forward network add, besides what they read (GLM-4).
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        head_dim: int,
        ffn_dim: int,
        eps: float,
        *,
        n_kv_heads: int = 0,
        bias: bool = False,
        qk_norm: bool = False,
        sandwich: bool = False,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads or n_heads, head_dim
        if n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads must divide the {n_heads} heads, got {n_kv_heads}")
        self.attention_norm = RMSNorm(dim, eps)
        width = (n_heads + 2 * self.n_kv_heads) * head_dim
        self.wqkv: Linear | QuantizedLinear = Linear(dim, width, bias=bias)
        self.q_norm = RMSNorm(head_dim, eps) if qk_norm else None
        self.k_norm = RMSNorm(head_dim, eps) if qk_norm else None
        self.wo: Linear | QuantizedLinear = Linear(n_heads * head_dim, dim)
        self.ffn_norm = RMSNorm(dim, eps)
        self.w13: Linear | QuantizedLinear = Linear(dim, 2 * ffn_dim)
        self.w2: Linear | QuantizedLinear = Linear(ffn_dim, dim)
        self.attention_out_norm = RMSNorm(dim, eps) if sandwich else None
        self.ffn_out_norm = RMSNorm(dim, eps) if sandwich else None
        # Of each class of few rows, whether the host kernels take such blocks whole (`engine.linear_choice`).
        self.host_classes: tuple[bool, ...] = (False,) * FEW_CLASSES

    def quantize(self, kind: str) -> None:
        """Hold the weights of the linear layers in 8 bits, see `quantized`; norms stay."""
        for name in ("wqkv", "wo", "w13", "w2"):
            setattr(self, name, QuantizedLinear(getattr(self, name), kind))

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project the normalised input [B, Q, dim] to q [B, Q, H, D] and k, v [B, Q, Hkv, D], before rotation."""
        fused = project(x, self.wqkv, norm=self.attention_norm)
        if self.n_kv_heads == self.n_heads:
            q, k, v = fused.view(*x.shape[:2], 3, self.n_heads, self.head_dim).unbind(2)
        else:
            heads = fused.view(*x.shape[:2], -1, self.head_dim)
            q, k, v = heads.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.forward(q), self.k_norm.forward(k)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention output [B, Q, H, D] and the feed-forward output to the residual stream [B, Q, dim]."""
        x = self.added(x, attended.flatten(-2), self.wo, self.attention_out_norm)
        return self.added(x, project(x, self.w13, norm=self.ffn_norm, gated=True), self.w2, self.ffn_out_norm)

    @staticmethod
    def added(x: Tensor, inner: Tensor, linear: Linear | QuantizedLinear, norm: RMSNorm | None) -> Tensor:
        """The residual stream x [B, Q, dim] with `linear(inner)` on top, normalised where there is a norm of it."""
        if norm is None:
            return project(inner, linear, residual=x)
        return x + norm.forward(project(inner, linear))


def run_layers(layers: nn.ModuleList, x: Tensor, attend: Attend) -> Tensor:
    """The one loop over layers: x [B, Q, dim] through all of them, attention by `attend`."""
    for index, layer in enumerate(cast("Iterable[Layer]", layers)):
        x = layer.finish(x, attend(index, *layer.qkv(x)))
    return x


def whole(table: Tensor | None = None, mask: Tensor | None = None, *, causal: bool = True) -> Attend:
    """Attention within the tokens themselves, without a cache: training, teacher forcing, text.

    Args:
        table: rotary table [Q, D/2, 2] of the tokens, or None.
        mask: bool [B, 1, Q, Q], who sees whom; None is by `causal`.
        causal: without a mask, whether a token sees only those up to itself.
    """

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if table is not None:
            q, k = apply_rotary(q, table), apply_rotary(k, table)
        grouped = q.shape[2] != k.shape[2]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        is_causal = causal and mask is None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
        ).transpose(1, 2)

    return attend


def rotary_table(grid: int, cond_len: int, head_dim: int, base: float, *, zero_prefix: bool = False) -> Tensor:
    """Cosines and sines by slot of a 2-D rotary embedding (LlamaGen, arXiv 2406.06525).

    Half of the pairs turn with the row, half with the column. Prefix slots are not rotated (cos 1, sin 0), or with
    `zero_prefix` made zero (cos 0, sin 0): LlamaGen was trained with zeros there, which let every image token weigh all
    prefix slots alike. Image slot `cond_len + r*grid + c` turns pair j of the first half by `r * f_j` and of the second
    half by `c * f_j`, with `f_j = base**(-2j / (head_dim/2))`.

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


def rotary_table_1d(slots: int, head_dim: int, base: float) -> Tensor:
    """Cosines and sines by slot of a 1-D rotary embedding: pair j of slot s turns by `s * base**(-2j / head_dim)`.

    Source: Su et al., RoFormer, arXiv 2104.09864; interleaved pairs, as Llama's own code has them.

    Returns:
        float32 [slots, head_dim/2, 2], last axis (cos, sin).
    """
    freq = base ** (-torch.arange(head_dim // 2, dtype=torch.float64) / (head_dim // 2))
    angle = torch.arange(slots, dtype=torch.float64)[:, None] * freq
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate interleaved pairs of x [B, Q, H, D] by table [Q, D/2, 2] or [B, Q, D/2, 2], in float32; keeps dtype."""
    pair = x.float().unflatten(-1, (-1, 2))
    cos, sin = table[..., None, :, 0], table[..., None, :, 1]
    a, b = pair[..., 0], pair[..., 1]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
