"""Language models that write images: text and image codes in one sequence (Janus-Pro, Emu3, GLM-Image's AR stage).

One network serves them, for they differ in few things: grouped queries and biases, norms behind attention and
feed-forward, how positions turn (one coordinate or three), what stands between codes and the residual stream, and the
layout of the image. It holds what drawing takes: the embedding of text for the condition, an embedding and an output
row for each image code, and none of the rest of the vocabulary, so that no other token can be drawn.

Sources: Llama (arXiv 2302.13971), Janus-Pro (arXiv 2501.17811), Emu3 (arXiv 2409.18869), and for three-part rotary
positions Qwen2-VL (arXiv 2409.12191); written from the architectures' facts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layout import Layout
from .ar_model import ARModel, masked
from .layers import Block, RMSNorm, whole
from .linear import Linear

# What stands in a prefix where there is no text token.
PADDING = -1


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of a language model that writes images.

    Args:
        vocab_size: image codes.
        text_vocab: rows of the text embedding.
        dim, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim, norm_eps: of the layers.
        cond_len: most text tokens in front of an image.
        grids: sides in codes that are served.
        rope_base: of the rotary positions.
        bias: whether q, k and v have biases.
        sandwich: whether attention and feed-forward are normalised once more before they are added.
        rotary_dim: how many elements of a head turn; 0 is all.
        sections: pairs that turn by the temporal, vertical, horizontal coordinate, and so on in turn; empty for one
            coordinate.
        output_dim: width of a layer between the features and the output; 0 is none.
        row_ends: whether a row of codes ends with a token of its own.
        first_grid: side of a grid that is written before the image; 0 is none.
    """

    vocab_size: int
    text_vocab: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    cond_len: int
    grids: tuple[int, ...]
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    bias: bool = False
    sandwich: bool = False
    rotary_dim: int = 0
    sections: tuple[int, ...] = ()
    output_dim: int = 0
    row_ends: bool = False
    first_grid: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", tuple(sorted(self.grids)))
        object.__setattr__(self, "sections", tuple(self.sections))
        for name in ("vocab_size", "text_vocab", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.cond_len < 1 or not self.grids or min(self.grids) < 1 or self.first_grid < 0:
            raise ValueError(
                f"a model needs a prefix of at least 1 token and grids of at least 1 code a side, got cond_len "
                f"{self.cond_len}, grids {list(self.grids)}, first_grid {self.first_grid}"
            )
        if self.turned % 2 or self.turned > self.head_dim:
            raise ValueError(f"rotary_dim must be even and at most the head's {self.head_dim}, got {self.turned}")
        if self.sections and sum(self.sections) != self.turned // 2:
            raise ValueError(f"sections must sum to the {self.turned // 2} pairs that turn, got {list(self.sections)}")

    @property
    def turned(self) -> int:
        """Elements of a head that turn."""
        return self.rotary_dim or self.head_dim

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LanguageConfig:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "grids": list(self.grids), "sections": list(self.sections)}


class LanguageModel(ARModel):
    """A language model that writes images.

    Conditions are text tokens int64 [B, T, G], the prompt for each of the G grids in ascending order, with `PADDING`
    in front of shorter ones: some prompts name the size of the image.
    """

    config_class = LanguageConfig

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config: LanguageConfig = config
        c = config
        self.text_embeddings = nn.Embedding(c.text_vocab, c.dim)
        # The end of a row is the token behind the last code.
        self.tok_embeddings = nn.Embedding(c.vocab_size + c.row_ends, c.dim)
        sizes = (c.dim, c.n_heads, c.head_dim, c.ffn_dim, c.norm_eps)
        self.blocks = nn.ModuleList(
            Block(*sizes, n_kv_heads=c.n_kv_heads, bias=c.bias, sandwich=c.sandwich) for _ in range(c.n_layers)
        )
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.output_in = Linear(c.dim, c.output_dim, bias=True) if c.output_dim else None
        self.output = Linear(c.output_dim or c.dim, c.vocab_size, bias=bool(c.output_dim))

    def layout(self, grid: int) -> Layout:
        first = self.config.first_grid
        return Layout((first, grid) if first else (grid,), self.config.row_ends)

    def text(self, cond: Tensor, grid: int) -> Tensor:
        """The prompt of a grid, int64 [B, T], of conditions [B, T, G]; ValueError lists the grids."""
        grids = self.config.grids
        if grid not in grids:
            raise ValueError(f"this model has no {grid}x{grid} grid; it has {list(grids)}")
        return cond[..., grids.index(grid)]

    def visible(self, cond: Tensor, grid: int) -> Tensor:
        return (self.text(cond, grid) != PADDING).cpu()

    def rotary(self, grid: int) -> Tensor:
        """Cosines and sines float32 [cond_len + slots, head_dim / 2, 2]; of pairs that do not turn, 1 and 0."""
        c, layout = self.config, self.layout(grid)
        # Kept for training as well, which may not use what was made in inference mode.
        with torch.inference_mode(False):
            prefix = torch.arange(c.cond_len)[:, None].expand(-1, 3)
            if c.sections:
                behind = layout.coordinates() + c.cond_len
            else:
                behind = torch.arange(c.cond_len, c.cond_len + layout.slots)[:, None].expand(-1, 3)
            where = torch.cat([prefix, behind]).double()
            pairs = c.turned // 2
            axis = torch.zeros(pairs, dtype=torch.long)
            if c.sections:
                turns = [torch.full((n,), i % 3) for i, n in enumerate(c.sections)]
                axis = torch.cat(turns)
            frequency = c.rope_base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
            angle = F.pad(where[:, axis] * frequency, (0, c.head_dim // 2 - pairs))
            return torch.stack([angle.cos(), angle.sin()], dim=-1).float().to(self.device)

    def embed_prefix(self, cond: Tensor, grid: int) -> Tensor:
        return self.text_embeddings(self.text(cond, grid).clamp(min=0))

    def position_embedding(self, grid: int, prefix: int | None = None) -> None:
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        x = self.norm(hidden)
        if self.output_in is not None:
            x = F.gelu(self.output_in(x))
        return self.output(x).float()

    def hidden(self, cond: Tensor, tokens: Tensor, grid: int, prefix_mask: Tensor | None = None) -> Tensor:
        """Features [B, T + m, dim] of the prefix and of the m slots before the last code; see `ARModel.hidden`."""
        fed, _ = self.layout(grid).sequence(tokens[:, :-1], self.config.vocab_size)
        x = torch.cat([self.embed_prefix(cond, grid), self.tok_embeddings(fed)], dim=1)
        seen = self.visible(cond, grid).to(x.device)
        if prefix_mask is not None:
            seen = seen & prefix_mask
        return self.run(x, whole(self.rotary(grid)[: x.shape[1]], masked(seen, x.shape[1])))

    def forward(self, cond: Tensor, tokens: Tensor, grid: int, prefix_mask: Tensor | None = None) -> Tensor:
        """Teacher-forced logits float32 [B, n, V] of codes int64 [B, n], in the order of the layout's positions: where
        a grid is written before the image, its codes come first."""
        hidden = self.hidden(cond, tokens, grid, prefix_mask)
        _, last = self.layout(grid).sequence(tokens[:, :-1], self.config.vocab_size)
        before = last.new_tensor([cond.shape[1] - 1])
        return self.logits(hidden[:, torch.cat([before, last + cond.shape[1]])])
