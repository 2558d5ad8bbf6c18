"""What the engine asks of an autoregressive model, whatever its kind.

Slot layout of every sequence: a condition prefix, then the image tokens in raster order; the logits of image token i
come from the slot before it, and the last image token is never needed as an input. A kind differs in how it embeds its
condition and in how a token knows its place: a rotation, an added embedding, or both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from ..layout import Layout
from .layers import Attend, Block, run_layers, whole


class ARConfig(Protocol):
    """Sizes that the KV cache and the decoders need; `grids` are the sides, in tokens, that a model serves."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def cond_len(self) -> int: ...
    @property
    def ffn_dim(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def grids(self) -> tuple[int, ...]: ...
    def to_dict(self) -> dict[str, Any]: ...


class ARModel(nn.Module, ABC):
    """Pre-norm blocks between a token embedding and an output head.

    Attributes:
        zero_prefix: queries and keys of the prefix are zero vectors, so that every token weighs the prefix alike.
        config_class: the class of `config`, with `from_dict` and `to_dict`.
    """

    zero_prefix: ClassVar[bool] = False
    config_class: ClassVar[Any]
    config: ARConfig
    tok_embeddings: nn.Embedding
    blocks: nn.ModuleList
    norm: nn.Module
    output: nn.Linear

    def stack(
        self, config: ARConfig, *, n_kv_heads: int = 0, bias: bool = False, qk_norm: bool = False
    ) -> nn.ModuleList:
        """The transformer blocks of a configuration; for the options see `layers.Block`."""
        c = config
        return nn.ModuleList(
            Block(
                c.dim, c.n_heads, c.head_dim, c.ffn_dim, c.norm_eps, n_kv_heads=n_kv_heads, bias=bias, qk_norm=qk_norm
            )
            for _ in range(c.n_layers)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.output.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.output.weight.device

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values."""
        return cast("Block", self.blocks[0]).n_kv_heads

    def run(self, x: Tensor, attend: Attend) -> Tensor:
        """Embedded tokens [B, Q, dim] through every layer -> features [B, Q, dim], before the final norm.

        Args:
            x: what `embed_prefix` gave, or token embeddings with what their positions add.
            attend: how the tokens attend, by layer.
        """
        return run_layers(self.blocks, x, attend)

    @abstractmethod
    def rotary(self, grid: int) -> Tensor | None:
        """Float32 rotary table [cond_len + grid*grid, head_dim/2, 2] of a grid (cos, sin) by slot, or None."""

    @abstractmethod
    def embed_prefix(self, cond: Tensor, grid: int) -> Tensor:
        """Embed condition features [B, T, ...] for the prefix slots -> [B, T, dim]."""

    @abstractmethod
    def position_embedding(self, grid: int, prefix: int | None = None) -> Tensor | None:
        """What is added to the token at every raster position -> [grid*grid, dim], or None for nothing.

        Args:
            grid: side in tokens.
            prefix: slots of the condition, where they are not `config.cond_len`.
        """

    def layout(self, grid: int) -> Layout:
        """Where the tokens of an image of this side stand behind the condition."""
        return Layout((grid,))

    def visible(self, cond: Tensor, grid: int) -> Tensor | None:
        """Which prefix slots other slots may see, where the condition itself says so: bool [B, T] on the CPU, each row
        a run of False before a run of True; None where it does not."""
        return None

    def embed_global(self, cond: Tensor, grid: int) -> Tensor | None:
        """What image tokens get of condition features [B, T, ...], all the same -> [B, 1, dim], or each its own by
        raster position -> [B, grid*grid, dim]; None for nothing."""
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and output head: [..., dim] -> float32 logits [..., V]."""
        return self.output(self.norm(hidden)).float()

    def forward(self, cond: Tensor, tokens: Tensor, grid: int, prefix_mask: Tensor | None = None) -> Tensor:
        """Teacher-forced logits, the definition that every cached path must match.

        Args:
            cond: condition features [B, T, ...].
            tokens: int64 [B, n] image tokens in raster order, n <= grid*grid.
            grid: side length in tokens.
            prefix_mask: bool [B, T], prefix slots that other slots may see; None is all.

        Returns:
            float32 logits [B, n, V]; row i predicts token i from the condition and tokens before i.
        """
        hidden = self.hidden(cond, tokens, grid, prefix_mask)
        return self.logits(hidden[:, hidden.shape[1] - tokens.shape[1] :])

    def hidden(self, cond: Tensor, tokens: Tensor, grid: int, prefix_mask: Tensor | None = None) -> Tensor:
        """Features [B, T + n - 1, dim] of every slot, before the final norm; arguments as for `forward`."""
        n = tokens.shape[1]
        image = self.tok_embeddings(tokens[:, :-1])
        position = self.position_embedding(grid, cond.shape[1])
        if position is not None:
            image = image + position[: n - 1]
        everywhere = self.embed_global(cond, grid)
        if everywhere is not None:
            image = image + everywhere[:, : max(1, n - 1)]
        prefix = self.embed_prefix(cond, grid)
        x = torch.cat([prefix.to(image.dtype), image], dim=1)
        table = self.rotary(grid)
        mask = None if prefix_mask is None else masked(prefix_mask, x.shape[1])
        return self.run(x, whole(None if table is None else table[: x.shape[1]], mask))


def masked(prefix_mask: Tensor, slots: int) -> Tensor:
    """Causal mask bool [B, 1, slots, slots] without the hidden prefix slots, which see themselves alone."""
    batch, length = prefix_mask.shape
    seen = torch.ones(batch, slots, dtype=torch.bool, device=prefix_mask.device)
    seen[:, :length] = prefix_mask
    causal = torch.ones(slots, slots, dtype=torch.bool, device=prefix_mask.device).tril()
    itself = torch.eye(slots, dtype=torch.bool, device=prefix_mask.device)
    return ((causal & seen[:, None]) | itself)[:, None]
