"""The AR de-tokenizer of Tar (Han et al., arXiv 2506.18898): LlamaGen's blocks with absolute positions.

Its condition are the features of a text-aligned tokenizer. Written from the architecture's facts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .ar_model import ARModel
from .layers import RMSNorm
from .linear import Linear

# Prefixes that Tar was trained with: 27x27, 13x13 and 9x9 features.
PREFIXES = (729, 169, 81)


IMAGE_POSITIONS = ("slot", "first")


@dataclass(frozen=True)
class ARDTokConfig:
    """Sizes of an AR de-tokenizer.

    `positions` rows of absolute embeddings serve a prefix of any length T with `positions - T + 1` image tokens;
    `cond_len` is the prefix that the engine feeds. `image_positions` says which row an image token gets: that of its
    slot, as in training and in the public `sample()`, or "first", row 0 for each, which is what the public class does
    when it is stepped one token at a time outside of its `sampling()` context. Trained weights want the former.
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    positions: int
    cond_len: int
    grids: tuple[int, ...] = ()
    cond_dim: int = 1152
    norm_eps: float = 1e-5
    image_positions: str = "slot"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", tuple(self.grids))
        if self.image_positions not in IMAGE_POSITIONS:
            raise ValueError(
                f"image_positions must be one of {', '.join(IMAGE_POSITIONS)}, got {self.image_positions!r}"
            )
        if self.n_heads < 1 or self.dim % self.n_heads:
            raise ValueError(f"{self.n_heads} heads do not divide {self.dim} dimensions")
        for grid in self.grids:
            if self.cond_len + grid * grid - 1 > self.positions:
                raise ValueError(
                    f"a prefix of {self.cond_len} and a {grid}x{grid} grid need {self.cond_len + grid * grid - 1} "
                    f"positions, the model has {self.positions}"
                )

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ARDTokConfig:
        return cls(**{**values, "grids": tuple(values["grids"])})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "grids": list(self.grids)}


class ARDTok(ARModel):
    """An AR de-tokenizer. Condition features of zeros are the unconditional branch."""

    config_class = ARDTokConfig
    abs_pe: Tensor

    def __init__(self, config: ARDTokConfig) -> None:
        super().__init__()
        self.config: ARDTokConfig = config
        c = config
        # A learned table in some checkpoints, sines in others; it is stored either way.
        self.register_buffer("abs_pe", torch.zeros(c.positions, c.dim))
        self.clip_proj = nn.Linear(c.cond_dim, c.dim)
        self.tok_embeddings = nn.Embedding(c.vocab_size, c.dim)
        self.blocks = self.stack(c)
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.output = Linear(c.dim, c.vocab_size)

    def rotary(self, grid: int) -> None:
        return None

    def embed_prefix(self, cond: Tensor, grid: int) -> Tensor:
        """Embed features [B, T, cond_dim] -> [B, T, dim]; image tokens go on counting behind them."""
        return self.clip_proj(cond.to(self.abs_pe.dtype)) + self.abs_pe[: cond.shape[1]]

    def position_embedding(self, grid: int, prefix: int | None = None) -> Tensor:
        """Rows of the table for the image tokens behind the prefix -> [grid*grid, dim]."""
        begin = self.config.cond_len if prefix is None else prefix
        rows = self.abs_pe[begin : begin + grid * grid]
        if len(rows) < grid * grid - 1:
            raise ValueError(
                f"a prefix of {begin} and a {grid}x{grid} grid need {begin + grid * grid - 1} positions, "
                f"this model has {len(self.abs_pe)}"
            )
        if self.config.image_positions == "first":
            return self.abs_pe[:1].expand(grid * grid, -1)
        # The last image token has no row: nothing ever reads what is computed for it.
        return rows if len(rows) == grid * grid else torch.cat([rows, rows[-1:]])
