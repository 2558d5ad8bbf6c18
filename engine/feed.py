"""What a decoder asks of the runner, and what it gets: tokens to feed at slots, logits, tokens drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import Lane
from .sampling import Logits, Noise, SamplingParams


@dataclass(frozen=True)
class Draw:
    """Sample a token from each of the logits that a feed returns.

    Args:
        noise: of the request and the purpose.
        positions: raster positions of the tokens to sample, one for each row of logits.
        params: how.
    """

    noise: Noise
    positions: Sequence[int]
    params: SamplingParams


@dataclass(frozen=True)
class Tree:
    """Where the tokens of a draft tree lie, and what they see of one another.

    Args:
        start: raster position whose slot holds the first token; the others lie behind it, wherever in the picture they
            belong. All of them see everything before it.
        block: int32 [n, ceil(n / 32)], see `kernels.masks.pack`.
    """

    start: int
    block: Tensor


@dataclass(frozen=True)
class Feed:
    """Tokens of one lane to run through the model; their keys and values overwrite what stood at their slots.

    Args:
        lane: whose.
        tokens: int64 [n], or None for the condition prefix, which every lane is fed first.
        positions: raster positions of the tokens; a `range` of step 1 needs no mask.
        logits: "all" for the logits that follow each token, "last" for those after the last one, "none" to write the
            cache only, or the indices of the tokens whose logits are wanted.
        role: what the tokens are counted as.
        draw: sample from the logits in the same call.
        tree: the tokens are nodes of a draft tree; `positions` may then repeat.
        features: for a feature drafter, [branches, n, dim], what came before each token.
        keep: return the features behind the wanted tokens too.
        dtype: type of the layers' activations and weights for these tokens; None is the model's own. Keys and values
            stay in the cache's.
    """

    lane: Lane
    tokens: Tensor | None
    positions: Sequence[int] = range(0)
    logits: str | Sequence[int] = "all"
    role: str = "serial"
    draw: Draw | None = None
    tree: Tree | None = None
    features: Tensor | None = None
    keep: bool = False
    dtype: torch.dtype | None = None

    @property
    def narrowed(self) -> torch.dtype | None:
        """The type that differs from the cache's, if one was asked for."""
        return None if self.dtype == self.lane.cache.k[0].dtype else self.dtype

    @property
    def count(self) -> int:
        """Number of tokens fed."""
        return self.lane.cond_len if self.tokens is None else len(self.positions)

    def wanted(self) -> Sequence[int]:
        """Indices of the tokens whose logits are wanted."""
        if self.tokens is None or self.logits == "last":
            return [self.count - 1]
        if isinstance(self.logits, str):
            return range(self.count) if self.logits == "all" else []
        return self.logits


@dataclass(frozen=True)
class Result:
    """Logits float32 [n, V] of both branches, the tokens int64 [n] drawn from them, and the features [branches, n, dim]
    that they were read from; None where not asked for."""

    logits: Logits | None
    tokens: Tensor | None
    features: Tensor | None = None
