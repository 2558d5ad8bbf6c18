"""The decode path of Tar's text-aligned tokenizer TA-Tok (arXiv 2506.18898): ids -> features for the AR de-tokenizer.

A codebook, then a small bidirectional vision transformer of the SigLIP 2 kind over one slot a code, then two linear
layers. Written from the architecture's facts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TATokConfig:
    """Sizes of the decode path; positions are learned on a grid of side `position_side` and resized to the input's."""

    codebook_size: int = 65536
    code_dim: int = 1536
    dim: int = 1152
    n_layers: int = 3
    n_heads: int = 12
    ffn_dim: int = 3072
    position_side: int = 16
    norm_eps: float = 1e-6

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TATokConfig:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class TATok(nn.Module):
    """TA-Tok ids to features. `codebook` holds the codes as the decoder takes them, all projections applied."""

    codebook: Tensor

    def __init__(self, config: TATokConfig) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("codebook", torch.zeros(c.codebook_size, c.code_dim))
        self.patch_embedding = nn.Linear(c.code_dim, c.dim)
        self.position_embedding = nn.Embedding(c.position_side**2, c.dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                c.dim, c.n_heads, c.ffn_dim, 0.0, gelu_tanh, c.norm_eps, batch_first=True, norm_first=True
            )
            for _ in range(c.n_layers)
        )
        self.post_norm = nn.LayerNorm(c.dim, c.norm_eps)
        self.task = nn.Sequential(nn.Linear(c.dim, c.dim), nn.Tanh(), nn.Linear(c.dim, c.dim))

    def positions(self, side: int) -> Tensor:
        """Position embeddings [side * side, dim]: bilinear, antialiased where the grid shrinks."""
        own = self.config.position_side
        # In float32: antialiasing is not there for narrower types on every device.
        table = self.position_embedding.weight.float().view(1, own, own, -1).permute(0, 3, 1, 2)
        sized = F.interpolate(table, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        return sized.flatten(2)[0].t().to(self.position_embedding.weight.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int64 [B, n], n a square, in raster order -> features [B, n, dim].

        Raises:
            ValueError: n is no square, or an id is outside the codebook.
        """
        side = math.isqrt(ids.shape[1])
        if side * side != ids.shape[1]:
            raise ValueError(f"TA-Tok ids are a square grid, such as 27x27 = 729; got {ids.shape[1]}")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.codebook_size:
            raise ValueError(f"TA-Tok ids must be in [0, {self.config.codebook_size}), got {int(ids.max())}")
        x = self.patch_embedding(self.codebook[ids]) + self.positions(side)
        for layer in self.layers:
            x = layer(x)
        return self.task(self.post_norm(x))
