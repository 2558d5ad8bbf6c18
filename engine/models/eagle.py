"""The feature drafter of EAGLE: one transformer layer that continues the target's own hidden features.

Source: Li et al., EAGLE, arXiv 2401.15077. The feature of an image token is the residual stream behind the target's
last layer, before its final norm: the drafter's layer is residual too, so what it puts out is of the same kind and can
be fed back in the target's place. Whoever reads a feature normalises it first, so that its scale is free: the target's
own final norm before the output head, `feature_norm` before the fusion.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .ar_model import ARModel
from .layers import Attend, Block, RMSNorm, run_layers, whole


@dataclass(frozen=True)
class EagleConfig:
    """Sizes of a drafter; its width is the target's. `grids` lists the side lengths that it was trained for."""

    grids: tuple[int, ...]
    head_dim: int
    n_heads: int
    ffn_dim: int
    n_layers: ClassVar[int] = 1
    cond_len: ClassVar[int] = 0  # features carry the condition: the drafter has no prefix

    def __post_init__(self) -> None:
        for name in ("head_dim", "n_heads", "ffn_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        object.__setattr__(self, "grids", tuple(self.grids))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "grids": list(self.grids)}


class EagleDrafter(nn.Module):
    """Predicts the feature of a token from the feature before it and the token itself.

    Token embedding, position embeddings, final norm and output head are the target's, frozen, and no part of its state.
    The feature before the first image token is zeros.

    Args:
        config: sizes.
        target: the AR transformer whose features are drafted.

    Raises:
        ValueError: the target has other heads or lacks a grid.
    """

    def __init__(self, config: EagleConfig, target: ARModel) -> None:
        super().__init__()
        t = target.config
        if config.head_dim != t.head_dim:
            raise ValueError(
                f"the drafter turns the target's rotary pairs: head_dim is {t.head_dim}, not {config.head_dim}"
            )
        missing = set(config.grids) - set(t.grids)
        if missing:
            raise ValueError(f"the drafter is for grids {sorted(missing)}, which its target lacks: {list(t.grids)}")
        self.config = config
        self._target = (target,)  # in a tuple, a module is not registered
        self.feature_norm = RMSNorm(t.dim, t.norm_eps)
        self.fuse = nn.Linear(2 * t.dim, t.dim, bias=False)
        self.blocks = nn.ModuleList([Block(t.dim, config.n_heads, t.head_dim, config.ffn_dim, t.norm_eps)])

    @property
    def target(self) -> ARModel:
        return self._target[0]

    @property
    def tok_embeddings(self) -> nn.Embedding:
        return self.target.tok_embeddings

    @property
    def output(self) -> nn.Linear:
        return self.target.output

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.target.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.target.device

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.config.n_heads

    def run(self, x: Tensor, attend: Attend) -> Tensor:
        """See `ARModel.run`; x is what `fused` gave."""
        return run_layers(self.blocks, x, attend)

    def position_embedding(self, grid: int) -> Tensor | None:
        """See `ARModel.position_embedding`."""
        return self.target.position_embedding(grid)

    def rotary(self, grid: int) -> Tensor | None:
        """Float32 rotary table [grid*grid, head_dim/2, 2]: the target's, without its prefix."""
        table = self.target.rotary(grid)
        return None if table is None else table[self.target.config.cond_len :]

    def embed_global(self, cond: Tensor, grid: int) -> Tensor | None:
        """See `ARModel.embed_global`."""
        return self.target.embed_global(cond, grid)

    def logits(self, hidden: Tensor) -> Tensor:
        """Features [..., dim] -> float32 logits [..., V], by the target's final norm and output head."""
        return self.target.logits(hidden)

    def fused(self, features: Tensor, embedded: Tensor) -> Tensor:
        """What the layer reads: features before each token and the embedded tokens, both [..., n, dim]."""
        fused: Tensor = self.fuse(torch.cat([self.feature_norm(features), embedded], dim=-1))
        return fused

    def forward(self, cond: Tensor, features: Tensor, tokens: Tensor, grid: int) -> Tensor:
        """Features of all tokens in one pass, the definition that every cached path must match.

        Args:
            cond: condition features [B, cond_len, cond_dim].
            features: [B, n, dim], those before each token; the first are zeros.
            tokens: int64 [B, n] image tokens in raster order.
            grid: side length in tokens.

        Returns:
            [B, n, dim]; the logits of row i predict token i + 1.
        """
        n = tokens.shape[1]
        embedded = self.tok_embeddings(tokens)
        position, table = self.position_embedding(grid), self.rotary(grid)
        if position is not None:
            embedded = embedded + position[:n]
        everywhere = self.embed_global(cond, grid)
        if everywhere is not None:
            embedded = embedded + everywhere[:, :n]
        x = self.fused(features, embedded)
        return self.run(x, whole(None if table is None else table[:n]))


# What a KV cache is made for and the runner runs.
Model = ARModel | EagleDrafter
