"""Serial decoding as others write it: a static KV cache of full length and one token a forward.

`ReferenceLoop` does what the public code of LlamaGen does, written from its description: every attention reads the
whole cache under a row of a boolean mask that is gathered from a table, by the plain formula; norms and rotations go
step by step. `CompiledLoop` is the strongest form of the same idea, that of gpt-fast: the whole step, sampling
included, is one compiled graph, replayed as a CUDA graph on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from ...engine.models.ar_model import ARModel
    from ...engine.sampling import SamplingParams


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotary embedding of x [B, Q, H, D] by a table [Q, D/2, 2] of cosines and sines, in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    (a, b), (cos, sin) = pairs.unbind(-1), table[:, None].unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


class StaticLoop(nn.Module):
    """What the two loops share.

    Args:
        model: the AR transformer.
        grid: side in tokens.
        features: condition features [1, cond_len, cond_dim], or [2, ...] with the unconditional branch.
        sampling: how tokens are drawn.
    """

    mask: Tensor
    table: Tensor | None
    positions: Tensor | None
    k: Tensor
    v: Tensor

    def __init__(self, model: ARModel, grid: int, features: Tensor, sampling: SamplingParams) -> None:
        super().__init__()
        c, device, dtype = model.config, features.device, model.output.weight.dtype
        self.model, self.size, self.cond_len, self.sampling = model, grid * grid, c.cond_len, sampling
        self.grid = grid
        self.features = features
        length = -(-(c.cond_len + self.size) // 8) * 8
        shape = (c.n_layers, len(features), c.n_heads, length, c.head_dim)
        self.register_buffer("k", torch.zeros(shape, device=device, dtype=dtype))
        self.register_buffer("v", torch.zeros(shape, device=device, dtype=dtype))
        self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool, device=device).tril())
        self.register_buffer("table", model.rotary(grid))
        position, everywhere = model.position_embedding(grid), model.embed_global(features, grid)
        added = [] if position is None else [position[:, None]]
        added += [] if everywhere is None else [everywhere.transpose(0, 1).expand(self.size, -1, -1)]
        self.register_buffer("positions", sum(added[1:], added[0]) if added else None)

    @torch.inference_mode()
    def generate(self, seed: int) -> Tensor:
        """Tokens int64 [N] of an image."""
        torch.manual_seed(seed)
        tokens = torch.empty(self.size, dtype=torch.int64, device=self.features.device)
        x = self.model.embed_prefix(self.features, self.grid)
        slots = torch.arange(self.cond_len, device=x.device)
        tokens[:1] = self.draw(self.logits(x, slots)[:, -1])
        # A replayed graph wants its inputs at the same addresses, and writes its output to the same one.
        token, slot = tokens[:1].clone(), slots[-1:].clone()
        for i in range(1, self.size):
            slot += 1
            token.copy_(self.step(token, slot))
            tokens[i : i + 1] = token
        return tokens

    def step(self, token: Tensor, slot: Tensor) -> Tensor:
        """Feed a token [1] at its slot [1]; returns the next one [1]."""
        x = self.model.tok_embeddings(token)[:, None]
        if self.positions is not None:
            x = x + self.positions[slot - self.cond_len]
        return self.draw(self.logits(x.transpose(0, 1).expand(len(self.features), -1, -1), slot)[:, -1])

    def logits(self, x: Tensor, slots: Tensor) -> Tensor:
        """Float32 logits [B, Q, V] behind embedded tokens [B, Q, dim] at slots [Q]."""
        for layer, block in enumerate(self.model.blocks):
            x = self.layer(layer, block, x, slots)
        return F.linear(self.norm(self.model.norm, x), self.model.output.weight).float()

    def layer(self, layer: int, block: Any, x: Tensor, slots: Tensor) -> Tensor:
        """One layer on x [B, Q, dim]."""
        qkv = F.linear(self.norm(block.attention_norm, x), block.wqkv.weight).unflatten(
            -1, (3, block.n_heads, block.head_dim)
        )
        q, k, v = qkv.unbind(2)
        if self.table is not None:
            q, k = rotate(q, self.table[slots]), rotate(k, self.table[slots])
        self.k[layer][:, :, slots] = k.transpose(1, 2)
        self.v[layer][:, :, slots] = v.transpose(1, 2)
        seen = self.mask[slots][None, None]
        with self.attention():
            o = F.scaled_dot_product_attention(q.transpose(1, 2), self.k[layer], self.v[layer], attn_mask=seen)
        x = x + F.linear(o.transpose(1, 2).flatten(-2), block.wo.weight)
        return x + self.feed_forward(block, self.norm(block.ffn_norm, x))

    def attention(self) -> AbstractContextManager[object]:
        return nullcontext()

    def norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x)

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        gate, up = F.linear(x, block.w13.weight).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, block.w2.weight)

    def draw(self, logits: Tensor) -> Tensor:
        """A token [1] from logits [B, V]: guidance, temperature, top-k, top-p; 0 is greedy."""
        p = self.sampling
        if p.guided:
            cond, uncond = logits.split(1)
            logits = uncond + p.cfg_scale * (cond - uncond)
        if p.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits / max(p.temperature, 1e-5)
        if 0 < p.top_k < logits.shape[-1]:
            least = torch.topk(logits, p.top_k)[0][..., -1:]
            logits = logits.masked_fill(logits < least, -float("inf"))
        if p.top_p < 1:
            ordered, index = torch.sort(logits, descending=True)
            drop = ordered.softmax(dim=-1).cumsum(dim=-1) > p.top_p
            drop = torch.cat([torch.zeros_like(drop[..., :1]), drop[..., :-1]], dim=-1)
            logits = logits.masked_fill(drop.scatter(-1, index, drop), -float("inf"))
        return self.choose(logits.softmax(dim=-1))

    def choose(self, probabilities: Tensor) -> Tensor:
        """A token [1] from probabilities [1, V]."""
        return torch.multinomial(probabilities, num_samples=1)[:, 0]


class ReferenceLoop(StaticLoop):
    """The eager loop: nothing fused, attention by the plain formula over the whole cache."""

    def attention(self) -> AbstractContextManager[object]:
        return sdpa_kernel(SDPBackend.MATH)

    def norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt((y * y).mean(dim=-1, keepdim=True) + norm.eps)
        return y.type_as(x) * norm.weight

    def feed_forward(self, block: Any, x: Tensor) -> Tensor:
        gate, up = block.w13.weight.chunk(2)
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), block.w2.weight)


class CompiledLoop(StaticLoop):
    """The compiled loop; the first image compiles it."""

    @cached_property
    def compiled(self) -> Callable[[Tensor, Tensor], Tensor]:
        mode = "reduce-overhead" if self.features.is_cuda else "default"
        return torch.compile(super().step, mode=mode, fullgraph=True, dynamic=False)

    def step(self, token: Tensor, slot: Tensor) -> Tensor:
        return self.compiled(token, slot)

    def choose(self, probabilities: Tensor) -> Tensor:
        # Exponential races need no synchronisation, unlike multinomial.
        return (probabilities / torch.empty_like(probabilities).exponential_(1)).argmax(dim=-1)
