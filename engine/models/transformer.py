"""The autoregressive transformer: pre-norm, RMSNorm, SwiGLU, rotary attention, one vocabulary for every grid.

One network may serve several grids (64, 128, 256 px of one family): all weights are shared, only the learned row
and column embeddings and a grid embedding differ. Slot layout of every sequence: `cond_len` prefix slots, then the
image tokens in raster order; the logits of image token i come from the slot before it (Sun et al., LlamaGen,
arXiv 2406.06525).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .ar_model import ARModel
from .layers import RMSNorm, rotary_table
from .linear import Linear
from .position_condition import PositionCondition


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one AR transformer.

    `grids` lists the side lengths (in tokens) that it serves. With `global_cond` a projection of the whole condition
    is added to every image token, beside the prefix that attention reads. With `n_classes` above 0 the condition is a
    class id instead of features: one prefix slot, a trained row of a table whose last row is "no class". With
    `position_cond` above 0 every position looks at the condition itself through features of this width
    (`PositionCondition`), which are added to the token whose successor stands there.
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    cond_len: int
    cond_dim: int
    grids: tuple[int, ...]
    head_dim: int = 64
    rope_base: float = 100.0
    norm_eps: float = 1e-5
    global_cond: bool = False
    n_classes: int = 0
    position_cond: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "n_layers", "n_heads", "ffn_dim", "cond_len", "cond_dim", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.grids or any(g < 1 for g in self.grids):
            raise ValueError(f"grids must list positive side lengths, got {self.grids}")
        if self.head_dim % 4:
            raise ValueError(f"head_dim must be a multiple of 4 for 2-D rotary embedding, got {self.head_dim}")
        if self.position_cond < 0 or (self.position_cond and self.n_classes):
            raise ValueError(
                f"position_cond must be 0 (off) or a width, and a class says nothing of positions; got "
                f"{self.position_cond} with {self.n_classes} classes"
            )
        if self.n_classes < 0 or (self.n_classes and self.cond_len != 1):
            raise ValueError(f"a class is one prefix slot, got cond_len {self.cond_len} and {self.n_classes} classes")
        object.__setattr__(self, "grids", tuple(self.grids))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        return cls(**{**values, "grids": tuple(values["grids"])})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "grids": list(self.grids)}


class Transformer(ARModel):
    """AR transformer over VQ tokens."""

    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config: TransformerConfig = config
        c = config
        self.tok_embeddings = nn.Embedding(c.vocab_size, c.dim)
        self.class_embedding = nn.Embedding(c.n_classes + 1, c.cond_dim) if c.n_classes else None
        self.cond_proj = nn.Linear(c.cond_dim, c.dim, bias=False)
        self.global_proj = nn.Linear(c.cond_len * c.cond_dim, c.dim, bias=False) if c.global_cond else None
        self.position_cond, self.position_out = None, None
        if c.position_cond:
            self.position_cond = PositionCondition(c.position_cond, c.cond_dim, c.cond_len)
            self.position_out = nn.Linear(c.position_cond, c.dim, bias=False)
        self.grid_embedding = nn.Embedding(len(c.grids), c.dim)
        self.prefix_position = nn.Parameter(torch.zeros(c.cond_len, c.dim))
        self.row_embeddings = nn.ModuleList(nn.Embedding(g, c.dim) for g in c.grids)
        self.col_embeddings = nn.ModuleList(nn.Embedding(g, c.dim) for g in c.grids)
        self.blocks = self.stack(c)
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.output = Linear(c.dim, c.vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if self.global_proj is not None:
            nn.init.zeros_(self.global_proj.weight)
        if self.class_embedding is not None:
            # At the scale of normalised text features, which the projections were made for.
            nn.init.normal_(self.class_embedding.weight)
        # Not buffers: they stay in float32 when the weights are moved to another type.
        self._rotary: dict[tuple[int, torch.device], Tensor] = {}

    def grid_index(self, grid: int) -> int:
        """Index of a grid side length in the configuration; ValueError names the possible ones."""
        if grid not in self.config.grids:
            raise ValueError(f"this model has no {grid}x{grid} grid; it has {list(self.config.grids)}")
        return self.config.grids.index(grid)

    def rotary(self, grid: int) -> Tensor:
        """Float32 rotary table [cond_len + grid*grid, head_dim/2, 2] of a grid (cos, sin), by slot."""
        self.grid_index(grid)
        key = (grid, self.device)
        if key not in self._rotary:
            c = self.config
            # Kept for training as well, which may not use what was made in inference mode.
            with torch.inference_mode(False):
                self._rotary[key] = rotary_table(grid, c.cond_len, c.head_dim, c.rope_base).to(key[1])
        return self._rotary[key]

    def cond_features(self, cond: Tensor) -> Tensor:
        """Features [B, cond_len, cond_dim] of a condition: itself, or the rows of class ids int64 [B, 1, 1]."""
        return cond if self.class_embedding is None else self.class_embedding(cond[..., 0])

    def embed_prefix(self, cond: Tensor, grid: int) -> Tensor:
        """Embed a condition, features [B, cond_len, cond_dim] or class ids [B, 1, 1] -> [B, cond_len, dim]."""
        g = self.grid_embedding.weight[self.grid_index(grid)]
        prefix: Tensor = self.cond_proj(self.cond_features(cond)) + self.prefix_position + g
        here = self.at_positions(cond, grid)
        # The first token is predicted from the last slot of the prefix.
        return prefix if here is None else torch.cat([prefix[:, :-1], prefix[:, -1:] + here[:, :1]], dim=1)

    def embed_global(self, cond: Tensor, grid: int) -> Tensor | None:
        """What image tokens get of a condition, features or class ids -> [B, 1 or grid*grid, dim], or None.

        With `position_cond` row i is what the condition says of position i + 1, which the token at i predicts.
        """
        everywhere: Tensor | None = None
        if self.global_proj is not None:
            # An optimiser with unit steps moves the sum of so many inputs far; the mean over slots tames it.
            everywhere = self.global_proj(self.cond_features(cond).flatten(1))[:, None] / self.config.cond_len
        here = self.at_positions(cond, grid)
        if here is None:
            return everywhere
        here = torch.cat([here[:, 1:], here[:, -1:]], dim=1)
        return here if everywhere is None else here + everywhere

    def at_positions(self, cond: Tensor, grid: int) -> Tensor | None:
        """What the condition says of every position -> [B, grid*grid, dim], or None without `position_cond`."""
        if self.position_cond is None or self.position_out is None:
            return None
        here: Tensor = self.position_out(self.position_cond(cond, grid))
        return here

    def position_embedding(self, grid: int, prefix: int | None = None) -> Tensor:
        """Learned embedding of every raster position of a grid: row + column + grid -> [grid*grid, dim]."""
        i = self.grid_index(grid)
        rows, cols = self.row_embeddings[i].weight, self.col_embeddings[i].weight
        return (rows[:, None] + cols[None] + self.grid_embedding.weight[i]).flatten(0, 1)
