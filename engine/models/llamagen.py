"""LlamaGen: the class- and text-conditional AR models of Sun et al., arXiv 2406.06525.

Written from the architecture's facts; the layout of released checkpoints is in `mulosd.checkpoints`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ar_model import ARModel
from .layers import RMSNorm, rotary_table
from .linear import Linear

CONDITIONS = ("class", "caption")


@dataclass(frozen=True)
class LlamaGenConfig:
    """Sizes of a LlamaGen model.

    With condition "class" the prefix is one slot, a row of a table of `n_classes` + 1 (the last one: no class); with
    "caption" it is `cond_len` caption features of width `cond_dim`. The weights fit every grid; `grids` lists those
    that the model was trained for.
    """

    condition: str
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    grids: tuple[int, ...] = ()
    cond_len: int = 1
    n_classes: int = 1000
    cond_dim: int = 2048
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", tuple(self.grids))
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition must be one of {', '.join(CONDITIONS)}, got {self.condition!r}")
        if self.n_heads < 1 or self.dim % self.n_heads or self.head_dim % 4:
            raise ValueError(
                f"{self.n_heads} heads do not fit {self.dim} dimensions: the head size must be a multiple of 4"
            )
        if self.condition == "class" and self.cond_len != 1:
            raise ValueError(f"a class is one prefix slot, got cond_len {self.cond_len}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LlamaGenConfig:
        return cls(**{**values, "grids": tuple(values["grids"])})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "grids": list(self.grids)}


class LlamaGen(ARModel):
    """A LlamaGen transformer. Its prefix is not rotated but made zero, as it was trained."""

    config_class = LlamaGenConfig
    zero_prefix: ClassVar[bool] = True
    null_caption: Tensor

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config: LlamaGenConfig = config
        c = config
        if c.condition == "class":
            self.class_embedding = nn.Embedding(c.n_classes + 1, c.dim)
        else:
            self.caption_in = nn.Linear(c.cond_dim, c.dim, bias=False)
            self.caption_out = nn.Linear(c.dim, c.dim, bias=False)
            self.register_buffer("null_caption", torch.zeros(c.cond_len, c.cond_dim))
        self.tok_embeddings = nn.Embedding(c.vocab_size, c.dim)
        self.blocks = self.stack(c)
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.output = Linear(c.dim, c.vocab_size)
        # Not buffers: they stay in float32 when the weights are moved to another type.
        self._rotary: dict[tuple[int, torch.device], Tensor] = {}

    def rotary(self, grid: int) -> Tensor:
        key = (grid, self.device)
        if key not in self._rotary:
            c = self.config
            # Kept for training as well, which may not use what was made in inference mode.
            with torch.inference_mode(False):
                table = rotary_table(grid, c.cond_len, c.head_dim, c.rope_base, zero_prefix=True)
                self._rotary[key] = table.to(key[1])
        return self._rotary[key]

    def embed_prefix(self, cond: Tensor, grid: int) -> Tensor:
        """Embed class ids int64 [B, 1, 1], or caption features [B, cond_len, cond_dim] -> [B, cond_len, dim].

        Caption features of zeros are the unconditional branch: the learned null caption takes their place. A caption
        holds at least its end token, so no caption has them.
        """
        if self.config.condition == "class":
            return self.class_embedding(cond[..., 0])
        empty = ~cond.flatten(1).any(dim=1)[:, None, None]
        features = torch.where(empty, self.null_caption, cond.to(self.null_caption.dtype))
        return self.caption_out(F.gelu(self.caption_in(features), approximate="tanh"))

    def position_embedding(self, grid: int, prefix: int | None = None) -> None:
        return None
